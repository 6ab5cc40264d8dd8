"""Where pretraining's clips come from: our episodes, folders of videos, folders of images, or a weighted mixture.

Anything with `sample` is a source. Frames are squares of the asked-for size: videos and images are cropped to their
centre square first (our episodes are square already). A file that cannot be read is an error with its path: it is
never replaced by another one.

Several processes draw the same batch, each from a generator of its own in the same state, and each decodes its share
alone: `sample(..., share)` equals `sample(...)[share]` and leaves the generator in the same state.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from armworld.datasets.store import WHOLE, Share

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NO_STATES = "state_loss needs recorded episodes (--data): videos and images carry no robot state"


class ClipError(ValueError):
    """A video or image that cannot be used; the message names it and says what to do."""


class ClipSource(Protocol):
    """Anything that draws clips uint8 [B, T, H, W, 3] with a generator, and tells what they are drawn from."""

    def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
        """The `share` of B = `batch` clips of T = `frames` frames; without any of them it only draws."""
        ...

    def content(self) -> list[str]:
        """What it holds, wherever that lies: a training that is resumed must find the same."""
        ...


@runtime_checkable
class StateClipSource(ClipSource, Protocol):
    """A source that also knows the robot's states [B, T, 7]; needed for `state_loss` alone."""

    def sample_with_states(
        self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE
    ) -> tuple[np.ndarray, np.ndarray]: ...


class VideoFile(NamedTuple):
    """A video and its length in seconds, by its header."""

    path: Path
    seconds: float


class VideoClips:
    """Clips of T frames, `step_seconds` apart, from all videos below some folder; decoded as they are drawn.

    Any rate works, constant or not: a frame is what the video shows at that time. A video is drawn in
    proportion to its length.

    Args:
        folder: Searched with its subfolders.
        image_size: Side of the frames (pixels).
        step_seconds: Time between frames (s).
        workers: Threads that decode.

    Raises:
        ClipError: No videos there, or one that cannot be opened.
    """

    def __init__(self, folder: Path, image_size: int, step_seconds: float, workers: int = 2) -> None:
        self.folder, self.image_size, self.step_seconds, self.workers = folder, image_size, step_seconds, workers
        paths = find_files(folder, VIDEO_SUFFIXES, "videos")
        with ThreadPoolExecutor(workers) as pool:
            self.videos = list(pool.map(open_video, paths))

    def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
        """Clips uint8 [B, T, H, W, 3], drawn with replacement; of B = `batch` only `share` is decoded."""
        long_enough = self.check_length(frames)
        span = (frames - 1) * self.step_seconds
        room = np.array([max(0.0, video.seconds - span) for video in self.videos])
        weights = (room + self.step_seconds) * long_enough
        chosen = generator.choice(len(self.videos), batch, p=weights / weights.sum())
        starts = generator.random(batch) * room[chosen]
        times = starts[share, None] + self.step_seconds * np.arange(frames)
        paths = [self.videos[i].path for i in chosen[share]]
        clips = np.empty((len(paths), frames, self.image_size, self.image_size, 3), np.uint8)
        with ThreadPoolExecutor(self.workers) as pool:
            decoded = pool.map(lambda path, seconds: frames_at(path, seconds, self.image_size), paths, times)
            for clip, shown in zip(clips, decoded, strict=True):
                clip[:] = shown
        return clips

    def check_length(self, frames: int) -> np.ndarray:
        """Which videos last as long as such a clip; a ClipError where none does."""
        span = (frames - 1) * self.step_seconds
        long_enough = np.array([video.seconds + 1e-3 >= span for video in self.videos])
        if not long_enough.any():
            raise ClipError(f"{self.folder}: no video lasts {span:g} s, as {frames} frames need")
        return long_enough

    def content(self) -> list[str]:
        """See `ClipSource`: names and lengths."""
        told = [f"{video.path.relative_to(self.folder)} {video.seconds:.3f}" for video in self.videos]
        return [_summary("videos", told)]


