"""The fault matrix on fakes: every fault leaves a standing arm, a readable log, and the reaction that is due.

With ARMWORLD_FAULT_TABLE=FILE each test appends a line: fault, reaction, seconds from the fault to the hold.
"""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from armworld.evaluation.agents import AgentSettings
from armworld.real.agent_process import AgentGone, AgentProcess, InlineAgent, Reply
from armworld.real.agents import build_agent
from armworld.real.cell import Cell, SessionConfig, StopRequest
from armworld.real.fakes import FakeArm, FakeCamera, FakeGripper
from armworld.real.gate import SafetyGate
from armworld.real.journal import Journal, read_frame, read_journal
from armworld.real.limits import FRANKA_HAND, Box, Limits
from armworld.real.session import Session
from armworld.types import Goal

LIMITS = Limits(
    workspace=Box((0.3, -0.3, 0.15), (0.7, 0.3, 0.6)),
    fingertips=Box((0.25, -0.35, 0.01), (0.75, 0.35, 0.6)),
    fingers=FRANKA_HAND,
    step_seconds=0.05,
    max_plan_age=0.5,
)
HEADER = {"step_seconds": 0.05, "cameras": {"left": [48, 64]}, "extrinsics": {"left": [0.0] * 6}}
HEADER |= {"lab": "test", "task": "test", "robot": "fake", "started": "2026-01-02T03:04:05+00:00"}


class Constant:
    """Proposes the same thing for ever."""

    def __init__(self, action):
        self.action = action

    def reset(self, goal):
        pass

    def act(self, observation):
        return self.action


class Rig:
    """Fakes, a session over them, and what came of it."""

    def __init__(self, folder: Path, action=None, link=None, **config):
        self.arm, self.gripper, self.camera = FakeArm(), FakeGripper(), FakeCamera()
        self.cell = Cell(self.arm, self.gripper, {"left": self.camera})
        self.folder, self.stop = folder, StopRequest()
        self.action = np.array([0.001, 0, 0, 0, 0, 0, 0]) if action is None else action
        self.link = link or InlineAgent(Constant(self.action))
        settings = {"steps": 12, "live": True, "slow_steps": 0, "max_holds": 4} | config
        self.config = SessionConfig(**settings)
        self.limits, self.answers, self.onset = LIMITS, [], 0.0
        self.questions: list[str] = []

    def confirm(self, question):
        self.questions.append(question)
        return self.answers.pop(0) if self.answers else False

    def run(self, fault=None, after=0.25):
        """Run the session; `fault()` happens `after` seconds into it."""
        self.cell.connect()
        journal = Journal(self.folder / "log", HEADER)
        gate = SafetyGate(self.limits)
        session = Session(self.cell, gate, self.link, journal, self.config, self.stop, self.confirm)

        def later():
            self.onset = time.monotonic()
            if fault is not None:
                fault()

        timer = threading.Timer(after, later)
        timer.start()
        try:
            self.outcome = session.run()
        finally:
            timer.cancel()
            timer.join()
            journal.close()
        self.rows = read_journal(self.folder / "log")[1]
        return self.outcome

    @property
    def codes(self):
        return {code for row in self.rows for code, _ in row["reasons"]}

    def held_after(self):
        """Seconds from the fault to the first stop after it."""
        return next(stop - self.onset for stop in self.arm.stops if stop >= self.onset)

    def assert_stands(self):
        """Nothing was commanded after the last stop, and the log is whole."""
        assert self.arm.stops, "the arm was never stopped"
        assert [row["step"] for row in self.rows] == list(range(len(self.rows)))
        executed = sum(row["executed"] is not None for row in self.rows)
        assert executed == len(self.arm.commands)


@pytest.fixture
def rig(tmp_path):
    return functools.partial(Rig, tmp_path)


def note(fault: str, reaction: str, seconds: float | None) -> None:
    """A line of the docs' table, when asked for."""
    if path := os.environ.get("ARMWORLD_FAULT_TABLE"):
        with open(path, "a") as file:
            file.write(json.dumps({"fault": fault, "reaction": reaction, "seconds": seconds}) + "\n")


def test_without_a_fault_it_moves_and_logs_everything(rig):
    r = rig()
    outcome = r.run()
    assert outcome.reason == "steps" and not outcome.holds and len(r.arm.commands) == 12
    assert r.arm.pose[0] == pytest.approx(0.45 + 12 * 0.001)
    frame = read_frame(r.folder / "log", "left", 5)
    assert frame is not None and frame.shape == (48, 64, 3)
    row = r.rows[5]
    np.testing.assert_allclose(row["proposed"], r.action)
    np.testing.assert_allclose(row["executed"], r.action, atol=1e-9)
    assert {"look", "agent", "gate", "command", "step"} <= row["latency"].keys()


