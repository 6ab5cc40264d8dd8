"""Fakes, the loop over them with one fault, and what came of it: what the tests of the fault matrix share."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np

from armworld.real.agent_process import InlineAgent
from armworld.real.cell import Cell, SessionConfig, StopRequest
from armworld.real.fakes import FakeArm, FakeCamera, FakeGripper
from armworld.real.gate import SafetyGate
from armworld.real.journal import Journal, read_journal
from armworld.real.limits import FRANKA_HAND, Box, Limits
from armworld.real.session import Session

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


def note(fault: str, reaction: str, seconds: float | None) -> None:
    """A line of the docs' table, when asked for."""
    if path := os.environ.get("ARMWORLD_FAULT_TABLE"):
        with open(path, "a") as file:
            file.write(json.dumps({"fault": fault, "reaction": reaction, "seconds": seconds}) + "\n")
