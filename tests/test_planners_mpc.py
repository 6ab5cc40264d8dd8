"""The planning agent in a closed loop on a point world: arriving, holding, sub-goals, budgets, failures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from armworld.planners.mpc import AgentConfig, PlanningAgent
from armworld.planners.objectives import AlignedL1, FinalL1, Objective
from armworld.planners.plans import ActionSpace, PlanningError, WarmStart
from armworld.planners.registry import make_planner
from armworld.types import Goal
from armworld.worldmodel.model import Rollout

sys.path.insert(0, str(Path(__file__).parent))

from planners_fake import LIMITS, PointWorld, goal_at, observation


def make_agent(
    planner: str = "cem",
    seed: int = 0,
    model: PointWorld | None = None,
    config: AgentConfig | None = None,
    objective: Objective | None = None,
    **settings,
) -> PlanningAgent:
    return PlanningAgent(
        model or PointWorld(),
        make_planner(planner, **{"space": {"max_position": 0.1}, **settings}),
        objective or FinalL1(),
        "left",
        torch.Generator().manual_seed(seed),
        config,
    )


def drive(agent: PlanningAgent, goal: Goal, steps: int) -> np.ndarray:
    """Points visited [steps + 1, 4], from the origin."""
    agent.reset(goal)
    point = np.zeros(4)
    visited = [point]
    for _ in range(steps):
        action = agent.act(observation(point))
        assert action.dtype == np.float32
        assert action.shape == (7,)
        point = point + action[[0, 1, 2, 6]] / LIMITS.numpy()
        visited.append(point)
    return np.stack(visited)


@pytest.mark.parametrize("planner", ["cem", "cem_adam", "icem", "mppi", "gradient"])
def test_arrives_and_holds(planner: str) -> None:
    goal = [3.2, -2.1, 0.4, 0.5]
    visited = drive(make_agent(planner, hold_margin=0.05), goal_at(goal), 12)
    assert np.abs(visited[-1] - goal).max() < 0.1
    assert np.abs(np.diff(visited[-3:], axis=0)).max() < 0.1


def test_same_seed_same_episode() -> None:
    goal = goal_at([1.2, -2.1, 0.4, 0.5])
    first, again = (drive(make_agent(horizon=2), goal, 4) for _ in range(2))
    assert np.array_equal(first, again)


def test_the_gripper_moves_last() -> None:
    """Jointly it moves from the first step on; "last" leaves it alone until the arm's plan is a small one."""
    goal = goal_at([3.2, 0.0, 0.0, 1.5])
    joint = drive(make_agent(), goal, 10)
    last = drive(make_agent(config=AgentConfig(gripper="last", arrived_m=0.02)), goal, 10)
    assert joint[1, 3] > 0.2
    far = np.abs(last[:-1, 0] - 3.2) * float(LIMITS[0]) > 0.06
    assert far.any() and not np.diff(last[:, 3])[far].any()
    assert np.abs(last[-1] - [3.2, 0, 0, 1.5]).max() < 0.15
    with pytest.raises(ValueError, match="valid: joint, last"):
        AgentConfig(gripper="first")  # type: ignore[arg-type]


def test_a_full_grip_and_its_margin() -> None:
    goal = goal_at([0.0, 0.0, 0.0, 0.4])
    agent = make_agent(config=AgentConfig(gripper="last", full_grip=True))
    agent.reset(goal)
    assert agent.act(observation(np.zeros(4)))[6] == 1.0
    unmoved = make_agent(config=AgentConfig(gripper="last", full_grip=True, gripper_margin=0.99))
    unmoved.reset(goal)
    assert unmoved.act(observation(np.zeros(4)))[6] == 0.0
    with pytest.raises(ValueError, match=r"gripper_margin must lie in \[0, 1\), got 1"):
        AgentConfig(gripper_margin=1)