def test_a_dry_run_sends_nothing(rig):
    r = rig(live=False)
    assert r.run().reason == "steps"
    assert not r.arm.commands and not r.gripper.commands
    assert all(row["allowed"] is not None and row["executed"] is None for row in r.rows)


def test_first_moves_are_slow(rig):
    r = rig(action=np.array([0.1, 0, 0, 0, 0, 0, 0]), steps=4, slow_steps=2)
    r.run()
    steps = np.diff([0.45, *[pose[0] for pose in r.arm.commands]])
    np.testing.assert_allclose(steps, [0.0025, 0.0025, 0.0125, 0.0125], rtol=1e-6)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("frozen", "repeated_frame"),
        ("repeated", "repeated_frame"),
        ("same", "frozen_camera"),
        ("black", "black_frame"),
        ("size", "wrong_size"),
    ],
)
def test_bad_frames_hold_and_then_end(rig, fault, code):
    r = rig(steps=60)
    outcome = r.run(lambda: setattr(r.camera, "fault", fault))
    assert code in r.codes and outcome.reason.startswith("held")
    bad = [row for row in r.rows if row["verdict"] == "hold"]
    assert all(row["proposed"] is None for row in bad)  # the agent was not shown the frame
    r.assert_stands()
    note(f"camera: {fault}", "hold; end after max_holds", r.held_after())


def test_a_frame_that_comes_back_lets_the_loop_go_on(rig):
    r = rig(steps=30, max_holds=50)
    threading.Timer(0.6, lambda: setattr(r.camera, "fault", None)).start()
    outcome = r.run(lambda: setattr(r.camera, "fault", "black"))
    assert outcome.reason == "steps" and outcome.holds["black_frame"] > 0
    assert r.rows[-1]["verdict"] == "pass"


def test_a_lost_camera_ends_unless_reconnection_is_confirmed(rig):
    r = rig(steps=60)
    assert r.run(lambda: setattr(r.camera, "fault", "lost")).reason.startswith("device_lost")
    assert "Reconnect" in r.questions[0]
    r.assert_stands()
    note("camera lost", "hold; reconnect only when confirmed, else end", r.held_after())


def test_a_confirmed_reconnection_starts_slowly_again(rig):
    r = rig(steps=14, slow_steps=2)

    def lose():
        r.camera.lost = True

    r.answers = [True]
    assert r.run(lose).reason == "steps"
    assert r.arm.connections == 2 and r.camera.connections == 2


def test_an_arm_whose_state_stands_still_is_held(rig):
    r = rig(steps=60)
    outcome = r.run(lambda: setattr(r.arm, "frozen_s", time.monotonic()))
    assert outcome.reason == "held: stale_state" and "stale_state" in r.codes
    r.assert_stands()
    note("arm's state stale", "hold; end after max_holds", r.held_after())


def test_a_lost_arm_ends(rig):
    r = rig(steps=60)
    assert r.run(lambda: setattr(r.arm, "lost", True)).reason.startswith("device_lost")
    r.assert_stands()
    note("arm lost", "end; reconnect only when confirmed", r.held_after())


def test_a_reflex_ends_or_is_recovered_when_confirmed(rig, tmp_path):
    r = rig(steps=60)
    assert r.run(lambda: setattr(r.arm, "reflex", "reflex: cartesian_reflex")).reason.startswith("reflex")
    note("reflex", "stand; recover only when confirmed, else end", r.held_after())
    again = Rig(tmp_path / "again", steps=14)
    again.answers = [True]
    assert again.run(lambda: setattr(again.arm, "reflex", "reflex")).reason == "steps"
    assert again.arm.reflex is None and "recover" in again.questions[0]


@pytest.mark.parametrize(
    ("name", "action", "code"),
    [
        ("NaN", np.full(7, np.nan), "nan"),
        ("wrong shape", np.zeros(6), "shape"),
        ("degrees", np.array([0, 0, 0, 0, 0, 5.0, 0]), "degrees"),
        ("gripper millimetres", np.array([0, 0, 0, 0, 0, 0, 40.0]), "gripper_units"),
    ],
)
def test_nonsense_from_the_agent_is_held_and_ends(rig, name, action, code):
    r = rig(action=action)
    outcome = r.run()
    assert outcome.reason == f"held: {code}" and not r.arm.commands and not r.gripper.commands
    note(f"agent: {name}", "hold; end after max_holds", None)


def test_a_target_outside_the_box_stops_at_its_face(rig):
    r = rig(action=np.array([0.0125, 0, 0, 0, 0, 0, 0]), steps=40)
    outcome = r.run()
    assert outcome.reason == "held: workspace" and max(p[0] for p in r.arm.commands) <= 0.7
    note("target outside the box", "clip to the face, then hold; end after max_holds", None)


