"""Single moves of an arm between episodes, each a drive through the safety gate with a log of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from armworld.pose import apply_action
from armworld.real.driving import Driver
from armworld.real.session import ENDED_WELL
from armworld.types import Observation

SHORTEST = 0.5  # of a move; an arm that went less far was held up by something


class JogFailed(ValueError):
    """A move has no room, was stopped by the gate or a fault, or fell short."""


class Mover:
    """One move after another; the flange's turn and the gripper stay as they were when it began.

    Attributes:
        seen: What was seen after the last move.
        home: The arm's state [7] at the beginning.
        count: Moves so far.
    """

    def __init__(self, driver: Driver, kind: str, name: Callable[[int], str]) -> None:
        """`kind` begins the logs' names; `name` tells a move by its number."""
        self.driver, self.kind, self.name = driver, kind, name
        self.seen, self.count = driver.look(), 0
        self.home = np.asarray(self.seen["state"], float)

    def target(self, action: np.ndarray, hands: bool = False) -> np.ndarray:
        """The state [7] that an action [7] leads to from here, with the turn and the closedness of the beginning.

        Taken from what is measured, an arm that sags a little would sag more with every move. With `hands` the yaw and
        the closedness are those of the action.
        """
        wanted = apply_action(np.asarray(self.seen["state"], float), np.asarray(action, float))
        kept = slice(3, 5 if hands else 7)
        wanted[kept] = self.home[kept]
        return wanted

    def move(self, action: np.ndarray) -> Observation:
        """Drive by the position of `action` [7] and answer what is seen then.

        Raises:
            JogFailed: The gate, a fault or something in the way stopped it.
        """
        return self.drive(self.target(action))

    def drive(self, target: np.ndarray) -> Observation:
        """Drive to a state [7] and answer what is seen then; see `move`."""
        name = self.name(self.count)
        before = np.asarray(self.seen["state"], float)[:3]
        wanted = target[:3] - before
        outcome = self.driver.drive(target, f"{self.kind}{self.count:02d}", self.driver.steps_to(target))
        if outcome.reason not in ENDED_WELL:
            raise JogFailed(f"{name} ended: {outcome.reason}")
        self.seen = self.driver.look()
        went = np.asarray(self.seen["state"], float)[:3] - before
        if went @ wanted < SHORTEST * wanted @ wanted:
            told = f"the arm went {1000 * float(np.linalg.norm(went)):.0f} mm"
            raise JogFailed(f"{name}: {told} instead of {1000 * float(np.linalg.norm(wanted)):.0f}")
        self.count += 1
        return self.seen
