"""Data: collecting frames, reading 16-frame clips against decord and OpenCV, and what a frame costs on disk.

    python benchmarks/data.py [--episodes 2] [--steps 64] [--reads 30] [--processes 1 2] [--out FILE] [--folder DIR]

Episodes of Reach at 256 pixels are collected once per number of processes. Each process's first episode warms it up
(imports, scene, renderer) and is not counted. Two numbers: frames per second by the wall's clock, for an idle machine;
and what a process takes per frame of its own, the time it ran on a core plus the time it was blocked (disk, locks,
pipes), without the time in which the kernel let others run in its stead (Linux, /proc/self/task/*/schedstat). From the
second follows what n processes give on n free cores, n / (time per frame): contention between the processes shows in
it, foreign load hardly does.

Then random clips of 16 frames, `stride` rows apart, are read in this process, file opened each time, one thread:
decord and OpenCV from the MP4 files, ours from the same files (PyAV), from packed frames (memory-mapped) and from
cached features (float16, as many values as a ViT-S-like encoder gives: 256 tokens of 192; what they hold does not
matter to reading). Median CPU time, so that other load counts little; the files are in the page cache, as they are in
training. Every reader's clip is compared with ours before it is timed.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("LP_NUM_THREADS", "0")  # before any OpenGL context: frames are drawn in the process itself
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import tyro

from armworld.datasets.behaviours import Mix
from armworld.datasets.clips import load_frames
from armworld.datasets.collect import CollectConfig, collect_episode
from armworld.datasets.features import build_feature_cache
from armworld.datasets.store import Store
from armworld.datasets.trajectory import Trajectory, read_frames, read_trajectories
from armworld.jobs import run_jobs

FRAMES = 16
FEATURES = (256, 192)  # tokens and width of a 256-pixel frame
CLOSE = 6.0  # mean grey levels by which two decoders' colour conversions may differ


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        episodes: Episodes collected per process, beside the one that warms it up.
        steps: Actions per episode.
        image_size: Pixels per side.
        stride: Rows between a clip's frames.
        reads: Timed clips per reader; 0 measures collecting alone.
        processes: Numbers of processes that collect.
        folder: Where to put the data; a temporary folder by default.
        out: JSON file to write.
    """

    episodes: int = 2
    steps: int = 64
    image_size: int = 256
    stride: int = 4
    reads: int = 30
    processes: tuple[int, ...] = (1, 2)
    folder: Path | None = None
    out: Path | None = None


class Spent(NamedTuple):
    """Seconds of one episode: by the wall's clock, on a core, waiting for a core; when it began and ended."""

    wall: float
    core: float
    queue: float
    began: float
    ended: float

    @property
    def own(self) -> float:
        """On a core or blocked: what the episode takes where the core is free."""
        return self.wall - self.queue


def scheduled() -> tuple[float, float]:
    """Seconds that this process's threads have run, and have waited for a core while they could have run."""
    threads = [path.read_text().split() for path in Path("/proc/self/task").glob("*/schedstat")]
    return sum(int(t[0]) for t in threads) / 1e9, sum(int(t[1]) for t in threads) / 1e9


def timed_episode(config: CollectConfig, seed: int) -> tuple[int, Spent]:
    """Collect one episode; which process did it, and what it took."""
    began, (core, queue) = time.monotonic(), scheduled()
    collect_episode(config, seed)
    ended, (core_then, queue_then) = time.monotonic(), scheduled()
    return os.getpid(), Spent(ended - began, core_then - core, queue_then - queue, began, ended)


def measure_collecting(config: Config, folder: Path, processes: int) -> dict[str, float]:
    """Frames per second, simulated, rendered, encoded and written, as the module's docstring says."""
    count = (config.episodes + 1) * processes
    settings = CollectConfig(
        folder / f"data-{processes}",
        episodes=count,
        steps=config.steps,
        workers=processes,
        image_size=config.image_size,
        task="reach",
        behaviours=Mix().for_task("reach"),
    )
    spent: dict[int, list[Spent]] = {}
    for _, (process, item) in run_jobs(functools.partial(timed_episode, settings), range(count), processes):
        spent.setdefault(process, []).append(item)
    parts = [sorted(items, key=lambda s: s.began)[1:] for items in spent.values() if len(items) > 1]
    warm = [item for part in parts for item in part]
    frames = config.steps + 1
    seconds = max(item.ended for item in warm) - min(item.began for item in warm)
    own, core = (statistics.median(getattr(s, name) for s in warm) / frames for name in ("own", "core"))
    return {
        "frames_per_second": len(warm) * frames / seconds,
        "milliseconds_per_frame": 1000 * own,
        "core_milliseconds_per_frame": 1000 * core,
        "frames_per_second_on_free_cores": len(parts) / own,
    }


def decord_clip(path: Path, rows: np.ndarray) -> np.ndarray:
    """With decord, one thread."""
    import decord  # pyright: ignore[reportMissingImports]

    return decord.VideoReader(str(path), num_threads=1).get_batch(rows).asnumpy()


