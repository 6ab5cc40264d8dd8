"""Cameras: UVC by OpenCV, Intel RealSense, frames from a file, and what they share.

Frames reach the agent at the size they are given here; no calibration is fed to the model. `crop` keeps the middle
at an aspect ratio and `size` scales, so that a real camera's picture can be framed as the training camera's was.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from armworld.real.polling import Poller
from armworld.real.protocols import Context, DeviceError, DeviceLost, Feature, Frame, camera_features
from armworld.types import require


@dataclass(frozen=True)
class Framing:
    """From a camera's picture to the agent's.

    Attributes:
        size: (height, width) of the result.
        crop: Aspect ratio width / height of the middle part that is kept before scaling; None keeps everything.
            A crop other than width / height of `size` squeezes the picture, as V-JEPA 2's published loader does.
    """

    size: tuple[int, int] = (256, 256)
    crop: float | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 16 or (self.crop is not None and not 0.2 <= self.crop <= 5):
            raise ValueError(
                f"framing needs a size of at least 16 x 16 and a crop in [0.2, 5], got {self.size}, {self.crop}"
            )

    def apply(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [*size, 3]."""
        height, width = image.shape[:2]
        if self.crop is not None:
            keep_w, keep_h = min(width, round(height * self.crop)), min(height, round(width / self.crop))
            top, left = (height - keep_h) // 2, (width - keep_w) // 2
            image = image[top : top + keep_h, left : left + keep_w]
        if image.shape[:2] == self.size:
            return np.ascontiguousarray(image)
        resized = Image.fromarray(image).resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized)


class PolledCamera(Context):
    """A camera whose driver blocks until the next frame: a thread waits, `read` takes the latest.

    Subclasses give `_open`, `_shut` and `_grab` (one RGB picture and its capture time, monotonic seconds).
    """

    period_s = 0.001  # the driver paces the thread

    def __init__(self, name: str, framing: Framing | None = None) -> None:
        self.name, self.framing = name, framing or Framing()
        self._poller: Poller[Frame] | None = None
        self._count = itertools.count(1)

    def _open(self) -> None:
        raise NotImplementedError

    def _shut(self) -> None:
        raise NotImplementedError

    def _grab(self) -> tuple[np.ndarray, float]:
        raise NotImplementedError

    @property
    def features(self) -> Mapping[str, Feature]:
        return camera_features(*self.framing.size)

    @property
    def connected(self) -> bool:
        return self._poller is not None and self._poller.running

    def connect(self) -> None:
        self._open()
        self._poller = Poller(self.name, self._next, self.period_s)
        self._poller.start()

    def close(self) -> None:
        if self._poller is None:
            return
        self._poller.stop()
        self._poller = None
        self._shut()

    def read(self) -> Frame:
        if self._poller is None:
            raise DeviceLost(f"{self.name} is not connected; call connect() first")
        return self._poller.latest()

    def _next(self) -> Frame:
        image, time_s = self._grab()
        return Frame(self.framing.apply(image), next(self._count), time_s)


class OpenCVCamera(PolledCamera):
    """A UVC camera (or any source that OpenCV opens).

    Args:
        source: Device index or path (`/dev/v4l/by-id/...` stays the same over reboots), or a stream's address.
        capture_size: (height, width) to ask of the camera.
        rate_hz: Frame rate to ask of the camera.
        framing: What is done with the picture.
    """

    def __init__(
        self,
        source: int | str,
        capture_size: tuple[int, int] = (480, 640),
        rate_hz: float = 30.0,
        framing: Framing | None = None,
    ) -> None:
        super().__init__(f"camera {source}", framing)
        self.source, self.capture_size, self.rate_hz = source, capture_size, rate_hz
        self._capture: Any = None
        self._cv2: Any = None

    def _open(self) -> None:
        cv2 = self._cv2 = require("cv2", "opencv")
        self._capture = cv2.VideoCapture(self.source)
        if not self._capture.isOpened():
            self._capture.release()
            raise DeviceLost(f"no camera at {self.source!r}: is it plugged in, and free of other programs?")
        height, width = self.capture_size
        for what, value in ((cv2.CAP_PROP_FRAME_HEIGHT, height), (cv2.CAP_PROP_FRAME_WIDTH, width),
                            (cv2.CAP_PROP_FPS, self.rate_hz), (cv2.CAP_PROP_BUFFERSIZE, 1)):  # fmt: skip
            self._capture.set(what, value)

    def _shut(self) -> None:
        self._capture.release()

    def _grab(self) -> tuple[np.ndarray, float]:
        grabbed, image = self._capture.read()
        if not grabbed or image is None:
            raise DeviceLost(f"{self.name} gives no more frames: unplugged?")
        return self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB), time.monotonic()


class RealSenseCamera(PolledCamera):
    """An Intel RealSense camera's colour stream, chosen by serial number."""

    def __init__(
        self,
        serial: str,
        capture_size: tuple[int, int] = (480, 640),
        rate_hz: int = 30,
        framing: Framing | None = None,
    ) -> None:
        super().__init__(f"RealSense {serial}", framing)
        self.serial, self.capture_size, self.rate_hz = serial, capture_size, rate_hz
        self._pipeline: Any = None

    def _open(self) -> None:
        rs = require("pyrealsense2", "realsense")
        config = rs.config()
        config.enable_device(self.serial)
        height, width = self.capture_size
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, self.rate_hz)
        self._pipeline = rs.pipeline()
        try:
            self._pipeline.start(config)
        except RuntimeError as error:
            raise DeviceLost(f"no RealSense {self.serial}: {error}. Is it on a USB 3 port?") from error

    def _shut(self) -> None:
        self._pipeline.stop()

    def _grab(self) -> tuple[np.ndarray, float]:
        try:
            frames = self._pipeline.wait_for_frames(1000)
        except RuntimeError as error:
            raise DeviceLost(f"{self.name} gives no more frames: {error}") from error
        colour = frames.get_color_frame()
        if not colour:
            raise DeviceError(f"{self.name}: a frame set without colour")
        return np.array(colour.get_data()), time.monotonic()


class RecordedCamera(PolledCamera):
    """Frames of a video or of a folder of pictures, at a rate, over again: rehearsals without a camera."""

    def __init__(self, path: Path, rate_hz: float = 15.0, framing: Framing | None = None) -> None:
        super().__init__(f"recording {path}", framing)
        self.path, self.rate_hz = Path(path), rate_hz
        self.period_s = 1 / rate_hz
        self._frames: Iterator[np.ndarray] = iter(())

    def _open(self) -> None:
        self._frames = itertools.cycle(load_images(self.path))

    def _shut(self) -> None:
        self._frames = iter(())

    def _grab(self) -> tuple[np.ndarray, float]:
        return next(self._frames), time.monotonic()


def load_image(path: Path) -> np.ndarray:
    """A picture file as uint8 [H, W, 3] RGB. Raises ValueError for what is not a picture."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from error


def load_images(path: Path) -> list[np.ndarray]:
    """All pictures of a folder (sorted by name), or all frames of a video file. Raises ValueError if none."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
        images = [load_image(p) for p in files]
    else:
        import av
        from av.error import FFmpegError

        try:
            with av.open(str(path)) as container:
                images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        except (FFmpegError, OSError) as error:
            raise ValueError(f"{path} is not a video that can be read: {error}") from error
    if not images:
        raise ValueError(f"{path} holds no pictures")
    return images
