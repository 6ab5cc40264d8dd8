"""The two-level planner: a high level chooses sub-goals among frames it knows or imagines, the low level plans to them.

Both levels work on the same features with the same energy (`subgoals.py`). Of the goal that it is given, only the last
observation is used: the sub-goals are the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from armworld.planners.mpc import PlanningAgent
from armworld.planners.objectives import LatentGoal
from armworld.planners.plans import PlanningError
from armworld.planners.subgoals import Chain, Frames, choose_chain, choose_recorded, imagined_frames
from armworld.types import Goal


@dataclass(frozen=True)
class TwoLevelConfig:
    """How sub-goals are chosen.

    Attributes:
        count: Stops at most; 0 plans straight to the goal.
        power: Of a hop's energy; above 1, or stops never pay (see `subgoals`).
        samples, steps, stride: Paths imagined where there is no bank, their length, and every which frame of them is a
            candidate.
        keep: Candidates considered for chains.
        along: Take the stops from one episode of the bank, in its order (`choose_recorded`).
    """

    count: int = 2
    power: float = 2.0
    samples: int = 32
    steps: int = 8
    stride: int = 2
    keep: int = 64
    along: bool = False

    def __post_init__(self) -> None:
        if self.count < 0 or self.power <= 0 or min(self.samples, self.steps, self.stride, self.keep) < 1:
            raise ValueError(f"count must be at least 0, power, samples, steps, stride and keep positive, got {self}")
        if self.stride > self.steps:
            raise ValueError(f"stride {self.stride} exceeds the {self.steps} steps imagined")


class TwoLevelAgent(PlanningAgent):
    """A `PlanningAgent` that chooses its own sub-goals: at the start, and again whenever one is reached.

    Attributes:
        last_chain: What was chosen last; None before the first action.
    """

    def __init__(
        self, *arguments: Any, levels: TwoLevelConfig | None = None, bank: Frames | None = None, **settings: Any
    ) -> None:
        """As `PlanningAgent`; `levels` says how to choose, `bank` among which recorded frames (None: imagined ones)."""
        super().__init__(*arguments, **settings)
        self.levels, self.bank = levels or TwoLevelConfig(), bank
        if self.levels.along and (bank is None or bank.episode is None):
            raise ValueError("sub-goals along recorded episodes need a bank that tells them apart")
        self.last_chain: Chain | None = None

    def reset(self, goal: Goal) -> None:
        """Begin an episode towards the last observation of `goal`, within the sum of its budgets."""
        self._steps_in_all, self._last = sum(goal.budgets), len(goal.observations) - 1
        super().reset(Goal(goal.observations[-1:], (self._steps_in_all,)))
        self.last_chain = None

    def _shown(self) -> int:
        return self._last

    def _advance(self) -> float:
        if self.last_chain is None:
            self._choose()
        before = self._subgoal
        energy = super()._advance()
        if self._subgoal == before:
            return energy
        self._choose()
        return self._energy()

    def _choose(self) -> None:
        """Put a chain between here and the goal; what was reached stays in front of it."""
        reached, final = self._goals[: self._subgoal], self._goals[-1]
        if final.state is None:
            raise ValueError("choosing sub-goals needs the goal's robot state, and the goal has a picture only")
        z, state = self._frames[-1]
        here = Frames(z[:, 0], state[:, 0])
        chain, frames = self._search_chain(here, Frames(final.z, final.state), self.levels.count - len(reached))
        if not bool(torch.tensor(chain.hops).isfinite().all()):
            raise PlanningError(f"the chain of sub-goals is not finite: {chain.hops}")
        stops: tuple[LatentGoal, ...] = tuple(frames.goal(i) for i in range(len(frames)))
        self._goals = (*reached, *stops, final)
        self._budgets = (*self._budgets[: len(reached)], *self._shares(chain.hops))
        self.last_chain = chain

    def _search_chain(self, here: Frames, target: Frames, left: int) -> tuple[Chain, Frames]:
        """At most `left` stops between two frames."""
        levels, left = self.levels, max(0, left)
        if levels.along and self.bank is not None:
            return choose_recorded(self.objective, here, target, self.bank, left, levels.power)
        if left == 0:
            candidates = here.pick([])
        elif self.bank is not None:
            candidates = self.bank
        else:
            space = self.planner.config.space
            candidates = imagined_frames(
                self.model, here, space, self.generator, levels.samples, levels.steps, levels.stride
            )
        return choose_chain(self.objective, here, target, candidates, left, levels.power, levels.keep)

    def _shares(self, hops: tuple[float, ...]) -> tuple[int, ...]:
        """Steps for each hop, in proportion to its energy, of those that are left; at least one each."""
        left, whole = max(len(hops), self._steps_in_all - len(self.history)), max(sum(hops), 1e-12)
        return tuple(max(1, round(left * hop / whole)) for hop in hops)
