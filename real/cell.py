"""What a session is given and what it answers: its settings, the devices, the stop request, the outcome."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from armworld.real.protocols import Arm, Camera, DeviceError, Gripper

if TYPE_CHECKING:
    from armworld.real.simulated import SimulatedRobot


@dataclass(frozen=True)
class SessionConfig:
    """How an episode is run.

    Attributes:
        steps: At most so many steps.
        live: Send commands; otherwise everything but the sending happens (a dry run).
        slow_steps, slow_scale: The first moves, and those after a recovery, keep this share of the speed limit.
        max_holds: Holds in a row after which the episode ends.
        frame_wait_s: How long to wait for a frame newer than the last.
        agent_timeout_s: After so long without an answer the agent counts as hung.
        watchdog_s: After so long without a sign of life from the loop the watchdog stops the arm.
        done_m: End when the flange is so near the goal's state, where the goal has one; None: run all steps.
        done_rad: With done_m: not before it is turned so nearly as there, too, and the gripper has come to rest there
            or on what it met; None: turn and gripper do not count.
    """

    steps: int = 40
    live: bool = False
    slow_steps: int = 4
    slow_scale: float = 0.2
    max_holds: int = 8
    frame_wait_s: float = 0.15
    agent_timeout_s: float = 60.0
    watchdog_s: float = 1.0
    done_m: float | None = None
    done_rad: float | None = None


@dataclass
class Cell:
    """The devices of one robot cell; `simulated` is what they are simulated by, if they are."""

    arm: Arm
    gripper: Gripper | None
    cameras: Mapping[str, Camera]
    simulated: SimulatedRobot | None = None

    def connect(self) -> None:
        """Connect all, or none."""
        with contextlib.ExitStack() as opened:
            for device in self._devices():
                device.connect()
                opened.callback(device.close)
            opened.pop_all()

    def close(self) -> None:
        """Close all; the arm first, which stops it."""
        for device in self._devices():
            with contextlib.suppress(DeviceError):
                device.close()

    def _devices(self) -> list[Arm | Gripper | Camera]:
        return [self.arm, *([self.gripper] if self.gripper else []), *self.cameras.values()]


@dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    Attributes:
        reason: Why; "steps" and "arrived" are as meant.
        steps: Steps done.
        holds: Holds by reason code.
        distance_m: Of the flange from the goal's state, if it has one.
        seconds: Wall time.
        solved, object_m: In tasks that the simulated robot drew: whether its world says that the object's task is
            solved, and how far the object is from where it should be (m). None otherwise.
    """

    reason: str
    steps: int
    holds: dict[str, int]
    distance_m: float | None
    seconds: float
    solved: bool | None = None
    object_m: float | None = None


@dataclass
class StopRequest:
    """Set from a signal handler, the live page or a test; the loop looks at it every few milliseconds."""

    event: threading.Event = field(default_factory=threading.Event)
    reason: str = ""

    def set(self, reason: str) -> None:
        """Ask the loop to stop. The first reason stays."""
        if not self.event.is_set():
            self.reason = reason
            self.event.set()
