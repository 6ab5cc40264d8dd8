"""The fault matrix on fakes: every fault leaves a standing arm, a readable log, and the reaction that is due.

With ARMWORLD_FAULT_TABLE=FILE each test appends a line: fault, reaction, seconds from the fault to the hold.
"""

import dataclasses
import functools
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from armworld.evaluation.files import write_json
from armworld.real.agent_process import InlineAgent, Reply
from armworld.real.journal import read_frame
from armworld.real.limits import Box
from armworld.real.protocols import DeviceError, DeviceLost, Reflex
from armworld.real.replay import judge_again
from armworld.real.session import Session

sys.path.append(str(Path(__file__).parent))  # for the rig
from real_fake_rig import HEADER, LIMITS, Rig, note


@pytest.fixture
def rig(tmp_path):
    return functools.partial(Rig, tmp_path)


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


def test_the_agent_is_told_what_was_done(rig):
    """Slow steps first, then one that is held; the first observation comes after nothing."""
    told = []

    class Telling:
        def reset(self, goal):
            pass

        def act(self, observation):
            told.append(observation["executed"])
            return np.array([0.1, 0, 0, 0, 0, 0, 0]) if len(told) != 3 else np.full(7, np.nan)

    rig(link=InlineAgent(Telling()), steps=5, slow_steps=1).run()
    assert all(one.dtype == np.float32 and one.shape == (7,) for one in told)
    np.testing.assert_allclose([one[0] for one in told], [0, 0.0025, 0.0125, 0, 0.0125], rtol=1e-5)


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


def test_a_reconnection_that_fails_ends_the_episode(rig):
    r = rig(steps=60)
    r.answers = [True]

    def refuse():
        raise DeviceError("camera 12345 is not plugged in")

    def lose():
        r.camera.lost, r.camera.connect = True, refuse

    assert r.run(lose).reason == "device_lost: camera 12345 is not plugged in"
    r.assert_stands()


def test_a_recovery_that_fails_ends_the_episode(rig):
    r = rig(steps=60)
    r.answers = [True]

    def refuse():
        raise DeviceError("the brakes are engaged")

    def collide():
        r.arm.reflex, r.arm.recover = "collision", refuse

    assert r.run(collide).reason == "reflex: collision; not recovered: the brakes are engaged"
    r.assert_stands()


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


@pytest.mark.parametrize("fault", [Reflex, DeviceLost, DeviceError])
def test_a_fault_while_commanding_is_no_decision_to_judge_again(rig, fault):
    """The row keeps what the gate was asked and the hold that came of the fault."""
    r = rig(steps=60)

    def refuse(pose):
        raise fault("refused")

    assert not r.run(lambda: setattr(r.arm, "command", refuse)).reason.startswith("steps")
    assert r.rows[-1]["situation"] is not None and r.rows[-1]["verdict"] == "hold"
    write_json(r.folder / "log" / "header.json", HEADER | {"limits": dataclasses.asdict(r.limits)})
    assert judge_again(r.folder / "log") == []


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
