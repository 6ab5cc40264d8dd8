"""Grippers: the Franka Hand by franky, the Robotiq 2F-85 by pyrobotiqgripper. Closedness 0 open ... 1 closed.

Both talk slowly (10–30 ms a reading, and the hand's motions block), so one thread owns the device: it sends the
newest command and reads. `command` only notes the target and returns what will be sent. To stay where the fingers
hold an object is no new target: they go on pressing, where a motion to that very place would let go.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from armworld.real.polling import Poller, call_with_timeout
from armworld.real.protocols import (
    GRIPPER_FEATURES,
    Context,
    DeviceError,
    DeviceLost,
    Feature,
    GripperReading,
)
from armworld.types import require

OBJECT_M = 0.004  # fingers that close on nothing end nearer to their target than this
CONNECT_S = 60.0
ABANDONED: list[Any] = []  # hands whose motion hangs in C++: freeing them would crash this process
DEADBAND = 0.02  # smaller changes of the target are not worth interrupting a motion


class ThreadedGripper(Context):
    """What both grippers share: the thread, the newest target, the checks. Subclasses fill in four methods."""

    max_width_m = 0.085
    period_s = 0.05

    def __init__(self, name: str) -> None:
        self.name = name
        self._poller: Poller[GripperReading] | None = None
        self._target: float | None = None
        self._sent: float | None = None
        self._stopping = False
        self._lock = threading.Lock()

    def _open(self) -> None:
        raise NotImplementedError

    def _shut(self) -> None:
        raise NotImplementedError

    def _state(self) -> GripperReading:
        raise NotImplementedError

    def _send(self, closedness: float, closing: bool) -> None:
        raise NotImplementedError

    def _halt(self) -> None:
        raise NotImplementedError

    @property
    def features(self) -> Mapping[str, Feature]:
        return GRIPPER_FEATURES

    @property
    def connected(self) -> bool:
        return self._poller is not None and self._poller.running

    def connect(self) -> None:
        self._open()
        self._target = self._sent = None
        self._poller = Poller(self.name, self._step, self.period_s)
        self._poller.start()

    def close(self) -> None:
        if self._poller is None:
            return
        self._poller.stop()
        self._poller = None
        self._shut()

    def read(self) -> GripperReading:
        if self._poller is None:
            raise DeviceLost(f"{self.name} is not connected; call connect() first")
        return self._poller.latest()

    def command(self, closedness: float) -> float:
        closedness = float(closedness)
        if not 0 <= closedness <= 1:
            raise ValueError(f"closedness must lie in [0, 1] (0 open, 1 closed), got {closedness}")
        reading = self.read()
        with self._lock:
            keeps = reading.object_held and abs(closedness - reading.closedness) < DEADBAND
            if not keeps and (self._target is None or abs(closedness - self._target) >= DEADBAND):
                self._target = closedness
            return closedness if self._target is None else self._target

    def stop(self) -> None:
        with self._lock:
            self._target = self._sent = None
            self._stopping = True

    def recover(self) -> None:
        """Nothing to clear by default; a gripper with faults of its own overrides this."""

    def _step(self) -> GripperReading:
        with self._lock:
            target, stopping, self._stopping = self._target, self._stopping, False
        if stopping:
            self._halt()
        reading = self._state()
        if target is not None and target != self._sent:
            self._send(target, target > reading.closedness)
            self._sent = target
        return reading


class FrankaHand(ThreadedGripper):
    """The Franka Hand at the robot's address. Closing grasps with a force, whatever comes between the fingers."""

    max_width_m = 0.08

    def __init__(self, host: str, speed_m_s: float = 0.05, force_n: float = 20.0, home: bool = False) -> None:
        super().__init__(f"Franka Hand {host}")
        self.host, self.speed_m_s, self.force_n, self.home = host, speed_m_s, force_n, home
        self._hand: Any = None
        self._franky: Any = None
        self._future: Any = None
        self._last = (0.0, 0.0)
        self._width_sent = 0.0

    def _open(self) -> None:
        self._franky = require("franky", "real")
        try:
            call_with_timeout(self._reach, CONNECT_S, "connecting")
            if self.home:  # opens and closes fully: only with empty fingers
                self._hand.homing()
        except (DeviceError, self._franky.Exception, RuntimeError) as error:
            raise DeviceLost(f"no Franka Hand at {self.host}: {error}. Is another program connected to it?") from error

    def _reach(self) -> None:
        self._hand = self._franky.Gripper(self.host)

    def _shut(self) -> None:
        hand, future, self._hand, self._future = self._hand, self._future, None, None
        if future is None or future.wait(0.0):
            return
        with contextlib.suppress(DeviceError):  # a motion's thread must not outlive the connection that it uses
            call_with_timeout(hand.stop, 1.0, f"stop of {self.name}")
        if not future.wait(1.0):
            ABANDONED.append((hand, future))

    def _closedness(self, width_m: float, widest_m: float) -> float:
        return min(1.0, max(0.0, 1 - width_m / widest_m))

    def _width(self, closedness: float) -> float:
        return (1 - closedness) * self.max_width_m

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (self._franky.NetworkException, RuntimeError) as error:
            raise DeviceLost(f"{self.name} is gone: {error}") from error
        except self._franky.Exception as error:
            raise DeviceError(f"{self.name}: {error}") from error

    def _state(self) -> GripperReading:
        state = self._guard(lambda: self._hand.state)
        widest = state.max_width if state.max_width > 0.01 else self.max_width_m
        width, now = float(state.width), time.monotonic()
        speed = (width - self._last[0]) / max(1e-6, now - self._last[1])
        self._last = (width, now)
        closedness = self._closedness(width, widest)
        # the wide tolerance makes every grasp succeed, so fingers that stopped short of the target tell an object
        held = bool(state.is_grasped) and width > self._width_sent + OBJECT_M
        return GripperReading(closedness, width, now, abs(speed) > 0.002, held)

    def _send(self, closedness: float, closing: bool) -> None:
        width = self._width_sent = self._width(closedness)
        if self._future is not None and not self._future.wait(0.0):
            self._guard(self._hand.stop)
        if closing:
            anything = self.max_width_m
            self._future = self._guard(
                lambda: self._hand.grasp_async(width, self.speed_m_s, self.force_n, anything, anything)
            )
        else:
            self._future = self._guard(lambda: self._hand.move_async(width, self.speed_m_s))

    def _halt(self) -> None:
        self._guard(self._hand.stop)


