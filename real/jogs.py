"""Jogs of 5 cm along each axis of an arm, through the safety gate: does the model read what the camera then shows?

The same jogs and the same judgement as in simulation (`evaluation/jogging.py`), and where they are asked for, random
moves (`real/roaming.py`) from which the model learns to see from there.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from armworld.evaluation.files import write_bytes
from armworld.evaluation.jogging import ADAPTED, AXES, JOG_M, Jogs, Reading, adapted_reading, jog, read_jogs
from armworld.evaluation.preflight_page import Live, preflight_record, read_picture, write_page
from armworld.real.cell import StopRequest
from armworld.real.driving import Driver
from armworld.real.gate import SafetyGate
from armworld.real.limits import Limits
from armworld.real.moving import JogFailed, Mover
from armworld.real.opening import confirm_live, facts_of, open_cell, told
from armworld.real.preflight import preflight
from armworld.real.roaming import roam_arm, room_to_roam
from armworld.real.swept import Path as SweptPath
from armworld.types import check_name

if TYPE_CHECKING:
    from armworld.evaluation.preflight import PreflightConfig

MOVES = "moves.npz"  # the random moves' frames and states, in --out


def _jog_name(count: int) -> str:
    return f"jog {'+-'[count % 4 // 2]}{AXES[count // 4]}" + (" and back" if count % 2 else "")


def check_room(limits: Limits, state: np.ndarray) -> None:
    """Whether every jog from `state` [7] ends inside the boxes, before any is begun.

    Raises:
        JogFailed: Names the jogs that do not.
    """
    blocked = []
    for axis in range(3):
        for sign in (1, -1):
            target = np.array(state, float)
            target[axis] += sign * JOG_M
            flange, tips, _ = SweptPath.between(np.asarray(state, float), target).points(
                np.ones(1), limits.fingers.points()
            )
            outside = max(limits.workspace.outside(flange).max(), limits.fingertips.outside(tips).max())
            if outside > 0:
                blocked.append(f"{'+' if sign > 0 else '-'}{AXES[axis]} ({1000 * outside:.0f} mm outside)")
    if blocked:
        told = ", ".join(blocked)
        raise JogFailed(f"no room for jogs of {100 * JOG_M:.0f} cm: {told}; bring the arm nearer to its box's middle")


def jog_arm(driver: Driver, camera: str) -> Jogs | None:
    """The twelve moves of `jogging.jog`, each a drive through the gate with a log of its own.

    Answers None where the driver's stop request ended them.

    Raises:
        ValueError: No such camera; `JogFailed`.
        DeviceError: A device does not answer.
    """
    check_name("camera", camera, driver.cell.cameras)
    jogger = Mover(driver, "jog", _jog_name)
    check_room(driver.gate.limits, np.asarray(jogger.seen["state"], float))
    try:
        return jog(lambda: jogger.seen, jogger.move, camera)
    except JogFailed:
        if driver.stop.event.is_set():
            return None
        raise


def examine(
    model: Any,
    driver: Driver,
    camera: str,
    reference: np.ndarray | None,
    out: Path,
    config: dict[str, Any],
    seed: int,
) -> tuple[Jogs, Reading] | None:
    """Jog, read the pictures, judge, write preflight.json and the page into `out`.

    Args:
        model: A world model.
        driver: Moves the arm.
        camera: The camera looked through.
        reference: What the model was trained to see, uint8 [H, W, 3] of the frames' size, or None.
        out: Folder.
        config: The settings, for the record.
        seed: Of the search.

    Returns:
        What was seen, and what the model makes of it; None where the operator stopped it.
    """
    jogs = jog_arm(driver, camera)
    if jogs is None:
        return None
    reading = Reading(read_jogs(model, jogs, seed))
    _write(jogs, reading, camera, reference, out, config)
    return jogs, reading


def _write(
    jogs: Jogs, reading: Reading, camera: str, reference: np.ndarray | None, out: Path, config: dict[str, Any]
) -> None:
    record = preflight_record(reading, f"camera {camera} of the robot cell", config)
    write_page(out, record, Live(jogs.frames[0], None), reference)


@told
def preflight_arm(config: PreflightConfig, console: Console | None = None, ask: Callable[[str], str] = input) -> int:
    """`armworld preflight` of a robot cell: its devices; with --sim or --live also the jogs. Answers 1 if it is bad.

    Raises:
        ValueError: A bad setting, a failed check, no confirmation, a device that did not connect, `JogFailed`.
    """
    from armworld.evaluation.preflight import tell, training_view
    from armworld.real.opening import signals
    from armworld.worldmodel.checkpoint import load_world_model

    console, stop = console or Console(), StopRequest()
    model = load_world_model(config.model)
    facts = facts_of(model, config)
    camera = config.camera or facts.camera
    limits = config.limits(facts.step_seconds)
    if config.moves:
        room_to_roam(limits, config.hands)
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals(stop))
        cell = open_cell(config, facts.size, camera, "cup", config.lab, stack)
        gate = SafetyGate(limits, max_identical=None if config.sim else 3)
        checked = preflight(cell, gate, config.out)
        for line in checked.lines():
            console.print(line, highlight=False, soft_wrap=True)
        if not checked.ok:
            raise ValueError("pre-flight failed; see the lines marked FAIL")
        if not (config.sim or config.live):
            console.print("Nothing was moved. Give --live to jog the arm.")
            return 0
        if config.live:
            how = ", down to the table, turning and gripping" if config.hands else ""
            roams = f" and moved {config.moves} times through its workspace{how}" if config.moves else ""
            what = f"the arm at {config.host} will be jogged by 5 cm along each axis{roams}"
            confirm_live(config.host, what, limits, ask, console)
            if not checked.fresh(time.monotonic()) and not preflight(cell, gate, config.out).ok:
                raise ValueError("pre-flight failed when it was repeated")
        driver = Driver(cell, gate, config.out / f"jogs{time.time_ns()}", stop, slow=not config.sim)
        reference = (
            training_view(model, camera, config.seed)
            if config.reference is None
            else read_picture(config.reference, facts.size)
        )
        examined = examine(model, driver, camera, reference, config.out, asdict(config), config.seed)
        roaming = examined and config.moves
        recorded = roam_arm(driver, camera, config.moves, config.seed, config.hands) if roaming else None
    if examined is None or (config.moves and recorded is None) or stop.event.is_set():
        console.print(f"stopped: {stop.reason}")
        return 130
    jogs, reading = examined
    if recorded is not None:  # the arm is at rest and its devices are closed
        write_bytes(config.out / MOVES, _packed(*recorded))
        console.print(f"Learning from {config.moves} moves ...")
        reading = adapted_reading(
            model, jogs, reading.before, recorded, config.seed, config.out / ADAPTED, config.model
        )
        _write(jogs, reading, camera, reference, config.out, asdict(config))
    return tell(reading, config.out, console)


def _packed(frames: np.ndarray, states: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=frames, states=states)
    return buffer.getvalue()
