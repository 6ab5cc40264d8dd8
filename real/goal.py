"""`armworld goal`: take the goal's picture where the arm stands, after guiding it there by hand or by `--state`.

    armworld goal --host 172.16.0.2 --cameras left=opencv:/dev/video0 --workspace ... --out goals/cup

The arm is not moved on hardware: guide it there with the two buttons at its wrist, step out of the picture, press
Enter. With --sim it drives to `--state`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from armworld.real.driving import Driver
from armworld.real.gate import SafetyGate
from armworld.real.goals import save_goal
from armworld.real.opening import open_cell, told
from armworld.real.setup import CellConfig


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


@told
def goal(config: GoalConfig, console: Console | None = None, ask: Callable[[str], str] = input) -> int:
    """Capture the goal; answers 0.

    Raises:
        ValueError: A bad setting, a pose that the gate does not allow, or a device that does not answer.
    """
    console = console or Console()
    size = (config.image_size or 256, config.image_size or 256)
    gate = SafetyGate(config.limits(config.step_seconds or 0.25), max_identical=None)
    with contextlib.ExitStack() as stack:
        cell = open_cell(config, size, "left", config.object, config.lab, stack)
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        driver = Driver(cell, gate, logs)
        if config.state is not None:
            outcome = driver.drive(np.array(config.state), "drive")
            if outcome.reason != "arrived":
                raise ValueError(f"the arm did not get to {list(config.state)}: {outcome.reason}")
        elif not config.sim:
            ask("Guide the arm to the goal, leave the picture, release the buttons; then press Enter: ")
        observation = driver.look()
    save_goal(config.out, observation)
    console.print(f"goal {config.out}: flange at {np.round(observation['state'][:3], 3)} m", highlight=False)
    return 0
