"""The planning agent: look, plan a few steps in latent space, execute, look again; sub-goal after sub-goal.

It knows no environment, file or logger. What it did last is kept on the agent (`last_plan`, `last_step`).
"""

from __future__ import annotations

import copy
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from armworld.planners.gripper import with_gripper_understood
from armworld.planners.objectives import AlignedL1, LatentGoal, Objective, needs_goal_state
from armworld.planners.plans import GRIPPER, YAW, Plan, PlanningError, Statistics, WarmStart, shift
from armworld.planners.sampling import Planner
from armworld.types import EXECUTED, Goal, Observation, check_name, check_numbers

if TYPE_CHECKING:
    from armworld.worldmodel.model import WorldModel

ARM_SHARE = 0.5  # of the time budget for the first of two searches


@dataclass(frozen=True)
class AgentConfig:
    """How the agent plans; what it plans with comes separately.

    Attributes:
        execute_steps: Steps of each plan that are executed before planning again (at most the horizon).
        repeat_last: A warm start repeats the plan's last action where it ran out, instead of holding still.
        schedule: When the next sub-goal is shown. "budget": after the goal's step budget (as in the paper);
            "energy": when the energy to the sub-goal, mean |z - z_goal|, falls to `switch_energy`, or after
            `switch_holds` plans in a row that hold still or move the arm by less than `arrived_m` and `arrived_rad` and
            the gripper not at all. "arrival": when the hand is within `arrive_within` metres of the sub-goal's and the
            gripper within `arrive_grip`, as the aligned objective reads them. Both at the latest after `patience` times
            the budget.
        switch_energy, switch_holds, patience, arrive_within, arrive_grip: See `schedule`; no energy is below 0.
        rest: At the last sub-goal, by the same measure, hold still until the hand is twice as far off: open fingers
            that go on correcting around what they have placed touch it. Needs the aligned objective.
        context: Frames (the present one and those before) that the model sees; fewer at the episode's start.
        gripper: "joint": arm and gripper are planned together (as published); "last": the arm alone is planned first,
            and the gripper with it only where that plan moves the arm by less than `arrived_m` and `arrived_rad`. One
            step ahead, a gripper that closes too early costs nothing yet: this keeps it open until the hand is there.
        arrived_m, arrived_rad: See `gripper` and `schedule` (m, and rad of yaw).
        gripper_margin: With "last", the gripper moves only if that lowers the arm plan's energy by this fraction.
        full_grip: A planned gripper motion is executed as a full opening or closing. One step ahead the model plans the
            closedness that the goal shows, at which the fingers touch the object without pressing.
        read_gripper: The goals' closedness is what their images mean (`planners.gripper`), not what was recorded with
            them: then nothing but images is known of the goal. Needs the aligned objective.
        seconds_per_action: Time budget of one call of `act`; the search returns its best when it is spent. With
            `gripper` "last" the arm's search ends at half of it: the other half is for the gripper's. The first
            iteration of a search always runs. Results then depend on the machine's speed. None: no budget.
    """

    execute_steps: int = 1
    repeat_last: bool = False
    schedule: Literal["budget", "energy", "arrival"] = "budget"
    switch_energy: float = 0.0
    switch_holds: int = 2
    patience: float = 2.0
    arrive_within: float = 0.02
    arrive_grip: float = 0.06
    rest: bool = False
    context: int = 1
    gripper: Literal["joint", "last"] = "joint"
    arrived_m: float = 0.015
    arrived_rad: float = 0.08
    gripper_margin: float = 0.0
    full_grip: bool = False
    read_gripper: bool = False
    seconds_per_action: float | None = None

    def __post_init__(self) -> None:
        check_name("sub-goal schedule", self.schedule, ("budget", "energy", "arrival"))
        check_name("gripper order", self.gripper, ("joint", "last"))
        check_numbers(self, "execute_steps", "context", "switch_holds", least=1)
        check_numbers(self, "arrived_m", "arrived_rad", "patience", "seconds_per_action", above=0)
        check_numbers(self, "arrive_within", "arrive_grip", above=0)
        check_numbers(self, "switch_energy")
        if not 0 <= self.gripper_margin < 1:
            raise ValueError(f"gripper_margin must lie in [0, 1), got {self.gripper_margin}")


