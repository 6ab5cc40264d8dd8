"""Import real DROID-raw folders: their quirks are resolved here, once, and what is wrong is reported by path.

Known quirks: no timestamps files; one video frame fewer than rows; headers that say 60 fps over frames taken at
15 Hz; cameras whose video is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from armworld.datasets.card import finish_card, start_card
from armworld.datasets.clips import resize_frames
from armworld.datasets.droid import find_episode, find_episodes, write_episode
from armworld.datasets.episode import Episode, EpisodeError
from armworld.datasets.features import stride_for
from armworld.datasets.files import clear_partial, exclusive
from armworld.datasets.trajectory import Trajectory, actions_of, read_joints, read_trajectory
from armworld.datasets.video import VideoError, read_video

MISSING_FRAMES = 1  # rows may outnumber frames by this


def import_droid(
    source: Path, out: Path, step_seconds: float | None = None, image_size: int | None = None, camera: str | None = None
) -> list[str]:
    """Write every readable episode below `source` to `out` in our layout; answers what was left out and why.

    Args:
        source: Folder of DROID labs.
        out: New dataset folder; a rerun adds what is missing.
        step_seconds: Time between the rows that are kept; None keeps all (15 Hz).
        image_size: Side to which frames are squashed; None keeps them (cut to even sizes).
        camera: Keep this camera only: `left`, `right` or `wrist`.
    """
    refused = []
    with exclusive(Path(out)):
        clear_partial(Path(out))
        settings = {"task": "import", "step_seconds": step_seconds, "image_size": image_size, "camera": camera}
        start_card(Path(out), settings)
        for number, folder in enumerate(find_episodes(Path(source))):
            try:
                if find_episode(Path(out), folder.parts[-4], number) is None:
                    write_episode(Path(out), _read(folder, number, step_seconds, image_size, camera))
            except EpisodeError as error:
                refused.append(str(error))
        finish_card(Path(out))
    return refused


def _read(folder: Path, number: int, step_seconds: float | None, image_size: int | None, camera: str | None) -> Episode:
    trajectory = read_trajectory(folder)
    videos = {name: path for name, path in trajectory.videos.items() if camera in (None, name)}
    if not videos:
        raise EpisodeError(f"{folder}: no camera {camera!r}; it has {', '.join(trajectory.videos)}")
    frames = {name: _frames(path, trajectory) for name, path in videos.items()}
    rows = min(len(trajectory), *(len(images) for images in frames.values()))
    seconds = step_seconds or trajectory.step_seconds
    stride = stride_for(trajectory.step_seconds, seconds)
    kept = np.arange(0, rows, stride)
    joints, velocities = read_joints(folder)
    episode = Episode(
        states=trajectory.states[kept],
        actions=actions_of(trajectory.states[kept]),
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
    )
    return replace(episode, states=np.clip(episode.states, [-np.inf] * 6 + [0], [np.inf] * 6 + [1]))


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