def test_small_moves_count_as_arrival() -> None:
    """With a goal that is never met exactly, the next sub-goal comes after two small plans, long before the budget."""
    agent = make_agent(
        config=AgentConfig(schedule="energy", arrived_m=0.02), space={"max_position": 0.1, "max_gripper": 0.0}
    )
    drive(agent, goal_at([1.0, 0, 0, 0.3], [0, 1.0, 0, 0.3], budgets=(20, 20)), 8)
    assert {record.subgoal for record in agent.history} == {0, 1}


def test_two_steps_per_plan() -> None:
    agent = make_agent(horizon=3, config=AgentConfig(execute_steps=2))
    drive(agent, goal_at([3.0, 0.0, 0.0, 0.0]), 4)
    assert [record.planned for record in agent.history] == [True, False, True, False]
    assert [record.evaluated > 0 for record in agent.history] == [True, False, True, False]
    with pytest.raises(ValueError, match="execute_steps 2 exceeds the planner's horizon 1"):
        make_agent(config=AgentConfig(execute_steps=2))


def test_subgoals_by_budget() -> None:
    agent = make_agent()
    drive(agent, goal_at([1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], budgets=(4, 2, 3)), 10)
    assert [record.subgoal for record in agent.history] == [0] * 4 + [1] * 2 + [2] * 4


def test_subgoals_by_energy() -> None:
    """The first sub-goal is 2 steps away, so its energy is low before the third action; the budget plays no part."""
    agent = make_agent("cem_adam", config=AgentConfig(schedule="energy", switch_energy=0.1))
    drive(agent, goal_at([1.9, 0, 0, 0], [1.9, 0.9, 0, 0], budgets=(8, 8)), 6)
    assert [record.subgoal for record in agent.history] == [0, 0, 1, 1, 1, 1]


def test_holding_moves_on_to_the_next_subgoal() -> None:
    agent = make_agent(hold_margin=0.95, config=AgentConfig(schedule="energy", switch_holds=2))
    drive(agent, goal_at([0.1, 0, 0, 0], [2.0, 0, 0, 0], budgets=(9, 9)), 4)
    assert [record.subgoal for record in agent.history] == [0, 0, 1, 1]
    assert [record.hold for record in agent.history[:2]] == [True, True]


def test_an_unreachable_subgoal_is_left_after_patience() -> None:
    agent = make_agent(hold_candidate=False, config=AgentConfig(schedule="energy", patience=1.5))
    drive(agent, goal_at([99.0, 0, 0, 0], [0.0, 0, 0, 0], budgets=(2, 9)), 5)
    assert [record.subgoal for record in agent.history] == [0, 0, 0, 1, 1]


def test_records_and_statistics() -> None:
    agent = make_agent()
    drive(agent, goal_at([2.0, 0.0, 0.0, 0.0]), 2)
    assert agent.last_plan is not None
    assert agent.last_step is not None
    record = agent.last_step
    assert record.energy == pytest.approx(1.0 / 4, abs=0.1)
    assert record.evaluated == agent.last_plan.statistics.evaluated
    assert set(record.to_json()) >= {"subgoal", "energy", "cost", "plan_seconds"}
    agent.reset(goal_at([0.0, 0.0, 0.0, 0.0]))
    assert agent.history == []
    assert agent.last_plan is None


def test_a_time_budget_ends_the_search() -> None:
    agent = make_agent(config=AgentConfig(seconds_per_action=1e-9), iterations=50)
    drive(agent, goal_at([2.0, 0.0, 0.0, 0.0]), 1)
    assert agent.last_step is not None
    assert agent.last_step.stopped_early
    assert agent.last_step.evaluated < 50 * 64


class Counting(PointWorld):
    """Counts candidates; every call of its `rollout` takes 10 ms by its own clock."""

    def __init__(self) -> None:
        self.candidates = self.milliseconds = 0

    def perf_counter(self) -> float:
        return 1e-3 * self.milliseconds

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        self.candidates += actions.shape[1]
        self.milliseconds += 10
        return super().rollout(z, state, actions)