def check_execution(config: AgentConfig, planner: Planner) -> None:
    """Raise ValueError where more steps of a plan are to be executed than it has."""
    if config.execute_steps > planner.config.steps:
        raise ValueError(f"execute_steps {config.execute_steps} exceeds the planner's horizon {planner.config.steps}")


@dataclass(frozen=True)
class StepRecord:
    """What one call of `act` did.

    Attributes:
        subgoal: Index of the sub-goal planned for, the agent's own included.
        image: Index, among the observations of the goal that was given, of the one that is pursued.
        planned: False where the action is a later step of an earlier plan.
        hold: The planner chose to hold still, or the agent rests.
        energy: mean |z - z_goal| of the present frame, before acting.
        cost: Energy that the plan expects to reach (the objective's unit).
        evaluated, nonfinite: Candidate rollouts of all its searches, and how many of them had no finite energy.
        stopped_early: The time budget ended a search.
        encode_seconds, plan_seconds: Wall-clock time.
    """

    subgoal: int
    image: int
    planned: bool
    hold: bool
    energy: float
    cost: float
    evaluated: int
    nonfinite: int
    stopped_early: bool
    encode_seconds: float
    plan_seconds: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


class PlanningAgent:
    """An `Agent` (armworld.types) that plans to image goals with a world model.

    The robot's present state is read from the observation (proprioception, as in the paper); the goal's state reaches
    the objective only, and the published objective ignores it.

    Attributes:
        last_plan: The latest `Plan`, with its statistics; None before the first action.
        last_step: Record of the latest action; None before the first action.
        history: Records of all actions of this episode.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        objective: Objective,
        camera: str,
        generator: torch.Generator,
        config: AgentConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Put the parts together; `generator` is the source of all the planner's randomness."""
        self.config = config or AgentConfig()
        check_execution(self.config, planner)
        reads = self.config.schedule == "arrival" or self.config.rest or self.config.read_gripper
        if reads and not isinstance(objective, AlignedL1):
            raise ValueError(
                "the sub-goal schedule 'arrival', rest and read_gripper need the aligned objective; "
                "schedules valid without: budget, energy"
            )
        self.model, self.objective = model, objective
        self.planner = planner
        grips_last = self.config.gripper == "last" and planner.config.space.max_gripper > 0
        self._arm_planner = _with_the_gripper_still(planner) if grips_last else None
        self.camera, self.generator, self.device = camera, generator, torch.device(device)
        self.last_plan: Plan | None = None
        self.last_step: StepRecord | None = None
        self.history: list[StepRecord] = []
        self._goals: tuple[LatentGoal, ...] = ()

    def reset(self, goal: Goal) -> None:
        """Begin an episode: encode every sub-goal's image. A sub-goal without a state is a picture alone."""
        self._goals = tuple(self._latent_goal(observation) for observation in goal.observations)
        if self.config.read_gripper:
            assert isinstance(self.objective, AlignedL1)
            self._goals = with_gripper_understood(self._goals, self.objective.readout)
        self._budgets = goal.budgets
        self._subgoal = self._holds = 0
        self._steps_here = 0.0
        self._done: np.ndarray | None = None  # the last action, as it was carried out
        self._resting = False
        self._queue: deque[np.ndarray] = deque()
        self._frames: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.config.context)
        self._searches: list[Statistics] = []
        self.last_plan = self.last_step = None
        self.history = []

    def act(self, observation: Observation) -> np.ndarray:
        """The next action, float32 [7].

        Raises:
            PlanningError: No finite energy among all candidates, or features that are not finite.
            ValueError: An observation without the camera or the state, or `reset` was not called.
        """
        if not self._goals:
            raise ValueError("PlanningAgent.act needs a goal first: call reset(goal)")
        self._started = time.perf_counter()
        self._count_what_was_done(observation)
        self._frames.append((self._encode(observation), self._state(observation)))
        energy = self._advance()
        encoded = time.perf_counter()
        self._resting = self._should_rest()
        planned = not self._queue and not self._resting
        if planned:
            self._plan()
        action = np.zeros(7, np.float32) if self._resting else self._queue.popleft()
        self._steps_here += 1
        self._done = action
        self._record(planned, energy, encoded - self._started, time.perf_counter() - encoded)
        return action

    def _count_what_was_done(self, observation: Observation) -> None:
        """Budgets and patience count a step by what was done of it, where a safety gate holds or shortens steps."""
        executed = observation.get(EXECUTED)
        if executed is None or self._done is None:
            return
        asked, went = (float(np.linalg.norm(action[:3])) for action in (self._done, executed))
        if asked > self.config.arrived_m:
            self._steps_here -= 1 - min(1.0, went / asked)
        self._done = executed

    def _plan(self) -> None:
        self._searches = []
        share = 1.0 if self._arm_planner is None else ARM_SHARE
        plan = self._search(self._arm_planner or self.planner, share)
        if self._arm_planner is not None and self._is_small(plan):
            joint = self._search(self.planner)
            if float(joint.cost[0]) < (1 - self.config.gripper_margin) * float(plan.cost[0]):
                plan = joint
        self.last_plan = plan
        grips = bool(plan.actions[0, : self.config.execute_steps, GRIPPER].any())
        still = bool(plan.hold[0]) or (self._is_small(plan) and not grips)
        self._holds = self._holds + 1 if still else 0
        actions = plan.actions[0, : self.config.execute_steps].cpu().numpy().astype(np.float32)
        if not np.isfinite(actions).all():
            raise PlanningError(f"the plan is not finite: {actions.tolist()}")
        if self.config.full_grip:
            actions[:, GRIPPER] = np.sign(actions[:, GRIPPER])
        self._queue.extend(actions)

    def _is_small(self, plan: Plan) -> bool:
        """Whether the arm hardly moves in the steps that are executed: it has arrived."""
        step = plan.actions[0, : self.config.execute_steps]
        far = torch.linalg.vector_norm(step[:, :3], dim=-1) >= self.config.arrived_m
        return not bool((far | (step[:, YAW].abs() >= self.config.arrived_rad)).any())

    def _search(self, planner: Planner, share: float = 1.0) -> Plan:
        """A plan from the present frames; the search ends when this share of the time budget is spent."""
        z, state = (torch.cat(parts, 1) for parts in zip(*self._frames, strict=True))
        plan = planner.plan(
            self.model,
            self.objective,
            z,
            state,
            self._goals[self._subgoal],
            generator=self.generator,
            warm_start=self._warm_start(),
            should_stop=lambda: self._out_of_time(share),
        )
        self._searches.append(plan.statistics)
        return plan

    def _out_of_time(self, share: float = 1.0) -> bool:
        """Whether this share of the time budget of the present call of `act` is spent."""
        budget = self.config.seconds_per_action
        return budget is not None and time.perf_counter() - self._started > share * budget

    def _warm_start(self) -> WarmStart | None:
        if self.last_plan is None:
            return None
        return shift(self.last_plan, self.config.execute_steps, self.config.repeat_last)

    def _advance(self) -> float:
        """Show the next sub-goal if it is time; the energy of the present frame to the sub-goal now shown."""
        energy = self._energy()
        while self._subgoal + 1 < len(self._goals) and self._finished(energy):
            self._pursue(self._subgoal + 1)
            energy = self._energy()
        return energy

    def _pursue(self, subgoal: int) -> None:
        """Begin with a sub-goal."""
        self._subgoal = subgoal
        self._steps_here, self._holds = 0.0, 0
        self._queue.clear()
        self.last_plan = None  # a plan for another goal is no warm start

    def _finished(self, energy: float) -> bool:
        budget = self._budgets[self._subgoal]
        if self.config.schedule == "budget":
            return self._steps_here >= budget
        if self.config.schedule == "arrival":
            arrived = self._is_there(self.config.arrive_within)
        else:
            arrived = energy <= self.config.switch_energy or self._holds >= self.config.switch_holds
        return arrived or self._steps_here >= self.config.patience * budget

    def _should_rest(self) -> bool:
        if not self.config.rest or self._subgoal + 1 < len(self._goals):
            return False
        rests = self._is_there(self.config.arrive_within * (2 if self._resting else 1))
        if rests:
            self._queue.clear()
        return rests

    def _is_there(self, within: float) -> bool:
        """Whether the hand is read to be within `within` metres of the sub-goal's, the gripper as in the sub-goal."""
        assert isinstance(self.objective, AlignedL1)
        hand, grip = self.objective.gaps(*self._frames[-1], self._goals[self._subgoal])
        return float(hand) <= within and float(grip) <= self.config.arrive_grip

    def _shown(self) -> int:
        """See `StepRecord.image`."""
        return self._subgoal

    def _energy(self) -> float:
        return float((self._frames[-1][0][0, 0] - self._goals[self._subgoal].z[0]).abs().mean())

    def _encode(self, observation: Observation) -> Tensor:
        """Features [1, 1, N, D] of one observation's image."""
        if self.camera not in observation:
            names = ", ".join(name for name in observation if name != "state")
            raise ValueError(f"no camera {self.camera!r} in the observation; it has {names or 'no image'}")
        z = self.model.encode(observation[self.camera][None, None]).to(self.device)
        if not bool(z.isfinite().all()):
            raise PlanningError(f"the encoder's features of camera {self.camera!r} are not finite")
        return z

    def _latent_goal(self, observation: Observation) -> LatentGoal:
        """One sub-goal's image as features, and the robot state that was recorded with it."""
        z = self._encode(observation)[:, 0]
        state = self._state(observation)[:, 0] if "state" in observation else None
        if state is None and needs_goal_state(self.objective) and not self.config.read_gripper:
            raise ValueError("this objective compares robot states, and the goal has a picture only")
        return LatentGoal(z, state)

    def _state(self, observation: Observation) -> Tensor:
        """Robot state [1, 1, 7]."""
        state = np.asarray(observation["state"], dtype=np.float32)
        if state.shape != (7,) or not np.isfinite(state).all():
            raise ValueError(f"observation['state'] must be 7 finite numbers, got {state.tolist()}")
        return torch.from_numpy(state).to(self.device)[None, None]

    def _record(self, planned: bool, energy: float, encode_seconds: float, plan_seconds: float) -> None:
        plan = None if self._resting else self.last_plan
        assert self._resting or plan is not None, "an action came from no plan"
        searches = self._searches if planned else []
        self.last_step = StepRecord(
            subgoal=self._subgoal,
            image=self._shown(),
            planned=planned,
            hold=plan is None or bool(plan.hold[0]),
            energy=energy,
            cost=energy if plan is None else float(plan.cost[0]),
            evaluated=sum(search.evaluated for search in searches),
            nonfinite=sum(search.nonfinite for search in searches),
            stopped_early=any(search.stopped_early for search in searches),
            encode_seconds=encode_seconds,
            plan_seconds=plan_seconds,
        )
        self.history.append(self.last_step)


def _with_the_gripper_still(planner: Planner) -> Planner:
    """The planner, moving the arm alone."""
    still = copy.copy(planner)
    still.config = replace(planner.config, space=replace(planner.config.space, max_gripper=0.0))
    return still
