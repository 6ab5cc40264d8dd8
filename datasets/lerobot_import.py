"""Read LeRobot v3.0 datasets, ours and others', into DROID raw."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armworld.datasets.card import LICENCE, dataset_folder, finish_card
from armworld.datasets.droid import assign_roles, find_episode, write_episode
from armworld.datasets.episode import Episode, EpisodeError
from armworld.datasets.lerobot import ACTION_NAMES, SIDECAR, STATE_NAMES, VERSION
from armworld.datasets.real_droid import SOURCE_LICENCE, checked_closedness
from armworld.datasets.trajectory import actions_of, read_episode, read_metadata
from armworld.datasets.video import VideoError, read_video
from armworld.evaluation.files import read_json
from armworld.types import require


def import_lerobot(
    source: Path,
    out: Path,
    extrinsics: Mapping[str, Sequence[float]] | None = None,
    licence: str | None = None,
    pose_state: bool = False,
) -> Path:
    """Write the episodes of a LeRobot v3.0 dataset to `out` in DROID raw; a rerun adds what is missing.

    Exports of ours come back with everything; others need a 7-D `observation.state` in our convention (flange pose
    and closedness), named as ours is, and, since LeRobot has no place for them, camera poses. Their actions are taken
    where they are named as ours are, and recovered from the states otherwise.

    Args:
        source: LeRobot dataset folder.
        out: New dataset folder.
        extrinsics: Camera name -> pose [6] in the base frame, for datasets that are not ours.
        licence: Of the data, for the card; by default that of our export, or the source's, whatever it is.
        pose_state: The seven numbers of a state are in our convention, whatever they are called.

    Raises:
        ImportError: pyarrow is missing.
        ValueError: Another version, a state that is not ours, missing camera poses, or another writer in `out`.
        EpisodeError: A damaged episode.
        DiskFull: No space left; finished episodes are kept.
    """
    require("pyarrow", "export")
    source, out = Path(source), Path(out)
    info = read_json(source / "meta" / "info.json")
    if info.get("codebase_version") != VERSION:
        raise ValueError(f"{source}: LeRobot {info.get('codebase_version')}, this reads {VERSION}")
    own = (source / SIDECAR).is_dir()
    card = read_json(source / SIDECAR / "card.json") if (source / SIDECAR / "card.json").exists() else {}
    config = card.get("config", {"task": "import", "source": source.name})
    stated = str(card.get("licence", LICENCE if own else SOURCE_LICENCE))
    rows = _table_rows(source, "meta/episodes")
    if not own:
        _check_foreign(source, info, extrinsics or {}, pose_state)
    elif extrinsics or pose_state:
        raise ValueError(
            f"{source} is an export of ours, which brings its poses and states: poses and pose_state are for others'"
        )
    with dataset_folder(out, config, licence or stated):
        for row in rows:
            lab, seed = _identity(source, info, row)
            if find_episode(out, lab, seed) is None:
                read = _own(source, info, row) if own else _foreign(source, info, row, extrinsics or {})
                write_episode(out, read)
        finish_card(out)
    return out


def _identity(source: Path, info: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, int]:
    """Lab and seed that name an episode in our layout."""
    if (source / SIDECAR).is_dir():
        metadata = read_metadata(_sidecar(source, row))
        if metadata.get("seed") is None:
            raise EpisodeError(f"{_sidecar(source, row)}: the metadata state no seed, by which the episode is named")
        return str(metadata["lab"]), int(metadata["seed"])
    lab = str(info.get("robot_type") or "lerobot")
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in lab), int(row["episode_index"])


def _sidecar(source: Path, row: Mapping[str, Any]) -> Path:
    return source / SIDECAR / f"episode-{row['episode_index']:06d}"


def _table_rows(source: Path, below: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    files = sorted((source / below).glob("chunk-*/file-*.parquet"))
    if not files:
        raise ValueError(f"{source / below}: no chunk-*/file-*.parquet")
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def _video_frames(source: Path, info: Mapping[str, Any], row: Mapping[str, Any], key: str) -> np.ndarray:
    place = {part: row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")}
    path = source / info["video_path"].format(video_key=key, **place)
    start = round(row[f"videos/{key}/from_timestamp"] * info["fps"])
    try:
        return read_video(path, np.arange(start, start + row["length"]))
    except VideoError as error:
        raise EpisodeError(f"episode {row['episode_index']}: {error}") from error


def _cameras(info: Mapping[str, Any]) -> dict[str, str]:
    """Camera name -> feature key."""
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    return {key.removeprefix("observation.images."): key for key in keys}


def _own(source: Path, info: Mapping[str, Any], row: Mapping[str, Any]) -> Episode:
    """An episode of our own export: its HDF5 and metadata beside it, its frames from the video."""
    frames = {name: _video_frames(source, info, row, key) for name, key in _cameras(info).items()}
    return read_episode(_sidecar(source, row), frames)


@functools.lru_cache(maxsize=1)
def _columns(path: Path) -> dict[str, np.ndarray]:
    """What an episode needs of a data file, all its rows; consecutive episodes share the file."""
    import pyarrow.parquet as pq

    names = ["episode_index", "frame_index", "observation.state", "action"]
    table = pq.read_table(path, columns=names)
    return {name: np.array(table[name].to_pylist()) for name in names}


def _check_foreign(
    source: Path, info: Mapping[str, Any], extrinsics: Mapping[str, Sequence[float]], pose_state: bool
) -> None:
    """ValueError unless the states are in our convention and every camera has a pose."""
    feature = info["features"].get("observation.state", {})
    if feature.get("shape") != [7] or not (pose_state or feature.get("names") == STATE_NAMES):
        raise ValueError(
            f"{source}: observation.state has shape {feature.get('shape')} ({feature.get('names')}); expected [7]: "
            f"{', '.join(STATE_NAMES)} (m, extrinsic-xyz rad, 0 open ... 1 closed) of panda_link8 in the base frame; "
            "if its seven numbers are those under other names, say so with --pose-state"
        )
    cameras = _cameras(info)
    assign_roles(cameras)
    absent = [name for name in cameras if not _is_pose(dict(extrinsics).get(name))]
    if absent:
        raise ValueError(
            f"{source}: camera poses are needed for {', '.join(absent)}: 6 numbers each, x, y, z (m) and "
            "extrinsic-xyz Euler angles (rad) in the base frame (--poses FILE)"
        )


def _is_pose(value: Any) -> bool:
    numbers = list(value) if isinstance(value, Sequence) else []
    return len(numbers) == 6 and all(isinstance(number, int | float) for number in numbers)


def _foreign(
    source: Path, info: Mapping[str, Any], row: Mapping[str, Any], extrinsics: Mapping[str, Sequence[float]]
) -> Episode:
    cameras = _cameras(info)
    place = {part: row[f"data/{part}"] for part in ("chunk_index", "file_index")}
    columns = _columns(source / info["data_path"].format(**place))
    mine = np.flatnonzero(columns["episode_index"] == row["episode_index"])
    mine = mine[np.argsort(columns["frame_index"][mine])]
    states, actions = columns["observation.state"][mine].astype(float), columns["action"][mine]
    states[:, 6] = checked_closedness(states[:, 6], f"{source}: episode {row['episode_index']}")
    ours = info["features"]["action"].get("names") == ACTION_NAMES
    unknown = np.zeros((len(states), 7))
    lab, seed = _identity(source, info, row)
    return Episode(
        states=states,
        actions=actions.astype(float) if ours else actions_of(states),
        frames={name: _video_frames(source, info, row, key) for name, key in cameras.items()},
        extrinsics={name: np.tile(np.asarray(extrinsics[name], float), (len(states), 1)) for name in cameras},
        joint_positions=unknown,
        joint_velocities=unknown,
        step_seconds=1 / info["fps"],
        lab=lab,
        seed=seed,
        success=False,
        task=str(row["tasks"][0]),
        details={"behaviour": "import", "unknown": ["joint_positions", "joint_velocities", "success"]},
        original={} if ours else {"action": actions},
    )
