"""What goes into a planner and what comes out: the action space, plans, statistics, warm starts.

Legend: B episodes, S candidate plans, H steps, K elites, P planned action dimensions (3 to 5). A full action is
float [7]: dx, dy, dz (m), rotation about the base's axes (rad), closedness delta, over one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from armworld.types import check_numbers

YAW, GRIPPER = 5, 6  # places in the 7-D action


class PlanningError(RuntimeError):
    """No plan could be made; the message says why. The episode is to be marked failed with it."""


@dataclass(frozen=True)
class ActionSpace:
    """The planned dimensions of an action and their bounds per step: dx, dy, dz, [d yaw], [d gripper].

    Attributes:
        max_position: Bound per axis (m).
        max_norm: Bound on the Euclidean length of (dx, dy, dz) (m), or None.
        max_yaw: Bound on the rotation about the base's z axis (rad); 0 leaves rotation out (held at 0).
        max_gripper: Bound on the closedness delta; 0 leaves the gripper out (held as it is), e.g. for reaching.
        gripper_deadband: Gripper deltas smaller than this are evaluated, and so executed, as 0.
        stroke: Gripper deltas end where the fingers do, at closedness 0 and 1. Without it (as published) a model may
            believe in opening fingers that are open.
    """

    max_position: float = 0.075
    max_norm: float | None = None
    max_yaw: float = 0.0
    max_gripper: float = 0.75
    gripper_deadband: float = 0.0
    stroke: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "max_position", "max_norm", above=0)
        check_numbers(self, "max_yaw", "max_gripper", "gripper_deadband", least=0)

    @property
    def columns(self) -> tuple[int, ...]:
        """Places of the planned dimensions in the 7-D action, [P]."""
        return (0, 1, 2, *((YAW,) if self.max_yaw else ()), *((GRIPPER,) if self.max_gripper else ()))

    @property
    def limits(self) -> tuple[float, ...]:
        """Bound of each planned dimension, [P]."""
        bound = {YAW: self.max_yaw, GRIPPER: self.max_gripper}
        return tuple(bound.get(column, self.max_position) for column in self.columns)

    def per_dimension(self, position: float, gripper: float, like: Tensor) -> Tensor:
        """A value per planned dimension [P]: `gripper` for the gripper, `position` for the rest."""
        return like.new_tensor([gripper if column == GRIPPER else position for column in self.columns])

    def clip(self, plans: Tensor) -> Tensor:
        """Plans [..., P] brought inside the bounds."""
        limits = plans.new_tensor(self.limits)
        plans = plans.clamp(-limits, limits)
        if self.max_norm is not None:
            length = torch.linalg.vector_norm(plans[..., :3], dim=-1, keepdim=True)
            shrink = (self.max_norm / length.clamp_min(1e-12)).clamp_max(1)
            plans = torch.cat([plans[..., :3] * shrink, plans[..., 3:]], -1)
        return self.round_gripper(plans, self.gripper_deadband)

    def round_gripper(self, plans: Tensor, threshold: float) -> Tensor:
        """Plans [..., P] with gripper deltas of magnitude below `threshold` set to 0."""
        if not threshold or not self.max_gripper:
            return plans
        grip = plans[..., -1:]
        return torch.cat([plans[..., :-1], grip * (grip.abs() >= threshold)], -1)

    def within_stroke(self, actions: Tensor, closedness: Tensor) -> Tensor:
        """Actions [B, ..., H, 7] that keep the gripper between open and closed, from closedness [B] on."""
        if not self.stroke or not self.max_gripper:
            return actions
        here = closedness.to(actions).view(-1, *(1,) * (actions.ndim - 3)).expand(actions.shape[:-2])
        deltas = []
        for wanted in actions[..., GRIPPER].unbind(-1):
            after = (here + wanted).clamp(0, 1).where(wanted != 0, here)  # a measured -0.01 is no reason to move
            deltas.append(after - here)
            here = after
        return torch.cat([actions[..., :GRIPPER], torch.stack(deltas, -1)[..., None]], -1)

    def expand(self, plans: Tensor) -> Tensor:
        """Actions [..., 7] of plans [..., P]; the dimensions not planned are 0."""
        actions = plans.new_zeros(*plans.shape[:-1], 7)
        actions[..., list(self.columns)] = plans
        return actions

    def compress(self, actions: Tensor) -> Tensor:
        """Plans [..., P] of actions [..., 7]; the dimensions not planned are dropped."""
        return actions[..., list(self.columns)]


@dataclass(frozen=True)
class Iteration:
    """One iteration's costs (mean over the episodes that have a finite one) and, if recorded, its candidates."""

    samples: int  # per episode
    best: float  # lowest cost of this iteration
    mean: float  # over finite costs
    best_so_far: float
    nonfinite: int
    actions: Tensor | None = field(default=None, repr=False)  # [B,S,H,7]
    cost: Tensor | None = field(default=None, repr=False)  # [B,S], inf where not finite


@dataclass(frozen=True)
class Statistics:
    """Per-iteration statistics of one call of `plan`."""

    iterations: tuple[Iteration, ...]
    evaluated: int  # candidate rollouts over all episodes
    nonfinite: int  # candidates whose energy was NaN or infinite, treated as +inf
    hold_cost: Tensor | None  # [B], energy of holding still, where it was a candidate
    stopped_early: bool  # the time budget ended the search


@dataclass(frozen=True)
class Plan:
    """A plan for each of B episodes.

    Attributes:
        actions: [B, H, 7], inside the bounds, in the units and frame of the state.
        cost: [B], energy of `actions`.
        hold: bool [B], True where the plan is to hold still.
        lost: bool [B], True where no candidate had a finite energy: such an episode's plan is to hold still, its cost
            is infinite, and it is for the caller to end it.
        statistics: Statistics per iteration.
        elites: [B, K, H, 7], best first, for the next call's warm start, or None.
    """

    actions: Tensor
    cost: Tensor
    hold: Tensor
    lost: Tensor
    statistics: Statistics
    elites: Tensor | None = None


@dataclass(frozen=True)
class WarmStart:
    """What a planner may start from: actions [B, H, 7] and, where kept, elites [B, K, H, 7]."""

    actions: Tensor
    elites: Tensor | None = None


def shift(plan: Plan, steps: int, repeat_last: bool = False) -> WarmStart:
    """The plan `steps` executed steps later: the rest of it, then zeros or its last action repeated.

    Elites of which nothing is left (steps >= H, zeros behind) are dropped.
    """

    def moved(actions: Tensor) -> Tensor:
        count = min(steps, actions.shape[-2])
        tail = actions[..., -1:, :].expand(*actions.shape[:-2], count, actions.shape[-1])
        return torch.cat([actions[..., count:, :], tail if repeat_last else torch.zeros_like(tail)], -2)

    spent = steps >= plan.actions.shape[1] and not repeat_last
    return WarmStart(moved(plan.actions), None if plan.elites is None or spent else moved(plan.elites))