class ImageClips:
    """Still clips: an image below some folder, repeated T times.

    Raises:
        ClipError: No images there, or, when one is drawn, that it cannot be read.
    """

    def __init__(self, folder: Path, image_size: int) -> None:
        self.folder, self.image_size = folder, image_size
        self.paths = find_files(folder, IMAGE_SUFFIXES, "images")

    def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
        """Clips uint8 [B, T, H, W, 3], drawn uniformly with replacement; of B = `batch` only `share` is read."""
        chosen = generator.integers(0, len(self.paths), batch)[share]
        clips = np.empty((len(chosen), frames, self.image_size, self.image_size, 3), np.uint8)
        for clip, i in zip(clips, chosen, strict=True):
            clip[:] = read_image(self.paths[i], self.image_size)
        return clips

    def content(self) -> list[str]:
        """See `ClipSource`: names and sizes of the files."""
        return [_summary("images", [f"{p.relative_to(self.folder)} {p.stat().st_size}" for p in self.paths])]


def check_weights(weights: Sequence[float], sources: int) -> None:
    """A ValueError unless there is one positive number for each of the sources, and one source at least."""
    if not sources or len(weights) != sources or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"each of the {sources} sources (episodes together, each folder of videos, each of images) needs one "
            f"positive weight, got {list(weights)}"
        )


