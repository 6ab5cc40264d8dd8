"""Memory shared by the simulated robot's processes: joint angles and objects one way, camera frames the other.

A file that each process maps, so that one of them can be frozen or killed without taking the others along.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

HEADER = 32  # float64 entries; see the slices below
TICK, SIM_TIME, WIDTH, TOUCHES = 0, 1, 2, 3  # even tick: the entries belong together
JOINTS = slice(4, 11)
OBJECT = slice(11, 18)  # position and quaternion (w, x, y, z)
PLACE = slice(18, 25)  # where the object is asked to stand, the same way
ASKED, PLACED = 25, 26  # the latest placement that was asked for, and the latest that was done
BYSTANDER = slice(27, 32)  # of another object: 1 if it is there, position and yaw
CAMERA_HEADER = 3  # frame id, capture times of the two pictures that are kept


@dataclass(frozen=True)
class RobotSample:
    """The simulated robot at one moment.

    Attributes:
        joints: [7], rad.
        width_m: The hand's opening, m.
        object_pose: Position (m) and quaternion (w, x, y, z) [7] of the object's origin.
        sim_time_s: Simulated time, s.
        touched: Whether the robot touches the object.
        supported: Whether anything else does.
        placed: How many placements of the object were done.
    """

    joints: np.ndarray
    width_m: float
    object_pose: np.ndarray
    sim_time_s: float
    touched: bool = False
    supported: bool = False
    placed: int = 0


class SharedBlock:
    """The mapped file. `create` makes it; every process opens it with the same cameras and size."""

    def __init__(self, path: Path, cameras: tuple[str, ...], size: tuple[int, int]) -> None:
        self.cameras, self.size = cameras, size
        count, pixels = len(cameras), size[0] * size[1] * 3
        head = 8 * (HEADER + CAMERA_HEADER * count)
        self._bytes = np.memmap(path, np.uint8, "r+", shape=(head + 2 * count * pixels,))
        self._head = self._bytes[: 8 * HEADER].view(np.float64)
        self._frames = self._bytes[8 * HEADER : head].view(np.float64).reshape(count, CAMERA_HEADER)
        self._pixels = self._bytes[head:].reshape(count, 2, *size, 3)

    @classmethod
    def create(cls, path: Path, cameras: tuple[str, ...], size: tuple[int, int]) -> SharedBlock:
        """A new file of zeros."""
        count = len(cameras)
        path.write_bytes(bytes(8 * (HEADER + CAMERA_HEADER * count) + 2 * count * size[0] * size[1] * 3))
        return cls(path, cameras, size)

    def write_robot(self, sample: RobotSample) -> None:
        head = self._head
        head[TICK] += 1
        head[JOINTS], head[WIDTH], head[OBJECT] = sample.joints, sample.width_m, sample.object_pose
        head[SIM_TIME], head[TOUCHES] = sample.sim_time_s, sample.touched + 2 * sample.supported
        head[PLACED] = sample.placed
        head[TICK] += 1

    def read_robot(self) -> RobotSample:
        head = np.array(self._head)
        for _ in range(1000):
            if head[TICK] % 2 == 0 and self._head[TICK] == head[TICK]:
                break
            head = np.array(self._head)
        touches = int(head[TOUCHES])
        return RobotSample(
            joints=head[JOINTS],
            width_m=float(head[WIDTH]),
            object_pose=head[OBJECT],
            sim_time_s=float(head[SIM_TIME]),
            touched=bool(touches & 1),
            supported=bool(touches & 2),
            placed=int(head[PLACED]),
        )

    def ask_placement(self, pose: np.ndarray) -> int:
        """Ask for the object to be put at a pose [7], at rest; answers the placement's number."""
        self._head[PLACE] = pose
        self._head[ASKED] += 1
        return int(self._head[ASKED])

    def placement(self) -> tuple[int, np.ndarray]:
        """The latest placement that was asked for: its number (0: none yet) and pose [7]."""
        return int(self._head[ASKED]), np.array(self._head[PLACE])

    def show_bystander(self, place: np.ndarray) -> None:
        """Draw another object standing at x, y, z (m) and yaw (rad) [4]."""
        self._head[BYSTANDER] = [1.0, *place]

    def bystander(self) -> np.ndarray | None:
        """Where another object stands: x, y, z (m) and yaw (rad) [4]; None where there is none."""
        there, *place = np.array(self._head[BYSTANDER])
        return np.array(place) if there else None

    def write_frame(self, camera: int, image: np.ndarray, time_s: float) -> None:
        number = int(self._frames[camera, 0]) + 1
        self._pixels[camera, number % 2] = image
        self._frames[camera, 1 + number % 2] = time_s
        self._frames[camera, 0] = number

    def read_frame(self, camera: int) -> tuple[int, float, np.ndarray]:
        """Newest frame: id (0: none yet), capture time (monotonic seconds), image."""
        while True:
            number = int(self._frames[camera, 0])
            image, time_s = self._pixels[camera, number % 2].copy(), float(self._frames[camera, 1 + number % 2])
            if int(self._frames[camera, 0]) == number:  # else the next but one may be half written over it
                return number, time_s, image
