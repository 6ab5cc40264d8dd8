"""H.264 in MP4 through PyAV: one file per camera, readable at random.

Keyframes every 10 frames and no B-frames make a random read short: presentation order is decoding order, and
a seek decodes at most 10 frames. The same frames give the same bytes on one build of x264, from 64 pixels
height and width on (below, its look-ahead reads beyond the picture).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

KEYFRAME_INTERVAL = 10
SMALLEST, LARGEST = 16, 1280  # pixels: what our environments render
CRF = 12  # near-transparent: models train on the video and are judged on raw renders


class VideoError(ValueError):
    """A video that cannot be read as asked; the message names its path."""


def check_image_size(image_size: int | None) -> None:
    """ValueError unless that is a side of frames (pixels) that our scenes draw and video can hold; None passes."""
    if image_size is not None and (image_size % 2 or not SMALLEST <= image_size <= LARGEST):
        raise ValueError(f"image_size must be even, for video, and {SMALLEST} ... {LARGEST}, got {image_size}")


def write_video(path: Path, frames: np.ndarray, frame_hz: float, crf: int = CRF) -> None:
    """Encode `frames`, uint8 [T, H, W, 3] RGB with even H and W, at `frame_hz` frames per second.

    Raises:
        ValueError: Wrong shape, dtype or an odd size (4:2:0 chroma needs even ones).
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 [T>0, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"video needs an even height and width, got {height}x{width}")
    rate = Fraction(frame_hz).limit_denominator(1000)
    # bitexact keeps library versions out of the container, so that equal frames give equal files
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {
            "crf": str(crf),
            "preset": "veryfast",
            "bf": "0",
            "g": str(KEYFRAME_INTERVAL),
            "keyint_min": str(KEYFRAME_INTERVAL),
        }
        for image in frames:
            container.mux(stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())


def count_frames(path: Path) -> int:
    """Frames in the file, counted by its packets without decoding.

    Raises:
        VideoError: The file is missing or is no readable video.
    """
    with _open(path) as container:
        try:
            return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
        except FFmpegError as error:
            raise VideoError(f"{path}: cannot be read as a video ({error})") from error


def video_header(path: Path) -> dict[str, float | int | str]:
    """What the header states: fps, width, height, codec.

    Raises:
        VideoError: As `count_frames`.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        return {
            "fps": float(stream.average_rate or 0),
            "width": stream.width,
            "height": stream.height,
            "codec": stream.codec_context.codec.canonical_name,
        }


def read_video(path: Path, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Decode all frames, or those at ascending `indices`, as uint8 [T, H, W, 3] RGB.

    Raises:
        VideoError: The file is missing, damaged or ends before the last index asked for.
    """
    wanted = None if indices is None else [int(i) for i in indices]
    if wanted is not None and (not wanted or wanted[0] < 0 or any(np.diff(wanted) < 0)):
        raise ValueError(f"frame indices must be ascending and not negative, got {wanted}")
    with _open(path) as container:
        try:
            frames = _decode(container, wanted)
        except VideoError:
            raise
        except (FFmpegError, ValueError, MemoryError) as error:  # the latter where a damaged header gives odd sizes
            raise VideoError(f"{path}: cannot be decoded ({error})") from error
    if wanted is not None and len(frames) < len(wanted):
        raise VideoError(f"{path}: asked for frame {wanted[len(frames)]}, but the video ends before it")
    if not frames:
        raise VideoError(f"{path}: holds no frames")
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(f"{path}: its frames differ in size")
    return np.stack(frames)


def _open(path: Path) -> InputContainer:
    try:
        _check_whole(path)
        container = av.open(str(Path(path).resolve()))
    except VideoError:
        raise
    except (FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be opened as a video ({error})") from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        container.close()
        raise VideoError(f"{path}: holds no video stream that can be decoded")
    return container


def _check_whole(path: Path) -> None:
    """An MP4 is a row of boxes that state their sizes: a file that was cut is caught even where all frames remain."""
    size, at = path.stat().st_size, 0
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            elif length == 0:
                return  # to the end of the file
            if len(header) < 8 or length < 8 or at + length > size:
                raise VideoError(f"{path}: is cut off or damaged at byte {at} of {size}")
            at += length


def _decode(container: InputContainer, wanted: list[int] | None) -> list[np.ndarray]:
    """Frames in order of `wanted` (repeats allowed); fewer when the video ends early."""
    stream = container.streams.video[0]
    stream.thread_count = 1
    if wanted is None:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    rate, base = stream.average_rate, stream.time_base
    if not rate or not base:
        raise VideoError(f"{container.name}: the header states no frame rate")
    ticks = 1 / (rate * base)  # presentation time units per frame
    origin = stream.start_time or 0
    if wanted[0] > KEYFRAME_INTERVAL:
        container.seek(origin + int(wanted[0] * ticks), stream=stream)
    found: list[np.ndarray] = []
    for frame in container.decode(stream):
        if frame.pts is None:
            raise VideoError(f"{container.name}: a frame carries no presentation time")
        index = round((frame.pts - origin) / ticks)
        if len(found) < len(wanted) and index >= wanted[len(found)]:
            if index > wanted[len(found)]:
                raise VideoError(f"{container.name}: frame {wanted[len(found)]} is missing from the video")
            image = frame.to_ndarray(format="rgb24")
            while len(found) < len(wanted) and wanted[len(found)] == index:
                found.append(image)
        if len(found) == len(wanted):
            break
    return found
