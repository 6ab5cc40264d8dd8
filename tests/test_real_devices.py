"""Every backend: features while disconnected, what reaches the vendor's library, what is said when it is not there.

The arm's, the hand's and the RealSense's libraries are stood in for by records of what they are told; OpenCV is real
and reads a film.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from armworld.real.cameras import Framing, OpenCVCamera, RealSenseCamera, RecordedCamera
from armworld.real.fakes import FakeArm, FakeCamera, FakeGripper, PtyRobotiq
from armworld.real.franky_arm import FrankyArm
from armworld.real.grippers import FrankaHand, Robotiq2F85
from armworld.real.polling import call_with_timeout
from armworld.real.protocols import Arm, Camera, DeviceError, DeviceLost, Gripper

DEVICES: list[tuple[Any, type, str]] = [
    (FrankyArm("172.16.0.2"), Arm, "pose"),
    (FrankaHand("172.16.0.2"), Gripper, "closedness"),
    (Robotiq2F85("/dev/ttyUSB0"), Gripper, "closedness"),
    (OpenCVCamera(0), Camera, "image"),
    (RealSenseCamera("123"), Camera, "image"),
    (RecordedCamera(Path("nowhere")), Camera, "image"),
    (FakeArm(), Arm, "pose"),
    (FakeGripper(), Gripper, "closedness"),
    (FakeCamera(), Camera, "image"),
]


@pytest.mark.parametrize(("device", "protocol", "feature"), DEVICES, ids=lambda value: type(value).__name__)
def test_it_keeps_its_protocol_and_tells_its_features_while_disconnected(device, protocol, feature) -> None:
    assert isinstance(device, protocol) and not device.connected
    assert device.features[feature].dtype in ("float64", "uint8") and device.features[feature].unit
    with pytest.raises(DeviceLost):
        device.read()
    device.close()  # safe before connect, and twice
    device.close()


class Recorded:
    """A client's library: what `Robot` is told, in order."""

    class Exception(RuntimeError):
        pass

    class NetworkException(Exception):
        pass

    class ControlException(Exception):
        pass

    class CommandException(Exception):
        pass

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.RealtimeConfig = SimpleNamespace(Enforce="enforce", Ignore="ignore")
        self.RobotMode = SimpleNamespace(Reflex="reflex", UserStopped="stopped", Guiding="guiding")
        self.mode = "idle"

    def RelativeDynamicsFactor(self, *shares: float) -> tuple[float, ...]:
        return shares

    def Robot(self, host: str, **options: Any) -> Any:
        self.told.append(("connect", host, options["realtime_config"]))
        here = SimpleNamespace(matrix=np.diag([1.0, -1.0, -1.0, 1.0]))
        here.matrix[:3, 3] = [0.45, 0.0, 0.35]

        class Transform:
            inverse = None

            def __mul__(self, other: Any) -> Any:
                return here

        return SimpleNamespace(
            set_collision_behavior=lambda *values: self.told.append(("collision", *values)),
            translation_velocity_limit=SimpleNamespace(set=lambda value: self.told.append(("speed", value))),
            state=SimpleNamespace(
                O_T_EE=Transform(),
                F_T_EE=Transform(),
                q=np.zeros(7),
                dq=np.zeros(7),
                robot_mode=self.mode,
                current_errors="cartesian_reflex",
                time=SimpleNamespace(to_sec=lambda: 1.0),
            ),
            is_in_control=False,
            join_motion=lambda seconds: None,
        )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setitem(sys.modules, "franky", recorded)  # type: ignore[arg-type]
    return recorded


