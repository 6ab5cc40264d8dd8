"""Build a store (`store.py`): encode every frame of some episodes once, shard by shard, resumably.

A shard appears when it is complete, so building goes on where it was cut off, and shards are independent jobs: they
fan out over processes or over Ray. One builder at a time holds the folder; a finished store is opened without asking.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from armworld.datasets.episode import EpisodeError
from armworld.datasets.files import check_own_folder, clear_partial, exclusive, full_disk_named, new_file, write_json
from armworld.datasets.store import VERSION, Store, check_key
from armworld.datasets.trajectory import (
    Trajectory,
    check_camera,
    read_frames,
    read_trajectories,
    read_trajectory,
)
from armworld.datasets.video import video_header
from armworld.evaluation.files import plain, read_json
from armworld.jobs import run_jobs, run_with_progress

SHARD_FRAMES = 8192
TRAINING_SEEDS = 1_000_000  # simulated episodes of seeds from here on are for selection, tests and reported results

Encode = Callable[[np.ndarray], Any]  # uint8 [B, H, W, 3] -> array or tensor [B, ...]


@dataclass(frozen=True)
class Shard:
    """Whole episodes that share a file, by number; the name tells its content."""

    name: str
    episodes: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Recipe:
    """How a shard's values are made; arguments as in `build_store`. Picklable where `encode` is."""

    encode: Encode
    camera: str
    batch: int
    workers: int
    dtype: str


@dataclass(frozen=True)
class ShardJob:
    """A shard to write: its file, its episodes' folders, its number of rows."""

    path: Path
    folders: tuple[Path, ...]
    rows: int


def episode_digest(trajectory: Trajectory, camera: str) -> str:
    """A hash of what a cached episode depends on: its name, states and its video's size."""
    size = trajectory.videos[camera].stat().st_size
    content = f"{trajectory.folder.name}|{size}|".encode() + np.ascontiguousarray(trajectory.states).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def plan_shards(digests: Sequence[str], rows: Sequence[int], limit: int) -> list[Shard]:
    """Consecutive episodes up to `limit` frames per shard; the name tells its content, so growth keeps full ones."""
    sizes: list[int] = []
    for count in rows:
        if not sizes or sizes[-1] + count > limit:
            sizes.append(0)
        sizes[-1] += count
    return shards_of_sizes(digests, rows, sizes)


