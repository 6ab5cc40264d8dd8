"""What the loop sees: the devices read together, and what has to be remembered from one look to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from armworld.real.cell import Cell
from armworld.real.gate import GRIPPER_SLIP, View
from armworld.real.protocols import ArmReading, Frame, GripperReading

TICK_S = 0.005  # how often a waiting loop looks again


@dataclass
class Seen:
    """One look at the cell.

    Attributes:
        arm, gripper: As read; no gripper is None.
        frames: By camera name.
        state: [7], flange pose and closedness, base frame.
        time_s: When the older of arm and gripper was measured, monotonic seconds.
    """

    arm: ArmReading
    gripper: GripperReading | None
    frames: dict[str, Frame]
    state: np.ndarray
    time_s: float


class Senses:
    """Reads a cell.

    Attributes:
        state: The state [7] read last; None before the first.
        gripper: Read with it, where there is one.
        gripper_moved_s: When the gripper was last seen to move, or to be where it was sent.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.state: np.ndarray | None = None
        self.gripper: GripperReading | None = None
        self.gripper_moved_s = -np.inf
        self._last: dict[str, Frame] = {}
        self._identical: dict[str, int] = {}

    def frames(self, wait_s: float, alive: Callable[[], None]) -> dict[str, Frame]:
        """The newest frames; waits up to `wait_s` for some that were not seen before. `alive` is called meanwhile."""
        end = time.monotonic() + wait_s
        while True:
            alive()
            frames = {name: camera.read() for name, camera in self.cell.cameras.items()}
            news = all(name not in self._last or frame.id > self._last[name].id for name, frame in frames.items())
            if news or time.monotonic() > end:
                return frames
            time.sleep(TICK_S)

    def robot(self, frames: dict[str, Frame], commanded: np.ndarray | None) -> Seen:
        """Arm and gripper now, beside `frames`. `commanded` is the state [7] last commanded, if any."""
        arm = self.cell.arm.read()
        gripper = self.cell.gripper.read() if self.cell.gripper is not None else None
        closedness = gripper.closedness if gripper is not None else 0.0
        state = np.array([*arm.pose, closedness])
        if gripper is not None and self._gripper_free(gripper, commanded):
            self.gripper_moved_s = time.monotonic()
        self.state, self.gripper = state, gripper
        oldest = arm.time_s if gripper is None else min(arm.time_s, gripper.time_s)
        return Seen(arm, gripper, frames, state, oldest)

    def _gripper_free(self, gripper: GripperReading, commanded: np.ndarray | None) -> bool:
        """Whether the gripper moves, or is where it was sent: neither is a stall."""
        moved = self.state is None or abs(gripper.closedness - self.state[6]) > 0.01
        arrived = commanded is None or abs(gripper.closedness - commanded[6]) <= GRIPPER_SLIP
        return gripper.moving or moved or arrived

    def gripper_rests(self, closedness: float, stall_s: float) -> bool:
        """Whether the gripper, sent to a closedness, is there, or went no further: on an object, or for `stall_s`."""
        gripper = self.gripper
        if gripper is None or gripper.moving:
            return gripper is None
        squeezes = gripper.object_held and closedness > gripper.closedness
        stalled = time.monotonic() - self.gripper_moved_s > stall_s
        return abs(gripper.closedness - closedness) <= GRIPPER_SLIP or squeezes or stalled

    def views(self, frames: Mapping[str, Frame]) -> dict[str, View]:
        """The frames beside those of the last call, for the gate."""
        views = {}
        for name, frame in frames.items():
            last = self._last.get(name)
            same = last is not None and np.array_equal(last.image, frame.image)
            self._identical[name] = self._identical.get(name, 0) + 1 if same else 0
            shape = self.cell.cameras[name].features["image"].shape
            views[name] = View(frame, shape, None if last is None else last.id, self._identical[name])
        self._last = dict(frames)
        return views

    def forget_frames(self) -> None:
        """After a reconnection frames are counted anew."""
        self._last, self._identical = {}, {}
