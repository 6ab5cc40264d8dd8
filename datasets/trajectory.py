"""Read episodes in DROID's raw layout, ours and DROID's own; every fault is an error that names the path."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from armworld.datasets.episode import Episode, EpisodeError
from armworld.datasets.video import VideoError, read_video
from armworld.pose import action_between

OBJECTS = ("cameras", "simulation")  # keys of the metadata, where they are there
VIDEOS = tuple(f"{name}_mp4_path" for name in ("left", "right", "wrist", "ext1", "ext2"))
CLOSEDNESS = (-0.05, 1.05)  # what a gripper may report: 0 open, 1 closed, and a little noise


@dataclass(frozen=True)
class Trajectory:
    """An episode without its frames: what sampling clips needs. Arrays as in `Episode`."""

    folder: Path
    metadata: dict[str, Any]
    states: np.ndarray
    extrinsics: dict[str, np.ndarray]  # camera name -> [T, 6]
    videos: dict[str, Path]  # camera name -> file
    step_seconds: float

    def __len__(self) -> int:
        return len(self.states)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The episode's metadata.

    Raises:
        EpisodeError: There is not exactly one `.json`, or it is not valid, or what others are found by is of no use.
    """
    files = sorted(folder.glob("*.json"))
    if len(files) != 1:
        raise EpisodeError(f"{folder}: expected exactly one .json (the metadata), found {[f.name for f in files]}")
    try:
        metadata = json.loads(files[0].read_text())
    except (OSError, ValueError) as error:
        raise EpisodeError(f"{files[0]}: not valid JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise EpisodeError(f"{files[0]}: expected a JSON object, got {type(metadata).__name__}")
    for keys, kind, told in ((OBJECTS, dict, "an object"), (VIDEOS, str | None, "a path or null")):
        for key in keys:
            if key in metadata and not isinstance(metadata[key], kind):
                raise EpisodeError(f"{files[0]}: {key} must be {told}, got {metadata[key]!r}")
    return metadata


def read_trajectory(folder: Path) -> Trajectory:
    """Read metadata, states and extrinsics of an episode folder of ours or DROID's.

    Raises:
        EpisodeError: A file or key is missing, an array has the wrong dtype or shape or holds NaN, or the clock
            does not increase.
    """
    metadata = read_metadata(folder)
    cameras = _cameras(folder, metadata)
    path = folder / "trajectory.h5"
    with open_h5(path) as file:
        _check_clock(file, path)
        pose = read_array(file, path, "observation/robot_state/cartesian_position", (6,))
        gripper = read_array(file, path, "observation/robot_state/gripper_position", ())
        extrinsics = {
            name: read_array(file, path, f"observation/camera_extrinsics/{serial}_left", (6,))
            for name, (serial, _) in cameras.items()
        }
    for name, array in (("gripper_position", gripper), *extrinsics.items()):
        if len(array) != len(pose):
            raise EpisodeError(f"{path}: {name} has {len(array)} rows, cartesian_position has {len(pose)}")
    states = np.concatenate([pose, gripper[:, None]], 1)
    videos = {name: video for name, (_, video) in cameras.items()}
    return Trajectory(folder, metadata, states, extrinsics, videos, _step_seconds(folder, metadata))


def read_trajectories(folders: Iterable[Path]) -> list[Trajectory]:
    """`read_trajectory` of several folders.

    Raises:
        EpisodeError: Also where two episodes share a uuid.
    """
    trajectories = [read_trajectory(folder) for folder in folders]
    owners: dict[str, Path] = {}
    for trajectory in trajectories:
        uuid = str(trajectory.metadata.get("uuid"))
        if uuid in owners:
            raise EpisodeError(f"{trajectory.folder}: uuid {uuid} is also that of {owners[uuid]}")
        owners[uuid] = trajectory.folder
    return trajectories


def check_camera(trajectory: Trajectory, camera: str) -> None:
    """EpisodeError where the episode lacks that camera; those that it has are listed."""
    if camera not in trajectory.videos:
        raise EpisodeError(f"{trajectory.folder}: no camera {camera!r}; it has {', '.join(trajectory.videos)}")


def _check_clock(file: h5py.File, path: Path) -> None:
    """The control clock must increase where there is one (real DROID folders lack it now and then)."""
    key = "observation/timestamp/control/step_start"
    times = file.get(key)
    if isinstance(times, h5py.Dataset) and times.dtype.kind in "iu":
        steps = np.diff(times[()].astype(np.int64))
        if (steps <= 0).any():
            raise EpisodeError(f"{path}: {key} does not increase at row {int(np.argmax(steps <= 0)) + 1}")


def _step_seconds(folder: Path, metadata: Mapping[str, Any]) -> float:
    """Seconds between rows: stated by us; DROID's own rows are at 15 Hz whatever the video header says."""
    value = metadata.get("step_seconds", 1 / 15)
    if not isinstance(value, int | float) or not 0 < value < 100:
        raise EpisodeError(f"{folder}: step_seconds in the metadata must be a positive number, got {value!r}")
    return float(value)


def _cameras(folder: Path, metadata: Mapping[str, Any]) -> dict[str, tuple[str, Path]]:
    """Camera name -> (serial, video). DROID's own episodes name no cameras: left, right and wrist then."""
    named = {serial: name for name, serial in metadata.get("cameras", {}).items()}
    found = {}
    for default, key in (("left", "left_mp4_path"), ("right", "right_mp4_path"), ("wrist", "wrist_mp4_path")):
        if metadata.get(key):
            serial = Path(metadata[key]).stem
            found[named.get(serial, default)] = (serial, folder / "recordings" / "MP4" / f"{serial}.mp4")
    if not found:
        raise EpisodeError(f"{folder}: the metadata name no video (left_mp4_path, right_mp4_path, wrist_mp4_path)")
    return found


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """The file, for reading.

    Raises:
        EpisodeError: It is missing, no HDF5, or so damaged that h5py stumbles while it is read within.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except EpisodeError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # what h5py raises on damaged files
        raise EpisodeError(f"{path}: cannot be read as HDF5 ({error})") from error


def read_array(file: h5py.File, path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float array [T, *shape] of the file, checked for presence, dtype, shape and finiteness.

    Raises:
        EpisodeError: Naming the path, the key and what is wrong.
    """
    item = file.get(key)
    if not isinstance(item, h5py.Dataset):
        raise EpisodeError(f"{path}: key {key} is missing")
    if item.dtype.kind != "f":
        raise EpisodeError(f"{path}: {key} has dtype {item.dtype}, expected a float")
    if item.ndim != 1 + len(shape) or item.shape[1:] != shape:
        raise EpisodeError(f"{path}: {key} has shape {list(item.shape)}, expected [T, {', '.join(map(str, shape))}]")
    try:
        array = np.asarray(item[()], np.float64)
    except OSError as error:
        raise EpisodeError(f"{path}: {key} cannot be read ({error})") from error
    if not np.isfinite(array).all():
        raise EpisodeError(f"{path}: {key} holds NaN or infinity in row {np.argwhere(~np.isfinite(array))[0][0]}")
    return array


def read_frames(trajectory: Trajectory, camera: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Frames uint8 [n, H, W, 3] of one camera at the given ascending rows (all by default).

    Raises:
        EpisodeError: Unknown camera, or a video that is damaged or shorter than the rows.
    """
    check_camera(trajectory, camera)
    try:
        wanted = np.arange(len(trajectory)) if rows is None else rows
        return read_video(trajectory.videos[camera], wanted)
    except VideoError as error:
        raise EpisodeError(str(error)) from error


def read_joints(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Joint positions (rad) and velocities (rad/s), [T, 7] each.

    Raises:
        EpisodeError: As `read_array`.
    """
    path = folder / "trajectory.h5"
    with open_h5(path) as file:
        positions, velocities = (
            read_array(file, path, f"observation/robot_state/{key}", (7,))
            for key in ("joint_positions", "joint_velocities")
        )
    return positions, velocities


def read_episode(folder: Path, frames: dict[str, np.ndarray] | None = None) -> Episode:
    """Everything `write_episode` wrote, frames decoded (or given, by camera, where they lie elsewhere).

    Raises:
        EpisodeError: As `read_trajectory` and `read_frames`.
    """
    trajectory = read_trajectory(folder)
    absent = [key for key in ("lab", "success", "current_task") if key not in trajectory.metadata]
    if absent:
        raise EpisodeError(f"{folder}: the metadata lack {', '.join(absent)}")
    joints, velocities = read_joints(folder)
    with open_h5(folder / "trajectory.h5") as file:
        simulation, original = (dict(arrays_below(file, name)) for name in ("simulation", "original"))
    commanded = simulation.pop("action", None)
    metadata = trajectory.metadata
    return Episode(
        states=trajectory.states,
        actions=actions_of(trajectory.states) if commanded is None else commanded,
        frames={name: read_frames(trajectory, name) for name in trajectory.videos} if frames is None else frames,
        extrinsics={name: trajectory.extrinsics[name] for name in frames or trajectory.videos},
        joint_positions=joints,
        joint_velocities=velocities,
        step_seconds=trajectory.step_seconds,
        lab=str(metadata["lab"]),
        seed=metadata.get("seed"),
        success=bool(metadata["success"]),
        task=str(metadata["current_task"]),
        details=metadata.get("simulation", {}),
        simulation=simulation,
        original=original,
    )


def arrays_below(file: h5py.File, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Key below a group, however deep, and array; nothing where there is no such group."""
    group = file.get(name)
    for key, item in group.items() if isinstance(group, h5py.Group) else ():
        if isinstance(item, h5py.Dataset):
            yield key, np.asarray(item[()])
        else:
            yield from ((f"{key}/{inner}", array) for inner, array in arrays_below(file, f"{name}/{key}"))


def actions_of(states: np.ndarray) -> np.ndarray:
    """Actions [T, 7] recovered from states [T, 7]; the last row is zero."""
    return np.concatenate([action_between(states[:-1], states[1:]), np.zeros((1, 7))])
