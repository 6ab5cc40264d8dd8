"""Clips for training: windows of T steps, `step_seconds` apart, from DROID-raw episodes.

`ClipDataset` decodes from the videos at random; `load_frames` and `open_clips` pack all frames into one
memory-mapped store first, which is what training on a CPU wants. Time comes from the rows' own rate, never from the
video header (DROID's headers say 60 fps over frames taken at 15 Hz). A damaged episode is an error with its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from armworld.datasets.droid import find_episodes
from armworld.datasets.features import stride_for
from armworld.datasets.packing import build_store
from armworld.datasets.store import WHOLE, Share, Store
from armworld.datasets.trajectory import check_camera, read_frames, read_trajectories, read_trajectory
from armworld.pose import action_between


class Clip(TypedDict):
    """One clip of T steps."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    states: np.ndarray  # float32 [T, 7]
    actions: np.ndarray  # float32 [T - 1, 7], between consecutive states
    extrinsics: np.ndarray  # float32 [T, 6]
    episode: str  # folder
    row: int  # first row


def episode_folders(source: Path | Sequence[Path]) -> list[Path]:
    """Episode folders of a dataset folder, of an index file (.csv, see facts of the public loader) or of several.

    Raises:
        EpisodeError: A folder without episodes.
        ValueError: An index that is empty or names a folder that does not exist.
    """
    if not isinstance(source, str | Path):
        return [folder for item in source for folder in episode_folders(item)]
    source = Path(source)
    if source.suffix != ".csv":
        return find_episodes(source)
    folders = [Path(line.split(" ")[0]) for line in source.read_text().splitlines() if line.strip()]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing or not folders:
        raise ValueError(f"{source}: " + (f"no such folder: {missing[0]}" if missing else "an empty index"))
    return folders


def check_clips(data: Sequence[Path], frames: int, step_seconds: float, camera: str = "left") -> None:
    """Refuse dataset folders that hold no such clip; reads as few episodes as will do, and no video.

    Raises:
        EpisodeError: A folder without episodes, or a first episode without that camera.
        ValueError: No folder, a step that does not fit a first episode's rate, or no episode long enough.
    """
    folders = [episode_folders(root) for root in data]
    strides = []
    for first in (read_trajectory(own[0]) for own in folders):
        check_camera(first, camera)
        strides.append(stride_for(first.step_seconds, step_seconds))
    spans = [(folder, (frames - 1) * stride) for own, stride in zip(folders, strides, strict=True) for folder in own]
    if not any(len(read_trajectory(folder)) > span for folder, span in spans):
        raise ValueError(
            f"no episode of {', '.join(map(str, data)) or '(no folder given)'} holds {frames} frames "
            f"{step_seconds:g} s apart"
        )