def test_the_candidates_of_both_searches_are_counted() -> None:
    model = Counting()
    agent = make_agent(model=model, config=AgentConfig(gripper="last"))
    drive(agent, goal_at([0.0, 0.0, 0.0, 0.4]), 1)
    assert agent.last_step is not None and agent.last_plan is not None
    assert agent.last_step.evaluated == model.candidates > 1.9 * agent.last_plan.statistics.evaluated


@pytest.mark.parametrize("budget", [0.2, 0.005])
def test_two_searches_share_one_time_budget(monkeypatch: pytest.MonkeyPatch, budget: float) -> None:
    """Half of 200 ms each, where both would take 510; of 5 ms, one iteration each and what is always tried."""
    model = Counting()
    monkeypatch.setattr("armworld.planners.mpc.time", model)
    agent = make_agent(model=model, config=AgentConfig(gripper="last", seconds_per_action=budget), iterations=50)
    agent.reset(goal_at([0.0, 0.0, 0.0, 0.4]))
    action = agent.act(observation(np.zeros(4)))
    assert agent.last_step is not None and agent.last_step.stopped_early
    assert action[6] > 0.2 or budget < 0.2  # one iteration finds nothing better than holding
    assert model.milliseconds <= max(1000 * budget + 10, 40)
    searches = [len(search.iterations) for search in agent._searches]
    assert min(searches) >= (9 if budget == 0.2 else 2) and len(searches) == 2


def test_context_frames_reach_the_model() -> None:
    seen = []

    class Watching(PointWorld):
        def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
            seen.append((z.shape[1], state.shape[1]))
            return super().rollout(z, state, actions)

    agent = make_agent(model=Watching(), config=AgentConfig(context=2), iterations=1, hold_candidate=False)
    drive(agent, goal_at([2.0, 0.0, 0.0, 0.0]), 3)
    assert seen == [(1, 1), (2, 2), (2, 2)]


class Failing(PointWorld):
    """NaN features of images, or of imagined frames."""

    def __init__(self, encode: bool) -> None:
        self.fails_to_encode = encode

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        z = super().encode(images)
        return z * torch.nan if self.fails_to_encode else z

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        rollout = super().rollout(z, state, actions)
        return replace(rollout, z=rollout.z * torch.nan)


def test_planner_failures_have_a_reason() -> None:
    agent = make_agent(model=Failing(encode=False))
    agent.reset(goal_at([1.0, 0, 0, 0]))
    with pytest.raises(PlanningError, match="no finite energy among"):
        agent.act(observation(np.zeros(4)))
    with pytest.raises(PlanningError, match="features of camera 'left' are not finite"):
        make_agent(model=Failing(encode=True)).reset(goal_at([1.0, 0, 0, 0]))


def test_bad_input() -> None:
    agent = make_agent()
    with pytest.raises(ValueError, match="call reset"):
        agent.act(observation(np.zeros(4)))
    agent.reset(goal_at([1.0, 0, 0, 0]))
    with pytest.raises(ValueError, match="no camera 'left' in the observation; it has wrist"):
        agent.act(observation(np.zeros(4), camera="wrist"))
    bad = observation(np.zeros(4))
    bad["state"] = np.full(7, np.nan)
    with pytest.raises(ValueError, match="7 finite numbers"):
        agent.act(bad)
    with pytest.raises(ValueError, match="unknown sub-goal schedule 'time'; valid: budget, energy"):
        AgentConfig(schedule="time")  # pyright: ignore[reportArgumentType]


