"""Energies of imagined futures: how far each rollout ends from the goal.

An objective is a callable `(rollout, goal) -> cost [B, S]`, lower is better. Legend: B episodes, S candidate plans,
H imagined steps, N patches, D feature channels. All are frozen dataclasses; `WeightedSum` composes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from armworld.pose import action_between
from armworld.types import check_name
from armworld.worldmodel.readout import YAW_METRES, HandReadout, hand_distance

if TYPE_CHECKING:
    from armworld.worldmodel.model import Rollout

OPEN = 0.1  # closedness up to which a gripper is taken for open


@dataclass(frozen=True)
class LatentGoal:
    """What the imagined future is compared with, for B episodes.

    Attributes:
        z: Goal features [B, N, D].
        state: Goal robot state [B, 7] (m, rad, closedness; base frame), or None in image-only planning.
        start: Features of the present frame [B, N, D], for objectives that weight what has to change, or None.
        hand: A place of the hand [B, 6], as `HandReadout` reads it, that stands for a picture: the aligned objective
            goes there on a straight way and leaves `z` aside; the other objectives take no notice.
    """

    z: Tensor
    state: Tensor | None = None
    start: Tensor | None = None
    hand: Tensor | None = None


class Objective(Protocol):
    """Cost [B, S] of a rollout (z [B,S,H,N,D], state [B,S,H,7]) against a goal."""

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor: ...


@dataclass(frozen=True)
class FinalL1:
    """mean |z_H - z_goal| over the last imagined frame: the published energy."""

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        return (rollout.z[:, :, -1] - goal.z[:, None]).abs().mean((-2, -1))


@dataclass(frozen=True)
class SummedL1:
    """sum_h discount^(H-h) mean |z_h - z_goal|, h = 1..H: rewards arriving early; the last step weighs 1."""

    discount: float = 1.0

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        steps = (rollout.z - goal.z[:, None, None]).abs().mean((-2, -1))
        powers = torch.arange(steps.shape[-1] - 1, -1, -1, device=steps.device)
        return (steps * self.discount**powers).sum(-1)


@dataclass(frozen=True)
class ClosestL1:
    """min_h (1 + haste (h - 1)) mean |z_h - z_goal|, h = 1..H: how near the plan ever comes, and rather soon."""

    haste: float = 0.03

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        steps = (rollout.z - goal.z[:, None, None]).abs().mean((-2, -1))
        return (steps * (1 + self.haste * torch.arange(steps.shape[-1], device=steps.device))).amin(-1)


@dataclass(frozen=True)
class PatchWeightedL1:
    """sum_n w_n |z_n - z_goal,n| at the last frame, with w_n proportional to (|z_goal,n - z_start,n| + floor)^power.

    The weights have mean 1 over the patches; `floor` is a fraction of the mean change, so that no patch is ignored.
    Needs `goal.start`.
    """

    power: float = 1.0
    floor: float = 0.1

    def weights(self, goal: LatentGoal) -> Tensor:
        """Patch weights [B, N], mean 1 over N."""
        if goal.start is None:
            raise ValueError("PatchWeightedL1 needs goal.start, the features of the present frame; got None")
        change = (goal.z - goal.start).abs().mean(-1)
        scale = change.mean(-1, keepdim=True).clamp_min(1e-12)
        weights = (change / scale + self.floor) ** self.power
        return weights / weights.mean(-1, keepdim=True)

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        distance = (rollout.z[:, :, -1] - goal.z[:, None]).abs().mean(-1)
        return (distance * self.weights(goal)[:, None]).mean(-1)


@dataclass(frozen=True)
class AlignedL1:
    """mean |z_H - z_goal| + weight * d(r(z_H), r(z_goal)), where r reads the hand from features (`HandReadout`).

    d is in metres (`readout.hand_distance`). Both sides are read from images, but for the gripper with `goal_gripper`.

    Attributes:
        weight: Per metre. Feature maps a few centimetres apart differ by 0.1 to 0.3, so 6 lets the readout lead and the
            features decide what it cannot tell: the last millimetres and where objects are.
        yaw_metres, grip_metres: What a radian of yaw and a whole stroke of the gripper count for.
        goal_gripper: Compare the imagined closedness with the one recorded in the goal, instead of what is read from
            both images: fingers that meet a cup have moved by a pixel and a half.
        closed_enough: Fingers that are closed further than the goal's, where those are not open, are right. For a
            closedness that was read from an image: fingers that hold an object must not open to correct the reading.
    """

    readout: HandReadout
    weight: float = 6.0
    yaw_metres: float = YAW_METRES
    grip_metres: float = 0.15
    goal_gripper: bool = False
    closed_enough: bool = False

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        z, state = rollout.z[:, :, -1], rollout.state[:, :, -1]
        distance = self.weight * self.distance(z, state, goal)
        return distance if goal.hand is not None else distance + (z - goal.z[:, None]).abs().mean((-2, -1))

    def distance(self, z: Tensor, state: Tensor, goal: LatentGoal) -> Tensor:
        """d of features [B, S, N, D] and robot states [B, S, 7] from the goal: [B, S] (m)."""
        hand, grip = self.gaps(z, state, goal)
        return hand + self.grip_metres * grip

    def gaps(self, z: Tensor, state: Tensor, goal: LatentGoal) -> tuple[Tensor, Tensor]:
        """The two parts of d: hand [B, S] (m, the yaw included) and gripper [B, S] (share of the stroke)."""
        read, wanted = self.readout(z), (self.readout(goal.z) if goal.hand is None else goal.hand)[:, None]
        hand = hand_distance(read, wanted, self.yaw_metres, 0.0, straight=goal.hand is not None)
        return hand, self.closing(read, wanted, state, goal).abs()

    def closing(self, read: Tensor, wanted: Tensor, state: Tensor, goal: LatentGoal) -> Tensor:
        """The closedness [B, S] left to do: readings [B, S, 6], wanted ones [B, 1, 6], robot states [B, S, 7]."""
        if not self.goal_gripper:
            return (wanted - read)[..., 5]
        if goal.state is None:
            raise ValueError("goal_gripper needs goal.state [B, 7], the goal's robot state; got None")
        closed = goal.state[:, None, 6].to(state)
        grip = closed - state[..., 6]
        if self.closed_enough:
            grip = torch.where(closed > OPEN, grip.clamp_min(0), grip)
        return grip


@dataclass(frozen=True)
class RobotState:
    """position |dp| + rotation |angle| + gripper |dc| between the last imagined state and the goal's (m, rad, 0..1).

    It reads the goal's robot state, so a planner that uses it is no longer image-only; `LatentGoal.state` must be set.
    """

    position: float = 1.0
    rotation: float = 0.0
    gripper: float = 0.1

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        if goal.state is None:
            raise ValueError("RobotState needs goal.state [B, 7], the goal's robot state; got None")
        state, target = rollout.state[:, :, -1], goal.state[:, None].to(rollout.state)
        cost = self.position * torch.linalg.vector_norm(state[..., :3] - target[..., :3], dim=-1)
        cost = cost + self.gripper * (state[..., 6] - target[..., 6]).abs()
        if self.rotation:
            # The Euler vector's length equals the angle to first order, which is where a goal cost must be right.
            turn = action_between(state, target.expand_as(state))[..., 3:6]
            cost = cost + self.rotation * torch.linalg.vector_norm(turn, dim=-1)
        return cost


@dataclass(frozen=True)
class WeightedSum:
    """sum_i weight_i objective_i, from (weight, objective) pairs."""

    terms: tuple[tuple[float, Objective], ...]

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        if not self.terms:
            raise ValueError("WeightedSum needs at least one (weight, objective) pair; got none")
        costs = [weight * objective(rollout, goal) for weight, objective in self.terms]
        return torch.stack(costs).sum(0)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "final": FinalL1,
    "summed": SummedL1,
    "closest": ClosestL1,
    "patches": PatchWeightedL1,
    "final+state": lambda: WeightedSum(((1.0, FinalL1()), (0.1, RobotState()))),
    "summed+state": lambda: WeightedSum(((1.0, SummedL1()), (0.1, RobotState()))),
    "state": RobotState,
}


ALIGNED = "aligned"
OBJECTIVE_NAMES = (*OBJECTIVES, ALIGNED)


def make_objective(
    name: str | None, readout: HandReadout | None = None, goal_gripper: bool = False, closed_enough: bool = False
) -> Objective:
    """The objective called `name`; `+state` adds 0.1 of the robot-state cost.

    Args:
        name: One of `OBJECTIVE_NAMES`; None is "aligned" where the model has a readout, else "final".
        readout: The model's, for "aligned".
        goal_gripper, closed_enough: See `AlignedL1`; the other objectives take no notice.

    Raises:
        ValueError: Unknown name (the valid ones are listed), or "aligned" for a model without a readout.
    """
    if name is None:
        name = "final" if readout is None else ALIGNED
    if check_name("objective", name, OBJECTIVE_NAMES) != ALIGNED:
        return OBJECTIVES[name]()
    if readout is None:
        raise ValueError("objective 'aligned' needs a world model with a readout (armworld align); this one has none")
    return AlignedL1(readout, goal_gripper=goal_gripper, closed_enough=closed_enough)


def needs_goal_state(objective: Objective) -> bool:
    """Whether the objective reads the goal's robot state (and so is not image-only)."""
    if isinstance(objective, WeightedSum):
        return any(needs_goal_state(term) for _, term in objective.terms)
    return isinstance(objective, RobotState) or (isinstance(objective, AlignedL1) and objective.goal_gripper)
