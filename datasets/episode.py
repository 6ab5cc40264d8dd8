"""One recorded episode in memory: T rows, each a moment's state, images and the action sent then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


class EpisodeError(ValueError):
    """An episode that cannot be read or written; the message names its path and what is wrong."""


@dataclass(frozen=True)
class Episode:
    """An episode of T rows; row i's frame, state and action belong to the same moment.

    Attributes:
        states: float64 [T, 7]; reached flange pose (m, rad) and gripper closedness, robot base frame.
        actions: float64 [T, 7]; the deltas sent at each row, over one step. The last row is zero.
        frames: Camera name -> uint8 [T, H, W, 3] RGB.
        extrinsics: Camera name -> float64 [T, 6]; camera pose in the base frame (m, extrinsic-xyz Euler rad).
        joint_positions: float64 [T, 7] rad.
        joint_velocities: float64 [T, 7] rad/s.
        step_seconds: Time between rows.
        lab: Name of the lab (the top folder).
        seed: The seed that reproduces the episode, or None where there is none (real robots, imports).
        success: Whether the task's predicate held at the end.
        task: The task in words.
        details: JSON-able extras: randomisation draws, behaviour, level, goal.
        simulation: Name -> array [T, ...]: simulator states, contact flags; empty for real data.
        original: Key in the file that an import read -> array [T, ...]: what this layout has no place for.
    """

    states: np.ndarray
    actions: np.ndarray
    frames: dict[str, np.ndarray]
    extrinsics: dict[str, np.ndarray]
    joint_positions: np.ndarray
    joint_velocities: np.ndarray
    step_seconds: float
    lab: str
    seed: int | None
    success: bool
    task: str
    details: dict[str, Any] = field(default_factory=dict)
    simulation: dict[str, np.ndarray] = field(default_factory=dict)
    original: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.states)
        expected = {
            "states": (self.states, (rows, 7)),
            "actions": (self.actions, (rows, 7)),
            "joint_positions": (self.joint_positions, (rows, 7)),
            "joint_velocities": (self.joint_velocities, (rows, 7)),
            **{f"extrinsics[{name}]": (array, (rows, 6)) for name, array in self.extrinsics.items()},
        }
        for name, (array, shape) in expected.items():
            if array.shape != shape:
                raise EpisodeError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")
            if not np.isfinite(array).all():
                raise EpisodeError(f"{name} holds NaN or infinity in row {np.argwhere(~np.isfinite(array))[0][0]}")
        for name, array in (self.frames | self.simulation | self.original).items():
            if len(array) != rows:
                raise EpisodeError(f"{name} has {len(array)} rows, the states have {rows}")
        if set(self.frames) != set(self.extrinsics):
            raise EpisodeError(f"cameras {sorted(self.frames)} need extrinsics, got {sorted(self.extrinsics)}")
        if rows < 2 or not self.frames or self.step_seconds <= 0:
            raise EpisodeError(
                f"an episode needs >= 2 rows, >= 1 camera and a positive step, got {rows} rows, "
                f"cameras {sorted(self.frames)}, step_seconds {self.step_seconds}"
            )

    def __len__(self) -> int:
        return len(self.states)
