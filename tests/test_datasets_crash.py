"""Killed at any moment, or out of disk: what is there is whole, and a rerun completes it."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armworld.datasets import files
from armworld.datasets.clips import load_frames
from armworld.datasets.collect import CollectConfig, collect
from armworld.datasets.droid import find_episodes
from armworld.datasets.features import FeatureCache, build_feature_cache
from armworld.datasets.files import TEMPORARY, DiskFull, clear_abandoned, clear_partial, new_file, new_folder
from armworld.datasets.lerobot import export_lerobot
from armworld.datasets.lerobot_import import import_lerobot
from armworld.datasets.real_droid import import_droid
from armworld.datasets.rerender import RerenderConfig, rerender
from armworld.datasets.trajectory import read_trajectory
from armworld.datasets.validate import validate

sys.path.insert(0, str(Path(__file__).parent))
import datasets_fake  # noqa: F401  registers the pretend arm
from datasets_helpers import kill_at_random, tree_bytes, write_dataset

Disk = Callable[[str], Path]


def partial_items(root: Path) -> list[Path]:
    return list(root.rglob(f"{TEMPORARY}*"))


def content(root: Path) -> dict[str, bytes]:
    """Every file, without the commit, which may move meanwhile."""
    return {name: re.sub(rb"[0-9a-f]{40}\+?|unknown", b"", data) for name, data in tree_bytes(root).items()}


@pytest.mark.parametrize("moments", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_exports_leave_nothing(tmp_path: Path, moments: int) -> None:
    pytest.importorskip("pyarrow")
    root, out = tmp_path / "data", tmp_path / "exports" / "out"
    write_dataset(root, 4)
    whole = content(export_lerobot(root, tmp_path / "whole"))

    def visible() -> None:
        assert not out.exists() or content(out) == whole
        finished()

    def finished() -> None:
        shutil.rmtree(out, ignore_errors=True)

    kill_at_random(export_lerobot, (root, out), moments, 0, visible, finished)
    assert content(export_lerobot(root, out)) == whole
    assert not partial_items(tmp_path), "the rerun cleared what the killed ones left"


def pack(root: Path, out: Path) -> None:
    load_frames(root, out=out)


def import_frames(source: Path, out: Path) -> None:
    import_droid(source, out, step_seconds=0.5)


def rerender_fake(source: Path, out: Path) -> None:
    rerender(RerenderConfig(source, out, 64, ("right",), workers=1))


@pytest.mark.parametrize("moments", [2, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", [pack, import_frames, import_lerobot, rerender_fake], ids=lambda w: w.__name__)
def test_whatever_else_is_killed_is_completed(tmp_path: Path, work: Callable[[Path, Path], Any], moments: int) -> None:
    """Packing frames, importing and rendering again: what a rerun gives is what an uninterrupted run gives."""
    root, out, whole = tmp_path / "data", tmp_path / "out", tmp_path / "whole"
    if work is rerender_fake:
        settings = {"image_size": 64, "steps": 5, "task": "datasets_fake:fake/Arm-v0", "workers": 1, "episodes": 3}
        collect(CollectConfig(root, **settings))
    else:
        write_dataset(root, 3)
    if work is import_lerobot:
        pytest.importorskip("pyarrow")
        root = export_lerobot(root, tmp_path / "export")
    work(root, whole)

    def same() -> None:
        trees = [{n: c for n, c in content(folder).items() if n != "index.csv"} for folder in (out, whole)]
        assert trees[0] == trees[1]

    def finished() -> None:
        same()
        shutil.rmtree(out)

    def visible() -> None:
        for folder in out.glob("lab1/*/*/[0-9]*"):
            read_trajectory(folder)

    kill_at_random(work, (root, out), moments, 0, visible, finished)
    work(root, out)
    same()
    assert not partial_items(tmp_path)


def hold(path: Path, folder: bool, started: Connection, end: Connection) -> None:
    """Begin a file or a folder, say so, and finish it when told."""
    with (new_folder if folder else new_file)(path):
        started.send("begun")
        assert end.poll(60)


@pytest.mark.parametrize("folder", [False, True])
def test_only_what_dead_writers_left_is_cleared(tmp_path: Path, folder: bool) -> None:
    """A living writer keeps what it fills, and finishes; once it is dead, what it left goes, whoever looks."""
    context = multiprocessing.get_context("fork")  # its memory holds nothing of the parent's locks
    for fate in ("finished", "cleared", "abandoned"):
        target = tmp_path / "deep" / f"out-{fate}"
        (here, there), (hear, say) = context.Pipe(), context.Pipe()
        process = context.Process(target=hold, args=(target, folder, there, hear))
        process.start()
        assert here.poll(60)
        assert clear_partial(tmp_path) == 0
        clear_abandoned(target)
        assert len(partial_items(tmp_path)) == 1, "a living writer's"
        if fate == "finished":
            say.send("end")
            process.join(60)
            assert target.exists() and process.exitcode == 0
            continue
        process.kill()
        process.join(60)
        assert len(partial_items(tmp_path)) == 1 and not target.exists()
        if fate == "cleared":
            assert clear_partial(tmp_path) == 1
        else:
            clear_abandoned(tmp_path / "deep" / "out")
            assert len(partial_items(tmp_path)) == 1, "of another target"
            clear_abandoned(target)
        assert not partial_items(tmp_path)


def test_what_is_cleared_before_it_could_be_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["00000000", "00000001", "00000002", "00000003", "00000004"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: next(names))
    original = files._hold

    def hold_late(handle: int) -> bool:
        for item in tmp_path.glob(f"{TEMPORARY}00000000-*"):
            assert clear_partial(tmp_path) == 1 and not item.exists()
        return original(handle)

    monkeypatch.setattr(files, "_hold", hold_late)
    with new_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole" and not partial_items(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a memory disk of a given size, and resizes it when asked again; skipped where that is not allowed."""
    folder = tmp_path / "disk"
    mounted = False

    def sized(size: str) -> Path:
        nonlocal mounted
        folder.mkdir(exist_ok=True)
        options = ["-o", f"remount,size={size}"] if mounted else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        try:
            done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            pytest.skip("there is no `mount` here")
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted = True
        return folder

    yield sized
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


