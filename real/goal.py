"""`armworld goal`: take the goal's picture where the arm stands, after guiding it there by hand or by `--state`.

    armworld goal --host 172.16.0.2 --cameras left=opencv:/dev/video0 --workspace ... --out goals/cup

On hardware guide the arm there with the two buttons at its wrist, step out of the picture, press Enter. Or let it
drive to `--state`: at once with --sim; on hardware with --live, after pre-flight and typed confirmation, slowly.
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

from armworld.real.cell import Cell, StopRequest
from armworld.real.driving import Driver
from armworld.real.gate import SafetyGate, unit_reasons
from armworld.real.goals import save_goal
from armworld.real.limits import Box
from armworld.real.opening import confirm_live, open_cell, signals, told
from armworld.real.preflight import Preflight, preflight
from armworld.real.setup import CellConfig, check_table
from armworld.types import check_folder

STEP_S = 0.25  # of an action, where nothing else is asked for


@dataclass(frozen=True)
class GoalConfig(CellConfig):
    """Capture a goal: one picture per camera and the state, as a folder.

    Attributes:
        out: The goal's folder.
        state: Where to drive to (x y z m, roll pitch yaw rad, closedness); on hardware with --live only.
        live: Let the arm drive to `state`. Asks for a typed confirmation.
        object: Object on the simulated table: cup, box, bottle or none.
        lab: What the simulated cameras show.
    """

    out: Path = Path("goals/goal")
    state: tuple[float, float, float, float, float, float, float] | None = None
    live: bool = False
    object: str = "cup"
    lab: str = "lab1"

    def __post_init__(self) -> None:
        self.check_cell()
        if self.sim:
            check_table(self.object, self.lab)
        if self.state is not None and not (self.sim or self.live):
            raise ValueError("--state moves the arm: give --live too, or leave it out and guide the arm by hand")
        if self.live and self.state is None:
            raise ValueError("--live drives the arm to a --state, and there is none")
        limits = self.limits(self.step_seconds or STEP_S)
        if self.state is not None:
            _check_state(np.array(self.state), limits.workspace)
        if self.out.exists():
            raise ValueError(f"{self.out} exists already; give another --out")
        check_folder("out", self.out)


def _check_state(state: np.ndarray, workspace: Box) -> None:
    """Raise ValueError where a state [7] is in other units than m, rad and closedness, or outside the flange's box."""
    told = f"--state {state.tolist()}"
    if not np.isfinite(state).all():
        raise ValueError(f"{told}: expected seven finite numbers")
    if reasons := unit_reasons(state):
        raise ValueError(f"{told}: {'; '.join(text for _, text in reasons)} (expected m, rad and closedness)")
    if workspace.outside(state[:3]) > 0:
        raise ValueError(f"{told}: the flange would be outside its box {workspace.low} to {workspace.high} m")


@told
def goal(config: GoalConfig, console: Console | None = None, ask: Callable[[str], str] = input) -> int:
    """Capture the goal; answers 0.

    Raises:
        ValueError: A bad setting, a pose that the gate does not allow, or a device that does not answer.
    """
    console = console or Console()
    size = (config.image_size or 256, config.image_size or 256)
    gate = SafetyGate(config.limits(config.step_seconds or STEP_S), max_identical=None)
    with contextlib.ExitStack() as stack:
        cell = open_cell(config, size, "left", config.object, config.lab, stack)
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stop = StopRequest()
        stack.enter_context(signals(stop))
        driver = Driver(cell, gate, logs, stop, slow=not config.sim)
        if config.state is not None:
            if not config.sim:
                _confirm(config, cell, gate, ask, console)
            outcome = driver.drive(np.array(config.state), "drive")
            if outcome.reason != "arrived":
                raise ValueError(f"the arm did not get to {list(config.state)}: {outcome.reason}")
        elif not config.sim:
            ask("Guide the arm to the goal, leave the picture, release the buttons; then press Enter: ")
        observation = driver.look()
    save_goal(config.out, observation, None if config.sim else config.crop or None)  # simulated cameras crop nothing
    console.print(f"goal {config.out}: flange at {np.round(observation['state'][:3], 3)} m", highlight=False)
    return 0


def _confirm(config: GoalConfig, cell: Cell, gate: SafetyGate, ask: Callable[[str], str], console: Console) -> None:
    """Pre-flight, then the operator's word; the pre-flight is repeated where it has aged meanwhile."""
    checked = _check(config, cell, gate, console)
    assert config.state is not None, "there is nowhere to drive to"
    confirm_live(config.host, f"the arm at {config.host} will drive to {list(config.state[:3])} m", gate.limits, ask,
                 console)  # fmt: skip
    if not checked.fresh(time.monotonic()):
        _check(config, cell, gate, console)


def _check(config: GoalConfig, cell: Cell, gate: SafetyGate, console: Console) -> Preflight:
    checked = preflight(cell, gate, config.out)
    for line in checked.lines():
        console.print(line, highlight=False, soft_wrap=True)
    if not checked.ok:
        raise ValueError("pre-flight failed; see the lines marked FAIL")
    return checked