class PointReading(torch.nn.Module):
    """Reads a point's first three coordinates as decimetres, its fourth as closedness, and no turn."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        point = z[..., 0, :]
        still = torch.ones_like(point[..., :1])
        return torch.cat([0.1 * point[..., :3], still, 0 * still, point[..., 3:]], -1)


def test_the_next_subgoal_is_shown_when_the_hand_is_read_to_be_there() -> None:
    settings = AgentConfig(schedule="arrival", arrive_within=0.02, patience=4.0)
    agent = make_agent(config=settings, objective=AlignedL1(PointReading()))  # type: ignore[arg-type]
    visited = drive(agent, goal_at([2.0, 0, 0, 0.3], [0, 1.0, 0, 0.3], budgets=(5, 5)), 8)
    shown = [record.subgoal for record in agent.history]
    first = shown.index(1)
    gaps = 0.1 * np.linalg.norm(visited[:, :3] - [2.0, 0, 0], axis=1) + 0.15 * np.abs(visited[:, 3] - 0.3)
    assert gaps[first] <= 0.02 and (gaps[:first] > 0.02).all() and shown[first:] == [1] * (8 - first)


def test_the_agent_rests_at_the_last_subgoal_until_it_is_pushed_away() -> None:
    settings = AgentConfig(rest=True, arrive_within=0.02)
    agent = make_agent(config=settings, objective=AlignedL1(PointReading()))  # type: ignore[arg-type]
    goal = goal_at([1.0, 0, 0, 0.3])
    drive(agent, goal, 4)
    assert not agent.history[0].hold
    for push, rests in ((0.0, True), (0.3, True), (0.5, False), (0.3, False), (0.1, True)):
        action = agent.act(observation(np.array([1.0 + push, 0, 0, 0.3])))
        assert agent.history[-1].planned == (not rests) and (not action.any() or not rests)


def test_a_schedule_by_arrival_needs_an_objective_that_reads() -> None:
    with pytest.raises(ValueError, match="'arrival', rest and read_gripper need the aligned objective"):
        make_agent(config=AgentConfig(schedule="arrival"))


@pytest.mark.parametrize("read", [False, True])
def test_the_goals_closedness_is_recorded_or_read_from_its_image(read: bool) -> None:
    """The image shows 0.7 of the gripper's range closed; 0 was recorded with it."""
    settings, space = AgentConfig(read_gripper=read), {"max_position": 0.1, "max_gripper": 1.0}
    objective = AlignedL1(PointReading(), goal_gripper=True)  # type: ignore[arg-type]
    agent = make_agent(config=settings, objective=objective, space=space)
    agent.reset(goal_at([0.0, 0, 0, 0.7]))
    action = agent.act(observation(np.zeros(4)))
    assert action[6] == pytest.approx(0.7 if read else 0.0, abs=0.1)


def test_the_gripper_stays_within_its_stroke() -> None:
    space = ActionSpace(max_gripper=0.75, stroke=True)
    actions = torch.zeros(2, 1, 3, 7)
    actions[..., 6] = torch.tensor([-0.5, 0.8, 0.5])
    actions[..., 0] = 0.01
    moved = space.within_stroke(actions, torch.tensor([0.0, 0.3]))
    torch.testing.assert_close(moved[0, 0, :, 6], torch.tensor([0.0, 0.8, 0.2]))
    torch.testing.assert_close(moved[1, 0, :, 6], torch.tensor([-0.3, 0.8, 0.2]))
    assert torch.equal(moved[..., :6], actions[..., :6])
    assert torch.equal(ActionSpace().within_stroke(actions, torch.zeros(2)), actions)
    idle = space.within_stroke(torch.zeros(1, 1, 2, 7), torch.tensor([-0.01]))
    assert not idle.any()


def watched(agent: PlanningAgent) -> list[WarmStart | None]:
    """The warm starts of all searches of an agent from now on."""
    starts: list[WarmStart | None] = []
    plan = agent.planner.plan

    def watch(*arguments, warm_start=None, **settings):
        starts.append(warm_start)
        return plan(*arguments, warm_start=warm_start, **settings)

    agent.planner.plan = watch  # type: ignore[method-assign]
    return starts