def shards_of_sizes(digests: Sequence[str], rows: Sequence[int], sizes: Sequence[int]) -> list[Shard]:
    """Consecutive episodes in shards of the given numbers of rows; an episode belongs where its first row falls."""
    owner = np.searchsorted(np.cumsum(sizes), np.cumsum([0, *rows[:-1]]), "right")
    shards = []
    for number in range(len(sizes)):
        group = np.flatnonzero(owner == number).tolist()
        content = hashlib.sha256("".join(digests[i] for i in group).encode()).hexdigest()[:12]
        rows_here = sum(rows[i] for i in group)
        shards.append(Shard(f"shard-{number:05d}-{content}.npy", tuple(group), rows_here))
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
    processes: int = 1,
    ray: str | None = None,
    image_size: tuple[int, int] | None = None,
    keep_others: bool = False,
) -> Store:
    """Encode every frame of `folders` (episodes) once; finished shards of an earlier call are kept.

    Where nothing is missing the store is opened without a lock, so that any number of trainings may share it.

    Args:
        folders: Episode folders, in order.
        encode: uint8 [B, H, W, 3] -> [B, ...], NumPy or torch; picklable for more than one process and for Ray.
        key: What the cached values depend on beside the data, JSON-able: encoder hash, image size, normalisation.
        out: Folder of the store.
        camera: Whose frames.
        batch: Frames per call of `encode`.
        workers: Decoding threads, per process.
        dtype: Stored type.
        shard_frames: Frames per shard at most (one episode at least).
        progress: Name on the progress bar; None shows none.
        processes: Shards encoded at once; 1 encodes in this process.
        ray: Address of a Ray cluster that shares the folders, or `local`; None uses this machine's processes.
        image_size: Height and width that frames must have, pixels; None takes any.
        keep_others: Refuse to delete what other episodes, which still exist, left in `out`.

    Raises:
        ValueError: An episode's frames have another size or it was collected for tests, `out` holds a store of another
            key, of other data or something else, another process builds there now, an encoded value does not fit
            `dtype`, or `encode` cannot be sent to other processes.
        EpisodeError: An episode is damaged or lacks the camera; the message names it.
        DiskFull: No space left; finished shards are kept.
    """
    trajectories = read_trajectories(folders)
    if not trajectories:
        raise ValueError("no episodes to cache")
    _refuse_tests(trajectories)
    steps = {trajectory.step_seconds for trajectory in trajectories}
    if len(steps) > 1:
        raise ValueError(f"the episodes differ in step_seconds: {sorted(steps)}; cache them apart")
    for trajectory in trajectories:
        check_camera(trajectory, camera)
    _check_sizes(trajectories[:1], camera, image_size)
    digests = [episode_digest(trajectory, camera) for trajectory in trajectories]
    rows = [len(trajectory) for trajectory in trajectories]
    full_key = plain({**key, "camera": camera, "dtype": dtype})
    plan = plain(
        {
            "version": VERSION,
            "key": full_key,
            "step_seconds": steps.pop(),
            "episodes": [[str(t.folder), len(t)] for t in trajectories],
        }
    )
    columns = {
        "states": np.concatenate([t.states for t in trajectories]).astype(np.float32),
        "extrinsics": np.concatenate([t.extrinsics[camera] for t in trajectories]).astype(np.float32),
    }
    if _is_complete(out, plan, digests, rows, columns):
        return Store(out)
    _check_sizes(trajectories, camera, image_size)
    check_own_folder(out, "key.json", "cache")
    shards = plan_shards(digests, rows, shard_frames)
    recipe = Recipe(encode, camera, batch, workers, dtype)
    with exclusive(out), full_disk_named(out):
        clear_partial(out)
        if next(out.glob("shard-*.npy"), None):  # a key alone binds nobody: nothing was cached
            check_key(out, full_key)
        if keep_others:
            _check_others(out, {shard.name for shard in shards}, trajectories, set(digests), camera)
        _drop_stale(out, {shard.name for shard in shards})
        write_json(out / "key.json", full_key)
        jobs = [
            ShardJob(out / shard.name, tuple(trajectories[i].folder for i in shard.episodes), shard.rows)
            for shard in shards
            if not (out / shard.name).exists()
        ]
        _encode_shards(recipe, jobs, len(shards), processes, ray, progress)
        clear_partial(out)  # what a lost worker left; its shard was made again
        for name, column in columns.items():
            _write_column(out / f"{name}.npy", column)
        write_json(out / "plan.json", {**plan, "shards": [[shard.name, shard.rows] for shard in shards]})
    return Store(out)


def _refuse_tests(trajectories: Sequence[Trajectory]) -> None:
    """Whatever is trained reads its data from a store: so no store takes what was collected to test on."""
    for trajectory in trajectories:
        seed = trajectory.metadata.get("seed")
        if "simulation" in trajectory.metadata and isinstance(seed, int) and seed >= TRAINING_SEEDS:
            raise ValueError(f"{trajectory.folder} was collected to test on (seed {seed}): it is no training data")


def _check_sizes(trajectories: Sequence[Trajectory], camera: str, image_size: tuple[int, int] | None) -> None:
    """ValueError where the header of a video states another size than the one asked for."""
    if image_size is None:
        return
    height, width = image_size
    for trajectory in trajectories:
        header = video_header(trajectory.videos[camera])
        if (header["height"], header["width"]) != image_size:
            raise ValueError(
                f"{trajectory.folder}: its {camera} frames are {header['height']} x {header['width']} pixels, the "
                f"encoder reads {height} x {width}; make frames of that size with armworld rerender --image-size "
                f"{height} (collected episodes) or armworld import --image-size {height} (real ones), take an encoder "
                "of the frames' size, or give posttrain --train-from frames, which squashes them"
            )


def _check_others(
    out: Path, names: set[str], trajectories: Sequence[Trajectory], digests: set[str], camera: str
) -> None:
    """ValueError where building the shards `names` would delete those of other episodes, which still exist."""
    there = {path.name for path in out.glob("shard-*.npy")}
    if there <= names:
        return
    if (out / "plan.json").exists():
        mine = {trajectory.folder.resolve() for trajectory in trajectories}
        held = [Path(name) for name, _ in read_json(out / "plan.json")["episodes"]]
        others = [f for f in held if f.resolve() not in mine and f.is_dir() and not _is_copy(f, camera, digests)]
        told = f"{len(others)} other episodes, as {others[0]}" if others else ""
    else:
        told = "" if there & names else "other episodes in an unfinished build"
    if told:
        raise ValueError(f"{out} holds features of {told}, which would be deleted; choose another folder or delete it")


