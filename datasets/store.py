"""Frames or features of a whole dataset, packed: a few memory-mapped files instead of thousands of videos.

A store is a folder: `plan.json` (key, episodes, shards), `states.npy`, `extrinsics.npy` with one row
per frame, and `shard-*.npy` [rows, ...] of whole episodes. A shard appears when it is complete, so building goes on
where it was cut off. `plan.json` names what was cached and how; a reader that expects something else gets an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from armworld.datasets.files import clear_partial, exclusive, replace_file, temporary_name
from armworld.datasets.trajectory import Trajectory, read_frames, read_trajectories
from armworld.evaluation.files import plain, read_json, write_json

VERSION = 1
SHARD_FRAMES = 8192

Encode = Callable[[np.ndarray], Any]  # uint8 [B, H, W, 3] -> array or tensor [B, ...]


class Windows(NamedTuple):
    """B clips of T consecutive steps: items [B, T, ...], states float32 [B, T, 7], extrinsics float32 [B, T, 6]."""

    items: np.ndarray
    states: np.ndarray
    extrinsics: np.ndarray


@dataclass(frozen=True)
class Shard:
    """Whole episodes that share a file; `start` is the first one's first row in the store."""

    name: str
    episodes: tuple[int, ...]
    start: int
    rows: int


def episode_digest(trajectory: Trajectory, camera: str) -> str:
    """A hash of what a cached episode depends on: its name, states and its video's size."""
    size = trajectory.videos[camera].stat().st_size
    content = f"{trajectory.folder.name}|{size}|".encode() + np.ascontiguousarray(trajectory.states).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def plan_shards(digests: Sequence[str], rows: Sequence[int], limit: int) -> list[Shard]:
    """Consecutive episodes up to `limit` frames per shard; the name tells its content, so growth keeps full ones."""
    groups: list[list[int]] = []
    filled = limit
    for index, count in enumerate(rows):
        if filled + count > limit:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += count
    shards, start = [], 0
    for number, group in enumerate(groups):
        content = hashlib.sha256("".join(digests[i] for i in group).encode()).hexdigest()[:12]
        count = sum(rows[i] for i in group)
        shards.append(Shard(f"shard-{number:05d}-{content}.npy", tuple(group), start, count))
        start += count
    return shards


def build_store(
    folders: Sequence[Path],
    encode: Encode,
    key: Mapping[str, Any],
    out: Path,
    camera: str = "left",
    batch: int = 64,
    workers: int = 2,
    dtype: str = "float16",
    shard_frames: int = SHARD_FRAMES,
    progress: str | None = None,
) -> Store:
    """Encode every frame of `folders` (episodes) once; finished shards of an earlier call are kept.

    Args:
        folders: Episode folders, in order.
        encode: uint8 [B, H, W, 3] -> [B, ...], NumPy or torch.
        key: What the cached values depend on beside the data, JSON-able: encoder hash, image size, normalisation.
        out: Folder of the store.
        camera: Whose frames.
        batch: Frames per call of `encode`.
        workers: Decoding threads.
        dtype: Stored type.
        shard_frames: Frames per shard at most (one episode at least).
        progress: Name on the progress bar; None shows none.

    Raises:
        ValueError: `out` holds a store of another key, or an encoded value does not fit `dtype`.
        EpisodeError: An episode is damaged; the message names it.
    """
    trajectories = read_trajectories(folders)
    if not trajectories:
        raise ValueError("no episodes to cache")
    steps = {trajectory.step_seconds for trajectory in trajectories}
    if len(steps) > 1:
        raise ValueError(f"the episodes differ in step_seconds: {sorted(steps)}; cache them apart")
    digests = [episode_digest(trajectory, camera) for trajectory in trajectories]
    shards = plan_shards(digests, [len(t) for t in trajectories], shard_frames)
    full_key = plain({**key, "camera": camera, "dtype": dtype})
    with exclusive(out):
        clear_partial(out)
        _check_key(out, full_key)
        _drop_stale(out, {shard.name for shard in shards})
        write_json(out / "key.json", full_key)
        missing = [shard for shard in shards if not (out / shard.name).exists()]
        for shard in _with_progress(missing, progress):
            chosen = [trajectories[i] for i in shard.episodes]
            _write_shard(out / shard.name, chosen, shard.rows, encode, camera, batch, workers, dtype)
        _write_rows(out, trajectories, camera)
        episodes = [[str(t.folder), len(t)] for t in trajectories]
        plan = {"version": VERSION, "key": full_key, "step_seconds": steps.pop(), "episodes": episodes}
        write_json(out / "plan.json", plan | {"shards": [[s.name, s.rows] for s in shards]})
    return Store(out)


