"""Read LeRobot v3.0 datasets, ours and others', into DROID raw."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armworld.datasets.card import finish_card, start_card
from armworld.datasets.droid import write_episode
from armworld.datasets.episode import Episode
from armworld.datasets.files import clear_partial, exclusive
from armworld.datasets.lerobot import SIDECAR, STATE_NAMES, VERSION
from armworld.datasets.trajectory import read_episode
from armworld.datasets.video import read_video
from armworld.evaluation.files import read_json
from armworld.types import require


def import_lerobot(source: Path, out: Path, extrinsics: Mapping[str, Sequence[float]] | None = None) -> Path:
    """Write the episodes of a LeRobot v3.0 dataset to `out` in DROID raw.

    Exports of ours come back with everything; others need a 7-D `observation.state` in our convention (flange pose
    and closedness) and, since LeRobot has no place for them, camera poses.

    Args:
        source: LeRobot dataset folder.
        out: New dataset folder.
        extrinsics: Camera name -> pose [6] in the base frame, for datasets that are not ours.

    Raises:
        ImportError: pyarrow is missing.
        ValueError: Another version, a state that is not ours, missing camera poses, or another writer in `out`.
    """
    require("pyarrow", "export")
    source, out = Path(source), Path(out)
    info = read_json(source / "meta" / "info.json")
    if info.get("codebase_version") != VERSION:
        raise ValueError(f"{source}: LeRobot {info.get('codebase_version')}, this reads {VERSION}")
    card = source / SIDECAR / "card.json"
    with exclusive(out):
        clear_partial(out)
        start_card(out, read_json(card)["config"] if card.exists() else {"task": "import", "source": source.name})
        for row in _table_rows(source, "meta/episodes"):
            if (source / SIDECAR).is_dir():
                _import_own(source, out, info, row)
            else:
                write_episode(out, _import_foreign(source, info, row, extrinsics or {}))
        finish_card(out)
    return out


def _table_rows(source: Path, below: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    files = sorted((source / below).glob("chunk-*/file-*.parquet"))
    if not files:
        raise ValueError(f"{source / below}: no chunk-*/file-*.parquet")
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def _video_frames(source: Path, info: dict[str, Any], row: dict[str, Any], key: str) -> np.ndarray:
    place = {part: row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")}
    path = source / info["video_path"].format(video_key=key, **place)
    start = round(row[f"videos/{key}/from_timestamp"] * info["fps"])
    return read_video(path, np.arange(start, start + row["length"]))


def _cameras(info: dict[str, Any]) -> dict[str, str]:
    """Camera name -> feature key."""
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    return {key.removeprefix("observation.images."): key for key in keys}


def _import_own(source: Path, out: Path, info: dict[str, Any], row: dict[str, Any]) -> None:
    """Put an episode of our own export together again: its HDF5 and metadata, its frames from the video."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "episode"
        shutil.copytree(source / SIDECAR / f"episode-{row['episode_index']:06d}", folder)
        (folder / "recordings" / "MP4").mkdir(parents=True)
        frames = {name: _video_frames(source, info, row, key) for name, key in _cameras(info).items()}
        write_episode(out, read_episode(folder, frames))


def _import_foreign(
    source: Path, info: dict[str, Any], row: dict[str, Any], extrinsics: Mapping[str, Sequence[float]]
) -> Episode:
    feature = info["features"].get("observation.state", {})
    if feature.get("shape") != [7]:
        raise ValueError(
            f"{source}: observation.state has shape {feature.get('shape')} ({feature.get('names')}); expected [7]: "
            f"{', '.join(STATE_NAMES)} of panda_link8 in the base frame"
        )
    cameras = _cameras(info)
    absent = [name for name in cameras if name not in extrinsics]
    if absent:
        raise ValueError(
            f"{source}: camera poses are needed for {', '.join(absent)}: pass extrinsics[name] = 6 numbers"
        )
    table = [r for r in _table_rows(source, "data") if r["episode_index"] == row["episode_index"]]
    table.sort(key=lambda r: r["frame_index"])
    states = np.array([r["observation.state"] for r in table], np.float64)
    unknown = np.zeros((len(states), 7))
    return Episode(
        states=states,
        actions=np.array([r["action"] for r in table], np.float64),
        frames={name: _video_frames(source, info, row, key) for name, key in cameras.items()},
        extrinsics={name: np.tile(np.asarray(extrinsics[name], float), (len(states), 1)) for name in cameras},
        joint_positions=unknown,
        joint_velocities=unknown,
        step_seconds=1 / info["fps"],
        lab=str(info.get("robot_type") or "lerobot"),
        seed=int(row["episode_index"]),
        success=False,
        task=str(row["tasks"][0]),
        details={"behaviour": "import", "unknown": ["joint_positions", "joint_velocities", "success"]},
    )
