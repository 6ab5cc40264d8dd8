"""A true reflex of the robot and the recovery from it: the real client against franka-sim, which breaks off motions.

franka-sim pins older packages than ours and needs an environment of its own:

    python -m venv .venv-franka-sim && .venv-franka-sim/bin/pip install franka-sim==1.1.7

ARMWORLD_FRANKA_SIM names another Python that has it.
"""

import dataclasses
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

sys.path.append(str(Path(__file__).parent))  # for the rig
from real_rig import HEADER, LIMITS, note

from armworld.real.agent_process import InlineAgent
from armworld.real.cell import Cell, SessionConfig
from armworld.real.fakes import FakeCamera
from armworld.real.franky_arm import FrankyArm
from armworld.real.gate import SafetyGate
from armworld.real.journal import Journal, read_journal
from armworld.real.limits import Box
from armworld.real.protocols import DeviceLost, Reflex
from armworld.real.session import Session

HOST = "127.0.0.77"
PYTHON = Path(os.environ.get("ARMWORLD_FRANKA_SIM", Path(__file__).parent.parent / ".venv-franka-sim/bin/python"))
SERVER = Path(__file__).parent / "real_reflex_server.py"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason=f"no franka-sim at {PYTHON}: see the file's first lines")


def bare_arm() -> str:
    """franky-sim's FR3 without hand and meshes: what franka-sim would fetch from elsewhere at its first start."""
    import franky_sim

    root = ET.fromstring((Path(str(franky_sim.__file__)).parent / "assets" / "fr3.xml").read_text())
    unwanted = ("asset", "geom", "tendon", "equality", "contact", "keyframe", "sensor")
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in unwanted or child.get("name") == "hand":
                parent.remove(child)
    return ET.tostring(root, encoding="unicode").replace("fr3_", "")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = tmp_path_factory.mktemp("model") / "fr3.xml"
    model.write_text(bare_arm())
    process = subprocess.Popen([str(PYTHON), str(SERVER), HOST, str(model)], stdin=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def say(server, word: str) -> None:
    server.stdin.write(f"{word}\n")
    server.stdin.flush()
    time.sleep(0.05)


@pytest.fixture
def arm(server):
    say(server, "ease")
    arm, end = FrankyArm(HOST, realtime=False), time.monotonic() + 60
    while True:
        try:
            arm.connect()
            break
        except DeviceLost:
            assert time.monotonic() < end and server.poll() is None, "franka-sim did not start"
            time.sleep(0.2)
    yield arm
    arm.close()


class Sideways:
    def __init__(self, on_third):
        self.count, self.on_third = 0, on_third

    def reset(self, goal):
        pass

    def act(self, observation):
        self.count += 1
        if self.count == 3:
            self.on_third()
        return np.array([0, 0.005, 0, 0, 0, 0, 0])


def run(arm, server, folder: Path, confirm):
    """The loop with a reflex in its third step; answers outcome, rows, and seconds to the hold."""
    onset: list[float] = []

    def reflex():
        onset.append(time.monotonic())
        say(server, "reflex")

    room = Box((-2, -2, -2), (2, 2, 2))
    gate = SafetyGate(dataclasses.replace(LIMITS, workspace=room, fingertips=room, max_state_age=1.0))
    cell = Cell(arm, None, {"left": FakeCamera()})
    cell.cameras["left"].connect()
    config = SessionConfig(steps=12, live=True, slow_steps=0)
    journal = Journal(folder, HEADER)
    outcome = Session(cell, gate, InlineAgent(Sideways(reflex)), journal, config, confirm=confirm).run()
    rows = read_journal(folder)[1]
    held = [row["time_s"] + row["latency"]["hold"] - onset[0] for row in rows if row["verdict"] == "hold"]
    return outcome, rows, min(s for s in held if s >= 0)


def test_a_reflex_ends_unless_recovery_is_confirmed(arm, server, tmp_path):
    questions = []

    def no(question):
        questions.append(question)
        return False

    outcome, rows, seconds = run(arm, server, tmp_path / "log", no)
    assert outcome.reason.startswith("reflex: ") and "discontinuity" in outcome.reason
    assert len(questions) == 1 and "recover" in questions[0]
    assert rows[-1]["reasons"][0][0] == "reflex" and rows[-1]["executed"] is None
    before = arm.read().joints
    time.sleep(0.2)
    assert np.abs(arm.read().joints - before).max() < 2e-3
    with pytest.raises(Reflex):
        arm.command(arm.read().pose)
    note("reflex", "stand, ask for recovery, end", seconds, None)
    say(server, "ease")
    arm.recover()


def test_a_confirmed_recovery_goes_on(arm, server, tmp_path):
    def free_the_way(question):
        say(server, "ease")
        return True

    outcome, rows, _ = run(arm, server, tmp_path / "log", free_the_way)
    assert outcome.reason == "steps" and outcome.holds["reflex"] >= 1
    at = next(row["step"] for row in rows if "reflex" in {code for code, _ in row["reasons"]})
    assert any(row["executed"] is not None for row in rows[at + 1 :])
    assert rows[-1]["state"][1] > rows[at]["state"][1]
