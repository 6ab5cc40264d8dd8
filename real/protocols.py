"""What a deployment needs of an arm, a gripper and a camera, and what they answer.

Times are `time.monotonic()` seconds of this computer. Poses are float64 [6]: the flange (panda_link8) in the
robot base frame, metres and extrinsic-xyz Euler angles in radians (DROID's convention). Closedness is 0 open ...
1 closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np


class DeviceError(RuntimeError):
    """A device refused or failed; the loop holds."""


class DeviceLost(DeviceError):
    """The connection is gone. Only a new connection, confirmed by the operator, may move the arm again."""


class Reflex(DeviceError):
    """The robot stopped itself (collision, joint limit ...). `recover()` clears it once the cause is gone."""


@dataclass(frozen=True)
class Feature:
    """What one entry of a reading is: its shape, dtype name and unit."""

    shape: tuple[int, ...]
    dtype: str
    unit: str


@dataclass(frozen=True)
class ArmReading:
    """One state of the arm.

    Attributes:
        pose: Flange pose [6], m and rad, base frame.
        joints: Joint angles [7], rad.
        velocities: Joint velocities [7], rad/s.
        time_s: When the robot's own clock was last seen to advance (monotonic seconds).
        moving: Whether a motion is being executed.
        error: Why the robot stopped itself, or None.
        clock_s: The robot's own clock (s, any origin), or NaN where it has none.
    """

    pose: np.ndarray
    joints: np.ndarray
    velocities: np.ndarray
    time_s: float
    moving: bool = False
    error: str | None = None
    clock_s: float = float("nan")


@dataclass(frozen=True)
class GripperReading:
    """One state of the gripper: closedness (0 open ... 1 closed), opening (m), time (monotonic seconds)."""

    closedness: float
    width_m: float
    time_s: float
    moving: bool = False
    object_held: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Frame:
    """One image, uint8 [H, W, 3] RGB, with the camera's own counter and the capture time (monotonic s)."""

    image: np.ndarray
    id: int
    time_s: float


class Device(Protocol):
    """What every device shares. `features` is readable while disconnected."""

    @property
    def features(self) -> Mapping[str, Feature]: ...

    @property
    def connected(self) -> bool: ...

    def connect(self) -> None:
        """Open the connection; a DeviceError says what to check."""
        ...

    def close(self) -> None:
        """Stop what moves and release the device. Safe to call twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class Arm(Device, Protocol):
    """A seven-joint arm that goes to absolute flange poses in its base frame."""

    def read(self) -> ArmReading:
        """The latest state, without waiting for the robot."""
        ...

    def command(self, pose: np.ndarray) -> np.ndarray:
        """Start towards a flange pose [6] and return at once with the pose actually sent [6]."""
        ...

    def stop(self) -> None:
        """Brake and stand. Never raises for an arm that stands already."""
        ...

    def recover(self) -> None:
        """Clear a reflex; raises DeviceError when the robot refuses."""
        ...


@runtime_checkable
class Gripper(Device, Protocol):
    """A parallel gripper commanded by closedness."""

    def read(self) -> GripperReading: ...

    def command(self, closedness: float) -> float:
        """Start towards a closedness in [0, 1] and return the closedness actually sent."""
        ...

    def stop(self) -> None: ...

    def recover(self) -> None: ...


@runtime_checkable
class Camera(Device, Protocol):
    """A source of colour images."""

    def read(self) -> Frame:
        """The latest frame, possibly one that was read before; raises DeviceLost when the camera is gone."""
        ...


class Context:
    """`with device:` for classes that have `connect` and `close`."""

    def connect(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


ARM_FEATURES: Mapping[str, Feature] = {
    "pose": Feature((6,), "float64", "m, rad (flange, base frame, extrinsic xyz)"),
    "joints": Feature((7,), "float64", "rad"),
    "velocities": Feature((7,), "float64", "rad/s"),
}
GRIPPER_FEATURES: Mapping[str, Feature] = {
    "closedness": Feature((), "float64", "0 open ... 1 closed"),
    "width_m": Feature((), "float64", "m"),
}


def camera_features(height: int, width: int) -> Mapping[str, Feature]:
    """The features of a colour camera of this size."""
    return {"image": Feature((height, width, 3), "uint8", "RGB")}