def _check_key(out: Path, key: Mapping[str, Any]) -> None:
    if not (out / "key.json").exists():
        return
    there = read_json(out / "key.json")
    different = sorted(name for name in {*there, *key} if there.get(name) != key.get(name))
    if different:
        changes = "; ".join(f"{n}: {there.get(n)!r} there, {key.get(n)!r} asked for" for n in different)
        raise ValueError(f"{out} caches something else ({changes}); choose another folder or delete it")


def _drop_stale(out: Path, names: set[str]) -> None:
    """Delete `plan.json` and shards of episodes that changed; a reader never sees a mixture."""
    stale = [path for path in out.glob("shard-*.npy") if path.name not in names]
    if stale or any(not (out / name).exists() for name in names):
        (out / "plan.json").unlink(missing_ok=True)
    for path in stale:
        path.unlink()


def _with_progress(shards: Sequence[Shard], name: str | None) -> Iterable[Shard]:
    if name is None or not shards:
        return shards
    from rich.progress import track

    return track(shards, description=name)


def _write_shard(
    path: Path,
    trajectories: Sequence[Trajectory],
    rows: int,
    encode: Encode,
    camera: str,
    batch: int,
    workers: int,
    dtype: str,
) -> None:
    temporary = path.with_name(temporary_name(path.name))
    array: np.ndarray | None = None
    try:
        at = 0
        for frames in _batches(_decoded(trajectories, camera, workers), batch):
            values = _as_numpy(encode(frames), dtype)
            if len(values) != len(frames):
                raise ValueError(f"encode answered {len(values)} values for {len(frames)} frames")
            if array is None:
                array = np.lib.format.open_memmap(temporary, "w+", values.dtype, (rows, *values.shape[1:]))
            array[at : at + len(values)] = values
            at += len(values)
        assert array is not None and at == rows
        array.flush()
        del array
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _decoded(trajectories: Sequence[Trajectory], camera: str, workers: int) -> Iterator[np.ndarray]:
    """The episodes' frames in order, decoded a few episodes ahead (FFmpeg releases the interpreter's lock)."""
    ahead = max(1, 2 * workers)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending = [pool.submit(read_frames, t, camera) for t in trajectories[:ahead]]
        for index in range(len(trajectories)):
            frames = pending.pop(0).result()
            if index + ahead < len(trajectories):
                pending.append(pool.submit(read_frames, trajectories[index + ahead], camera))
            yield frames