def test_a_path_through_a_boxes_edge_stops_before_it(rig):
    r = rig(action=np.array([0.009, 0.006, 0, 0, 0, 0, 0]), steps=40)
    r.limits = dataclasses.replace(LIMITS, keep_out=(Box((0.5, 0.03, 0.3), (0.6, 0.06, 0.5)),))
    assert r.run().reason == "held: keep_out"
    assert max(p[0] for p in r.arm.commands) < 0.5
    note("path through a keep-out box's edge", "clip before it, then hold", None)


def test_a_stalled_gripper_is_not_pushed(rig):
    r = rig(action=np.array([0, 0, 0, 0, 0, 0, 0.3]), steps=60)
    r.gripper.stuck_at = 0.4
    r.limits = dataclasses.replace(LIMITS, gripper_stall=0.2, max_closedness_rate=10.0)
    r.run()
    assert "gripper_stall" in r.codes
    assert r.gripper.commands[-1] == pytest.approx(0.4, abs=0.06)
    note("gripper stall", "its target is set back to where it stands", 0.2)


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


def test_the_stop_button_and_ctrl_c_once_end_with_a_whole_log(rig):
    r = rig(steps=400)
    assert r.run(lambda: r.stop.set("stop button")).reason == "stop button"
    r.assert_stands()
    note("Ctrl-C once, stop button", "hold; end, log closed", r.held_after())


def test_a_full_disk_ends_and_what_was_written_stays(rig):
    r = rig(steps=400)
    written = []

    def fill():
        journal = r.folder / "log" / "frames" / "left"
        written.extend(journal.iterdir())
        sessions[0].journal._file = Path("/dev/full").open("w")  # noqa: SIM115

    sessions = []
    real = Session.__init__

    def spy(self, *arguments, **options):
        real(self, *arguments, **options)
        sessions.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "__init__", spy)
        outcome = r.run(fill)
    assert outcome.reason.startswith("log:") and "No space left" in outcome.reason
    assert len(r.rows) >= len(written) - 1 > 0
    note("disk full", "hold; end, the log stays up to its last line", r.held_after())


def test_the_watchdog_stops_the_arm_when_the_loop_hangs(rig):
    r = rig(steps=400, watchdog_s=0.3)

    class Hanging:
        def request(self, observation, tag):
            time.sleep(1.0 if len(r.arm.commands) > 3 else 0)
            self.tag = tag

        def poll(self):
            return Reply(self.tag, np.array([0.001, 0, 0, 0, 0, 0, 0]), None, 0.0)

    r.link = Hanging()
    assert r.run().reason.startswith("watchdog")
    note("the loop hangs", "the watchdog stops the arm; end", 0.3)


KILLED = """
import sys, threading, time
import numpy as np
from pathlib import Path
from armworld.real.agent_process import InlineAgent
from armworld.real.cell import Cell, SessionConfig, StopRequest
from armworld.real.deploy import signals
from armworld.real.fakes import FakeArm, FakeCamera
from armworld.real.gate import SafetyGate
from armworld.real.journal import Journal
from armworld.real.limits import Box, Limits
from armworld.real.session import Session

class Constant:
    def act(self, observation):
        return np.array([0, 0.0001, 0, 0, 0, 0, 0])

class SlowArm(FakeArm):
    def stop(self):
        super().stop()
        time.sleep(float(sys.argv[2]))
        print("stopped", flush=True)

box = Box((0.2, -0.5, 0.01), (0.8, 0.5, 0.6))
gate = SafetyGate(Limits(workspace=box, fingertips=box, step_seconds=0.05))
stop = StopRequest()
cell = Cell(SlowArm(), None, {"left": FakeCamera()})
cell.connect()
journal = Journal(Path(sys.argv[1]), {})
print("ready", flush=True)
with signals(stop):
    outcome = Session(cell, gate, InlineAgent(Constant()), journal, SessionConfig(500, True), stop).run()
print("ended", outcome.reason, flush=True)
"""


def start_loop(folder: Path, stop_s: float = 0.0) -> subprocess.Popen[str]:
    """The loop in a process of its own, running."""
    command = [sys.executable, "-c", KILLED, str(folder), str(stop_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    end = time.monotonic() + 20
    while len(read_journal(folder)[1]) < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


def test_ctrl_c_once_in_a_process(tmp_path):
    process = start_loop(tmp_path / "log")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert "stopped" in said and said.endswith("ended interrupted\n")


def test_ctrl_c_twice_ends_at_once(tmp_path):
    process = start_loop(tmp_path / "log", stop_s=1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said and process.returncode != 0
    assert len(read_journal(tmp_path / "log")[1]) >= 3
    note("Ctrl-C twice", "ends at once, the journal stays readable", None)


def test_a_killed_loop_leaves_a_readable_log(tmp_path):
    process = start_loop(tmp_path / "log")
    process.kill()
    process.communicate(timeout=30)
    rows = read_journal(tmp_path / "log")[1]
    assert len(rows) >= 3 and read_frame(tmp_path / "log", "left", len(rows) - 1) is not None
