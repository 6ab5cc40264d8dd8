"""The fault matrix against the simulated robot: real client, FCI on loopback, and everything that may go wrong.

Every fault leaves a standing arm (judged by the simulator's joints, past all clients), an unbroken log and the reaction
that is due. With ARMWORLD_FAULT_TABLE=FILE each test appends a line: fault, reaction, and the seconds from the fault to
the decision to hold and to the arm's rest. `test_real_faults` has the same on fakes, and `test_real_reflex` reflexes.
The simulated robot runs in real time and wants a core of its own, so these are run by `make test-robot`.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

sys.path.append(str(Path(__file__).parent))  # for the rig
from real_rig import MOVING, STRICT, Rig, Sway

from armworld.evaluation.agents import AgentSettings
from armworld.real.agent_process import AgentProcess, Reply
from armworld.real.agents import build_agent
from armworld.real.limits import Box
from armworld.real.simulated import SimulatedConfig, SimulatedRobot
from armworld.types import Goal

pytestmark = pytest.mark.slow
AGES = {"max_frame_age": STRICT.max_frame_age, "max_state_age": STRICT.max_state_age}


@pytest.fixture(scope="module")
def shared():
    with SimulatedRobot(SimulatedConfig(size=(64, 64), rate_hz=20.0, object=None)) as robot:
        yield robot


@pytest.fixture
def rig(shared, tmp_path):
    return functools.partial(Rig, shared, tmp_path)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("frozen", "repeated_frame"),
        ("repeated", "repeated_frame"),
        ("black", "black_frame"),
        ("size", "wrong_size"),
    ],
)
def test_bad_frames_hold(rig, fault, code):
    r = rig()
    r.run(lambda: setattr(r.camera, "fault", fault))
    r.assert_held(code)
    assert all(
        row["proposed"] is None for row in r.rows if row["verdict"] == "hold" and r._after(row)
    )  # none was shown
    r.note({"size": "wrong size"}.get(fault, f"{fault} frame"), "hold, end after 8 holds; no agent sees the frame")


def test_a_lost_camera_ends_unless_reconnection_is_confirmed(rig):
    r = rig()
    r.run(lambda: setattr(r.camera, "fault", "lost"))
    r.assert_held("device_lost", "device_lost")
    assert len(r.questions) == 1 and "Reconnect" in r.questions[0]
    r.note("camera lost", "hold, ask for reconnection, end")


def test_a_confirmed_reconnection_goes_on_slowly(rig):
    r = rig(steps=MOVING + 6, slow_steps=2)
    r.confirm = lambda question: True
    assert r.run(lambda: setattr(r.camera, "fault", "lost")).reason == "steps"
    lost = next(row["step"] for row in r.rows if row["reasons"] and row["reasons"][0][0] == "device_lost")
    assert any(row["executed"] is not None for row in r.rows[lost + 1 :])


def test_a_frozen_painter_holds(rig, shared):
    """The process that draws stops: frames grow stale, then count as lost."""
    r = rig(limits=AGES, max_holds=30)
    try:
        r.run(lambda: os.kill(shared.painter.pid, signal.SIGSTOP))
    finally:
        os.kill(shared.painter.pid, signal.SIGCONT)
    assert {"repeated_frame", "stale_frame"} & r.codes
    r.assert_held("device_lost", "device_lost")
    r.note("camera's process frozen", "hold, then as camera lost")


def test_a_frozen_server_holds_and_moves_again_only_over_a_confirmed_new_connection(rig, shared):
    r = rig(limits=AGES, steps=40, max_holds=35)

    def resume(question):
        os.kill(shared.server.pid, signal.SIGCONT)
        return True

    r.confirm = resume
    try:
        assert r.run(lambda: os.kill(shared.server.pid, signal.SIGSTOP)).reason == "steps"
    finally:
        os.kill(shared.server.pid, signal.SIGCONT)
    assert "device_lost" in r.codes and "Reconnect" in r.questions[0]
    lost = next(row["step"] for row in r.rows if "device_lost" in {code for code, _ in row["reasons"]})
    held = [row for row in r.rows[:lost] if r._after(row) and row["verdict"] == "hold"]
    assert {code for row in held for code, _ in row["reasons"]} <= {"stale_state", "device_error"}
    assert any(row["executed"] is not None for row in r.rows[lost + 1 :])
    r.note("server frozen (SIGSTOP)", "hold (stale state), after 1 s lost: reconnect only when confirmed, else end")


def test_a_killed_server_ends(tmp_path):
    with SimulatedRobot(SimulatedConfig(size=(32, 32), object=None)) as robot:
        r = Rig(robot, tmp_path, limits=AGES)
        outcome = r.run(robot.server.kill)
    assert outcome.reason.startswith(("device_lost", "held: stale_state")) and {"stale_state", "device_lost"} & r.codes
    r.note("server killed", "hold, ask for reconnection, end")


@pytest.mark.parametrize(
    ("name", "action", "code"),
    [
        ("NaN", np.full(7, np.nan), "nan"),
        ("wrong shape", np.zeros(6), "shape"),
        ("degrees", np.array([0, 0, 0, 0, 0, 5.0, 0]), "degrees"),
        ("gripper in millimetres", np.array([0, 0, 0, 0, 0, 0, 40.0]), "gripper_units"),
    ],
)
def test_nonsense_from_the_agent_is_held_by_name(rig, name, action, code):
    r = rig(Sway(instead=action))
    r.run()
    r.assert_held(code)
    r.note(name, "hold, end after 8 holds")


def here(robot) -> np.ndarray:
    """The flange's position [3] (m) as the real client reads it."""
    with robot.arm() as arm:
        return arm.read().pose[:3]


