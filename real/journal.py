"""The log of a deployment, written as it happens: one line of JSON a step, every frame as a picture.

A journal survives a killed process and a full disk up to its last whole line. `finish` turns it into an episode in
DROID's raw layout, with a group `deployment/` that holds what was proposed, allowed and executed, and how long
everything took.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from armworld.evaluation.files import plain, write_json

JOURNAL, HEADER, FRAMES = "journal.jsonl", "header.json", "frames"


class JournalError(ValueError):
    """A journal that cannot be read; the message names the file and the line."""


class Journal:
    """Appends to a folder. Every method may raise OSError (disk full): the loop then holds and ends."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=False)
        self.folder = folder
        write_json(folder / HEADER, header)
        self._file = (folder / JOURNAL).open("a")
        self.rows = 0

    def write(self, row: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> None:
        """One step: frames first, so that a line that is there has its pictures."""
        for name, image in images.items():
            path = self.folder / FRAMES / name / f"{self.rows:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".part")
            with temporary.open("wb") as file:
                Image.fromarray(image).save(file, format="png", compress_level=1)
            os.replace(temporary, path)
        self._file.write(json.dumps(plain(dict(row))) + "\n")
        self._file.flush()
        self.rows += 1

    def close(self) -> None:
        """Flush to the disk. Safe to call twice."""
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def read_journal(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and rows. A torn last line (a killed process) is left out; a torn line before it is an error."""
    try:
        header = json.loads((folder / HEADER).read_text())
        lines = (folder / JOURNAL).read_text().splitlines()
    except (OSError, json.JSONDecodeError) as error:
        raise JournalError(f"{folder} holds no journal: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise JournalError(f"{folder / JOURNAL}, line {number}: {error}") from error
    return header, rows


def read_frame(folder: Path, camera: str, row: int) -> np.ndarray | None:
    """The frame of a row, uint8 [H, W, 3], or None where the camera gave none."""
    path = folder / FRAMES / camera / f"{row:06d}.png"
    if not path.exists():
        return None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def finish(folder: Path, root: Path, success: bool = False) -> Path:
    """Turn a journal into a DROID-raw episode below `root`; answers the episode's folder.

    An episode has one row a step and no gaps, so it holds the longest stretch of rows whose observations were
    admitted; `deployment/step` tells which. The journal keeps every row. A success stays one only where nothing was
    executed after that stretch. Extrinsics are zeros: no camera here knows where it stands.

    Raises:
        JournalError: Fewer than two rows in a stretch, or a picture is missing.
        OSError: The disk is full; the journal stays.
    """
    import h5py

    from armworld.datasets.droid import write_episode
    from armworld.datasets.episode import Episode
    from armworld.datasets.files import new_folder

    header, rows = read_journal(folder)
    kept = _longest_admitted(rows)
    if len(kept) < 2:
        raise JournalError(f"{folder} has {len(kept)} admitted rows in succession; an episode needs two")
    chosen = [rows[i] for i in kept]
    success = success and all(row["executed"] is None for row in rows[kept.stop :])
    states = np.array([row["state"] for row in chosen], float)
    frames = {name: _frames(folder, name, tuple(size), kept) for name, size in header["cameras"].items()}
    started = datetime.fromisoformat(header["started"]).astimezone(UTC)
    episode = Episode(
        states=states,
        actions=np.array([row["executed"] or [0.0] * 7 for row in chosen[:-1]] + [[0.0] * 7], float),
        frames=frames,
        extrinsics={name: np.zeros((len(kept), 6)) for name in frames},
        joint_positions=np.array([row["joints"] for row in chosen], float),
        joint_velocities=np.array([row["velocities"] for row in chosen], float),
        step_seconds=header["step_seconds"],
        lab=header["lab"],
        seed=_minutes(started),
        success=success,
        task=header["task"],
        details={"deployment": header},
    )
    base = root / header["lab"] / ("success" if success else "failure") / f"{started:%Y-%m-%d/%Hh%Mm%Ss}-deployment"
    target = next(path for path in _numbered(base) if _is_free(path, header))
    with new_folder(target) as partial:
        staged = write_episode(partial / "staged", episode)
        with h5py.File(staged / "trajectory.h5", "a") as file:
            for key, values in _deployment(chosen).items():
                file.create_dataset(f"deployment/{key}", data=values)
        number = target.name.removeprefix(base.name)
        _correct_metadata(staged, header, target.relative_to(root / header["lab"]), number)
        for item in staged.iterdir():
            os.replace(item, partial / item.name)
        for empty in [staged, *list(staged.parents)]:
            if empty == partial:
                break
            empty.rmdir()
    return target


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then with -2, -3 ... behind its name."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))


def _is_free(folder: Path, header: Mapping[str, Any]) -> bool:
    """Whether this episode may lie in `folder`: nothing is there, or the same episode, finished before."""
    found = list(folder.glob("metadata_*.json"))
    return not found or json.loads(found[0].read_text())["deployment"] == plain(dict(header))


def _minutes(moment: datetime) -> int:
    """The number that `datasets.droid` dates an episode by: minutes since its epoch."""
    from armworld.datasets.droid import EPOCH

    return max(0, int((moment - EPOCH).total_seconds() // 60))


def _longest_admitted(rows: list[dict[str, Any]]) -> range:
    """The longest stretch of rows whose observations were admitted; the first of several."""
    best, start = range(0), 0
    for number, row in enumerate(rows):
        if not row["admitted"]:
            start = number + 1
        elif number + 1 - start > len(best):
            best = range(start, number + 1)
    return best


def _frames(folder: Path, camera: str, size: tuple[int, int], kept: range) -> np.ndarray:
    frames = np.zeros((len(kept), *size, 3), np.uint8)
    for i, row in enumerate(kept):
        image = read_frame(folder, camera, row)
        if image is None or image.shape != frames.shape[1:]:
            found = "none" if image is None else str(image.shape)
            raise JournalError(
                f"{folder}, row {row}: camera {camera!r} needs a picture {frames.shape[1:]}, got {found}"
            )
        frames[i] = image
    return frames


def _deployment(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Arrays [T, ...] of what the loop noted; NaN where there was nothing."""
    missing = [float("nan")] * 7
    arrays = {
        name: np.array([row[name] if _is_action(row[name]) else missing for row in rows], float)
        for name in ("proposed", "allowed", "executed", "target")
    }
    arrays["verdict"] = np.array([row["verdict"] for row in rows], "S16")
    arrays["reasons"] = np.array([",".join(code for code, _ in row["reasons"]) for row in rows], "S128")
    arrays["step"] = np.array([row["step"] for row in rows])
    arrays["time_s"] = np.array([row["time_s"] for row in rows], float)
    for name in sorted({name for row in rows for name in row["latency"]}):
        arrays[f"latency/{name}"] = np.array([row["latency"].get(name, np.nan) for row in rows], float)
    return arrays


def _is_action(value: Any) -> bool:
    """Whether a noted action has seven numbers: agents under test propose anything."""
    return isinstance(value, list) and len(value) == 7 and all(isinstance(v, int | float) for v in value)


def _correct_metadata(folder: Path, header: Mapping[str, Any], relative: Path, number: str) -> None:
    """What the writer of simulated episodes assumes, set right for this one."""
    (path,) = folder.glob("metadata_*.json")
    metadata = json.loads(path.read_text())
    old = metadata["hdf5_path"].removesuffix("/trajectory.h5")
    for key, value in metadata.items():
        if isinstance(value, str) and value.startswith(old):
            metadata[key] = str(relative) + value.removeprefix(old)
    started = datetime.fromisoformat(header["started"]).astimezone(UTC)
    metadata |= {
        "uuid": f"{header['lab']}+armworld+{started:%Y-%m-%d-%Hh-%Mm-%Ss}{number}",
        "date": f"{started:%Y-%m-%d}",
        "timestamp": f"{started:%Y-%m-%d-%Hh-%Mm-%Ss}",
        "robot_serial": header["robot"],
        "building": header["lab"],
        "seed": None,
        "deployment": metadata.pop("simulation")["deployment"],
    }
    path.unlink()
    write_json(path.with_name(f"metadata_{metadata['uuid']}.json"), metadata)
