"""LeRobot dataset v3.0, written with pyarrow and PyAV alone (`lerobot_import.py` reads it).

Videos are remuxed, not encoded again: an exported frame is bit for bit the decoded one of the source. What LeRobot
has no place for (HDF5 with joints, commands and simulator states; metadata) travels in `armworld/`, so that an
import of our own export loses nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from armworld.datasets.droid import find_episodes
from armworld.datasets.episode import Episode, EpisodeError
from armworld.datasets.files import clear_abandoned, new_folder, write_json
from armworld.datasets.trajectory import read_episode
from armworld.datasets.video import video_header
from armworld.evaluation.files import commit
from armworld.types import require

VERSION = "v3.0"
FOLDER = "chunk-{chunk_index:03d}/file-{file_index:03d}"
STATE_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "closedness"]
ACTION_NAMES = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "dclosedness"]
CHUNK = 1000  # files per folder
VIDEO_MB = 500  # per file, about; as LeRobot's own writer does
DATA_MB = 100
ROW_BYTES = 100  # of the data tables, about
SIDECAR = "armworld"  # what LeRobot has no place for


@dataclass(frozen=True)
class _Exported:
    """One episode's place in the export."""

    folder: Path
    episode: Episode
    start: int


@dataclass(frozen=True)
class _Place:
    """Where an episode lies: chunk, file, and the rows of that file before it."""

    chunk: int
    file: int
    first: int

    @property
    def path(self) -> str:
        return FOLDER.format(chunk_index=self.chunk, file_index=self.file)


def export_lerobot(
    root: Path, out: Path, cameras: Sequence[str] | None = None, video_mb: float = VIDEO_MB, data_mb: float = DATA_MB
) -> Path:
    """Write a LeRobot v3.0 dataset of all episodes; the folder appears whole or not at all.

    Args:
        root: Dataset folder in DROID raw.
        out: New folder; it must not exist.
        cameras: Cameras to export; by default those of the first episode.
        video_mb, data_mb: Size of a file at which the next one is begun.

    Raises:
        ImportError: pyarrow is missing.
        ValueError: `out` exists; episodes differ in rate, image size or encoding; a rate that is no whole number.
        EpisodeError: A damaged episode.
        DiskFull: No space left; nothing of the export remains.
    """
    require("pyarrow", "export")
    root, out = Path(root), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists; an export goes to a new folder")
    clear_abandoned(out)
    folders = find_episodes(root)
    exported, start = [], 0
    for folder in folders:
        episode = read_episode(folder)
        exported.append(_Exported(folder, _without_frames(episode), start))
        start += len(episode)
    names = tuple(cameras or exported[0].episode.extrinsics)
    fps = _common_rate(exported)
    with new_folder(out) as partial:
        videos = {
            name: _places([_video(i, name).stat().st_size for i in exported], exported, video_mb) for name in names
        }
        headers = {name: _join_videos(partial, name, exported, videos[name]) for name in names}
        tasks = sorted({item.episode.task for item in exported})
        data = _places([ROW_BYTES * len(item.episode) for item in exported], exported, data_mb)
        _write_data(partial, exported, data, tasks)
        statistics = [_statistics(item, names) for item in exported]
        _write_episodes(partial, exported, data, videos, fps, statistics)
        _write_tasks(partial, tasks)
        write_json(partial / "meta" / "stats.json", _merge(statistics))
        write_json(partial / "meta" / "info.json", _info(exported, names, fps, headers, len(tasks)))
        _write_sidecar(partial, root, exported)
    return out


