"""Visual servoing on the readout: straight to the hand that is read in the goal, with nothing imagined.

The control of every planner that uses the aligned energy, and what is left where a camera stands so far from the
training views that imagination fails but the hand is still read in order. There a few moves calibrate the reading: the
arm knows its own states, so an affine map takes what is read to where the hand was (`fit_reading`); no pose of the
camera is used, no marker and no goal. The law is that of position-based visual servoing: every step is a share `gain`
of the way that is left (Chaumette and Hutchinson, "Visual servo control, part I", IEEE Robotics & Automation Magazine
13(4), 2006).

Legend: B episodes, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from armworld.planners.objectives import AlignedL1
from armworld.planners.plans import GRIPPER, YAW, Plan
from armworld.planners.sampling import Planner, PlannerConfig, Search
from armworld.worldmodel.readout import hand_distance

RIDGE = 1e-3  # m^2: keeps directions in which the hand did not move from being believed


@dataclass(frozen=True)
class ServoConfig(PlannerConfig):
    """How far a step goes, and what readings mean.

    Attributes:
        gain: Share of the way that a step takes; below 1 where a reading changes more than the hand moves.
        reading_map: Row-major [3, 4]: the affine map from read positions to positions in the base frame (m), as
            `fit_reading` answers it; None takes readings as they are.
    """

    gain: float = 0.7
    reading_map: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gain <= 1:
            raise ValueError(f"gain must lie in (0, 1], got {self.gain}")
        if self.steps != 1:
            raise ValueError(f"servoing looks one step ahead; got horizon {self.horizon} and repeat {self.repeat}")
        if self.reading_map is not None and (
            len(self.reading_map) != 12 or not np.isfinite(np.asarray(self.reading_map)).all()
        ):
            raise ValueError(f"reading_map must be 12 finite numbers, a row-major [3, 4], got {self.reading_map}")

    def calibrated(self, read: Tensor, states: Tensor | np.ndarray) -> ServoConfig:
        """With the map that recorded readings [T, 6] and states [T, 7] tell; see `fit_reading`."""
        return replace(self, reading_map=fit_reading(read.detach().cpu(), states))


class Servo(Planner[ServoConfig]):
    """A share of the way from the hand read in the present frame to the one read in the goal."""

    def __init__(self, config: ServoConfig | None = None) -> None:
        self.config = config or ServoConfig()

    def optimise(self, search: Search, generator: torch.Generator, start: Tensor, elites: Tensor | None) -> Plan:
        """One step; its cost is the aligned energy's distance as it is left if the hand goes where it is sent."""
        objective = search.objective
        if not isinstance(objective, AlignedL1):
            raise ValueError("servoing needs the aligned objective, and so a model with a readout (armworld align)")
        wanted = objective.readout(search.goal.z) if search.goal.hand is None else search.goal.hand
        here, there = self._mapped(objective.readout(search.z[:, -1])), self._mapped(wanted)
        action = here.new_zeros(len(here), 7)
        way = self.config.gain * (there[:, :3] - here[:, :3])
        longest = way.abs().amax(-1, keepdim=True).clamp_min(1e-9)
        action[:, :3] = way * (search.space.max_position / longest).clamp_max(1)  # shorter, in the same direction
        turn = torch.atan2(there[:, 4], there[:, 3]) - torch.atan2(here[:, 4], here[:, 3])
        action[:, YAW] = self.config.gain * torch.atan2(turn.sin(), turn.cos())
        closing = objective.closing(here[:, None], there[:, None], search.state[:, -1:].to(here), search.goal)[:, 0]
        action[:, GRIPPER] = closing
        plans = search.space.clip(search.space.compress(action))[:, None, None]
        plans = torch.cat([torch.zeros_like(plans), plans], 1)
        costs = torch.stack(
            [self._left(objective, search, here, there, closing, plan) for plan in plans[:, :, 0].unbind(1)], dim=1
        )
        costs = search.note(plans, costs)
        search.hold_cost = costs[:, 0] if self.config.hold_candidate else None
        return search.finish(plans[:, 1], costs[:, 1])

    def _mapped(self, read: Tensor) -> Tensor:
        """Readings [B, 6] with their positions in the base frame."""
        if self.config.reading_map is None:
            return read
        affine = read.new_tensor(self.config.reading_map).view(3, 4)
        return torch.cat([read[:, :3] @ affine[:, :3].T + affine[:, 3], read[:, 3:]], -1)

    def _left(
        self, objective: AlignedL1, search: Search, here: Tensor, there: Tensor, closing: Tensor, plan: Tensor
    ) -> Tensor:
        """weight * d [B] after the step `plan` [B, P]; `closing` [B] is the closedness that was left before it."""
        action = search.space.expand(plan)
        heading = torch.atan2(here[:, 4], here[:, 3]) + action[:, YAW]
        after = torch.stack([heading.cos(), heading.sin(), here[:, 5]], -1)
        after = torch.cat([here[:, :3] + action[:, :3], after], -1)
        straight = search.goal.hand is not None
        hand = hand_distance(after, there, objective.yaw_metres, 0.0, straight=straight)
        grip = (closing - action[:, GRIPPER]).abs()
        return objective.weight * (hand + objective.grip_metres * grip)


def fit_reading(read: Tensor | np.ndarray, states: Tensor | np.ndarray, ridge: float = RIDGE) -> tuple[float, ...]:
    """The affine map from read positions to the arm's own, by ridge regression around their means.

    Args:
        read: Readings [T, 6] of recorded frames.
        states: The arm's states [T, 7] there; T >= 5.
        ridge: Added to the scatter of the readings (m^2).

    Returns:
        `ServoConfig.reading_map`.

    Raises:
        ValueError: Too few frames, shapes that do not fit, or values that are not finite.
    """
    seen, true = (np.asarray(part, np.float64) for part in (read, states))
    if seen.ndim != 2 or seen.shape[1] != 6 or true.shape != (len(seen), 7) or len(seen) < 5:
        raise ValueError(f"expected readings [T, 6] and states [T, 7] with T >= 5, got {seen.shape} and {true.shape}")
    if not (np.isfinite(seen).all() and np.isfinite(true).all()):
        raise ValueError("readings and states must be finite")
    seen, true = seen[:, :3], true[:, :3]
    x, y = seen - seen.mean(0), true - true.mean(0)
    linear = np.linalg.solve(x.T @ x + ridge * np.eye(3), x.T @ y).T
    offset = true.mean(0) - linear @ seen.mean(0)
    return tuple(float(value) for value in np.column_stack([linear, offset]).ravel())