def _batches(clips: Iterable[np.ndarray], batch: int) -> Iterator[np.ndarray]:
    """Frames of consecutive clips regrouped into batches of the same size, the last one shorter."""
    waiting: list[np.ndarray] = []
    count = 0
    for clip in clips:
        waiting.append(clip)
        count += len(clip)
        if count >= batch:
            frames = np.concatenate(waiting)
            whole = count // batch * batch
            yield from np.split(frames[:whole], whole // batch)
            waiting, count = [frames[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def _as_numpy(values: Any, dtype: str) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, possibly bfloat16 or on a device
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    array = np.asarray(values)
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        worst = np.abs(array).max()
        raise ValueError(f"encoded values must be finite and fit {dtype}; the largest magnitude is {worst}")
    return stored


def _write_rows(out: Path, trajectories: Sequence[Trajectory], camera: str) -> None:
    """Per-frame numbers of all episodes: states and camera poses."""
    columns = {
        "states": np.concatenate([t.states for t in trajectories]),
        "extrinsics": np.concatenate([t.extrinsics[camera] for t in trajectories]),
    }
    for name, column in columns.items():
        temporary = out / temporary_name(f"{name}.npy")
        np.save(temporary, column.astype(np.float32))
        replace_file(temporary, out / f"{name}.npy")


class Store:
    """Reader of a packed store; rows are frames, numbered through all episodes.

    Attributes:
        key: What was cached.
        names: Episode folders.
        offsets: int64 [E + 1]; episode e's rows are `offsets[e]` to `offsets[e + 1]`.
        states: float32 [F, 7].
        extrinsics: float32 [F, 6].
        step_seconds: Time between consecutive rows of an episode.

    Raises:
        ValueError: The store is missing, unfinished, damaged, of another version or of another key.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / "plan.json").exists():
            raise ValueError(f"{folder}: no finished cache here (plan.json is missing); build it again to go on")
        plan = read_json(self.folder / "plan.json")
        if plan.get("version") != VERSION:
            raise ValueError(f"{folder}: cache version {plan.get('version')}, this code reads {VERSION}; delete it")
        self.key: dict[str, Any] = plan["key"]
        if key is not None:
            _check_key(self.folder, plain({**self.key, **key}))
        self.step_seconds = float(plan["step_seconds"])
        self.names = [name for name, _ in plan["episodes"]]
        self.offsets = np.concatenate([[0], np.cumsum([rows for _, rows in plan["episodes"]])]).astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum([rows for _, rows in plan["shards"]])]).astype(np.int64)
        self._shards = [_open_shard(self.folder / name, rows) for name, rows in plan["shards"]]
        self.states, self.extrinsics = (self._rows(name) for name in ("states", "extrinsics"))

    def _rows(self, name: str) -> np.ndarray:
        return np.asarray(_open_shard(self.folder / f"{name}.npy", int(self.offsets[-1])))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one frame's value."""
        return self._shards[0].shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(shard.nbytes for shard in self._shards)

    def preload(self) -> Store:
        """Read all values into memory, as one array; answers the store itself."""
        self._shards = [np.concatenate([np.asarray(shard) for shard in self._shards])]
        self._starts = np.array([0, len(self)], np.int64)
        return self

    def array(self) -> np.ndarray:
        """All values [F, ...]: memory-mapped where there is one shard, else read into memory."""
        if len(self._shards) > 1:
            self.preload()
        return self._shards[0]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Values [*rows.shape, ...] at any rows, in one fancy index per shard."""
        flat = np.asarray(rows, np.int64).ravel()
        if flat.size and (flat.min() < 0 or flat.max() >= len(self)):
            raise ValueError(f"rows must lie in 0 ... {len(self) - 1}, got {flat.min()} ... {flat.max()}")
        if len(self._shards) == 1:
            found = self._shards[0][flat]
        else:
            owner = np.searchsorted(self._starts, flat, "right") - 1
            found = np.empty((len(flat), *self.item_shape), self._shards[0].dtype)
            for shard in np.unique(owner):
                mine = owner == shard
                found[mine] = self._shards[shard][flat[mine] - self._starts[shard]]
        return found.reshape(*np.shape(rows), *self.item_shape)

    def starts(self, frames: int, stride: int = 1, episodes: np.ndarray | None = None) -> np.ndarray:
        """First rows, int64 [n], of all windows of `frames` rows `stride` apart that stay in one episode."""
        span = (frames - 1) * stride
        chosen = np.arange(len(self.names)) if episodes is None else np.asarray(episodes)
        found = [np.arange(self.offsets[e], self.offsets[e + 1] - span) for e in chosen]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def windows(self, starts: np.ndarray, frames: int, stride: int = 1) -> Windows:
        """Clips of `frames` rows, `stride` apart, from the given first rows (see `starts`)."""
        rows = np.asarray(starts, np.int64)[:, None] + stride * np.arange(frames)
        return Windows(self.gather(rows), self.states[rows], self.extrinsics[rows])

    def split(self, held_out: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers for training and for validation, drawn once per `seed`; at least one of each."""
        count = len(self.names)
        if count < 2 or not 0 < held_out < 1:
            raise ValueError(f"a split needs >= 2 episodes and a share in (0, 1), got {count} and {held_out}")
        order = np.random.default_rng(seed).permutation(count)
        size = min(count - 1, max(1, round(held_out * count)))
        return np.sort(order[size:]), np.sort(order[:size])


def _open_shard(path: Path, rows: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged or missing ({error}); delete the cache's plan.json and build again"
        ) from error
    if len(array) != rows:
        raise ValueError(f"{path}: {len(array)} rows, expected {rows}; delete this file and build again")
    return array


def store_bytes(folder: Path) -> int:
    """Size on disk."""
    return sum(os.path.getsize(path) for path in folder.glob("*.npy"))