class Robotiq2F85(ThreadedGripper):
    """A Robotiq 2F-85 on a serial port (Modbus RTU).

    Activation opens and closes the fingers fully; it is done at connect only when `activate` says that the
    fingers are free and the gripper is not active already.

    Args:
        port: Serial device, such as "/dev/ttyUSB0". There is no search: a probe writes to other devices' ports.
        activate: Whether connect may activate the gripper.
        speed, force: The gripper's own scale, 0 ... 255.
    """

    def __init__(self, port: str, activate: bool = False, speed: int = 128, force: int = 50) -> None:
        super().__init__(f"Robotiq 2F-85 {port}")
        self.port, self.activate = port, activate
        for name, value in (("speed", speed), ("force", force)):
            if not 0 <= value <= 255:
                raise ValueError(f"{name} must lie in [0, 255], got {value}")
        self.speed, self.force = speed, force
        self._driver: Any = None

    def _open(self) -> None:
        library = require("pyrobotiqgripper", "robotiq")
        try:
            self._driver = library.RobotiqGripper(com_port=self.port)
            active = bool(self._driver.isActivated())
            if not active and self.activate:
                self._driver.activate()
                active = bool(self._driver.isActivated())
        except Exception as error:  # pyserial, pymodbus and the driver raise unrelated types
            raise DeviceLost(
                f"no Robotiq gripper at {self.port}: {error}. Is it powered, and may this user open the port?"
            ) from error
        if not active:
            raise DeviceError(
                "the gripper is not activated. Activation opens and closes it fully: free the fingers, "
                "then connect with activate=True"
            )

    def _shut(self) -> None:
        if self._driver is not None:
            self._driver.disconnect()
        self._driver = None

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise DeviceLost(f"{self.name} is gone: {error}") from error

    def _state(self) -> GripperReading:
        self._guard(lambda: self._driver.readStatus(raiseOnFault=False))
        status = self._driver.status(refreshStatus=False)
        closedness = float(status["gPO"]) / 255
        fault = int(status["gFLT"])
        return GripperReading(
            closedness=closedness,
            width_m=(1 - closedness) * self.max_width_m,
            time_s=time.monotonic(),
            moving=int(status["gOBJ"]) == 0 and int(status["gGTO"]) == 1,
            object_held=int(status["gOBJ"]) in (1, 2),
            error=f"fault {fault:#x}" if fault >= 0xA else None,  # below 0xA: waiting, not broken
        )

    def _send(self, closedness: float, closing: bool) -> None:
        bits = round(closedness * 255)
        self._guard(lambda: self._driver.move(bits, self.speed, self.force, wait=False, start=True))

    def _halt(self) -> None:
        self._guard(lambda: self._driver.stop())