def test_a_target_outside_the_box_stops_at_its_face(rig, shared):
    start = here(shared)
    x, y, z = map(float, start)
    box = Box((x - 0.1, y - 0.1, z - 0.03), (x + 0.1, y + 0.1, z + 0.03))
    r = rig(Sway(np.array([0, 0, 0.012, 0, 0, 0, 0])), limits={"workspace": box})
    r.run()
    assert r.outcome.reason == "held: workspace"
    highest = max(row["state"][2] for row in r.rows)
    assert start[2] + 0.02 < highest < start[2] + 0.03 + STRICT.tracking_m  # of which braking overshoots a little
    r.note("target outside the box", "clip to the face, hold there, end", decided=False)
    back = rig_back(r)
    assert back.reason == "steps"


def rig_back(r: Rig):
    """Down again by as much as a box's test went up, so that the next test finds the arm where it was."""
    agent = Sway(np.array([0, 0, -0.012, 0, 0, 0, 0]))
    return Rig(r.robot, r.folder / "back", agent, steps=3).run()


def test_a_path_through_the_edge_of_a_keep_out_box_stops_before_it(rig, shared):
    """Neither start nor end of the whole way is inside; its middle is."""
    start = here(shared)
    side = -1.0 if start[1] > 0 else 1.0
    corners = start + np.array([[0.03, side * 0.09, -0.05], [0.06, side * 0.12, 0.05]])  # 35 mm from the open fingers
    (x0, y0, z0), (x1, y1, z1) = corners.min(0), corners.max(0)
    box = Box((x0, y0, z0), (x1, y1, z1))
    r = rig(Sway(np.array([0.006, side * 0.012, 0, 0, 0, 0, 0])), limits={"keep_out": (box,)})
    r.run()
    assert r.outcome.reason == "held: keep_out"
    assert min(box.outside(np.array(row["state"][:3])) for row in r.rows) > -STRICT.tracking_m
    r.note("path through a box's edge", "clip before it, hold there, end", decided=False)
    agent = Sway(np.array([-0.006, side * -0.012, 0, 0, 0, 0, 0]))
    assert Rig(shared, r.folder / "back", agent, steps=3).run().reason == "steps"


class Late:
    """Answers `seconds` after it was asked, from the fault on; at once before it."""

    def __init__(self, agent, seconds):
        self.agent, self.seconds, self.waiting = agent, seconds, []

    def request(self, observation, tag):
        action = self.agent.act(observation)
        self.waiting.append((time.monotonic() + (self.seconds if self.agent.broken else 0), tag, action))

    def poll(self):
        if self.waiting and time.monotonic() >= self.waiting[0][0]:
            return Reply(self.waiting[0][1], self.waiting.pop(0)[2], None, self.seconds)
        return None