def _without_frames(episode: Episode) -> Episode:
    """The episode with its frames reduced to 16 pixels: statistics need no more, and all fit in memory."""
    small = {
        name: frames[:, :: max(1, frames.shape[1] // 16), :: max(1, frames.shape[2] // 16)]
        for name, frames in episode.frames.items()
    }
    frames = {name: images.copy() for name, images in small.items()}
    return Episode(**{**vars(episode), "frames": frames, "simulation": {}, "original": {}})


def _places(sizes: Sequence[int], exported: Sequence[_Exported], limit_mb: float) -> list[_Place]:
    """Each episode's place in consecutive files of at most so many megabytes, one episode at least."""
    places, file, used, first = [], 0, 0, 0
    for size, item in zip(sizes, exported, strict=True):
        if used and used + size > 1e6 * limit_mb:
            file, used, first = file + 1, 0, 0
        places.append(_Place(file // CHUNK, file % CHUNK, first))
        used, first = used + size, first + len(item.episode)
    return places


def _common_rate(exported: Sequence[_Exported]) -> int:
    rates = {round(1 / item.episode.step_seconds, 6) for item in exported}
    if len(rates) > 1:
        raise ValueError(f"LeRobot needs one rate for all episodes, got {sorted(rates)} Hz")
    (rate,) = rates
    if rate != round(rate):
        raise ValueError(f"LeRobot's fps is a whole number, these episodes have {rate} Hz")
    return round(rate)


def _join_videos(partial: Path, name: str, exported: Sequence[_Exported], places: Sequence[_Place]) -> dict[str, Any]:
    """Concatenate one camera's videos without encoding them again; answers the header."""
    folder = partial / "videos" / f"observation.images.{name}"
    like: tuple[Any, ...] | None = None
    for file in dict.fromkeys(place.path for place in places):
        path = folder / f"{file}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        group = [(i, p) for i, p in zip(exported, places, strict=True) if p.path == file]
        target: VideoStream | None = None
        with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            for item, place in group:
                source = _video(item, name)
                with av.open(str(source)) as reader:
                    stream = reader.streams.video[0]
                    this = stream.codec_context.extradata, stream.width, stream.height
                    like = like or this
                    if this != like:
                        message = "size or encoder settings differ from the first episode's; rerender the dataset"
                        raise ValueError(f"{source}: {message}")
                    if target is None:
                        target = container.add_stream_from_template(stream)
                        target.time_base = stream.time_base
                    _copy_packets(container, reader, stream, target, place.first, item.episode.step_seconds)
    return video_header(folder / f"{places[0].path}.mp4")


def _video(item: _Exported, name: str) -> Path:
    metadata = json.loads(next(item.folder.glob("*.json")).read_text())
    serials = metadata.get("cameras", {})
    if name not in serials:
        raise EpisodeError(f"{item.folder}: no camera {name!r}; it has {', '.join(serials)}")
    return item.folder / "recordings" / "MP4" / f"{serials[name]}.mp4"


def _copy_packets(
    container: Any, reader: Any, stream: VideoStream, target: VideoStream, start: int, step_seconds: float
) -> None:
    base = stream.time_base
    assert base is not None
    ticks = Fraction(step_seconds).limit_denominator(1000) / base
    offset = round(start * ticks)
    for packet in reader.demux(stream):
        if packet.dts is None:
            continue  # the flush packet
        packet.pts += offset
        packet.dts += offset
        packet.stream = target
        container.mux(packet)


def _write_data(partial: Path, exported: Sequence[_Exported], places: Sequence[_Place], tasks: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in dict.fromkeys(place.path for place in places):
        numbers = [number for number, place in enumerate(places) if place.path == file]
        group = [exported[number] for number in numbers]
        rows = [len(item.episode) for item in group]
        frame_index = np.concatenate([np.arange(count) for count in rows])
        steps = np.repeat([item.episode.step_seconds for item in group], rows)
        columns = {
            "observation.state": _vectors(np.concatenate([item.episode.states for item in group])),
            "action": _vectors(np.concatenate([item.episode.actions for item in group])),
            "timestamp": pa.array((frame_index * steps).astype(np.float32)),
            "frame_index": pa.array(frame_index, pa.int64()),
            "episode_index": pa.array(np.repeat(numbers, rows), pa.int64()),
            "index": pa.array(group[0].start + np.arange(sum(rows)), pa.int64()),
            "task_index": pa.array(np.repeat([tasks.index(item.episode.task) for item in group], rows), pa.int64()),
        }
        path = partial / "data" / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)


def _vectors(array: np.ndarray) -> Any:
    """A column of float32 vectors [F, n]."""
    import pyarrow as pa

    flat = pa.array(array.astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def _write_episodes(
    partial: Path,
    exported: Sequence[_Exported],
    data: Sequence[_Place],
    videos: dict[str, list[_Place]],
    fps: int,
    statistics: Sequence[dict[str, Any]],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for number, (item, stats) in enumerate(zip(exported, statistics, strict=True)):
        count = len(item.episode)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [item.episode.task],
            "length": count,
            "data/chunk_index": data[number].chunk,
            "data/file_index": data[number].file,
            "dataset_from_index": item.start,
            "dataset_to_index": item.start + count,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for name, places in videos.items():
            key, place = f"videos/observation.images.{name}", places[number]
            row |= {f"{key}/chunk_index": place.chunk, f"{key}/file_index": place.file}
            row |= {f"{key}/from_timestamp": place.first / fps, f"{key}/to_timestamp": (place.first + count) / fps}
        for feature, values in stats.items():
            row |= {f"stats/{feature}/{kind}": value.tolist() for kind, value in values.items()}
        rows.append(row)
    path = partial / "meta" / "episodes" / f"{FOLDER.format(chunk_index=0, file_index=0)}.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _write_tasks(partial: Path, tasks: Sequence[str]) -> None:
    """A table that pandas reads with the task as its index, as LeRobot expects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(name: str, kind: str, numpy_kind: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "pandas_version": "2.2.0",
        "creator": {"library": "pyarrow", "version": pa.__version__},
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(list(tasks))})
    pq.write_table(table.replace_schema_metadata({b"pandas": json.dumps(pandas)}), partial / "meta" / "tasks.parquet")


def _statistics(item: _Exported, names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Per feature: min, max, mean, std and count, as LeRobot keeps them; images are scaled to [0, 1]."""
    episode = item.episode
    found = {
        "observation.state": _moments(episode.states),
        "action": _moments(episode.actions),
        "timestamp": _moments(np.arange(len(episode))[:, None] * episode.step_seconds),
    }
    for name in names:
        if name not in episode.frames:
            raise EpisodeError(f"{item.folder}: no camera {name!r}; it has {', '.join(episode.frames)}")
        pixels = episode.frames[name].reshape(-1, 3) / 255
        moments = {kind: value.reshape(3, 1, 1) for kind, value in _moments(pixels).items() if kind != "count"}
        found[f"observation.images.{name}"] = moments | {"count": np.array([len(episode)])}
    return found


def _moments(values: np.ndarray) -> dict[str, np.ndarray]:
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return found | {"count": np.array([len(values)])}


def _merge(statistics: Sequence[dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
    """Statistics over all episodes from those of each (parallel variance)."""
    merged: dict[str, Any] = {}
    for feature in statistics[0]:
        parts = [stats[feature] for stats in statistics]
        counts = np.array([part["count"][0] for part in parts], float)
        weights = (counts / counts.sum()).reshape(-1, *[1] * parts[0]["mean"].ndim)
        means = np.stack([part["mean"] for part in parts])
        mean = (weights * means).sum(0)
        variance = (weights * (np.stack([part["std"] for part in parts]) ** 2 + (means - mean) ** 2)).sum(0)
        merged[feature] = {
            "min": np.min([part["min"] for part in parts], axis=0),
            "max": np.max([part["max"] for part in parts], axis=0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": np.array([int(counts.sum())]),
        }
    return merged


def _info(
    exported: Sequence[_Exported], names: Sequence[str], fps: int, headers: dict[str, dict[str, Any]], tasks: int
) -> dict[str, Any]:
    def number(kind: str) -> dict[str, Any]:
        return {"dtype": kind, "shape": [1], "names": None}

    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [7], "names": STATE_NAMES},
        "action": {"dtype": "float32", "shape": [7], "names": ACTION_NAMES},
        "timestamp": number("float32"),
        **{name: number("int64") for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    for name in names:
        height, width = headers[name]["height"], headers[name]["width"]
        features[f"observation.images.{name}"] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height, "video.width": width, "video.channels": 3, "video.fps": fps,
                "video.codec": headers[name]["codec"], "video.pix_fmt": "yuv420p", "video.is_depth_map": False,
                "has_audio": False,
            },
        }  # fmt: skip
    return {
        "codebase_version": VERSION,
        "robot_type": "panda",
        "total_episodes": len(exported),
        "total_frames": sum(len(item.episode) for item in exported),
        "total_tasks": tasks,
        "chunks_size": CHUNK,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": fps,
        "splits": {"train": f"0:{len(exported)}"},
        "data_path": f"data/{FOLDER}.parquet",
        "video_path": f"videos/{{video_key}}/{FOLDER}.mp4",
        "features": features,
        "armworld": {"step_seconds": exported[0].episode.step_seconds, "commit": commit()},
    }


def _write_sidecar(partial: Path, root: Path, exported: Sequence[_Exported]) -> None:
    for number, item in enumerate(exported):
        folder = partial / SIDECAR / f"episode-{number:06d}"
        folder.mkdir(parents=True)
        for path in (item.folder / "trajectory.h5", next(item.folder.glob("*.json"))):
            shutil.copyfile(path, folder / path.name)
    for name in ("card.json", "README.md"):
        if (root / name).exists():
            shutil.copyfile(root / name, partial / (name if name == "README.md" else f"{SIDECAR}/card.json"))
