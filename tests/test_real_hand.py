"""The Franka Hand's openings and closednesses: what it is sent, what is read, and what counts as an object held."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from armworld.real.grippers import OBJECT_M, FrankaHand
from armworld.real.sim_hand import CLOSEDNESS, SimulatedHand


class Fingers:
    """franky's Gripper: fingers that are at once where they are sent, or at `stuck` (m) where that is wider."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []
        self.widest, self.stuck = 0.08, 0.0
        self.state = SimpleNamespace(width=0.04, max_width=self.widest, is_grasped=False)

    def grasp_async(self, width: float, speed: float, force: float, inner: float, outer: float) -> Any:
        return self._go("grasp", width, grasped=True)

    def move_async(self, width: float, speed: float) -> Any:
        return self._go("move", width, grasped=False)

    def _go(self, how: str, width: float, grasped: bool) -> Any:
        self.told.append((how, width))
        at = max(width, self.stuck) if grasped else width
        self.state = SimpleNamespace(width=at, max_width=self.widest, is_grasped=grasped)
        return SimpleNamespace(wait=lambda seconds: True)

    def stop(self) -> None:
        self.told.append(("stop", self.state.width))


@pytest.fixture
def fingers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fingers]:
    fingers = Fingers()
    library = SimpleNamespace(Gripper=lambda host: fingers, Exception=RuntimeError, NetworkException=ConnectionError)
    monkeypatch.setitem(sys.modules, "franky", library)  # type: ignore[arg-type]
    monkeypatch.setattr(FrankaHand, "period_s", 0.005)
    yield fingers


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_closednesses_are_shares_of_the_opening_and_closing_grasps(fingers: Fingers) -> None:
    with FrankaHand("172.16.0.2") as hand:
        assert hand.read().closedness == pytest.approx(0.5) and hand.read().width_m == 0.04
        for closedness, how, width in ((0.75, "grasp", 0.02), (0.25, "move", 0.06), (1.0, "grasp", 0.0)):
            assert hand.command(closedness) == closedness
            wait_for(lambda: abs(hand.read().closedness - closedness) < 1e-6)  # noqa: B023
            assert fingers.told[-1] == (how, pytest.approx(width)) and hand.read().width_m == pytest.approx(width)
        assert not hand.read().object_held  # fingers that met each other


def test_fingers_that_stop_short_of_their_target_hold_an_object(fingers: Fingers) -> None:
    for stuck, held in ((0.03, True), (OBJECT_M / 2, False)):
        fingers.stuck = stuck
        with FrankaHand("172.16.0.2") as hand:
            hand.command(0.0)
            wait_for(lambda: hand.read().closedness == 0)
            hand.command(1.0)
            wait_for(lambda: hand.read().closedness > 0.6)
            assert hand.read().object_held == held


@pytest.mark.parametrize(
    ("width", "widest", "closedness"),
    [
        (0.078, 0.078, 0.0),  # as its own homing measured it
        (0.039, 0.078, 0.5),
        (0.08, 0.078, 0.0),  # wider than measured is open, and no less than that
        (-0.001, 0.078, 1.0),
        (0.04, 0.0, 0.5),  # never homed: the maker's 8 cm
    ],
)
def test_what_is_read_is_a_share_of_the_hands_own_opening(
    fingers: Fingers, width: float, widest: float, closedness: float
) -> None:
    fingers.state = SimpleNamespace(width=width, max_width=widest, is_grasped=False)
    with FrankaHand("172.16.0.2") as hand:
        assert hand.read().closedness == pytest.approx(closedness)


@pytest.mark.parametrize("robot", ["robotiq_2f85", "franka_hand"])
def test_the_simulated_hand_goes_to_the_opening_that_reads_as_what_was_asked_for(robot: str) -> None:
    hand = SimulatedHand("127.0.0.1", robot)
    for closedness in (0.0, 0.13, 0.5, 0.77, float(CLOSEDNESS[-1])):
        width = hand._width(closedness)
        assert 0 <= width <= hand.max_width_m + 1e-9
        assert hand._closedness(width, hand.max_width_m) == pytest.approx(closedness, abs=1e-6)
    assert hand._width(0.0) == pytest.approx(hand.max_width_m) and hand._width(1.0) == pytest.approx(0.0)
