"""From one sub-goal to the next: what counts as a step where a gate shortens them, as holding still, as reached."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from planners_fake import goal_at, observation
from test_planners_mpc import make_agent

from armworld.planners.mpc import AgentConfig


@pytest.mark.parametrize(
    ("share", "arrived_m", "first"),
    [
        (1.0, 0.015, 4),
        (0.5, 0.015, 8),
        (0.0, 0.015, 13),  # never: held all the time
        (2.0, 0.015, 4),  # carried further than asked, by whatever: a step all the same
        (0.0, 0.5, 4),  # who asks for so little is held up by no gate
    ],
)
def test_a_step_counts_by_the_share_of_it_that_was_executed(share: float, arrived_m: float, first: int) -> None:
    """The first sub-goal has 4 steps; `first` is the step at which the second is shown."""
    space = {"max_position": 0.1, "max_gripper": 0.0}
    agent = make_agent(config=AgentConfig(schedule="budget", arrived_m=arrived_m), space=space)
    agent.reset(goal_at([50.0, 0, 0, 0], [0, 50.0, 0, 0], budgets=(4, 4)))
    seen = observation(np.zeros(4))
    for _ in range(13):
        action = agent.act(seen)
        seen = observation(np.zeros(4)) | {"executed": (share * action).astype(np.float32)}
    shown = [record.subgoal for record in agent.history]
    assert shown == [0] * first + [1] * (13 - first)


def test_plans_that_hold_end_a_sub_goal_only_in_a_row() -> None:
    """The point is at the goal, is pushed away, is there again: the second time it must hold twice once more."""
    agent = make_agent(hold_margin=0.5, config=AgentConfig(schedule="energy", switch_energy=-1.0, switch_holds=2))
    agent.reset(goal_at([1.0, 0, 0, 0], [9.0, 0, 0, 0], budgets=(50, 50)))
    for x in (1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0):
        agent.act(observation(np.array([x, 0, 0, 0])))
    assert [record.hold for record in agent.history[:6]] == [True, False, True, False, True, True]
    assert [record.subgoal for record in agent.history] == [0, 0, 0, 0, 0, 0, 1]


def test_sub_goals_that_are_reached_already_are_passed_over_at_once() -> None:
    agent = make_agent(config=AgentConfig(schedule="energy", switch_energy=0.05))
    agent.reset(goal_at([0.0, 0, 0, 0], [0.1, 0, 0, 0], [9.0, 0, 0, 0], [9.0, 1, 0, 0]))
    agent.act(observation(np.zeros(4)))
    assert [record.subgoal for record in agent.history] == [2]


def test_the_last_sub_goal_is_pursued_for_good() -> None:
    agent = make_agent(config=AgentConfig(schedule="budget"))
    agent.reset(goal_at([9.0, 0, 0, 0], budgets=(2,)))
    for _ in range(4):
        agent.act(observation(np.zeros(4)))
    assert [record.subgoal for record in agent.history] == [0] * 4
