"""The whole chain without hardware: real franky client, FCI on loopback, simulated robot and cameras."""

import dataclasses
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

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

from armworld.datasets.trajectory import read_episode, read_metadata
from armworld.real.agent_process import InlineAgent
from armworld.real.cell import SessionConfig, StopRequest
from armworld.real.deploy import DeployConfig, deploy
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


def note(fault: str, reaction: str, seconds: float | None) -> None:
    """A line of the docs' table, when asked for."""
    if path := os.environ.get("ARMWORLD_FAULT_TABLE"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"fault": fault, "reaction": reaction, "seconds": seconds}) + "\n")


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


@pytest.fixture
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


def test_nothing_of_the_simulated_robot_listens_beyond_loopback(robot):
    with robot.arm(), robot.gripper():
        addresses = listening(robot.server.pid)
    assert addresses and all(address.startswith("127.") for address in addresses), addresses


def listening(pid: int) -> list[str]:
    """Local addresses of a process's listening TCP sockets and its UDP sockets."""
    inodes = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(handle)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for kind in ("tcp", "udp"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (kind == "udp" or fields[3] == "0A"):
                packed = bytes.fromhex(fields[1].split(":")[0])[::-1]
                found.append(".".join(map(str, packed)))
    return found


@pytest.mark.parametrize("goals", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_the_expert_reaches_its_goals_within_a_centimetre(tmp_path, goals):
    """Goals are captured by driving there; the log is an episode in DROID's layout, and replays."""
    config = DeployConfig(
        sim=True, episodes=goals, image_size=64, out=tmp_path, done_m=0.003, max_frame_age=2.0, max_state_age=2.0
    )
    assert deploy(config) == 0
    outcomes = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/episode*/outcome.json"))]
    assert len(outcomes) == goals
    assert all(outcome["reason"] == "arrived" and outcome["distance_m"] < 0.01 for outcome in outcomes)
    episodes = list(tmp_path.glob("droid/*/success/*/*"))
    assert len(episodes) == goals
    episode, metadata = read_episode(episodes[0]), read_metadata(episodes[0])
    assert episode.frames["left"].shape[1:] == (64, 64, 3) and metadata["robot_serial"].startswith("simulated FR3")
    logs = sorted(tmp_path.glob("*/episode*"))
    assert all(judge_again(log) == [] for log in logs)
    if goals > 1:
        return
    assert repeat(logs[0], tmp_path / "again") < 0.02


def run_with_fault(robot, folder, fault, steps=200, **limits):
    """Move along y and back within the box; `fault()` happens after the third step. Answers outcome and rows."""
    cell = sim_cell(robot)
    cell.connect()
    gate = SafetyGate(dataclasses.replace(LIMITS, **limits), max_identical=None)
    config = SessionConfig(steps=steps, live=True, slow_steps=0, max_holds=6)
    session = Session(cell, gate, InlineAgent(Sideways()), Journal(folder, HEADER), config)
    still: list[float] = []

    def break_it():
        onset = time.monotonic()
        fault()
        still.append(still_since(robot, onset))

    watcher = threading.Timer(0.8, break_it)
    watcher.start()
    outcome = session.run()
    watcher.join()
    cell.close()
    rows = read_journal(folder)[1]
    assert [row["step"] for row in rows] == list(range(len(rows))), "the log has a gap"
    return outcome, rows, still[0]


def test_a_frozen_server_ends_and_only_a_new_connection_moves_the_arm_again(robot, tmp_path):
    outcome, rows, _ = run_with_fault(robot, tmp_path / "log", lambda: os.kill(robot.server.pid, signal.SIGSTOP))
    assert outcome.reason.startswith(("held: stale_state", "device_lost"))
    onset = next(row for row in rows if row["verdict"] == "hold")
    note("server frozen (SIGSTOP)", "hold (stale state), end; reconnect only when confirmed", onset["latency"]["hold"])
    os.kill(robot.server.pid, signal.SIGCONT)
    with robot.arm() as arm:
        pose = arm.read().pose
        arm.command(pose - SIDEWAYS_2CM / 2)
        wait_for(lambda: abs(arm.read().pose[1] - pose[1] + 0.01) < 1e-3)


@pytest.mark.slow
def test_a_killed_server_ends(robot, tmp_path):
    outcome, rows, _ = run_with_fault(robot, tmp_path / "log", robot.server.kill)
    assert outcome.reason.startswith(("held: stale_state", "device_lost"))
    onset = next(row for row in rows if row["verdict"] == "hold")
    note("server killed", "hold (stale state), end; reconnect only when confirmed", onset["latency"]["hold"])


def test_a_frozen_camera_holds_the_arm(robot, tmp_path):
    freeze = lambda: os.kill(robot.painter.pid, signal.SIGSTOP)  # noqa: E731
    outcome, _, seconds = run_with_fault(robot, tmp_path / "log", freeze)
    assert outcome.reason.startswith(("held", "device_lost"))
    assert {"stale_frame", "repeated_frame"} & outcome.holds.keys()
    note("camera frozen, simulated robot", "hold, end; the arm stands", seconds)


@pytest.mark.slow
def test_a_lost_camera_holds_the_arm(robot, tmp_path):
    outcome, _, seconds = run_with_fault(robot, tmp_path / "log", robot.painter.kill)
    assert outcome.reason.startswith(("held", "device_lost"))
    note("camera lost, simulated robot", "hold, end; the arm stands", seconds)


LOOP = """
import sys
from pathlib import Path
from armworld.real.agent_process import InlineAgent
from armworld.real.cell import Cell, SessionConfig, StopRequest
from armworld.real.deploy import signals
from armworld.real.franky_arm import FrankyArm
from armworld.real.gate import SafetyGate
from armworld.real.journal import Journal
from armworld.real.session import Session
from armworld.real.setup import CellConfig
from armworld.real.simulated import SimulatedCamera
import numpy as np

class Sideways:
    def act(self, observation):
        return np.array([0, 0.02, 0, 0, 0, 0, 0])

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


@pytest.mark.parametrize(("name", "sign"), [("SIGKILL of the loop", signal.SIGKILL), ("Ctrl-C", signal.SIGINT)])
def test_the_arm_stands_when_the_loop_is_killed_or_interrupted(robot, tmp_path, name, sign):
    script = f"HEADER = {HEADER!r}\n{LOOP}"
    folder = tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", script, robot.host, str(robot.block_path), str(folder)])
    wait_for(lambda: (folder / "journal.jsonl").exists() and len(read_journal(folder)[1]) >= 3)
    onset = time.monotonic()
    process.send_signal(sign)
    seconds = still_since(robot, onset)
    process.wait(30)
    rows = read_journal(folder)[1]
    assert len(rows) >= 3
    assert len(read_episode(finish(folder, tmp_path / "droid"))) == sum(row["state"] is not None for row in rows)
    note(f"{name}, simulated robot", "the arm stands; the log is readable", seconds)


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
