"""The fault matrix on fakes: planners that are late, hang, die or refuse."""

import dataclasses
import functools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from armworld.evaluation.agents import AgentSettings
from armworld.real.agent_process import AgentGone, AgentProcess, Reply
from armworld.real.agents import build_agent
from armworld.types import Goal

sys.path.append(str(Path(__file__).parent))  # for the rig
from real_fake_rig import LIMITS, Rig, note


@pytest.fixture
def rig(tmp_path):
    return functools.partial(Rig, tmp_path)


class Late:
    """Answers every request `seconds` late."""

    def __init__(self, seconds):
        self.seconds, self.waiting = seconds, []

    def request(self, observation, tag):
        self.waiting.append((time.monotonic() + self.seconds, tag))

    def poll(self):
        if self.waiting and time.monotonic() >= self.waiting[0][0]:
            return Reply(self.waiting.pop(0)[1], np.array([0.01, 0, 0, 0, 0, 0, 0]), None, self.seconds)
        return None


def test_a_planner_slower_than_the_step_still_works_while_its_observation_allows(rig):
    r = rig(link=Late(0.2), steps=5)
    r.limits = dataclasses.replace(LIMITS, max_plan_age=1.0)
    assert r.run().reason == "steps" and len(r.arm.commands) == 5


def test_a_plan_that_is_too_old_is_discarded(rig):
    r = rig(link=Late(0.8), steps=6, max_holds=20)
    r.run()
    assert not r.arm.commands and {"agent_slow", "stale_plan"} <= r.codes
    note("planner slower than its observation allows", "hold; the plan is discarded, look again", 0.5)


def test_a_planner_that_hangs_ends_the_episode(rig):
    r = rig(link=Late(1e9), steps=60, max_holds=100, agent_timeout_s=1.0)
    assert r.run().reason.startswith("agent_gone: no answer")
    note("planner hangs", "hold; end after agent_timeout", 0.5)


def hold_agent():
    return AgentProcess(functools.partial(build_agent, "hold", "", 0, AgentSettings()))


GOAL = Goal(({"state": np.zeros(7, np.float32)},), (5,))


def test_a_planner_process_that_is_killed_ends_the_episode(rig):
    with hold_agent() as agent:
        agent.reset(GOAL)
        pid = agent.process.pid
        assert pid is not None
        r = rig(link=agent, steps=400)
        r.limits = dataclasses.replace(LIMITS, max_plan_age=10.0)  # a busy machine's answers take their time
        outcome = r.run(lambda: os.kill(pid, signal.SIGKILL))
    assert outcome.reason.startswith("agent_gone")
    r.assert_stands()
    note("planner crash (SIGKILL)", "hold; end", r.held_after())


def test_a_planner_process_that_is_frozen_holds_and_ends(rig):
    with hold_agent() as agent:
        agent.reset(GOAL)
        pid = agent.process.pid
        assert pid is not None
        r = rig(link=agent, steps=400, max_holds=3)
        outcome = r.run(lambda: os.kill(pid, signal.SIGSTOP))
    assert outcome.reason == "held: agent_slow"
    note("planner frozen (SIGSTOP)", "hold; end after max_holds", r.held_after())


def test_an_agent_that_refuses_its_goal_is_named():
    with AgentProcess(functools.partial(build_agent, "expert", "", 0, AgentSettings())) as agent:
        picture_only = Goal(({"left": np.zeros((8, 8, 3), np.uint8)},), (5,))
        with pytest.raises(AgentGone, match="picture only"):
            agent.reset(picture_only)
