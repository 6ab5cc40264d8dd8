"""`armworld goal`: take the goal's picture where the arm stands, after guiding it there by hand or by `--state`.

    armworld goal --host 172.16.0.2 --cameras left=opencv:/dev/video0 --workspace ... --out goals/cup

The arm is not moved on hardware: guide it there with the two buttons at its wrist, step out of the picture, press
Enter. With --sim it drives to `--state`.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from armworld.real.agent_process import InlineAgent
from armworld.real.agents import ServoAgent
from armworld.real.cameras import Framing
from armworld.real.cell import Cell, SessionConfig
from armworld.real.gate import SafetyGate
from armworld.real.goals import save_goal
from armworld.real.journal import Journal
from armworld.real.session import Session
from armworld.real.setup import CellConfig, sim_cell
from armworld.real.simulated import SimulatedConfig, SimulatedRobot
from armworld.types import Goal, Observation

DRIVE_STEPS = 60


@dataclass(frozen=True)
class GoalConfig(CellConfig):
    """Capture a goal: one picture per camera and the state, as a folder.

    Attributes:
        out: The goal's folder.
        state: Only with --sim: where to drive to (x y z m, roll pitch yaw rad, closedness).
        object: Object on the simulated table: cup, box, bottle or none.
        lab: What the simulated cameras show.
    """

    out: Path = Path("goals/goal")
    state: tuple[float, float, float, float, float, float, float] | None = None
    object: str = "cup"
    lab: str = "lab1"

    def __post_init__(self) -> None:
        self.check_cell()
        if self.state is not None and not self.sim:
            raise ValueError("--state is for --sim; on hardware guide the arm there by hand")
        if self.out.exists():
            raise ValueError(f"{self.out} exists already; give another --out")


def goal(config: GoalConfig, console: Console | None = None, ask: Callable[[str], str] = input) -> int:
    """Capture the goal; answers 0.

    Raises:
        ValueError: A bad setting, or a pose that the gate does not allow.
        DeviceLost: A device did not connect.
    """
    console = console or Console()
    size = (config.image_size or 256, config.image_size or 256)
    gate = SafetyGate(config.limits(config.step_seconds or 0.25), max_identical=None)
    with contextlib.ExitStack() as stack:
        if config.sim:
            thing = None if config.object == "none" else config.object
            robot = stack.enter_context(SimulatedRobot(SimulatedConfig(size=size, object=thing, lab=config.lab)))
            cell = sim_cell(robot)
        else:
            cell = config.cell(Framing(size, config.crop or None))
        cell.connect()
        stack.callback(cell.close)
        if config.state is not None:
            drive(cell, gate, np.array(config.state))
        elif not config.sim:
            ask("Guide the arm to the goal, leave the picture, release the buttons; then press Enter: ")
        observation = look(cell, gate)
    save_goal(config.out, observation)
    console.print(f"goal {config.out}: flange at {np.round(observation['state'][:3], 3)} m", highlight=False)
    return 0


def drive(cell: Cell, gate: SafetyGate, state: np.ndarray) -> None:
    """Servo the simulated arm to a state [7] through the gate; ValueError if it does not get there."""
    servo = ServoAgent()
    servo.reset(Goal(({"state": state},), (DRIVE_STEPS,)))
    config = SessionConfig(steps=DRIVE_STEPS, live=True, slow_steps=0, done_m=0.002)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "drive", {})
        outcome = Session(cell, gate, InlineAgent(servo), journal, config, goal_state=state).run()
    if outcome.reason != "arrived":
        raise ValueError(f"the arm did not get to {state.tolist()}: {outcome.reason}")


def look(cell: Cell, gate: SafetyGate) -> Observation:
    """State and newest frames of a cell at rest. Raises ValueError where a frame or the state is not fit for use."""
    from armworld.real.gate import View

    time.sleep(gate.limits.max_frame_age)  # what the frames show from now on is the arm at rest
    arm = cell.arm.read()
    gripper = cell.gripper.read() if cell.gripper is not None else None
    state = np.array([*arm.pose, gripper.closedness if gripper is not None else 0.0])
    frames = {name: camera.read() for name, camera in cell.cameras.items()}
    views = {name: View(frame, cell.cameras[name].features["image"].shape) for name, frame in frames.items()}
    decision = gate.admit(time.monotonic(), state, arm.time_s, views, gripper.width_m if gripper else None)
    if decision.verdict == "hold":
        raise ValueError("not fit for a goal: " + "; ".join(text for _, text in decision.reasons))
    return {"state": state.astype(np.float32), **{name: frame.image for name, frame in frames.items()}}
