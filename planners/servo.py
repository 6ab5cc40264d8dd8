"""Visual servoing on the readout: straight to the hand that is read in the goal, with nothing imagined.

The control of every planner that uses the aligned energy. The law is that of position-based visual servoing: every
step is a share `gain` of the way that is left (Chaumette and Hutchinson, "Visual servo control, part I", IEEE Robotics
& Automation Magazine 13(4), 2006).

Legend: B episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from armworld.planners.objectives import AlignedL1
from armworld.planners.plans import GRIPPER, YAW, Plan
from armworld.planners.sampling import Planner, PlannerConfig, Search
from armworld.worldmodel.readout import hand_distance


@dataclass(frozen=True)
class ServoConfig(PlannerConfig):
    """How far a step goes.

    Attributes:
        gain: Share of the way that a step takes; below 1 where a reading changes more than the hand moves.
    """

    gain: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gain <= 1:
            raise ValueError(f"gain must lie in (0, 1], got {self.gain}")
        if self.steps != 1:
            raise ValueError(f"servoing looks one step ahead; got horizon {self.horizon} and repeat {self.repeat}")


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
        here, there = objective.readout(search.z[:, -1]), wanted
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