def resize_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] squashed to [T, size, size, 3], bicubic with antialiasing; same size: unchanged."""
    from PIL import Image

    if frames.shape[1:3] == (size, size):
        return frames
    images = (Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC) for frame in frames)
    return np.stack([np.asarray(image) for image in images])


class ClipDataset:
    """All clips of some episodes, by number; a map-style dataset for `torch.utils.data.DataLoader`.

    Args:
        source: Dataset folder, index file, or several of them.
        frames: T, steps per clip.
        step_seconds: Time per step; None takes every row.
        camera: Whose frames.
        image_size: Side to which frames are squashed; None leaves them.
        packed: Read from frames that are packed once beside the data (`load_frames`), as training does, instead of
            from the videos: over a hundred times faster, on some thirty times the disk space.

    Raises:
        EpisodeError: A damaged episode or one without the camera, by its path, at once or when its frames are read.
        ValueError: A step that does not fit the rows' rate, or no episode long enough.
    """

    def __init__(
        self,
        source: Path | Sequence[Path],
        frames: int = 8,
        step_seconds: float | None = None,
        camera: str = "left",
        image_size: int | None = None,
        packed: bool = False,
    ) -> None:
        self.frames, self.camera, self.image_size = frames, camera, image_size
        self.trajectories = read_trajectories(episode_folders(source))
        for trajectory in self.trajectories:
            check_camera(trajectory, camera)
        steps = [t.step_seconds if step_seconds is None else step_seconds for t in self.trajectories]
        self.strides = [stride_for(t.step_seconds, s) for t, s in zip(self.trajectories, steps, strict=True)]
        spans = [(frames - 1) * stride for stride in self.strides]
        counts = [max(0, len(t) - span) for t, span in zip(self.trajectories, spans, strict=True)]
        self._offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if not len(self):
            raise ValueError(f"no episode holds {frames} frames at {step_seconds} s per step")
        self.store = load_frames(source, camera, image_size) if packed else None

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        episode = int(np.searchsorted(self._offsets, index, "right")) - 1
        trajectory = self.trajectories[episode]
        first = int(index - self._offsets[episode])
        rows = first + self.strides[episode] * np.arange(self.frames)
        if self.store is not None:
            images = self.store.gather(int(self.store.offsets[episode]) + rows)
        else:
            images = read_frames(trajectory, self.camera, rows)
            images = images if self.image_size is None else resize_frames(images, self.image_size)
        states = trajectory.states[rows]
        return Clip(
            frames=images,
            states=states.astype(np.float32),
            actions=action_between(states[:-1], states[1:]).astype(np.float32),
            extrinsics=trajectory.extrinsics[self.camera][rows].astype(np.float32),
            episode=str(trajectory.folder),
            row=first,
        )


def shard_order(
    count: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    worker: int = 0,
    workers: int = 1,
) -> Iterator[int]:
    """The clips that one worker of one rank reads in an epoch, in order.

    All ranks and workers shuffle alike and take every n-th: together they read each clip once, the last few that do
    not divide evenly are left out for this epoch, so that ranks stay in step.
    """
    if not (0 <= rank < world_size and 0 <= worker < workers):
        raise ValueError(f"need rank < world_size and worker < workers, got {rank}/{world_size}, {worker}/{workers}")
    order = np.random.default_rng([seed, epoch]).permutation(count)
    shards = world_size * workers
    order = order[: count // shards * shards]
    return iter(order[rank * workers + worker :: shards].tolist())


def load_frames(
    source: Path | Sequence[Path],
    camera: str = "left",
    image_size: int | None = None,
    out: Path | None = None,
    workers: int = 2,
) -> Store:
    """All frames, decoded once and kept packed: `.array()` is uint8 [F, H, W, 3], memory-mapped.

    The store lies in `out`, by default in `.cache/` of the (first) dataset folder, of several folders under a name of
    their own; built where missing or outdated.
    """
    folders = episode_folders(source)
    sources = [Path(source)] if isinstance(source, str | Path) else [Path(item) for item in source]
    root = sources[0].parent if sources[0].suffix == ".csv" else sources[0]
    together = "|".join(str(item.resolve()) for item in sources)
    mark = f"-{hashlib.sha256(together.encode()).hexdigest()[:8]}" if len(sources) > 1 else ""
    out = out or root / ".cache" / f"frames-{camera}-{image_size or 'native'}{mark}"
    key = {"values": "frames", "image_size": image_size}
    whole = sum(len(read_trajectory(folder)) for folder in folders)  # one shard: a single memory map

    def squash(frames: np.ndarray) -> np.ndarray:
        return frames if image_size is None else resize_frames(frames, image_size)

    return build_store(folders, squash, key, out, camera, 256, workers, "uint8", whole, "pack frames")


class FrameClips:
    """Draws clips of packed frames with a generator, from one store or several."""

    def __init__(self, stores: Sequence[Store], step_seconds: float) -> None:
        self.stores = list(stores)
        self.strides = [stride_for(store.step_seconds, step_seconds) for store in self.stores]
        self._starts: dict[int, list[np.ndarray]] = {}

    def starts(self, frames: int) -> list[np.ndarray]:
        """First rows of all clips, per store.

        Raises:
            ValueError: No episode is long enough.
        """
        if frames not in self._starts:
            pairs = zip(self.stores, self.strides, strict=True)
            self._starts[frames] = [store.starts(frames, stride) for store, stride in pairs]
            if not sum(map(len, self._starts[frames])):
                raise ValueError(f"no episode holds {frames} frames at the asked-for step")
        return self._starts[frames]

    def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
        """Clips uint8 [B, T, H, W, 3] drawn uniformly, with replacement; of B = `batch` only `share` is read."""
        return self.sample_with_states(generator, batch, frames, share)[0]

    def sample_with_states(
        self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clips uint8 [B, T, H, W, 3] and the robot's states float32 [B, T, 7]; the same draw as `sample`."""
        starts = self.starts(frames)
        offsets = np.concatenate([[0], np.cumsum([len(s) for s in starts])])
        drawn = generator.integers(0, offsets[-1], batch)[share]
        owner = np.searchsorted(offsets, drawn, "right") - 1
        clips = np.empty((len(drawn), frames, *self.stores[0].item_shape), np.uint8)
        states = np.empty((len(drawn), frames, 7), np.float32)
        for index in np.unique(owner):
            mine, store = owner == index, self.stores[index]
            first = starts[index][drawn[mine] - offsets[index]]
            rows = first[:, None] + self.strides[index] * np.arange(frames)
            clips[mine], states[mine] = store.gather(rows), store.states[rows]
        return clips, states

    def content(self) -> list[str]:
        """What the stores hold (`Store.content`) and from where it was seen."""
        return [f"{store.content()}, views {store.views()}" for store in self.stores]


def open_clips(
    data: Sequence[Path], image_size: int, step_seconds: float, camera: str = "left", workers: int = 2
) -> FrameClips:
    """Frames of several dataset folders, packed once each, as a source of training clips."""
    return FrameClips([load_frames(root, camera, image_size, workers=workers) for root in data], step_seconds)