def test_collision_thresholds_and_speed_limit_are_set_at_connect(library: Recorded, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_setscheduler", lambda *_: None)
    with FrankyArm("172.16.0.2", max_speed=0.2, torque_threshold_nm=18.0, force_threshold_n=22.0) as arm:
        assert library.told[0] == ("connect", "172.16.0.2", "enforce")
        assert ("collision", 18.0, 22.0) in library.told and ("speed", 0.2) in library.told
        np.testing.assert_allclose(arm.read().pose[:3], [0.45, 0, 0.35])
        assert arm.read().error is None


@pytest.mark.parametrize(
    ("mode", "told"), [("reflex", "reflex: "), ("stopped", "enabling device"), ("guiding", "hand")]
)
def test_an_arm_that_stopped_itself_says_so(library: Recorded, mode: str, told: str) -> None:
    library.mode = mode
    with FrankyArm("172.16.0.2", realtime=False) as arm:
        error = arm.read().error
    assert error is not None and told in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_speed": 0.3}, r"max_speed must lie in \(0, 0.25\]"),
        ({"acceleration": 0.9}, "acceleration"),
        ({"force_threshold_n": 500.0}, "force_threshold_n"),
    ],
)
def test_an_arm_refuses_settings_that_are_no_limits(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrankyArm("172.16.0.2", **options)  # type: ignore[arg-type]


def test_fingers_that_hold_an_object_are_not_let_go_by_staying_where_they_are() -> None:
    """After a hold nothing is commanded any more, and "stay" is the closedness at which the object was met."""
    pytest.importorskip("pyrobotiqgripper")
    with PtyRobotiq(object_at=120) as device, Robotiq2F85(device.port, activate=True) as gripper:
        gripper.command(1.0)
        end = time.monotonic() + 20
        while not gripper.read().object_held:
            assert time.monotonic() < end
            time.sleep(0.02)
        gripper._target = None  # as after a new connection
        met = gripper.read().closedness
        assert gripper.command(met) == pytest.approx(met)
        time.sleep(0.2)
        assert device._outputs[1] & 255 == 255  # the position request still presses
        gripper.command(0.0)
        while gripper.read().closedness > 0.05:
            assert time.monotonic() < end
            time.sleep(0.02)


def film(path: Path, frames: int) -> None:
    """Frames that grow brighter, 64 x 48."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for i in range(frames):
        image = np.zeros((48, 64, 3), np.uint8)
        image[..., 2] = 40 + 20 * i  # OpenCV's red
        writer.write(image)
    writer.release()


def test_an_opencv_source_gives_rgb_frames_with_ids_and_ends_as_lost(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    film(tmp_path / "film.avi", 8)
    with OpenCVCamera(str(tmp_path / "film.avi"), framing=Framing((48, 64))) as camera:
        frame = camera.read()
        assert frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8 and frame.id >= 1
        assert frame.image[..., 0].mean() > frame.image[..., 2].mean() + 20  # red comes first
        assert 0 <= time.monotonic() - frame.time_s < 60
        end = time.monotonic() + 20
        with pytest.raises(DeviceLost, match="gives no more frames"):
            while time.monotonic() < end:
                camera.read()
                time.sleep(0.01)
    with pytest.raises(DeviceLost, match="no camera at"):
        OpenCVCamera(str(tmp_path / "nothing.avi")).connect()


class Serial:
    """pyrealsense2 as far as the camera asks for it; `frames` are left, then it is unplugged."""

    def __init__(self, frames: int) -> None:
        self.left, self.asked = frames, []
        self.stream, self.format = SimpleNamespace(color="color"), SimpleNamespace(rgb8="rgb8")
        self.config = lambda: SimpleNamespace(
            enable_device=lambda serial: self.asked.append(serial),
            enable_stream=lambda *wanted: self.asked.append(wanted),
        )

    def pipeline(self) -> Any:
        return SimpleNamespace(start=self._start, stop=lambda: self.asked.append("stopped"), wait_for_frames=self._wait)

    def _start(self, config: Any) -> None:
        if "absent" in self.asked:
            raise RuntimeError("No device connected")

    def _wait(self, milliseconds: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("Frame didn't arrive within 1000")
        time.sleep(0.05)
        image = np.full((480, 640, 3), 90, np.uint8)
        return SimpleNamespace(get_color_frame=lambda: SimpleNamespace(get_data=lambda: image))


def test_a_realsense_is_asked_for_colour_by_serial_number(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = Serial(4)
    monkeypatch.setitem(sys.modules, "pyrealsense2", library)
    with RealSenseCamera("9121", framing=Framing((48, 64))) as camera:
        assert library.asked == ["9121", ("color", 640, 480, "rgb8", 30)]
        assert camera.read().image.shape == (48, 64, 3)
        end = time.monotonic() + 20
        with pytest.raises(DeviceLost, match="gives no more frames"):
            while time.monotonic() < end:
                camera.read()
                time.sleep(0.01)
    assert library.asked[-1] == "stopped"
    with pytest.raises(DeviceLost, match="no RealSense absent: No device connected"):
        RealSenseCamera("absent").connect()


@pytest.mark.parametrize(
    ("device", "module", "extra"),
    [
        (OpenCVCamera(0), "cv2", "opencv"),
        (RealSenseCamera("1"), "pyrealsense2", "realsense"),
        (Robotiq2F85("/dev/ttyUSB0"), "pyrobotiqgripper", "robotiq"),
        (FrankaHand("127.0.0.9"), "franky", "real"),
        (FrankyArm("127.0.0.9"), "franky", "real"),
    ],
)
def test_a_missing_library_is_named_with_its_install_line(monkeypatch, device, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=rf"pip install -e '\.\[{extra}\]'"):
        device.connect()


UNWANTED = ("robosuite", "stable_baselines3", "transformers", "lerobot", "ray", "franky", "cv2", "pyrealsense2")
TRAINERS = ("pretrain", "posttrain", "training", "align", "adapt")


def test_the_folder_imports_neither_robosuite_nor_the_trainers() -> None:
    """Every module of it, in a process of its own: nor any vendor's library before a device is connected."""
    folder = Path(__file__).resolve().parent.parent / "real"
    names = [f"armworld.real.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"]
    wanted = [*UNWANTED, "pyrobotiqgripper", *(f"armworld.worldmodel.{name}" for name in TRAINERS)]
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
    code += f"print([name for name in {wanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_refused_address_is_a_device_error_at_once() -> None:
    with pytest.raises(DeviceError):
        Robotiq2F85("/dev/no-such-port").connect()


def test_what_a_failed_call_held_is_let_go_at_once() -> None:
    """A robot that waits for the garbage collector keeps its connection, and the next one would wait for ever."""

    class Robot:
        def join(self) -> None:
            raise RuntimeError("the motion was aborted")

    robot = Robot()
    gone = weakref.ref(robot)
    gc.disable()
    try:
        with pytest.raises(DeviceError, match="the last motion: the motion was aborted") as caught:
            call_with_timeout(robot.join, 5.0, "the last motion")
        del caught, robot
        assert gone() is None
    finally:
        gc.enable()
