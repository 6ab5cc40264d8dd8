"""Opening a robot cell: what the model wants to see, the devices, the operator's word."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from armworld.evaluation.agents import load_model
from armworld.real.agent_process import AgentGone
from armworld.real.agents import plans
from armworld.real.cameras import Framing
from armworld.real.cell import Cell, StopRequest
from armworld.real.limits import Limits
from armworld.real.protocols import DeviceError
from armworld.real.setup import CellConfig, sim_cell
from armworld.real.simulated import SimulatedConfig, SimulatedRobot


@dataclass(frozen=True)
class ModelFacts:
    """What a deployment must know of the model before the agent's process loads it."""

    step_seconds: float
    size: tuple[int, int]
    camera: str


def model_facts(config: CellConfig, agent: str, model: str) -> ModelFacts:
    """The model's step, picture size and camera, or the settings' where no model is used.

    Raises:
        ValueError: The settings contradict the model.
    """
    if plans(agent):
        return facts_of(load_model(agent, model), config)
    size = config.image_size or 256
    return ModelFacts(config.step_seconds or 0.25, (size, size), "left")


def facts_of(model: Any, config: CellConfig) -> ModelFacts:
    """A loaded model's step, picture size and camera; ValueError where the settings contradict it."""
    size = (config.image_size or 256, config.image_size or 256)
    seen = model.image_size or size  # None: it looks at no image
    found = ModelFacts(float(model.step_seconds), (int(seen[0]), int(seen[1])), model.camera or "left")
    if config.step_seconds and abs(config.step_seconds - found.step_seconds) > 1e-6:
        raise ValueError(f"the model's step is {found.step_seconds} s, --step-seconds says {config.step_seconds}")
    if config.image_size and size != found.size:
        raise ValueError(f"the model sees {found.size[0]} x {found.size[1]}, --image-size says {config.image_size}")
    return found


def told(verb: Callable[..., int]) -> Callable[..., int]:
    """A verb of the command line: a lost device, or an agent that does not begin, ends it as a ValueError does."""

    @functools.wraps(verb)
    def run(*arguments: Any, **options: Any) -> int:
        try:
            return verb(*arguments, **options)
        except (DeviceError, AgentGone) as error:
            raise ValueError(str(error)) from error

    return run


@contextlib.contextmanager
def signals(stop: StopRequest) -> Iterator[None]:
    """Ctrl-C once asks the loop to stop and close its log; twice ends it at once (the arm is stopped either way)."""

    def handle(number: int, _: object) -> None:
        if stop.event.is_set():
            raise KeyboardInterrupt
        stop.set("interrupted" if number == signal.SIGINT else "terminated")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def open_cell(
    config: CellConfig, size: tuple[int, int], camera: str, table: str, lab: str, stack: contextlib.ExitStack
) -> Cell:
    """Connect to the robot cell; `stack` closes it.

    Args:
        config: Which cell.
        size: (height, width) of the pictures.
        camera: The simulated robot's camera.
        table: The object on its table, or none.
        lab: What it shows.
        stack: Takes what is to be closed.

    Raises:
        DeviceLost: A device did not connect.
    """
    if config.sim:
        settings = SimulatedConfig(cameras=(camera,), size=size, object=None if table == "none" else table, lab=lab)
        cell = sim_cell(stack.enter_context(SimulatedRobot(settings)))
    else:
        cell = config.cell(Framing(size, config.crop or None))
    cell.connect()
    stack.callback(cell.close)
    return cell


def confirm_live(host: str, what: str, limits: Limits, ask: Callable[[str], str], console: Console) -> None:
    """The operator types the arm's address.

    Args:
        host: That address.
        what: What is about to move the arm, and for how long.
        limits: Of the gate.
        ask: Puts the question.
        console: Where to print.

    Raises:
        ValueError: Anything else was typed.
    """
    box = limits.workspace
    console.print(
        f"LIVE: {what}, {limits.step_seconds} s a step and at most {1000 * limits.max_speed:.0f} mm/s, flange in "
        f"{box.low} … {box.high}. Stand clear, keep the enabling device and the hardware stop in hand.",
        highlight=False,
    )
    typed = ask(f"Type {host} to start, anything else to leave: ").strip()
    if typed != host:
        raise ValueError(f"not confirmed: expected {host!r}, got {typed!r}; nothing has moved")
