"""Training samples for goal-conditioned behaviour cloning: windows, action chunks and hindsight goals.

A sample has a present row t of an episode, the T - 1 rows before it, and a goal row g of the *same* episode, drawn
uniformly from those after t. From each row of the window hangs a chunk of K actions; an action that starts at or after
g is past the goal. Actions come from consecutive states, as everywhere in armworld.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from armworld.baselines.policy import Batch
from armworld.datasets.features import stride_for
from armworld.datasets.store import Store
from armworld.pose import action_between
from armworld.types import check_name

PAST_GOAL = ("mask", "hold")
MIN_STD = np.array([1e-3] * 6 + [0.0])  # m, rad: directions in which the data hardly move are not blown up


@dataclass(frozen=True)
class Relabelling:
    """How goals and chunks are made from an episode.

    Attributes:
        window: T, observations per sample.
        chunk: K, actions per observation.
        cap: Goals lie at most this many steps ahead; None: anywhere in the rest of the episode.
        past_goal: "mask": actions past the goal do not count (Octo). "hold": they become zeros and do count, and
            the goal may be the present frame, so that the policy learns to stay.
    """

    window: int = 2
    chunk: int = 4
    cap: int | None = 20
    past_goal: str = "mask"

    def __post_init__(self) -> None:
        check_name("treatment of actions past the goal", self.past_goal, PAST_GOAL)
        if min(self.window, self.chunk) < 1 or (self.cap is not None and self.cap < 1):
            raise ValueError(f"window, chunk and cap must be at least 1, got {self.window}, {self.chunk}, {self.cap}")

    @property
    def nearest(self) -> int:
        """The smallest distance of a goal, in steps."""
        return 0 if self.past_goal == "hold" else 1


class Draw(NamedTuple):
    """Steps within their episodes (0 = its first), all int64 but the masks.

    Attributes:
        window: [B, T], rows of the observations, 0 where the episode has not begun.
        valid: bool [B, T].
        actions: [B, T, K], rows at which the chunk's actions start, at most the last row but one.
        mask: bool [B, T, K], actions that count.
        past: bool [B, T, K], actions at or past the goal, which are zeros under "hold".
        goal: [B].
    """

    window: np.ndarray
    valid: np.ndarray
    actions: np.ndarray
    mask: np.ndarray
    past: np.ndarray
    goal: np.ndarray


def draw_goals(rng: np.random.Generator, present: np.ndarray, lengths: np.ndarray, rule: Relabelling) -> Draw:
    """Goals and chunks for the rows `present` [B] of episodes of `lengths` [B] rows.

    Raises:
        ValueError: A present row that leaves no row for its goal.
    """
    ahead = lengths - 1 - present
    if (ahead < rule.nearest).any() or (present < 0).any():
        worst = int(np.argmin(ahead))
        raise ValueError(f"row {present[worst]} of an episode of {lengths[worst]} rows has no row for its goal")
    furthest = ahead if rule.cap is None else np.minimum(ahead, rule.cap)
    goal = present + rng.integers(rule.nearest, furthest + 1)
    window = present[:, None] + np.arange(1 - rule.window, 1)
    starts = window[..., None] + np.arange(rule.chunk)
    past = starts >= goal[:, None, None]
    valid = window >= 0
    mask = valid[..., None] & (~past | (rule.past_goal == "hold"))
    last = np.maximum(lengths - 2, 0)[:, None, None]
    return Draw(window.clip(0), valid, starts.clip(0, last), mask, past, goal)


class Demonstrations:
    """Draws batches from stores of packed frames or frozen features.

    Args:
        stores: One per dataset folder.
        step_seconds: Time per step; a multiple of the rows'.
        rule: See `Relabelling`.
        keep: Which episodes, one array of numbers per store; None keeps all.

    Raises:
        ValueError: No episode is long enough, or a step that does not fit the data.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        step_seconds: float,
        rule: Relabelling,
        keep: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.stores, self.rule = list(stores), rule
        tracks = []  # one per episode and phase: store, first row, stride, length
        for index, store in enumerate(self.stores):
            stride = stride_for(store.step_seconds, step_seconds)
            for episode in np.arange(len(store.names)) if keep is None else keep[index]:
                first, end = store.offsets[episode : episode + 2]
                tracks += [(index, first + p, stride, -(-(end - first - p) // stride)) for p in range(stride)]
        self._tracks = np.array([t for t in tracks if t[3] >= 2], np.int64).reshape(-1, 4)
        self._ends = np.cumsum(self._tracks[:, 3] - rule.nearest)
        if not len(self._tracks):
            raise ValueError(f"no episode holds 2 frames {step_seconds} s apart")

    @property
    def episodes(self) -> int:
        """Episodes, counted once per phase where the step is a multiple of the rows'."""
        return len(self._tracks)

    def __len__(self) -> int:
        """Present rows."""
        return int(self._ends[-1])

    def transitions(self) -> tuple[np.ndarray, np.ndarray]:
        """All states but the last of each episode, float32 [M, 7], and the actions from them, float32 [M, 7]."""
        states, actions = [], []
        for index, first, stride, length in self._tracks:
            own = self.stores[index].states[first + stride * np.arange(length)]
            states.append(own[:-1])
            actions.append(action_between(own[:-1], own[1:]))
        return np.concatenate(states), np.concatenate(actions).astype(np.float32)

    def sample(self, rng: np.random.Generator, batch: int) -> Batch:
        """A batch drawn uniformly over present rows, with replacement. Pixels are uint8 [B, T, 3, H, W]."""
        number = rng.integers(0, len(self), batch)
        track = np.searchsorted(self._ends, number, "right")
        lengths = self._tracks[track, 3]
        present = number - (self._ends[track] - (lengths - self.rule.nearest))
        draw = draw_goals(rng, present, lengths, self.rule)
        window = self._rows(track, draw.window)
        goal = self._rows(track, draw.goal)
        states = self._states(track, np.concatenate([window, goal[:, None]], 1))
        return Batch(
            frames=self._items(track, window),
            goal=self._items(track, goal),
            states=states[:, :-1],
            goal_state=states[:, -1],
            valid=torch.from_numpy(draw.valid),
            actions=self._actions(track, draw),
            mask=torch.from_numpy(draw.mask),
        )

    def _rows(self, track: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Rows of the stores for steps [B, ...] within tracks [B]."""
        shape = (-1,) + (1,) * (steps.ndim - 1)
        return self._tracks[track, 1].reshape(shape) + self._tracks[track, 2].reshape(shape) * steps

    def _states(self, track: np.ndarray, rows: np.ndarray) -> Tensor:
        owner = self._tracks[track, 0]
        found = np.empty((*rows.shape, 7), np.float32)
        for index in np.unique(owner):
            found[owner == index] = self.stores[index].states[rows[owner == index]]
        return torch.from_numpy(found)

    def _items(self, track: np.ndarray, rows: np.ndarray) -> Tensor:
        owner = self._tracks[track, 0]
        found = None
        for index in np.unique(owner):
            values = self.stores[index].gather(rows[owner == index])
            if found is None:
                found = np.empty((len(rows), *values.shape[1:]), values.dtype)
            found[owner == index] = values
        assert found is not None, "a batch has at least one sample"
        tensor = torch.from_numpy(found)
        return tensor.movedim(-1, -3) if tensor.dtype == torch.uint8 else tensor

    def _actions(self, track: np.ndarray, draw: Draw) -> Tensor:
        here = self._states(track, self._rows(track, draw.actions))
        there = self._states(track, self._rows(track, draw.actions + 1))
        actions = action_between(here, there)
        return actions.masked_fill(torch.from_numpy(draw.past)[..., None], 0.0)


class Scales(NamedTuple):
    """z-scores of the data: actions [7] (gripper left as it is) and positions [3]."""

    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]


def measure_scales(states: np.ndarray, actions: np.ndarray) -> Scales:
    """Scales of states [M, 7] and actions [M, 7]."""

    def plain(values: np.ndarray) -> tuple[float, ...]:
        return tuple(round(float(value), 6) for value in values)

    mean, std = actions.mean(0), np.maximum(actions.std(0), MIN_STD)
    mean[6], std[6] = 0.0, 1.0
    place = states[:, :3]
    return Scales(plain(mean), plain(std), plain(place.mean(0)), plain(np.maximum(place.std(0), 1e-3)))


def choose_episodes(store: Store, successes_only: bool) -> np.ndarray:
    """Numbers of the store's episodes, all or those whose metadata say success (possibly none)."""
    numbers = np.arange(len(store.names))
    if not successes_only:
        return numbers
    return np.array([i for i in numbers if succeeded(Path(store.names[i]))], np.int64)


def succeeded(folder: Path) -> bool:
    """Whether an episode's metadata say success."""
    files = sorted(folder.glob("metadata_*.json"))
    if len(files) != 1:
        raise ValueError(f"{folder}: expected one metadata_*.json, found {len(files)}")
    return bool(json.loads(files[0].read_text()).get("success", False))
