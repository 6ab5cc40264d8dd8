"""Jogs of 5 cm along each axis of an arm, through the safety gate: does the model read what the camera then shows?

The same jogs and the same judgement as in simulation (`evaluation/jogging.py`), and where they are asked for, random
moves from which the model learns to see from there.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from armworld.evaluation.jogging import ADAPTED, AXES, JOG_M, Jogs, Reading, jog, read_all
from armworld.evaluation.preflight_page import Live, preflight_record, read_picture, write_page
from armworld.planners.calibrating import WIDE_M, WORKSPACE, WideMoves
from armworld.pose import apply_action
from armworld.real.cell import SessionConfig, StopRequest
from armworld.real.driving import Driver
from armworld.real.gate import SafetyGate
from armworld.real.limits import Limits
from armworld.real.opening import confirm_live, facts_of, open_cell, told
from armworld.real.preflight import preflight
from armworld.real.session import ENDED_WELL
from armworld.real.swept import Path as SweptPath
from armworld.types import Observation, check_name

if TYPE_CHECKING:
    from armworld.evaluation.preflight import PreflightConfig

SPARE_STEPS = 6  # beyond those that the way takes at its speed: to come to rest where it was sent
SHORTEST = 0.5  # of a move; an arm that went less far was held up by something
CLEAR_M, NARROWEST_M = 0.01, 0.05  # how far random moves keep from the gate's boxes, and the least room for them


class JogFailed(ValueError):
    """A move has no room, was stopped by the gate or a fault, or fell short."""


class _Mover:
    """One move after another, each with a name and a log of its own."""

    def __init__(self, driver: Driver, kind: str, longest_m: float, name: Callable[[int], str]) -> None:
        """`kind` begins the logs' names; `name` tells a move by its number."""
        self.driver, self.kind, self.name = driver, kind, name
        self.seen, self.count = driver.look(), 0
        self.steps = _steps(driver.gate.limits, driver.slow, longest_m)

    def move(self, action: np.ndarray) -> Observation:
        """Drive by `action` [7] and answer what is seen then."""
        name = self.name(self.count)
        before = np.asarray(self.seen["state"], float)
        outcome = self.driver.drive(apply_action(before, action), f"{self.kind}{self.count:02d}", self.steps)
        if outcome.reason not in ENDED_WELL:
            raise JogFailed(f"{name} ended: {outcome.reason}")
        self.seen = self.driver.look()
        went, wanted = np.asarray(self.seen["state"], float)[:3] - before[:3], np.asarray(action, float)[:3]
        if went @ wanted < SHORTEST * wanted @ wanted:
            told = f"the arm went {1000 * float(np.linalg.norm(went)):.0f} mm"
            raise JogFailed(f"{name}: {told} instead of {1000 * float(np.linalg.norm(wanted)):.0f}")
        self.count += 1
        return self.seen


def _steps(limits: Limits, slow: bool, way_m: float) -> int:
    """Steps that a move of that length takes at the speed allowed, with some to spare."""
    speed = limits.max_speed * (SessionConfig().slow_scale if slow else 1.0)
    return math.ceil(way_m / (speed * limits.step_seconds)) + SPARE_STEPS


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
    jogger = _Mover(driver, "jog", JOG_M, _jog_name)
    check_room(driver.gate.limits, np.asarray(jogger.seen["state"], float))
    try:
        return jog(lambda: jogger.seen, jogger.move, camera)
    except JogFailed:
        if driver.stop.event.is_set():
            return None
        raise


def room_to_roam(limits: Limits) -> np.ndarray:
    """Corners [2, 3] (m) of where the flange may go by random moves: `WORKSPACE`, as far as it lies inside the boxes.

    Raises:
        JogFailed: Nothing is left of it.
    """
    fingers = limits.fingers
    reach = np.array([fingers.half_span_m, fingers.half_span_m, fingers.length_m])
    low = np.max(
        [WORKSPACE[0], np.add(limits.workspace.low, CLEAR_M), np.array(limits.fingertips.low) + reach + CLEAR_M], 0
    )
    reach[2] = -fingers.length_m  # the tips point down
    high = np.min(
        [WORKSPACE[1], np.subtract(limits.workspace.high, CLEAR_M), limits.fingertips.high - reach - CLEAR_M], 0
    )
    if not (high - low >= NARROWEST_M).all():
        left = f"{np.round(low, 3).tolist()} to {np.round(high, 3).tolist()} m"
        raise JogFailed(
            f"no room for random moves: the boxes leave {left}, and {NARROWEST_M:g} m along every axis are needed"
        )
    return np.stack([low, high])


def roam_arm(driver: Driver, camera: str, moves: int, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Random moves through the workspace, each a drive through the gate with a log of its own.

    Answers frames uint8 [moves + 1, H, W, 3] and states [moves + 1, 7]; None where the driver's stop request ended
    them.

    Raises:
        JogFailed: There is no room, or a move was stopped by the gate, a fault or something in the way.
        DeviceError: A device does not answer.
    """
    random = WideMoves(np.random.default_rng(seed), *room_to_roam(driver.gate.limits))
    mover = _Mover(driver, "move", WIDE_M, lambda count: f"random move {count}")
    seen = [mover.seen]
    try:
        for _ in range(moves):
            seen.append(mover.move(random.next(np.asarray(mover.seen["state"]))))
    except JogFailed:
        if driver.stop.event.is_set():
            return None
        raise
    return np.stack([o[camera] for o in seen]), np.stack([o["state"] for o in seen]).astype(np.float32)


def examine(
    model: Any,
    driver: Driver,
    camera: str,
    reference: np.ndarray | None,
    out: Path,
    config: dict[str, Any],
    seed: int,
    moves: int = 0,
) -> Reading | None:
    """Jog, read the pictures, judge, write preflight.json and the page into `out`.

    Args:
        model: A world model.
        driver: Moves the arm.
        camera: The camera looked through.
        reference: What the model was trained to see, uint8 [H, W, 3] of the frames' size, or None.
        out: Folder.
        config: The settings, for the record.
        seed: Of the search and the moves.
        moves: Random moves from which the model learns; the adapted one is out/model.

    Returns:
        What the model makes of the jogs; None where the operator stopped it.
    """
    jogs = jog_arm(driver, camera)
    if jogs is None:
        return None
    recorded = roam_arm(driver, camera, moves, seed) if moves else None
    if moves and recorded is None:
        return None
    reading = read_all(model, jogs, seed, recorded, out / ADAPTED, str(config["model"]))
    record = preflight_record(reading, f"camera {camera} of the robot cell", config)
    write_page(out, record, Live(jogs.frames[0], None), reference)
    return reading


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
            roams = f" and moved {config.moves} times through its workspace" if config.moves else ""
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
        reading = examine(model, driver, camera, reference, config.out, asdict(config), config.seed, config.moves)
    if reading is None:
        console.print(f"stopped: {stop.reason}")
        return 130
    return tell(reading, config.out, console)
