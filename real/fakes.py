"""Devices without hardware or simulator, with faults to switch on: for tests and for trying out a setup.

`FakeArm` goes where it is told at once, `FakeGripper` too, `FakeCamera` shows noise. `PtyRobotiq` answers Modbus
RTU on a pseudo-terminal, so that the real Robotiq driver can be connected to it. `FaultyCamera` and `StuckGripper` put
faults before any other device.
"""

from __future__ import annotations

import os
import pty
import struct
import threading
import time
import tty
from collections.abc import Mapping

import numpy as np

from armworld.real.protocols import (
    ARM_FEATURES,
    GRIPPER_FEATURES,
    ArmReading,
    Camera,
    Context,
    DeviceLost,
    Feature,
    Frame,
    Gripper,
    GripperReading,
    Reflex,
    camera_features,
)

HOME = np.array([0.45, 0.0, 0.35, np.pi, 0.0, 0.0])


class _Fake(Context):
    """Connection and loss."""

    def __init__(self) -> None:
        self.connected = False
        self.lost = False
        self.connections = 0

    def connect(self) -> None:
        self.connected, self.lost = True, False
        self.connections += 1

    def close(self) -> None:
        self.connected = False

    def _check(self) -> None:
        if self.lost or not self.connected:
            raise DeviceLost(f"{type(self).__name__} is gone")


class FakeArm(_Fake):
    """An arm that is at once where it was sent. `frozen`: its clock stands; `reflex`: it stopped itself."""

    features: Mapping[str, Feature] = ARM_FEATURES

    def __init__(self, pose: np.ndarray = HOME) -> None:
        super().__init__()
        self.pose = np.array(pose, float)
        self.commands: list[np.ndarray] = []
        self.stops: list[float] = []
        self.frozen_s: float | None = None
        self.reflex: str | None = None
        self.stop_hangs_s = 0.0

    def read(self) -> ArmReading:
        self._check()
        now = time.monotonic() if self.frozen_s is None else self.frozen_s
        return ArmReading(self.pose.copy(), np.zeros(7), np.zeros(7), now, False, self.reflex)

    def command(self, pose: np.ndarray) -> np.ndarray:
        self._check()
        if self.reflex is not None:
            raise Reflex(self.reflex)
        self.commands.append(np.array(pose))
        self.pose = np.array(pose)
        return pose

    def stop(self) -> None:
        self.stops.append(time.monotonic())

    def recover(self) -> None:
        self._check()
        self.reflex = None


class FakeGripper(_Fake):
    """A gripper that is at once where it was sent. `stuck_at`: it goes no further; `holds`: it reports an object."""

    features: Mapping[str, Feature] = GRIPPER_FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.closedness = 0.0
        self.commands: list[float] = []
        self.stuck_at: float | None = None
        self.holds = False

    def read(self) -> GripperReading:
        self._check()
        width = (1 - self.closedness) * 0.085
        return GripperReading(self.closedness, width, time.monotonic(), False, self.holds)

    def command(self, closedness: float) -> float:
        self._check()
        self.commands.append(closedness)
        self.closedness = closedness if self.stuck_at is None else min(closedness, self.stuck_at)
        return closedness

    def stop(self) -> None:
        """It stands already."""

    def recover(self) -> None:
        """It has no faults."""


class FakeCamera(_Fake):
    """Noise at `rate_hz`. Faults: "frozen" (no new frame), "repeated" (new time, old id), "same" (new id, old
    pixels), "black", "size", "lost"."""

    def __init__(self, size: tuple[int, int] = (48, 64), rate_hz: float = 100.0, seed: int = 0) -> None:
        super().__init__()
        self.size, self.rate_hz = size, rate_hz
        self.fault: str | None = None
        self._rng = np.random.default_rng(seed)
        self._started = time.monotonic()
        self._frame: Frame | None = None

    @property
    def features(self) -> Mapping[str, Feature]:
        return camera_features(*self.size)

    def read(self) -> Frame:
        self._check()
        if self.fault == "lost":
            raise DeviceLost("FakeCamera is gone")
        now = time.monotonic()
        number = int((now - self._started) * self.rate_hz) + 1
        old = self._frame
        if old is not None and (number == old.id or self.fault == "frozen"):
            return old
        image = self._rng.integers(0, 255, (*self.size, 3), np.uint8)
        if self.fault == "black":
            image = np.zeros_like(image)
        if self.fault == "size":
            image = image[:-2]
        if self.fault == "same" and old is not None:
            image = old.image
        if self.fault == "repeated" and old is not None:
            number = old.id
        self._frame = Frame(image, number, now)
        return self._frame


