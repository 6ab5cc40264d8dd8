"""The whole chain without hardware: real franky client, FCI on loopback, simulated robot and cameras."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import mujoco
import numpy as np
import pytest

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

sys.path.append(str(Path(__file__).parent))  # for the rig
from real_rig import note
from real_sockets import listening

from armworld.cli import run
from armworld.datasets.trajectory import read_episode, read_metadata
from armworld.envs.kinematics import ArmKinematics
from armworld.envs.scene import SceneConfig, build_model
from armworld.real.agent_process import InlineAgent
from armworld.real.cell import SessionConfig, StopRequest
from armworld.real.gate import SafetyGate
from armworld.real.journal import Journal, finish, read_journal
from armworld.real.protocols import Arm, Camera, DeviceLost, Gripper
from armworld.real.replay import judge_again, repeat
from armworld.real.session import Session
from armworld.real.setup import CellConfig, sim_cell
from armworld.real.simulated import SimulatedConfig, SimulatedRobot

SIDEWAYS_2CM = np.array([0, 0.02, 0, 0, 0, 0])
SMALL = SimulatedConfig(size=(64, 64), rate_hz=10.0)
LIMITS = CellConfig(sim=True).limits(0.25)
HEADER = {"step_seconds": 0.25, "cameras": {"left": [64, 64]}, "extrinsics": {"left": [0.0] * 6}}
HEADER |= {"lab": "test", "task": "test", "robot": "simulated", "started": "2026-01-02T03:04:05+00:00"}


class Sideways:
    """Moves along y for ever."""

    def reset(self, goal):
        pass

    def act(self, observation):
        return np.array([0, 0.02, 0, 0, 0, 0, 0])


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def still_since(robot, onset, rad=2e-4):
    """Seconds after `onset` at which the simulated joints last moved by more than `rad` in 20 ms."""
    last, moved = robot.truth().joints, onset
    while time.monotonic() - moved < 1.0:
        time.sleep(0.02)
        joints = robot.truth().joints
        if np.abs(joints - last)[:6].max() > rad:
            moved = time.monotonic()
        last = joints
    return moved - onset


@pytest.fixture(scope="module")
def robot():
    with SimulatedRobot(SMALL) as simulated:
        yield simulated


def test_devices_keep_their_protocols_and_show_features_while_disconnected(robot):
    arm, gripper, camera = robot.arm(), robot.gripper(), robot.camera("left")
    assert isinstance(arm, Arm) and isinstance(gripper, Gripper) and isinstance(camera, Camera)
    assert arm.features["pose"].shape == (6,) and camera.features["image"].shape == (64, 64, 3)
    assert gripper.features["closedness"].unit.startswith("0 open")
    for device in (arm, gripper, camera):
        assert not device.connected
        with pytest.raises(DeviceLost, match="not connected"):
            device.read()
    with arm, gripper, camera:
        pose = arm.read().pose
        np.testing.assert_allclose(pose[:3], [0.36, 0, 0.49], atol=0.002)  # the flange, not the hand's tip
        assert abs(abs(pose[3]) - np.pi) < 0.01
        sent = arm.command(pose + SIDEWAYS_2CM)
        np.testing.assert_allclose(sent, pose + SIDEWAYS_2CM)
        wait_for(lambda: abs(arm.read().pose[1] - sent[1]) < 5e-4)
        gripper.command(0.9)
        wait_for(lambda: gripper.read().closedness > 0.88)
        first = camera.read()
        wait_for(lambda: camera.read().id > first.id)
        with pytest.raises(ValueError, match="six finite"):
            arm.command(np.full(6, np.nan))


def test_the_pose_reported_in_motion_is_that_of_the_joints(robot):
    """libfranka's O_T_EE is measured; the pose that was desired last is O_T_EE_d."""
    model = build_model(SceneConfig())
    kinematics, data = ArmKinematics(model), mujoco.MjData(model)
    arm = robot.arm()
    arm.connect()
    try:
        target = arm.read().pose + 4 * SIDEWAYS_2CM
        arm.command(target)
        wait_for(lambda: np.abs(arm.read().velocities).max() > 0.3)
        off = []
        while arm.read().moving:
            seen = arm.read()
            data.qpos[kinematics.qpos_index] = seen.joints
            mujoco.mj_kinematics(model, data)
            off.append(np.linalg.norm(data.site("flange").xpos - seen.pose[:3]))
        wait_for(lambda: np.linalg.norm(arm.read().pose[:3] - target[:3]) < 0.001)
    finally:
        arm.close()
    assert len(off) > 3 and max(off) < 0.001, off


def test_nothing_of_the_simulated_robot_listens_beyond_loopback(robot):
    with robot.arm(), robot.gripper():
        addresses = listening(robot.server.pid)
    assert addresses and all(address.startswith("127.") for address in addresses), addresses


def outcomes_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/episode*/outcome.json"))]


def test_the_expert_reaches_five_goals_within_a_centimetre(tmp_path):
    """From the command line. Goals are captured by driving there; the logs are episodes in DROID's layout."""
    arguments = "deploy --sim --episodes 5 --image-size 64 --done-m 0.003 --max-frame-age 2 --max-state-age 2 --out"
    assert run([*arguments.split(), str(tmp_path)]) == 0
    outcomes = outcomes_of(tmp_path)
    assert len(outcomes) == 5
    assert all(outcome["reason"] == "arrived" and outcome["distance_m"] < 0.01 for outcome in outcomes)
    episodes = list(tmp_path.glob("droid/*/success/*/*"))
    assert len(episodes) == 5
    episode, metadata = read_episode(episodes[0]), read_metadata(episodes[0])
    assert episode.frames["left"].shape[1:] == (64, 64, 3) and metadata["robot_serial"].startswith("simulated FR3")
    assert all(judge_again(log) == [] for log in tmp_path.glob("*/episode*"))