class MixedClips:
    """Several sources; each clip of a batch comes from one drawn by the weights.

    Args:
        sources: The sources.
        weights: A positive weight for each; their ratios count.

    Raises:
        ValueError: The weights do not fit.
    """

    def __init__(self, sources: Sequence[ClipSource], weights: Sequence[float]) -> None:
        check_weights(weights, len(sources))
        self.sources = list(sources)
        self.weights = np.asarray(weights, np.float64) / sum(weights)

    def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
        """Clips uint8 [B, T, H, W, 3]; of B = `batch` only `share` is decoded."""
        counts = generator.multinomial(batch, self.weights)
        before = []
        for source, count in zip(self.sources, counts, strict=True):
            before.append(copy.deepcopy(generator))
            if count:  # drawn only: which of them are needed is known after the shuffle
                source.sample(generator, int(count), frames, slice(0))
        own, order = _split(generator.permutation(batch)[share], counts)  # ranks take slices: each gets a mixture
        parts = zip(self.sources, before, counts, own, strict=True)
        return np.concatenate([s.sample(state, int(n), frames, mine) for s, state, n, mine in parts if n])[order]

    def content(self) -> list[str]:
        """See `ClipSource`: of all sources, in order."""
        return [told for source in self.sources for told in source.content()]

    def sample_with_states(
        self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clips and states, from those sources alone that know states.

        Raises:
            ValueError: None does.
        """
        knowing = [i for i, source in enumerate(self.sources) if isinstance(source, StateClipSource)]
        if not knowing:
            raise ValueError(NO_STATES)
        counts = generator.multinomial(batch, self.weights[knowing] / self.weights[knowing].sum())
        own, order = _split(np.arange(batch)[share], counts)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        for i, count, mine in zip(knowing, counts, own, strict=True):
            source = self.sources[i]
            if count and isinstance(source, StateClipSource):
                drawn.append(source.sample_with_states(generator, int(count), frames, mine))
        clips, states = (np.concatenate(parts)[order] for parts in zip(*drawn, strict=True))
        return clips, states


def _split(wanted: np.ndarray, counts: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Numbers among `counts` clips of several sources, one source after another, as numbers within each.

    Also the order that makes `wanted` of what they stand for, source after source.
    """
    ends = np.cumsum(counts)
    owner = np.searchsorted(ends, wanted, "right")
    own = [wanted[owner == i] - first for i, first in enumerate(ends - counts)]
    return own, np.argsort(np.argsort(owner, kind="stable"))


def open_sources(
    data: Sequence[Path],
    videos: Sequence[Path],
    images: Sequence[Path],
    weights: Sequence[float],
    image_size: int,
    step_seconds: float,
    frames: int = 1,
) -> ClipSource:
    """The mixture that pretraining draws from; a single source stays itself.

    Args:
        data: Dataset folders of recorded episodes; together they are one source.
        videos, images: Folders, each a source of its own.
        weights: One per source, in this order; empty: equal.
        frames: The longest clip that will be drawn; looked at before the episodes' frames are packed.

    Raises:
        ValueError: No source, weights that do not fit, or a step or clips that a source cannot give.
        ClipError: A folder without files, or an unreadable video.
    """
    if not (data or videos or images):
        raise ValueError("nothing to train on; give --data (recorded episodes), --videos or --images folders")
    sources: list[ClipSource] = [*(VideoClips(folder, image_size, step_seconds) for folder in videos)]
    for source in sources:
        assert isinstance(source, VideoClips)
        source.check_length(frames)
    sources += [ImageClips(folder, image_size) for folder in images]
    if data:
        from armworld.datasets.clips import check_clips, open_clips

        check_clips(data, frames, step_seconds)
        sources.insert(0, open_clips(data, image_size, step_seconds))
    mixed = MixedClips(sources, weights or [1.0] * len(sources))
    return mixed if len(sources) > 1 else sources[0]


def _summary(kind: str, told: Sequence[str]) -> str:
    return f"{len(told)} {kind}, {hashlib.sha256('|'.join(told).encode()).hexdigest()[:16]}"


def find_files(folder: Path, suffixes: Sequence[str], kind: str) -> list[Path]:
    """Files below `folder` with one of the suffixes, sorted.

    Raises:
        ClipError: No such folder, or none in it.
    """
    if not folder.is_dir():
        raise ClipError(f"{folder}: no such folder of {kind}")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise ClipError(f"{folder}: holds no {kind} ({', '.join(suffixes)})")
    return found


def open_video(path: Path) -> VideoFile:
    """The video's length.

    Raises:
        ClipError: It cannot be opened or states no length.
    """
    try:
        with av.open(str(path.resolve())) as container:
            if not container.streams.video:
                raise _unreadable(path, "it holds no video stream")
            stream = container.streams.video[0]
            ticks, base = stream.duration, stream.time_base
            if ticks and base:
                return VideoFile(path, float(ticks * base))
            if container.duration:
                return VideoFile(path, container.duration / av.time_base)
    except (FFmpegError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    raise _unreadable(path, "its header states no length")


def frames_at(path: Path, seconds: np.ndarray, image_size: int) -> np.ndarray:
    """What a video shows at ascending times (s after its start): uint8 [T, size, size, 3].

    A time after the last frame's start shows the last frame, as a player does.

    Raises:
        ClipError: It cannot be decoded up to there.
    """
    try:
        with av.open(str(path.resolve())) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            base, origin = stream.time_base, stream.start_time or 0
            if base is None:
                raise _unreadable(path, "it states no time base")
            ticks = [origin + int(time / base) for time in seconds]
            container.seek(ticks[0], stream=stream)
            shown: list[np.ndarray] = []
            current = None
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise _unreadable(path, "a frame carries no time")
                while current is not None and len(shown) < len(ticks) and frame.pts > ticks[len(shown)]:
                    shown.append(_square(current.to_image(), image_size))
                if len(shown) == len(ticks):
                    break
                current = frame
            if current is None or (len(shown) < len(ticks) and _ends_early(current, ticks[-1], stream)):
                raise _unreadable(path, f"it ends before {seconds[-1]:.2f} s, earlier than its header says")
            shown += [_square(current.to_image(), image_size)] * (len(ticks) - len(shown))
            return np.stack(shown)
    except (FFmpegError, OSError) as error:
        raise _unreadable(path, str(error)) from error


def _ends_early(last: av.VideoFrame, wanted: int, stream: av.VideoStream) -> bool:
    """Whether the last frame stopped being shown well before the tick wanted; the last frame's own length is unsure."""
    assert last.pts is not None and stream.time_base is not None
    rate = stream.average_rate or 1
    return wanted - last.pts > 2.5 / (rate * stream.time_base)


def read_image(path: Path, image_size: int) -> np.ndarray:
    """The image's centre square, uint8 [size, size, 3].

    Raises:
        ClipError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            return _square(image.convert("RGB"), image_size)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise _unreadable(path, str(error)) from error


def _square(image: Image.Image, size: int) -> np.ndarray:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))


def _unreadable(path: Path, why: str) -> ClipError:
    return ClipError(f"{path} cannot be read ({why}); repair it or take it out of the folder")
