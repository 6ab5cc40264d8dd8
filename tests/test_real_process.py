"""The loop in a process of its own: Ctrl-C once and twice, SIGKILL; on fakes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from armworld.real.journal import read_frame, read_journal

sys.path.append(str(Path(__file__).parent))  # for the rig
from real_fake_rig import note

KILLED = """
import sys, threading, time
import numpy as np
from pathlib import Path
from armworld.real.agent_process import InlineAgent
from armworld.real.cell import Cell, SessionConfig, StopRequest
from armworld.real.opening import signals
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