def test_the_shipped_world_model_reaches_a_goal_image(tmp_path):
    """Picture in, within 4 cm: the model plans in its own process, the real client drives."""
    arguments = "deploy --sim --agent cem --steps 25 --done-m 0.04 --max-plan-age 50 --max-frame-age 2 "
    arguments += "--max-state-age 2 --out"
    assert run([*arguments.split(), str(tmp_path)]) == 0
    (outcome,) = outcomes_of(tmp_path)
    assert outcome["reason"] == "arrived" and outcome["distance_m"] <= 0.04
    (log,) = tmp_path.glob("*/episode*")
    rows = read_journal(log)[1]
    assert rows[0]["agent"]["energy"] > rows[-1]["agent"]["energy"]  # it sees itself come nearer
    assert judge_again(log) == []


@pytest.mark.slow
def test_the_shipped_world_model_reads_the_jogs_of_the_simulated_robot(tmp_path):
    arguments = "preflight --sim --max-frame-age 2 --max-state-age 2 --out"
    assert run([*arguments.split(), str(tmp_path)]) == 0
    record = json.loads((tmp_path / "preflight.json").read_text())
    assert record["mark"] != "bad" and abs(record["findings"]["turn"]["yaw_deg"]) < 10
    executed = [one["executed_m"] for one in record["findings"]["jogs"]]
    np.testing.assert_allclose(np.abs(executed).max(1), 0.05, atol=0.005)


@pytest.mark.slow
def test_a_log_is_repeated_in_simulation(tmp_path):
    arguments = "deploy --sim --image-size 64 --done-m 0.003 --max-frame-age 2 --max-state-age 2 --out"
    assert run([*arguments.split(), str(tmp_path)]) == 0
    (log,) = tmp_path.glob("*/episode*")
    assert repeat(log, tmp_path / "again") < 0.02


LOOP = """
import sys
from pathlib import Path
from armworld.real.agent_process import InlineAgent
from armworld.real.cell import Cell, SessionConfig, StopRequest
from armworld.real.opening import signals
from armworld.real.franky_arm import FrankyArm
from armworld.real.gate import SafetyGate
from armworld.real.journal import Journal
from armworld.real.session import Session
from armworld.real.setup import CellConfig
from armworld.real.simulated import SimulatedCamera
import numpy as np

DIRECTION = 0

class Sideways:
    def act(self, observation):
        global DIRECTION
        DIRECTION = DIRECTION or (-1 if observation["state"][1] > 0 else 1)
        return np.array([0, DIRECTION * 0.02, 0, 0, 0, 0, 0])

host, block, folder = sys.argv[1:]
header = HEADER
cell = Cell(FrankyArm(host, realtime=False), None, {"left": SimulatedCamera(Path(block), ("left",), (64, 64), "left")})
cell.connect()
gate = SafetyGate(CellConfig(sim=True, max_frame_age=2.0, max_state_age=2.0).limits(0.25), max_identical=None)
stop = StopRequest()
with signals(stop):
    config = SessionConfig(100, True, 0)
    outcome = Session(cell, gate, InlineAgent(Sideways()), Journal(Path(folder), header), config, stop).run()
print(outcome.reason)
cell.close()
"""


@pytest.mark.parametrize(
    ("name", "signals"),
    [
        ("SIGKILL of the loop", [signal.SIGKILL]),
        ("Ctrl-C once", [signal.SIGINT]),
        ("Ctrl-C twice", [signal.SIGINT, signal.SIGINT]),
    ],
)
def test_the_arm_stands_when_the_loop_is_killed_or_interrupted(robot, tmp_path, name, signals):
    script = f"HEADER = {HEADER!r}\n{LOOP}"
    folder = tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", script, robot.host, str(robot.block_path), str(folder)])
    wait_for(lambda: (folder / "journal.jsonl").exists() and len(read_journal(folder)[1]) >= 3)
    onset = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    seconds = still_since(robot, onset)
    # the second Ctrl-C ends the process at once, or comes when it has ended well already
    assert process.wait(30) in {1: (0, -signal.SIGKILL), 2: (0, 1, -signal.SIGINT)}[len(signals)]
    rows = read_journal(folder)[1]
    assert len(rows) >= 3
    assert len(read_episode(finish(folder, tmp_path / "droid"))) == sum(row["state"] is not None for row in rows)
    note(name, "the arm stands; the log is readable, and an episode", None, seconds)


def test_an_address_without_a_robot_is_named():
    from armworld.real.franky_arm import FrankyArm

    with pytest.raises(DeviceLost, match="no Franka at 127\\.9\\.9\\.9"):
        FrankyArm("127.9.9.9", realtime=False).connect()


def test_stopping_before_the_first_step(robot, tmp_path):
    cell = sim_cell(robot)
    cell.connect()
    stop = StopRequest()
    stop.set("stop button")
    session = Session(
        cell,
        SafetyGate(LIMITS),
        InlineAgent(Sideways()),
        Journal(tmp_path / "log", HEADER),
        SessionConfig(5, True),
        stop,
    )
    assert session.run().reason == "stop button"
    cell.close()