def _is_copy(folder: Path, camera: str, digests: set[str]) -> bool:
    """Whether an episode, by its content, is one of those with the given digests."""
    try:
        return episode_digest(read_trajectory(folder), camera) in digests
    except (EpisodeError, KeyError, OSError):
        return False


def _is_complete(
    out: Path, plan: Mapping[str, Any], digests: Sequence[str], rows: Sequence[int], columns: Mapping[str, np.ndarray]
) -> bool:
    """Whether `out` already holds what building it now would give, in shards of whatever size."""
    try:
        there = read_json(out / "plan.json")
        found = [tuple(item) for item in there.pop("shards")]
        shards = shards_of_sizes(digests, rows, [size for _, size in found])
        if there != plan or found != [(shard.name, shard.rows) for shard in shards]:
            return False
        if not all((out / shard.name).exists() for shard in shards):
            return False
        return all(np.array_equal(np.load(out / f"{name}.npy"), column) for name, column in columns.items())
    except (OSError, ValueError, KeyError):  # missing, or cut off: building says what is wrong, or mends it
        return False


def _drop_stale(out: Path, names: set[str]) -> None:
    """Delete `plan.json` and shards of episodes that changed; a reader never sees a mixture."""
    stale = [path for path in out.glob("shard-*.npy") if path.name not in names]
    if stale or any(not (out / name).exists() for name in names):
        (out / "plan.json").unlink(missing_ok=True)
    for path in stale:
        path.unlink()


def _encode_shards(
    recipe: Recipe, jobs: Sequence[ShardJob], total: int, processes: int, ray: str | None, progress: str | None
) -> None:
    if processes > 1 and ray is None:  # Ray sends closures too
        try:
            pickle.dumps(recipe.encode)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"encode cannot be sent to other processes ({error}); pass a function of a module"
            ) from error
    job = functools.partial(write_shard, recipe)
    if jobs and (progress is not None or ray is not None):
        run_with_progress(job, jobs, processes, progress or "encode", total, ray)
    else:
        for _ in run_jobs(job, jobs, processes):
            pass


def write_shard(recipe: Recipe, job: ShardJob) -> str:
    """Encode one shard's frames; its file appears whole or not at all. Answers its path.

    Raises:
        ValueError, EpisodeError, DiskFull: As `build_store`.
    """
    trajectories = [read_trajectory(folder) for folder in job.folders]
    at = 0
    # Written, not memory-mapped: a full disk is then an error rather than a signal that kills the process.
    with new_file(job.path) as file:
        for frames in _batches(_decoded(trajectories, recipe.camera, recipe.workers), recipe.batch):
            values = _as_numpy(recipe.encode(frames), recipe.dtype)
            if len(values) != len(frames):
                raise ValueError(f"encode answered {len(values)} values for {len(frames)} frames")
            if at == 0:
                _write_header(file, values.dtype, (job.rows, *values.shape[1:]))
            file.write(np.ascontiguousarray(values).data)
            at += len(values)
        assert at == job.rows
    return str(job.path)


def _write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)


def _decoded(trajectories: Sequence[Trajectory], camera: str, workers: int) -> Iterator[np.ndarray]:
    """The episodes' frames in order, decoded a few episodes ahead (FFmpeg releases the interpreter's lock).

    Raises:
        EpisodeError: Damaged, or frames of another size than those before.
    """
    ahead, shape = max(1, 2 * workers), None
    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending = [pool.submit(read_frames, t, camera) for t in trajectories[:ahead]]
        for index in range(len(trajectories)):
            frames = pending.pop(0).result()
            if index + ahead < len(trajectories):
                pending.append(pool.submit(read_frames, trajectories[index + ahead], camera))
            shape = shape or frames.shape[1:]
            if frames.shape[1:] != shape:
                (high, wide, _), (height, width, _) = shape, frames.shape[1:]
                raise EpisodeError(
                    f"{trajectories[index].folder}: its {camera} frames are {height} x {width} pixels, those of the "
                    f"episodes before {high} x {wide}; what is packed together must have one size"
                )
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


def _write_column(path: Path, column: np.ndarray) -> None:
    with new_file(path) as file:
        _write_header(file, column.dtype, column.shape)
        file.write(np.ascontiguousarray(column).data)
