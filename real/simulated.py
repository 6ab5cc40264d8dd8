"""A robot without hardware: the real franky client, over loopback, against a simulated robot and its cameras."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armworld.real.franky_arm import FrankyArm
from armworld.real.protocols import Context, DeviceLost, Feature, Frame, camera_features
from armworld.real.sim_block import RobotSample, SharedBlock
from armworld.real.sim_hand import SimulatedHand

START_S = 90.0  # compiling the scene and finding an OpenGL backend take seconds; a loaded machine more
PLACE_S = 20.0  # for an object to be put somewhere, on a loaded machine
LOST_S = 1.0  # without a frame for so long, a camera counts as unplugged


@dataclass(frozen=True)
class SimulatedConfig:
    """What stands in the simulated cell.

    Attributes:
        cameras: Names of the scene's cameras that are drawn.
        size: (height, width) of their pictures.
        rate_hz: Frames a second.
        object: An object of the catalogue on the table, or None.
        object_position: Of its underside's centre, m.
        lab: What the cameras show.
        robot: What they show at the arm. The physics is an FR3 with franky-sim's hand; for robotiq_2f85 that hand
            has the 2F-85's reach, mounting and opening.
    """

    cameras: tuple[str, ...] = ("left",)
    size: tuple[int, int] = (256, 256)
    rate_hz: float = 15.0
    object: str | None = "cup"
    object_position: tuple[float, float, float] = (0.5, 0.0, 0.001)
    lab: str = "lab1"
    robot: str = "robotiq_2f85"


class SimulatedRobot:
    """Starts the two processes; `arm()`, `gripper()` and `camera(name)` make the devices to connect to them.

    `server` and `painter` are the processes, to be frozen or killed by tests.
    """

    def __init__(self, config: SimulatedConfig | None = None) -> None:
        self.config = config or SimulatedConfig()
        self.folder = Path(tempfile.mkdtemp(prefix="armworld-robot-"))
        self.block_path = self.folder / "block"
        self.block = SharedBlock.create(self.block_path, self.config.cameras, self.config.size)
        self.host = ""
        try:
            self.server = self._start("armworld.real.sim_server", subprocess.PIPE)
            self.painter = self._start("armworld.real.sim_camera", None)
            self.host = self._await_host()
            self._await_frames()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SimulatedRobot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def arm(self, **options: float) -> FrankyArm:
        """The real client's arm, without a real-time kernel."""
        return FrankyArm(self.host, realtime=False, **options)  # type: ignore[arg-type]

    def gripper(self) -> SimulatedHand:
        return SimulatedHand(self.host, self.config.robot)

    def camera(self, name: str) -> SimulatedCamera:
        return SimulatedCamera(self.block_path, self.config.cameras, self.config.size, name)

    def truth(self) -> RobotSample:
        """Where the simulated robot really is, past all clients."""
        return self.block.read_robot()

    def place_object(self, position: np.ndarray, yaw: float) -> None:
        """Stand the object with its origin at `position` [3] (m), turned by `yaw` (rad), at rest.

        Raises:
            DeviceLost: The simulated robot does not answer.
        """
        half = yaw / 2
        number = self.block.ask_placement(np.array([*position, np.cos(half), 0.0, 0.0, np.sin(half)]))
        end = time.monotonic() + PLACE_S
        while self.truth().placed < number:
            if time.monotonic() > end:
                raise DeviceLost("the simulated robot did not put its object anywhere: is its process alive?")
            time.sleep(0.01)

    def show_bystander(self, place: np.ndarray) -> None:
        """Stand another object of the catalogue at x, y, z (m) and yaw (rad) [4], as the simulation's tasks do.

        It is seen and cannot be touched: for the arm's physics it is not there.
        """
        self.block.show_bystander(place)

    def close(self) -> None:
        """End both processes, frozen or not."""
        for process in (getattr(self, "server", None), getattr(self, "painter", None)):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, module: str, stdout: int | None) -> subprocess.Popen[bytes]:
        c = self.config
        command = [sys.executable, "-m", module, "--block", str(self.block_path), "--cameras", *c.cameras]
        command += ["--size", *map(str, c.size), "--lab", c.lab, "--robot", c.robot, "--rate-hz", str(c.rate_hz)]
        if c.object is not None:
            command += ["--object", c.object, "--object-position", *map(str, c.object_position)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, env=environment)

    def _await_host(self) -> str:
        assert self.server.stdout is not None
        ready, _, _ = select.select([self.server.stdout], [], [], START_S)
        line = self.server.stdout.readline() if ready else b""
        if not line:
            raise DeviceLost("the simulated robot did not start; its messages are above")
        return str(json.loads(line)["host"])

    def _await_frames(self) -> None:
        end = time.monotonic() + START_S
        while any(self.block.read_frame(i)[0] < 1 for i in range(len(self.config.cameras))):
            if self.painter.poll() is not None or time.monotonic() > end:
                raise DeviceLost("the simulated cameras did not start; their messages are above")
            time.sleep(0.02)


class SimulatedCamera(Context):
    """One of the simulated robot's cameras."""

    def __init__(self, block: Path, cameras: tuple[str, ...], size: tuple[int, int], name: str) -> None:
        if name not in cameras:
            raise ValueError(f"no camera {name!r}; this simulated robot has {', '.join(cameras)}")
        self.name = name
        self._path, self._cameras, self._size = block, cameras, size
        self._block: SharedBlock | None = None

    @property
    def features(self) -> Mapping[str, Feature]:
        return camera_features(*self._size)

    @property
    def connected(self) -> bool:
        return self._block is not None

    def connect(self) -> None:
        try:
            self._block = SharedBlock(self._path, self._cameras, self._size)
        except OSError as error:
            raise DeviceLost(f"no simulated robot at {self._path}: {error}") from error

    def close(self) -> None:
        self._block = None

    def read(self) -> Frame:
        if self._block is None:
            raise DeviceLost(f"camera {self.name} is not connected; call connect() first")
        number, time_s, image = self._block.read_frame(self._cameras.index(self.name))
        if number < 1 or time.monotonic() - time_s > LOST_S:
            raise DeviceLost(f"camera {self.name} gives no more frames")
        return Frame(np.ascontiguousarray(image), number, time_s)
