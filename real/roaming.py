"""Random moves of an arm through what the gate's boxes leave of the workspace: a model learns to see from them.

They are drawn so that the whole way of each is allowed; each is a drive through the gate with a log of its own.
"""

from __future__ import annotations

import numpy as np

from armworld.planners.calibrating import WideMoves, roaming_box
from armworld.real.driving import Driver
from armworld.real.limits import Limits
from armworld.real.moving import JogFailed, Mover
from armworld.types import check_name

CLEAR_M, NARROWEST_M = 0.01, 0.05  # how far the moves keep from the gate's boxes, and the least room for them
SHORT_M = 0.02  # a shorter way tells little
TRIES = 200  # draws of one move


def room_to_roam(limits: Limits, hands: bool = False) -> np.ndarray:
    """Corners [2, 3] (m) of where the flange may go by random moves: `roaming_box`, as far as it lies inside the boxes.

    Raises:
        JogFailed: Nothing is left of it.
    """
    fingers, (lowest, highest) = limits.fingers, roaming_box(hands)
    reach = np.array([fingers.half_span_m, fingers.half_span_m, fingers.length_m])
    low = np.max([lowest, np.add(limits.workspace.low, CLEAR_M), np.array(limits.fingertips.low) + reach + CLEAR_M], 0)
    reach[2] = -fingers.length_m  # the tips point down
    high = np.min([highest, np.subtract(limits.workspace.high, CLEAR_M), limits.fingertips.high - reach - CLEAR_M], 0)
    if not (high - low >= NARROWEST_M).all():
        left = f"{np.round(low, 3).tolist()} to {np.round(high, 3).tolist()} m"
        raise JogFailed(
            f"no room for random moves: the boxes leave {left}, and {NARROWEST_M:g} m along every axis are needed"
        )
    return np.stack([low, high])


def roam_arm(
    driver: Driver, camera: str, moves: int, seed: int, hands: bool = False
) -> tuple[np.ndarray, np.ndarray] | None:
    """Random moves, with `hands` turns and grips too and down to the table.

    Then back to where the arm stood, if it is not within `SHORT_M` of it or has turned and gripped.

    Answers frames uint8 [moves + 1, H, W, 3] and states [moves + 1, 7]; None where the driver's stop request ended
    them.

    Raises:
        ValueError: No such camera; `JogFailed`: there is no room, or a move was stopped by a fault or something in the
            way.
        DeviceError: A device does not answer.
    """
    check_name("camera", camera, driver.cell.cameras)
    room = room_to_roam(driver.gate.limits, hands)
    random = WideMoves(np.random.default_rng(seed), *room, hands=hands)
    mover = Mover(driver, "move", lambda count: f"random move {count}" if count < moves else "the way back")
    seen = [mover.seen]
    try:
        for _ in range(moves):
            seen.append(mover.drive(_draw(random, mover)))
        here = np.asarray(mover.seen["state"], float)
        if (hands or _far(here, mover.home)) and driver.gate.clear(here, mover.home):
            mover.drive(mover.home)
    except JogFailed:
        if driver.stop.event.is_set():
            return None
        raise
    return np.stack([o[camera] for o in seen]), np.stack([o["state"] for o in seen]).astype(np.float32)


def _draw(random: WideMoves, mover: Mover) -> np.ndarray:
    """A state [7] to which the whole way is free."""
    here, gate = np.asarray(mover.seen["state"], float), mover.driver.gate
    margin = CLEAR_M / 2 if gate.clear(here, here, CLEAR_M / 2) else 0.0  # an arm at a wall must get away from it
    for _ in range(TRIES):
        target = mover.target(random.next(here), random.hands)
        if _far(here, target) and gate.clear(here, target, margin):
            return target
    raise JogFailed(
        f"no free way for a random move from {np.round(here[:3], 3).tolist()} m among the boxes, {TRIES} were tried"
    )


def _far(here: np.ndarray, there: np.ndarray) -> bool:
    """Whether the way between two states [7] is long enough to tell something."""
    return float(np.linalg.norm(there[:3] - here[:3])) >= SHORT_M
