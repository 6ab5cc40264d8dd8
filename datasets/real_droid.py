"""Import real DROID-raw folders: their quirks are resolved here, once, and what is wrong is reported by path.

Known quirks: no timestamps files; one video frame fewer than rows; headers that say 60 fps over frames taken at
15 Hz; cameras whose video is absent. What our layout has no place for (commanded actions, clocks, torques, ...) is kept
under `original/` in `trajectory.h5`, the metadata under `simulation.original`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from armworld.datasets.card import dataset_folder, finish_card
from armworld.datasets.clips import resize_frames
from armworld.datasets.droid import find_episode, find_episodes, write_episode
from armworld.datasets.episode import Episode, EpisodeError
from armworld.datasets.features import stride_for
from armworld.datasets.trajectory import (
    CLOSEDNESS,
    Trajectory,
    actions_of,
    arrays_below,
    open_h5,
    read_joints,
    read_metadata,
    read_trajectory,
)
from armworld.datasets.video import VideoError, read_video

MISSING_FRAMES = 1  # rows may outnumber frames by this
SOURCE_LICENCE = "that of the source"
TAKEN = tuple(f"observation/robot_state/{key}" for key in ("cartesian_position", "joint_positions", "joint_velocities"))


def import_droid(
    source: Path,
    out: Path,
    step_seconds: float | None = None,
    image_size: int | None = None,
    camera: str | None = None,
    licence: str = SOURCE_LICENCE,
) -> list[str]:
    """Write every readable episode below `source` to `out` in our layout; answers what was left out and why.

    Args:
        source: Folder of DROID labs.
        out: New dataset folder; a rerun adds what is missing.
        step_seconds: Time between the rows that are kept; None keeps all (15 Hz).
        image_size: Side to which frames are squashed; None keeps them (cut to even sizes).
        camera: Keep this camera only: `left`, `right` or `wrist`.
        licence: Of the data, for the card.

    Raises:
        ValueError: `out` holds other settings, or episodes of a source that has changed since; no episode is readable.
        DiskFull: No space left; finished episodes are kept.
    """
    source, out, refused = Path(source), Path(out), []
    folders = find_episodes(source)
    if step_seconds is not None:
        _check_step(folders, step_seconds)
    settings = {"task": "import", "step_seconds": step_seconds, "image_size": image_size, "camera": camera}
    with dataset_folder(out, settings, licence):
        for number, folder in enumerate(folders):
            try:
                if not _is_done(out, folder, number):
                    write_episode(out, _read(folder, number, step_seconds, image_size, camera))
            except EpisodeError as error:
                refused.append(str(error))
        if len(refused) == len(folders):
            raise EpisodeError(f"none of the {len(folders)} episodes below {source} can be read: {refused[0]}")
        finish_card(out)
    return refused


def _check_step(folders: Sequence[Path], step_seconds: float) -> None:
    """ValueError where the step does not fit the rows of the first readable episode."""
    for folder in folders:
        with contextlib.suppress(EpisodeError):  # left out later, with the reason
            stride_for(read_trajectory(folder).step_seconds, step_seconds)
            return


def _is_done(out: Path, folder: Path, number: int) -> bool:
    there = find_episode(out, folder.parts[-4], number)
    if there is None:
        return False
    before, now = (read_metadata(f) for f in (there, folder))
    if before["simulation"]["original"].get("uuid") != now.get("uuid"):
        raise ValueError(
            f"{there} was made from another episode than {folder}, now number {number} of the source: that has changed "
            "since; import it to a new folder"
        )
    return True


def _read(folder: Path, number: int, step_seconds: float | None, image_size: int | None, camera: str | None) -> Episode:
    trajectory = read_trajectory(folder)
    recorded = {name: path for name, path in trajectory.videos.items() if path.is_file()}
    videos = {name: path for name, path in recorded.items() if camera in (None, name)}
    if not videos:
        raise EpisodeError(f"{folder}: no video of {camera or 'any camera'}; there is {', '.join(recorded) or 'none'}")
    frames = {name: _frames(path, trajectory) for name, path in videos.items()}
    rows = min(len(trajectory), *(len(images) for images in frames.values()))
    own = trajectory.step_seconds
    stride = stride_for(own, own if step_seconds is None else step_seconds)
    kept = np.arange(0, rows, stride)
    joints, velocities = read_joints(folder)
    states = trajectory.states[kept]
    states[:, 6] = checked_closedness(states[:, 6], str(folder))
    return Episode(
        states=states,
        actions=actions_of(states),
        frames={name: _fitted(images[kept], image_size) for name, images in frames.items()},
        extrinsics={name: trajectory.extrinsics[name][kept] for name in videos},
        joint_positions=joints[kept],
        joint_velocities=velocities[kept],
        step_seconds=trajectory.step_seconds * stride,
        lab=folder.parts[-4],
        seed=number,
        success=folder.parts[-3] == "success",
        task=str(trajectory.metadata.get("current_task", "")),
        details={"behaviour": "real", "original": trajectory.metadata, "folder": str(folder)},
        original=_others(folder, len(trajectory), kept),
    )


def _others(folder: Path, rows: int, kept: np.ndarray) -> dict[str, np.ndarray]:
    """The numeric arrays of an episode's HDF5, one entry per row, that `Episode` has no field for, at the kept rows."""
    with open_h5(folder / "trajectory.h5") as file:
        arrays = [item for name in ("action", "observation") for item in _below(file, name)]
    return {
        key: array[kept]
        for key, array in arrays
        if key not in TAKEN and array.dtype.kind in "fiub" and array.ndim and len(array) == rows
    }


def _below(file: h5py.File, name: str) -> list[tuple[str, np.ndarray]]:
    return [(f"{name}/{key}", array) for key, array in arrays_below(file, name)]


def _frames(path: Path, trajectory: Trajectory) -> np.ndarray:
    try:
        frames = read_video(path)
    except VideoError as error:
        raise EpisodeError(str(error)) from error
    if not 0 <= len(trajectory) - len(frames) <= MISSING_FRAMES:
        raise EpisodeError(f"{path}: {len(frames)} frames for {len(trajectory)} rows; at most one may be missing")
    return frames


def _fitted(frames: np.ndarray, image_size: int | None) -> np.ndarray:
    if image_size is not None:
        return resize_frames(frames, image_size)
    height, width = (side - side % 2 for side in frames.shape[1:3])
    return frames[:, :height, :width]


def summary(refused: Sequence[str], out: Path) -> str:
    """What was written, then one line per episode left out."""
    return "\n".join([f"{out}: {len(find_episodes(out))} episodes", *(f"left out: {line}" for line in refused)])


def checked_closedness(values: np.ndarray, source: str) -> np.ndarray:
    """Recorded closedness [T] brought into [0, 1]; an EpisodeError where it spans more than that.

    Args:
        values: As recorded; measured ones overshoot a little.
        source: Whose, for the message.
    """
    low, high = values.min(), values.max()
    if low < CLOSEDNESS[0] or high > CLOSEDNESS[1]:
        raise EpisodeError(
            f"{source}: gripper_position spans {low:.3f} ... {high:.3f}; 0 open ... 1 closed is expected"
        )
    return values.clip(0, 1)