def episodes(root: Path) -> dict[str, bytes]:
    """Every episode's files."""
    return {name: content for name, content in tree_bytes(root).items() if name.startswith("lab1")}


@pytest.mark.parametrize("kilobytes", [300, 360, 420])
def test_a_full_disk_while_collecting(disk: Disk, tmp_path: Path, kilobytes: int) -> None:
    """One error, whole episodes only, and with more space a rerun gives what it would have given at once."""
    root = disk(f"{kilobytes}k")
    settings = {"image_size": 64, "steps": 5, "task": "datasets_fake:fake/Arm-v0", "workers": 1, "episodes": 12}
    with pytest.raises(DiskFull, match=r"no space left on the disk of .*; finished work is kept"):
        collect(CollectConfig(root / "data", **settings))
    assert not partial_items(root)
    kept = find_episodes(root / "data")
    assert 0 < len(kept) < 12 and validate(root / "data", strict=False) == []
    disk("64m")
    collect(CollectConfig(root / "data", **settings))
    collect(CollectConfig(tmp_path / "whole", **settings))
    contents = [
        {n: b for n, b in tree_bytes(p).items() if n.startswith("lab1")} for p in (root / "data", tmp_path / "whole")
    ]
    assert contents[0] == contents[1]


def wide(frames: np.ndarray) -> np.ndarray:
    """Values of 24 kB per frame."""
    return np.broadcast_to(frames.mean((1, 2, 3))[:, None, None] / 255, (len(frames), 64, 192))


def test_a_full_disk_while_caching(disk: Disk, tmp_path: Path) -> None:
    root, settings = disk("1m"), {"shard_frames": 12, "progress": None}
    write_dataset(tmp_path / "data", 5)
    with pytest.raises(DiskFull, match="no space left"):
        build_feature_cache(tmp_path / "data", wide, {}, root / "cache", **settings)
    assert len(list(root.glob("cache/shard-*.npy"))) == 3 and not partial_items(root)
    with pytest.raises(ValueError, match="no finished cache"):
        FeatureCache(root / "cache")
    disk("64m")
    build_feature_cache(tmp_path / "data", wide, {}, root / "cache", **settings)
    build_feature_cache(tmp_path / "data", wide, {}, tmp_path / "whole", **settings)
    assert tree_bytes(root / "cache") == tree_bytes(tmp_path / "whole")


@pytest.mark.parametrize("kilobytes", [8, 40, 80, 120])
def test_a_full_disk_while_exporting(disk: Disk, tmp_path: Path, kilobytes: int) -> None:
    pytest.importorskip("pyarrow")
    write_dataset(tmp_path / "data", 4)
    root = disk(f"{kilobytes}k")
    with pytest.raises(DiskFull, match="no space left"):
        export_lerobot(tmp_path / "data", root / "out")
    assert list(root.iterdir()) == []
