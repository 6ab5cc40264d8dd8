"""What happens between episodes: driving to a state through the safety gate, and looking at a cell at rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from armworld.pose import action_between
from armworld.real.agent_process import InlineAgent
from armworld.real.agents import ServoAgent
from armworld.real.cell import Cell, Outcome, SessionConfig, StopRequest
from armworld.real.gate import SafetyGate, View
from armworld.real.journal import Journal
from armworld.real.protocols import ArmReading, Frame, GripperReading
from armworld.real.session import Session
from armworld.types import Goal, Observation

DRIVE_STEPS, PATIENCE = 60, 1.5  # a drive's steps: as many times what its way takes at the speed allowed, at least 60
SPARE_STEPS = 6  # beyond those that the way takes: to come to rest where it was sent
ARRIVED_M, ARRIVED_RAD = 0.002, 0.02
SETTLE_S = 0.15  # a frame counts once it was captured so long after the arm came to rest
LOOK_S = 5.0  # beyond a frame's allowed age: after so long without frames that are fit for use, looking fails


@dataclass
class Driver:
    """Moves a connected cell's arm and looks.

    Attributes:
        cell: Connected.
        gate: Every command passes it.
        folder: Each drive leaves its log in a folder of its own in it.
        stop: Ends a drive.
        header: What a drive's log says of it.
        slow: Keep a fifth of the speed limit.
    """

    cell: Cell
    gate: SafetyGate
    folder: Path
    stop: StopRequest = field(default_factory=StopRequest)
    header: Callable[[Goal, SessionConfig], dict[str, Any]] = lambda goal, config: {}
    slow: bool = False

    def steps_to(self, state: np.ndarray) -> int:
        """Steps that the way to a state [7] takes at the speed allowed, with some to spare."""
        here, servo = self.cell.arm.read().pose, ServoAgent()
        way = action_between(here, np.asarray(state, float)[:6])
        steps = max(np.linalg.norm(way[:3]) / servo.max_step_m, np.abs(way[3:6]).max() / servo.max_turn_rad)
        allowed = self.gate.steps(here, np.asarray(state, float), SessionConfig.slow_scale if self.slow else 1.0)
        return max(math.ceil(steps), allowed) + SPARE_STEPS

    def drive(self, state: np.ndarray, name: str, steps: int | None = None) -> Outcome:
        """Servo to a state [7], place, turn and closedness, in at most so many steps; left out, as the way needs.

        Answers how that ended ("arrived", "steps", or what went wrong).
        """
        steps = steps or max(DRIVE_STEPS, math.ceil(PATIENCE * self.steps_to(state)))
        servo = ServoAgent()
        goal = Goal(({"state": np.asarray(state, float)},), (steps,))
        servo.reset(goal)
        config = SessionConfig(
            steps=steps, live=True, slow_steps=steps if self.slow else 0, done_m=ARRIVED_M, done_rad=ARRIVED_RAD
        )
        journal = Journal(self.folder / name, self.header(goal, config))
        target = np.asarray(state, float)
        return Session(
            self.cell, self.gate, InlineAgent(servo), journal, config, self.stop, goal_state=target
        ).run()  # fmt: skip

    def look(self) -> Observation:
        """State and frames of the arm at rest.

        Raises:
            ValueError: The gate would show none of it to an agent.
            DeviceError: A device does not answer.
        """
        began = time.monotonic()
        while True:
            frames = {name: camera.read() for name, camera in self.cell.cameras.items()}
            arm = self.cell.arm.read()
            gripper = self.cell.gripper.read() if self.cell.gripper is not None else None
            state = np.array([*arm.pose, gripper.closedness if gripper is not None else 0.0])
            objections = self._objections(began, state, arm, gripper, frames)
            if not objections:
                return {"state": state.astype(np.float32), **{name: frame.image for name, frame in frames.items()}}
            if time.monotonic() - began > LOOK_S + self.gate.limits.max_frame_age:
                raise ValueError("what the cell shows is not fit for use: " + "; ".join(objections))
            time.sleep(0.01)

    def _objections(
        self,
        began: float,
        state: np.ndarray,
        arm: ArmReading,
        gripper: GripperReading | None,
        frames: dict[str, Frame],
    ) -> list[str]:
        """What speaks against using it, in words."""
        views = {name: View(frame, self.cell.cameras[name].features["image"].shape) for name, frame in frames.items()}
        width = gripper.width_m if gripper is not None else None
        decision = self.gate.admit(time.monotonic(), state, arm.time_s, views, width)
        early = [name for name, frame in frames.items() if frame.time_s < began + SETTLE_S]
        return [text for _, text in decision.reasons] + [f"camera {name} shows nothing newer" for name in early]