def opencv_clip(path: Path, rows: np.ndarray) -> np.ndarray:
    """With OpenCV: seek to the first row, then decode on and keep what is asked for."""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_POS_FRAMES, int(rows[0]))
    wanted, frames = set(rows.tolist()), []
    for row in range(int(rows[0]), int(rows[-1]) + 1):
        if not capture.grab():
            raise RuntimeError(f"{path}: OpenCV ends before row {row}")
        if row in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


def wide_features(frames: np.ndarray) -> np.ndarray:
    """Values of the size of features, [B, *FEATURES]."""
    return np.broadcast_to(frames.mean((1, 2, 3))[:, None, None] / 255, (len(frames), *FEATURES))


def cpu_milliseconds(run: Callable[[], Any]) -> float:
    """CPU time of this process, all its threads, during a call."""
    started = time.process_time()
    run()
    return 1000 * (time.process_time() - started)


def measure_reading(config: Config, root: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Median milliseconds per clip of each reader, and bytes per frame of each form of storage."""
    packed = load_frames(root)
    features = build_feature_cache(root, wide_features, {"benchmark": "data"}, root / ".cache" / "features")
    trajectories = read_trajectories([Path(name) for name in packed.names])
    readers: dict[str, Callable[[Trajectory, int, np.ndarray], np.ndarray]] = {
        "decord": lambda t, _, rows: decord_clip(t.videos["left"], rows),
        "opencv": lambda t, _, rows: opencv_clip(t.videos["left"], rows),
        "armworld video": lambda t, _, rows: read_frames(t, "left", rows),
        "armworld packed": lambda _, first, rows: packed.gather(first + rows),
        "armworld features": lambda _, first, rows: features.gather(first + rows),
    }
    for name, module in (("decord", "decord"), ("opencv", "cv2")):
        if find_spec(module) is None:
            print(f"{name}: left out, {module} is not installed", flush=True)
            del readers[name]
    rng = np.random.default_rng(0)
    span = (FRAMES - 1) * config.stride
    taken: dict[str, list[float]] = {name: [] for name in readers}
    for index in range(config.reads + 1):
        episode = int(rng.integers(len(trajectories)))
        trajectory, first = trajectories[episode], int(packed.offsets[episode])
        rows = int(rng.integers(0, len(trajectory) - span)) + config.stride * np.arange(FRAMES)
        expected = packed.gather(first + rows).astype(np.int16)
        for name, read in readers.items():
            clip = read(trajectory, first, rows)
            if name != "armworld features" and np.abs(clip - expected).mean() > CLOSE:
                raise RuntimeError(f"{name} reads other frames than those at {rows}")
            if index:  # the first clip warms up
                taken[name].append(cpu_milliseconds(lambda r=read, t=trajectory, f=first, w=rows: r(t, f, w)))
    return {name: statistics.median(times) for name, times in taken.items()}, _bytes_per_frame(root, packed, features)


def _bytes_per_frame(root: Path, packed: Store, features: Store) -> dict[str, int]:
    count = len(packed)
    return {
        "mp4": sum(path.stat().st_size for path in root.glob("lab*/**/*.mp4")) // count,
        "trajectory.h5": sum(path.stat().st_size for path in root.glob("lab*/**/trajectory.h5")) // count,
        "packed": packed.nbytes // count,
        "features": features.nbytes // count,
    }


def _collecting_line(processes: int, found: dict[str, float], first: dict[str, float]) -> str:
    wall, free = (found[name] / first[name] for name in ("frames_per_second", "frames_per_second_on_free_cores"))
    return (
        f"collect, {processes} processes: {found['frames_per_second']:.1f} frames/s ({wall:.2f} x); each takes "
        f"{found['milliseconds_per_frame']:.1f} ms per frame, {found['core_milliseconds_per_frame']:.1f} of them on a "
        f"core: on free cores {found['frames_per_second_on_free_cores']:.1f} frames/s ({free:.2f} x)"
    )


def measure(config: Config) -> dict[str, Any]:
    """Everything, printed as it is known."""
    if (config.reads and config.steps < (FRAMES - 1) * config.stride) or min(config.processes) < 1:
        raise ValueError(f"need steps >= {(FRAMES - 1) * config.stride} and processes >= 1, got {config}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = config.folder or Path(scratch)
        rates = {}
        for processes in config.processes:
            rates[processes] = found = measure_collecting(config, folder, processes)
            print(_collecting_line(processes, found, rates[config.processes[0]]), flush=True)
        if config.reads == 0:
            return {"collecting": rates}
        times, sizes = measure_reading(config, folder / f"data-{config.processes[0]}")
    for name, milliseconds in times.items():
        ratio = f"  {times['decord'] / milliseconds:.1f} x decord" if "decord" in times else ""
        print(f"read, {name}: {milliseconds:.2f} ms per clip{ratio}", flush=True)
    for name, size in sizes.items():
        print(f"disk, {name}: {size} bytes per frame", flush=True)
    return {"collecting": rates, "milliseconds_per_clip": times, "bytes_per_frame": sizes}


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    result = measure(config)
    if config.out:
        config.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