@pytest.mark.parametrize("repeat", [False, True])
def test_a_search_starts_from_what_is_left_of_the_last_plan_but_not_of_another_sub_goals(repeat: bool) -> None:
    """Two of three steps are executed; the sub-goal changes in the middle of the second plan, which is dropped."""
    agent = make_agent(horizon=3, config=AgentConfig(execute_steps=2, repeat_last=repeat))
    starts, plans = watched(agent), []
    agent.reset(goal_at([3.0, 0, 0, 0], [0, 3.0, 0, 0], budgets=(3, 9)))
    point, actions = np.zeros(4), []
    for _ in range(6):
        actions.append(agent.act(observation(point)))
        point = point + actions[-1][[0, 1, 2, 6]] / LIMITS.numpy()
        assert agent.last_plan is not None
        plans.append(agent.last_plan.actions[0])
    assert [record.planned for record in agent.history] == [True, False, True, True, False, True]
    assert [record.subgoal for record in agent.history] == [0, 0, 0, 1, 1, 1]
    assert starts[0] is None and starts[2] is None and len(starts) == 4
    for start, plan in ((starts[1], plans[1]), (starts[3], plans[4])):
        assert start is not None
        torch.testing.assert_close(start.actions[0, 0], plan[2])
        torch.testing.assert_close(start.actions[0, 1:], plan[2:].expand(2, -1) * float(repeat))
    executed = torch.from_numpy(np.stack(actions))
    torch.testing.assert_close(executed[:2], plans[0][:2])
    torch.testing.assert_close(executed[3:5], plans[3][:2])  # none of the dropped plan's second step
    assert np.abs(actions[3][1]) > 0.05


def test_a_new_episode_begins_with_a_plan_of_its_own() -> None:
    agent = make_agent(horizon=3, config=AgentConfig(execute_steps=3))
    starts = watched(agent)
    for _ in range(2):
        agent.reset(goal_at([3.0, 0, 0, 0]))
        agent.act(observation(np.zeros(4)))
        assert agent.history[0].planned and len(agent.history) == 1
    assert starts == [None, None]


@pytest.mark.parametrize(
    ("goal", "shown"),
    [
        ([99.0, 0, 0, 0.3], [0, 0, 0, 1, 1, 1]),  # never there: left after 1.5 times the budget of 2
        ([0.0, 0, 0, 0.3], [1, 1, 1, 1, 1, 1]),  # there at once
        ([0.0, 0, 0, 0.4], [0, 0, 0, 1, 1, 1]),  # the hand is there, and fingers that may not move are not
    ],
)
def test_arrival_ends_a_sub_goal_and_patience_one_that_is_not_reached(goal: list[float], shown: list[int]) -> None:
    config = AgentConfig(schedule="arrival", patience=1.5, arrive_within=0.02, arrive_grip=0.06)
    agent = make_agent(
        config=config,
        objective=AlignedL1(PointReading()),  # type: ignore[arg-type]
        space={"max_position": 0.1, "max_gripper": 0.0},
    )
    agent.reset(goal_at(goal, [50.0, 0, 0, 0.3], budgets=(2, 2)))
    for _ in range(6):
        agent.act(observation(np.array([0.0, 0, 0, 0.3])))
    assert [record.subgoal for record in agent.history] == shown


def test_each_sub_goal_has_patience_of_its_own() -> None:
    """Steps spent on the first do not count for the second."""
    config = AgentConfig(schedule="arrival", patience=1.0, arrive_within=0.02)
    agent = make_agent(config=config, objective=AlignedL1(PointReading()))  # type: ignore[arg-type]
    agent.reset(goal_at([99.0, 0, 0, 0.3], [99.0, 0, 0, 0.3], [0, 99.0, 0, 0.3], budgets=(3, 2, 2)))
    for _ in range(7):
        agent.act(observation(np.array([0.0, 0, 0, 0.3])))
    assert [record.subgoal for record in agent.history] == [0, 0, 0, 1, 1, 2, 2]