def test_a_planner_slower_than_its_observation_allows_is_discarded(rig):
    agent = Sway()
    r = rig(agent, Late(agent, 0.7), limits={"max_plan_age": 0.5}, max_holds=4)
    r.run()
    assert "stale_plan" in r.codes
    r.assert_held("agent_slow")
    r.note("planner slower than the observation allows (0.5 s)", "hold, discard the plan, look again; end")


def test_a_planner_slower_than_the_step_is_waited_for_while_its_observation_allows(rig):
    agent = Sway()
    r = rig(agent, Late(agent, 0.25), steps=8, limits={"max_plan_age": 2.0})
    assert r.run().reason == "steps" and not r.outcome.holds
    assert all(row["executed"] is not None for row in r.rows)
    r.note(
        "planner slower than the step (0.25 s of 0.1)", "the arm ends its step and stands until the plan comes", False
    )


class Failing(Late):
    """Reports an exception from the fault on."""

    def poll(self):
        reply = super().poll()
        if reply is not None and self.agent.broken:
            return Reply(reply.tag, None, "RuntimeError: out of memory", 0.0)
        return reply


def test_a_planner_that_raises_ends(rig):
    agent = Sway()
    r = rig(agent, Failing(agent, 0.0))
    r.run()
    r.assert_held("agent_gone", "agent_gone: the agent failed: RuntimeError: out of memory")
    r.note("planner raises", "hold, end")


class Counted:
    """A planner's process beside the counter that the rig waits for."""

    def __init__(self, agent, process):
        self.agent, self.process = agent, process

    def request(self, observation, tag):
        self.agent.count += 1
        self.process.request(observation, tag)

    def poll(self):
        return self.process.poll()


def test_a_planners_process_that_is_killed_ends_and_never_has_real_time_priority(rig):
    agent = Sway()
    with AgentProcess(functools.partial(build_agent, "hold", "", 0, AgentSettings())) as process:
        process.reset(Goal(({"state": np.zeros(7, np.float32)},), (5,)))
        pid = process.process.pid
        assert pid is not None and os.sched_getscheduler(pid) == os.SCHED_OTHER
        r = rig(agent, Counted(agent, process))
        r.run(lambda: os.kill(pid, signal.SIGKILL))
    r.assert_held("agent_gone", "agent_gone: the agent's process ended")
    r.note("planner crash (SIGKILL)", "hold, end")


def test_connecting_leaves_no_real_time_priority_to_what_is_started_later(shared):
    with shared.arm() as arm:
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
        arm.command(arm.read().pose)
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_stalled_gripper_is_not_pushed(rig, shared):
    closing = Sway(np.array([0, 0, 0, 0, 0, 0, 0.1]))
    r = rig(closing, steps=25, limits={"gripper_stall": 0.3})
    r.gripper.at = 0.3
    assert r.run().reason == "steps"
    assert "gripper_stall" in {code for row in r.rows for code, _ in row["reasons"]}
    stalled = [row for row in r.rows if "gripper_stall" in {code for code, _ in row["reasons"]}]
    assert all(row["target"][6] <= row["state"][6] + 0.01 for row in stalled)
    r.note("gripper stall", "its target is set back to where it stands (0.3 s after it stopped)", decided=False)
    opening = Sway(np.array([0, 0, 0, 0, 0, 0, -0.1]))
    assert Rig(shared, r.folder / "back", opening, steps=12).run().reason == "steps"


def test_the_stop_button_ends_within_the_step(rig):
    r = rig()
    r.run(lambda: r.stop.set("stop button"))
    assert r.outcome.reason == "stop button"
    r.note("stop button", "hold, end, the log is closed")


def test_a_full_disk_ends_and_what_was_written_stays(rig):
    r = rig()

    def fill():
        assert r.session is not None
        r.session.journal._file = Path("/dev/full").open("w")  # noqa: SIM115

    r.run(fill)
    assert r.outcome.reason.startswith("log:") and "No space left" in r.outcome.reason
    assert len(r.rows) >= MOVING
    r.note("disk full", "hold, end; the log stays up to its last whole line", decided=False)


def test_the_watchdog_stops_the_arm_when_the_loop_hangs(rig):
    class Hanging(Sway):
        def act(self, observation):
            if self.broken:
                time.sleep(1.2)
            return super().act(observation)

    r = rig(Hanging(), watchdog_s=0.3)
    assert r.run().reason.startswith("watchdog")
    r.note("the loop hangs (watchdog 0.3 s)", "the watchdog stops the arm; end", decided=False)