class FaultyCamera(Context):
    """Another camera, with a fault to switch on: those of `FakeCamera`. Connecting again clears it."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.fault: str | None = None
        self._old: Frame | None = None

    @property
    def features(self) -> Mapping[str, Feature]:
        return self.camera.features

    @property
    def connected(self) -> bool:
        return self.camera.connected

    def connect(self) -> None:
        self.fault = None
        self.camera.connect()

    def close(self) -> None:
        self.camera.close()

    def read(self) -> Frame:
        fault, frame = self.fault, self.camera.read()
        if fault == "lost":
            raise DeviceLost("the camera is gone")
        old = self._old or frame
        if fault is None:
            self._old = frame
            return frame
        image = {"same": old.image, "black": np.zeros_like(frame.image), "size": frame.image[:-2]}.get(fault)
        if fault == "frozen":
            return old
        return Frame(frame.image if image is None else image, old.id if fault == "repeated" else frame.id, frame.time_s)


class StuckGripper(Context):
    """Another gripper, that goes no further than `at` once that is set, though it takes any command."""

    def __init__(self, gripper: Gripper) -> None:
        self.gripper = gripper
        self.at: float | None = None

    @property
    def features(self) -> Mapping[str, Feature]:
        return self.gripper.features

    @property
    def connected(self) -> bool:
        return self.gripper.connected

    def connect(self) -> None:
        self.gripper.connect()

    def close(self) -> None:
        self.gripper.close()

    def read(self) -> GripperReading:
        return self.gripper.read()

    def command(self, closedness: float) -> float:
        self.gripper.command(closedness if self.at is None else min(closedness, self.at))
        return closedness

    def stop(self) -> None:
        self.gripper.stop()

    def recover(self) -> None:
        self.gripper.recover()


class PtyRobotiq:
    """A Robotiq 2F-85 behind a pseudo-terminal: activation, motion, an object to stall on, faults.

    Register map as in the gripper's manual: outputs 1000 … 1002 (action; position request; speed and force), inputs
    2000 … 2002 (status; fault and echo; position and current).
    """

    def __init__(self, object_at: int | None = None, bits_per_s: float = 600.0) -> None:
        self.object_at, self.bits_per_s, self.fault = object_at, bits_per_s, 0
        self._outputs = [0, 0, 0]
        self._position, self._updated = 3.0, time.monotonic()
        self._handle, slave = pty.openpty()
        tty.setraw(slave)
        self._slave = slave
        self.port = os.ttyname(slave)
        self._ending = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> PtyRobotiq:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unplug it."""
        self._ending = True
        for handle in (self._handle, self._slave):
            if handle >= 0:
                os.close(handle)
        self._handle = self._slave = -1
        self._thread.join(1.0)

    def _move(self) -> int:
        """Advance the fingers; answers gOBJ (0 moving, 2 stopped on an object while closing, 3 arrived)."""
        now = time.monotonic()
        step, self._updated = (now - self._updated) * self.bits_per_s, now
        if not self._outputs[0] >> 11 & 1:
            return 3
        wanted = float(self._outputs[1] & 255)
        blocked = self.object_at is not None and wanted > self.object_at
        end = min(wanted, float(self.object_at)) if blocked and self.object_at is not None else wanted
        self._position += float(np.clip(end - self._position, -step, step))
        if abs(self._position - end) > 0.5:
            return 0
        return 2 if blocked else 3

    def _inputs(self) -> list[int]:
        moving = self._move()
        active = self._outputs[0] >> 8 & 1
        going = self._outputs[0] >> 11 & 1
        status = moving << 6 | (3 if active else 0) << 4 | going << 3 | active
        return [status << 8, self.fault << 8 | self._outputs[1] & 255, round(self._position) << 8 | 10]

    def _serve(self) -> None:
        buffer = b""
        while not self._ending:
            try:
                buffer = self._answer(buffer + os.read(self._handle, 256))
            except OSError:  # unplugged
                return

    def _answer(self, buffer: bytes) -> bytes:
        """Answer the whole requests at the buffer's start; what is left of it comes back."""
        while len(buffer) >= 8:
            length = _request_length(buffer)
            if length is None or len(buffer) < length:
                return buffer
            request, buffer = buffer[:length], buffer[length:]
            reply = request[:2] + self._reply(request)
            os.write(self._handle, reply + struct.pack("<H", crc16(reply)))
        return buffer

    def _reply(self, request: bytes) -> bytes:
        function = request[1]
        if function in (3, 4):
            address, count = struct.unpack(">HH", request[2:6])
            return self._registers(address, count)
        if function == 16:
            address, count = struct.unpack(">HH", request[2:6])
            self._write(address, request[7 : 7 + 2 * count])
            return request[2:6]
        address, count, write, written = struct.unpack(">HHHH", request[2:10])  # 23: write, then read
        self._write(write, request[11 : 11 + 2 * written])
        return self._registers(address, count)

    def _registers(self, address: int, count: int) -> bytes:
        values = self._inputs()[address - 2000 : address - 2000 + count]
        return bytes([2 * len(values)]) + struct.pack(f">{len(values)}H", *values)

    def _write(self, address: int, content: bytes) -> None:
        values = struct.unpack(f">{len(content) // 2}H", content)
        self._move()
        self._outputs[address - 1000 : address - 1000 + len(values)] = values


def _request_length(buffer: bytes) -> int | None:
    """Bytes of the Modbus RTU request that the buffer begins with, or None while that cannot be told."""
    if buffer[1] in (3, 4):
        return 8
    if buffer[1] == 16:
        return 9 + buffer[6]
    if buffer[1] == 23:
        return 13 + buffer[10] if len(buffer) > 10 else None
    raise ValueError(f"unknown Modbus function {buffer[1]}")


def crc16(message: bytes) -> int:
    """Modbus RTU's checksum (polynomial 0xA001, start 0xFFFF)."""
    value = 0xFFFF
    for byte in message:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
    return value
