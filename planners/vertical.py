"""What goal images do not show: that a hand comes down on an object from above, and leaves it upwards.

The paper's images show the object grasped, or already lifted. A planner that looks one step ahead goes straight there:
its fingers come down slantwise and land on the rim, or it hovers with open fingers where the goal shows the object
lifted. `VerticalAgent` adds stages of its own, which are places of the hand and not pictures (`LatentGoal.hand`):

- Before a sub-goal at which the gripper is more closed than now: the open hand `height` above the hand of that image;
  then straight down, and close there. How far down is imagined: for some depths below the hand of the image, the world
  model imagines going down, closing, and coming up to where the image has the hand. The depth whose last frame looks
  most like the image is taken, and the more so the less the same motion with open fingers does. So a lifted object is
  fetched from where it stands, with its one image alone. A hand that is stopped on its way down closes where it is;
  fingers that close on nothing open again and try deeper.
- At a sub-goal at which the gripper is more open than before it opens all the way; after it the hand goes up by
  `height`.

Not in the V-JEPA 2 paper. It assumes grasps from above, and lifts that go straight up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from armworld.planners.gripper import at_closedness
from armworld.planners.mpc import PlanningAgent
from armworld.planners.objectives import AlignedL1, LatentGoal, PatchWeightedL1
from armworld.planners.plans import GRIPPER, YAW, PlanningError
from armworld.planners.turning import TurnedModel, turn_actions
from armworld.types import Goal, check_numbers

CHANGE = 0.1  # of the gripper's stroke that counts as closing or opening
EMPTY = 0.3  # of the stroke further closed than the goal shows: nothing is held
STOPPED = 0.01  # m: a hand sent further down than this that does not go is stopped by something


@dataclass(frozen=True)
class VerticalConfig:
    """How the agent comes and goes.

    Attributes:
        height: Of the stage above, over the hand of the goal image (m).
        depths: Below the hand of the goal image, which are tried in imagination (m); 0 is always tried.
        bite: So much deeper than the depth that imagination takes (m), unless that is 0: it takes fingertips at an
            object's rim for a grasp, and a hand that is sent too deep is stopped.
        margin: A depth is taken only if its score is lower than that of depth 0 by this fraction of it.
        deeper: After fingers have closed on nothing: so much deeper (m).
        retries: How often they try again.
        budget: Steps of each stage that is added.
    """

    height: float = 0.10
    depths: tuple[float, ...] = (0.04, 0.06, 0.08, 0.10, 0.12, 0.14)
    bite: float = 0.02
    margin: float = 0.05
    deeper: float = 0.04
    retries: int = 2
    budget: int = 5

    def __post_init__(self) -> None:
        check_numbers(self, "height", "deeper", above=0)
        if not min(self.depths) > 0 or self.bite < 0 or not 0 <= self.margin < 1:
            told = "depths must be positive, bite at least 0 and margin in [0, 1)"
            raise ValueError(f"{told}, got {self}")
        if self.budget < 1 or self.retries < 0:
            raise ValueError(f"budget must be at least 1 and retries 0, got {self.budget} and {self.retries}")


class VerticalAgent(PlanningAgent):
    """A `PlanningAgent` that comes to objects from above and leaves them upwards.

    Attributes:
        depths: What was chosen below the hand of each sub-goal at which the gripper closes (m), in order; what was
            tried after fingers had closed on nothing comes behind.
    """

    def __init__(self, *arguments: Any, vertical: VerticalConfig | None = None, **settings: Any) -> None:
        """As `PlanningAgent`, with the aligned objective (a ValueError otherwise) and the schedule "arrival"."""
        super().__init__(*arguments, **settings)
        if not isinstance(self.objective, AlignedL1) or self.config.schedule != "arrival":
            raise ValueError("coming from above needs the aligned objective and the sub-goal schedule 'arrival'")
        self.vertical = vertical or VerticalConfig()
        self.depths: list[float] = []

    def reset(self, goal: Goal) -> None:
        """Begin an episode; the stages are added when the first observation tells where the gripper is."""
        super().reset(goal)
        self._undecided = set[int]()
        self._closing: int | None = None
        self._tries = self.vertical.retries
        self._scores: dict[float, float] = {}
        self._imagined: dict[float, float] = {}  # depths of the present stage that have a score already
        self.depths = []

    def _advance(self) -> float:
        closedness = float(self._frames[-1][1][0, 0, GRIPPER])
        if not self.history:
            self._add_stages(closedness)
        if self._subgoal == self._closing:
            if self._tries and closedness - float(self._place[0, 5]) > EMPTY:
                self._try_deeper()
            elif self._is_stopped():
                self._stay()
        self._before = self._frames[-1][1][0, 0, :3]
        energy = super()._advance()
        if self._subgoal in self._undecided:
            self._choose_depth()
        return energy

    def _pursue(self, subgoal: int) -> None:
        super()._pursue(subgoal)
        self._imagined = {}

    def _should_rest(self) -> bool:
        return self._subgoal in self._undecided or super()._should_rest()

    def _shown(self) -> int:
        return self._images[self._subgoal]

    def _is_stopped(self) -> bool:
        """Whether the hand was sent down in the last step and did not go: something is in its way."""
        sent = 0.0 if self._done is None else -float(self._done[2])
        went = float(self._before[2] - self._frames[-1][1][0, 0, 2])
        return sent > STOPPED and went < 0.3 * sent

    @property
    def _place(self) -> Tensor:
        """Where the hand is sent to in the present stage [1, 6]."""
        hand = self._goals[self._subgoal].hand
        assert hand is not None, "stages are places of the hand"
        return hand

    def _put(self, *stages: LatentGoal) -> None:
        """These stages in place of the present one."""
        index, count = self._subgoal, len(stages)
        self._goals = (*self._goals[:index], *stages, *self._goals[index + 1 :])
        self._budgets = (*self._budgets[:index], *(self.vertical.budget,) * count, *self._budgets[index + 1 :])
        self._images[index : index + 1] = [self._images[index]] * count
        self._undecided = {other + (count - 1 if other > index else 0) for other in self._undecided}

    def _stay(self) -> None:
        """Make the present stage end where the hand is, a little higher: it presses on something."""
        assert isinstance(self.objective, AlignedL1)
        here = self.objective.readout(self._frames[-1][0][:, -1]).detach().clone()
        here[:, 3:] = self._place[:, 3:]
        self._put(self._stage(self._goals[self._subgoal], here, 0.005, float(here[0, 5])))

    def _try_deeper(self) -> None:
        """Open where the hand is, go deeper, close: two stages in place of the one at which the fingers closed."""
        stage, place = self._goals[self._subgoal], self._place
        depth = self._next_depth()
        opened = self._stage(stage, place, 0.0, 0.0)
        lower = self._stage(stage, place, self.depths[-1] - depth, float(place[0, 5]))
        self._put(opened, lower)
        self._closing = self._subgoal + 1
        self._pursue(self._subgoal)
        self.depths.append(depth)
        self._tries -= 1

    def _next_depth(self) -> float:
        """The best in imagination of those clearly deeper than the last; a fixed bit deeper where none is left."""
        tried = self.depths[-1]
        left = {depth: score for depth, score in self._scores.items() if depth >= tried + self.vertical.deeper - 1e-6}
        return min(left, key=left.__getitem__) + self.vertical.bite if left else tried + self.vertical.deeper

    def _add_stages(self, closedness: float) -> None:
        goals, budgets, images = [], [], []
        for image, (goal, budget) in enumerate(zip(self._goals, self._budgets, strict=True)):
            hand = self._hand(goal)
            wanted = float(hand[0, 5])
            closes, opens = wanted - closedness > CHANGE, closedness - wanted > CHANGE
            if closes:
                goals += [self._stage(goal, hand, self.vertical.height, closedness), self._stage(goal, hand, 0, wanted)]
                self._undecided.add(len(goals) - 1)
                budgets += [self.vertical.budget] * 2
            if opens:  # an image taken while the fingers open means open fingers
                wanted = 0.0
                goal = at_closedness(goal, wanted)
            goals, budgets = [*goals, goal], [*budgets, budget]
            if opens:
                goals.append(self._stage(goal, hand, self.vertical.height, wanted))
                budgets.append(self.vertical.budget)
            closedness = wanted
            images += [image] * (len(goals) - len(images))
        self._goals, self._budgets, self._images = tuple(goals), tuple(budgets), images

    def _hand(self, goal: LatentGoal) -> Tensor:
        """The hand of a goal image as it is read [1, 6], the closedness as the objective compares it."""
        assert isinstance(self.objective, AlignedL1)
        hand = self.objective.readout(goal.z).detach().clone()
        if self.objective.goal_gripper and goal.state is not None:
            hand[:, 5] = goal.state[:, GRIPPER]
        return hand

    def _stage(self, goal: LatentGoal, hand: Tensor, height: float, closedness: float) -> LatentGoal:
        """The hand `height` metres above `hand` [1, 6], the gripper at `closedness`."""
        hand = hand.clone()
        hand[:, 2] += height
        hand[:, 5] = closedness
        return replace(at_closedness(goal, closedness), hand=hand)

    def _choose_depth(self) -> None:
        """Send the present stage as far below the goal's hand as imagination says that the object is.

        With a time budget the depths are imagined one by one. Where it is spent before the last, the hand holds still,
        and the next call goes on; every call imagines one at least.
        """
        hand, depths = self._place, (0.0, *self.vertical.depths)
        at_once = len(depths) if self.config.seconds_per_action is None else 1
        self._steps_here = 0.0  # holding still for want of time is no step of the stage
        while left := [depth for depth in depths if depth not in self._imagined]:
            self._imagine(hand, tuple(left[:at_once]))
            if len(left) > at_once and self._out_of_time():
                return
        self._scores, self._imagined = self._imagined, {}
        self._undecided.discard(self._subgoal)
        self._closing = self._subgoal
        scores = torch.tensor([self._scores[depth] for depth in depths])
        best = int(scores.argmin())
        gain = float(scores[0] - scores[best])
        found = best > 0 and gain > self.vertical.margin * abs(float(scores[0]))
        depth = depths[best] + self.vertical.bite if found else 0.0
        self.depths.append(depth)
        self._put(self._stage(self._goals[self._subgoal], hand, -depth, float(hand[0, 5])))

    def _imagine(self, hand: Tensor, depths: tuple[float, ...]) -> None:
        """Score these depths below `hand` [1, 6]."""
        scores = self._imagined_scores(self._goals[self._subgoal + 1], hand, depths)
        if not bool(scores.isfinite().all()):
            raise PlanningError(f"the energies of imagined grasps are not finite: {scores.tolist()}")
        self._imagined |= dict(zip(depths, scores.tolist(), strict=True))

    def _imagined_scores(self, goal: LatentGoal, hand: Tensor, depths: tuple[float, ...]) -> Tensor:
        """For each depth [K]: E + (E - E_open), lower is better, of the last imagined frame against the goal's image.

        E is the energy that weights what has to change (`PatchWeightedL1`) after going `depth` below `hand` [1, 6],
        closing and coming up to `hand`; E_open after the same with open fingers: errors of long imagination cancel.
        """
        assert isinstance(self.objective, AlignedL1)
        z, state = self._frames[-1]
        here = self.objective.readout(z[:, 0]).detach()
        closing = self._fetching(here[0], hand[0], depths)
        if isinstance(self.model, TurnedModel):  # what is read is along its model's axes
            closing = turn_actions(closing, math.radians(self.model.yaw_deg))
        opened = closing.clone()
        opened[..., GRIPPER] = 0
        rollout = self.model.rollout(z, state, torch.cat([closing, opened], 1))
        energies = PatchWeightedL1()(rollout, replace(goal, start=z[:, 0]))[0]
        closed, opened = energies.split(len(depths))
        return 2 * closed - opened

    def _fetching(self, here: Tensor, hand: Tensor, depths: tuple[float, ...]) -> Tensor:
        """Actions [1, K, H, 7] from a hand read at `here` [6]: below `hand` [6] by each depth, close, up to `hand`."""
        way = hand[:3] - here[:3]
        turn = torch.atan2(hand[4], hand[3]) - torch.atan2(here[4], here[3])
        deepest = max(0.0, *self.vertical.depths, *depths)  # of all, so that scores of separate calls compare
        steps = max(1, math.ceil((abs(float(way[2])) + deepest) / self.planner.config.space.max_position))
        actions = torch.zeros(1, len(depths), 2 * steps + 1, 7, device=self.device)
        for k, depth in enumerate(depths):
            actions[0, k, :steps, :3] = way / steps
            actions[0, k, :steps, 2] -= depth / steps
            actions[0, k, :steps, YAW] = torch.atan2(turn.sin(), turn.cos()) / steps
            actions[0, k, steps + 1 :, 2] = depth / steps
        actions[0, :, steps, GRIPPER] = hand[5] - self._frames[-1][1][0, 0, GRIPPER]
        return actions
