"""Small synthetic episodes and datasets for the data tests."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from armworld.datasets.droid import write_episode
from armworld.datasets.episode import Episode
from armworld.envs.controller import DOWN_EULER
from armworld.pose import apply_action


def smooth_frames(rows: int, size: int, shift: float = 0.0) -> np.ndarray:
    """Frames [rows, size, size, 3] of a smooth pattern that drifts; each differs from the others."""
    y, x = np.mgrid[0:size, 0:size] / size
    steps = np.arange(rows)[:, None, None] / rows
    blob = np.exp(-((y - 0.5) ** 2 + (x - 0.2 - 0.6 * steps - shift) ** 2) / 0.03)
    return (255 * np.stack([0.2 + 0.7 * blob, 0.3 + 0.4 * blob, np.full_like(blob, 0.4)], -1)).astype(np.uint8)


def make_episode(
    seed: int = 0,
    rows: int = 12,
    size: int = 64,
    cameras: tuple[str, ...] = ("left",),
    step_seconds: float = 0.25,
    success: bool = False,
) -> Episode:
    """An episode whose states follow from its actions exactly."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-0.02, 0.02, (rows, 7)) * [1, 1, 1, 3, 3, 3, 2]
    actions[-1] = 0
    states = [np.array([0.45, 0.0, 0.35, *DOWN_EULER, 0.4])]
    for action in actions[:-1]:
        states.append(apply_action(states[-1], action))
    y = {"left": 0.5, "right": -0.5, "wrist": 0.0}
    return Episode(
        states=np.stack(states),
        actions=actions,
        frames={name: smooth_frames(rows, size, 0.1 * i) for i, name in enumerate(cameras)},
        extrinsics={name: np.tile([1.0, y[name], 0.6, -2.0, 0.1, 1.2], (rows, 1)) for name in cameras},
        joint_positions=np.zeros((rows, 7)),
        joint_velocities=np.zeros((rows, 7)),
        step_seconds=step_seconds,
        lab="lab1",
        seed=seed,
        success=success,
        task="reach cup",
        details={"behaviour": "play", "contact_rows": 2, "draws": {"x": [1.0, 2.0]}},
        simulation={"physics": rng.normal(size=(rows, 5)), "contact": np.zeros(rows, bool)},
    )


def write_dataset(root: Path, episodes: int = 3, **settings: Any) -> list[Path]:
    """Write that many episodes; answers their folders."""
    return [write_episode(root, make_episode(seed, **settings)) for seed in range(episodes)]


def open_h5(path: Path, mode: Literal["r", "r+"] = "r") -> Any:
    """An HDF5 file without h5py's union types."""
    return h5py.File(path, mode)


def edit_array(folder: Path, key: str, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Replace an HDF5 array by `change(array)`; None deletes it."""
    with open_h5(folder / "trajectory.h5", "r+") as file:
        array = file[key][()]
        del file[key]
        new = change(array)
        if new is not None:
            file[key] = new


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Relative path -> content of every file but locks."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


CRASH_VARIABLE = "QUARTERS_CRASH_FILE"  # while that file exists, the first process to encode removes it and dies


def quarters(frames: np.ndarray) -> np.ndarray:
    """A stand-in for an encoder that other processes can import: [B, 4, 3] means of image quarters."""
    trap = os.environ.get(CRASH_VARIABLE)
    if trap:
        with contextlib.suppress(FileNotFoundError):  # only one gets it
            os.unlink(trap)
            os._exit(9)
    return (frames / 255).reshape(len(frames), 4, -1, 3).mean(2)


def slow_quarters(frames: np.ndarray) -> np.ndarray:
    """`quarters`, slowly enough for something to happen meanwhile."""
    time.sleep(0.2)
    return quarters(frames)


def _announced(connection: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(time.process_time())
    work(*arguments)
    connection.send(time.process_time())


def kill_at_random(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    moments: int,
    seed: int,
    visible: Callable[[], None],
    finished: Callable[[], None],
    on_cpu: bool = True,
) -> None:
    """Run `work(*arguments)` in a process again and again until it was SIGKILLed `moments` times.

    The moments are uniform over what an uninterrupted run takes, by its own CPU time, so that they lie everywhere in it
    on a loaded machine too; a few milliseconds of waiting are added, so that some fall into waits for the disk.

    Args:
        work: A function of a module.
        arguments: Its arguments.
        moments: Kills of a run that had not finished.
        seed: Of the moments.
        visible: Checks what a killed run left behind.
        finished: Checks what a run made that ended before its kill, and clears it away.
        on_cpu: False takes the wall's clock: for work that other processes do.
    """
    rng = np.random.default_rng(seed)
    context = multiprocessing.get_context("forkserver")  # imports are made once, so that a start takes little
    # by name: the server does not know this folder, so what this module itself imports has to be named
    imports = ["armworld.datasets.droid", "armworld.envs.controller", "gymnasium"]
    context.set_forkserver_preload([work.__module__, *imports])
    killed, whole = 0, None
    while killed < moments:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_announced, args=(there, work, arguments))
        process.start()
        assert here.poll(300)
        began = (here.recv(), time.monotonic())
        if whole is not None:
            _wait(process, whole * rng.random(), began, on_cpu)
            time.sleep(rng.uniform(0, 0.005))
            process.kill()
        process.join(300)
        assert process.exitcode in (0, -signal.SIGKILL), f"the work failed with exit code {process.exitcode}"
        if process.exitcode == 0:
            whole = whole or (here.recv() - began[0] if on_cpu else time.monotonic() - began[1])
            finished()
        else:
            killed += 1
            visible()


def _wait(process: Any, seconds: float, began: tuple[float, float], on_cpu: bool) -> None:
    """Wait until the process has worked for so long, or has ended."""
    clock = (~process.pid << 3) | 2  # Linux: the CPU clock of another process
    while process.is_alive():
        try:
            taken = time.clock_gettime(clock) - began[0] if on_cpu else time.monotonic() - began[1]
        except OSError:
            return  # it has just ended
        if taken >= seconds:
            return
        time.sleep(0.001)
