"""What the fault tests share: an agent that moves the simulated robot, and a run of the real loop with one fault."""

import dataclasses
import inspect
import json
import os
import threading
import time
from pathlib import Path

import numpy as np

from armworld.real.agent_process import InlineAgent
from armworld.real.cell import Cell, SessionConfig, StopRequest
from armworld.real.fakes import FaultyCamera, StuckGripper
from armworld.real.gate import SafetyGate
from armworld.real.journal import Journal, read_journal
from armworld.real.session import Session
from armworld.real.setup import CellConfig

STRICT = CellConfig(sim=True).limits(0.1)
LIMITS = dataclasses.replace(STRICT, max_frame_age=2.0, max_state_age=2.0)  # a busy machine delays both
HEADER = {"step_seconds": 0.1, "cameras": {"left": [64, 64]}, "extrinsics": {"left": [0.0] * 6}}
HEADER |= {"lab": "test", "task": "test", "robot": "simulated", "started": "2026-01-02T03:04:05+00:00"}
MOVING = 3  # actions that the arm has been given when the fault sets in


def note(fault: str, reaction: str, decided_s: float | None, rest_s: float | None) -> None:
    """A line of the docs' table, where ARMWORLD_FAULT_TABLE names a file for them."""
    if path := os.environ.get("ARMWORLD_FAULT_TABLE"):
        name = next(frame.function for frame in inspect.stack() if frame.function.startswith("test_"))
        line = {"fault": fault, "test": name, "reaction": reaction, "decided_s": decided_s, "rest_s": rest_s}
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


class Sway:
    """Moves along y, towards the middle; from the fault on, answers `instead` (if that is given)."""

    def __init__(self, action=None, instead=None):
        self.action, self.instead, self.count, self.broken = action, instead, 0, False

    def reset(self, goal):
        pass

    def act(self, observation):
        self.count += 1
        if self.broken and self.instead is not None:
            return self.instead
        if self.action is None:
            self.action = np.array([0, -0.008 if observation["state"][1] > 0 else 0.008, 0, 0, 0, 0, 0])
        return self.action


class Rig:
    """One run with one fault."""

    def __init__(self, robot, folder: Path, agent=None, link=None, limits=None, **config):
        self.robot, self.folder = robot, folder
        self.camera, self.gripper = FaultyCamera(robot.camera("left")), StuckGripper(robot.gripper())
        self.cell = Cell(robot.arm(), self.gripper, {"left": self.camera})
        self.agent = agent or Sway()
        self.link = link or InlineAgent(self.agent)
        self.limits = dataclasses.replace(LIMITS, **(limits or {}))
        self.config = SessionConfig(**({"steps": 300, "live": True, "slow_steps": 0} | config))
        self.stop, self.onset, self.still_s = StopRequest(), 0.0, 0.0
        self.questions: list[str] = []
        self.confirm = lambda question: False
        self.session: Session | None = None

    def run(self, fault=lambda: None):
        """Run; `fault()` happens once the arm moves. Answers the outcome."""
        self.cell.connect()
        try:
            journal = Journal(self.folder / "log", HEADER)
            gate = SafetyGate(self.limits, max_identical=3 if self.camera.fault == "same" else None)
            self.session = Session(self.cell, gate, self.link, journal, self.config, self.stop, self._confirm)
            watcher = threading.Thread(target=self._break, args=(fault,))
            watcher.start()
            self.outcome = self.session.run()
            watcher.join()
        finally:
            self.cell.close()
        self.rows = read_journal(self.folder / "log")[1]
        assert [row["step"] for row in self.rows] == list(range(len(self.rows))), "the log has a gap"
        return self.outcome

    def _confirm(self, question):
        self.questions.append(question)
        return self.confirm(question)

    def _break(self, fault):
        end = time.monotonic() + 20
        while self.agent.count < MOVING and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.05)  # within a step, the arm under way
        self.onset, self.agent.broken = time.monotonic(), True
        fault()
        self.still_s = self._still()

    def _still(self, rad=2e-4, rest=0.4):
        """Seconds from the fault to the last moment at which a joint moved by more than `rad` in 20 ms."""
        last, moved = self.robot.truth().joints, self.onset
        end = time.monotonic() + 20
        while time.monotonic() - moved < rest and time.monotonic() < end:
            time.sleep(0.02)
            joints = self.robot.truth().joints
            if np.abs(joints - last)[:6].max() > rad:
                moved = time.monotonic()
            last = joints
        return moved - self.onset

    @property
    def codes(self):
        """What was objected to since the fault."""
        return {code for row in self.rows for code, _ in row["reasons"] if self._after(row)}

    def _after(self, row):
        return row["time_s"] + row["latency"]["step"] >= self.onset

    def decided_s(self):
        """Seconds from the fault to the first decision to hold."""
        held = [row["time_s"] + row["latency"]["decided"] for row in self.rows if "decided" in row["latency"]]
        return next((moment - self.onset for moment in held if moment >= self.onset), None)

    def assert_held(self, code, reason="held", moved_rad=1e-3):
        """It was held for this reason, ended so, and nothing was commanded since; the arm stands."""
        assert code in self.codes, (code, self.codes, self.outcome)
        assert self.outcome.reason.startswith(reason), self.outcome
        first = next(row["step"] for row in self.rows if code in {c for c, _ in row["reasons"]} and self._after(row))
        assert all(row["executed"] is None for row in self.rows[first:])
        before = self.robot.truth().joints
        time.sleep(0.1)
        assert np.abs(self.robot.truth().joints - before)[:7].max() < moved_rad

    def note(self, fault, reaction, decided=True):
        """A line of the docs' table."""
        note(fault, reaction, self.decided_s() if decided else None, self.still_s)
