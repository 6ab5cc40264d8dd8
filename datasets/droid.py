"""DROID's raw layout: one folder per episode, written whole or not at all (`trajectory.py` reads it back).

`<root>/<lab>/{success,failure}/<YYYY-MM-DD>/<timestamp>/` holds `metadata_<uuid>.json`, `trajectory.h5` and
`recordings/MP4/<serial>.mp4`. Row i of every HDF5 array and frame i of every video belong together. Ours adds
a group `simulation/` (what rendering again needs), `simulation` in the metadata, and the rates: the public
V-JEPA 2 loader takes every ceil(header fps / 4)-th frame, so the header states the true rate of the frames.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from armworld.datasets.episode import Episode, EpisodeError
from armworld.datasets.files import new_folder
from armworld.datasets.video import CRF, write_video
from armworld.evaluation.files import plain
from armworld.pose import apply_action

DROID_VERSION = 1.0
ROLES = ("wrist", "ext1", "ext2")  # DROID's slots for cameras
CAMERA_TYPES = {"wrist": 0, "ext1": 1, "ext2": 1}  # DROID's codes: 0 hand camera, 1 varied external camera
EPOCH = datetime(2025, 1, 1, tzinfo=UTC)  # seed 0's nominal time: names do not tell when it ran
MINUTES_PER_SEED = 1

METADATA_KEYS = (
    "uuid", "lab", "user", "user_id", "date", "timestamp", "hdf5_path", "building", "scene_id", "success",
    "robot_serial", "droid_version", "current_task", "trajectory_length",
    *(f"{role}_cam_{what}" for role in ROLES for what in ("serial", "extrinsics")),
    *(f"{role}_{what}_path" for role in ROLES for what in ("svo", "mp4")),
    "left_mp4_path", "right_mp4_path",
)  # fmt: skip
TRAJECTORY_SHAPES: dict[str, tuple[int, ...]] = {  # float64, trailing shape after T
    "observation/robot_state/cartesian_position": (6,),
    "observation/robot_state/gripper_position": (),
    "observation/robot_state/joint_positions": (7,),
    "observation/robot_state/joint_velocities": (7,),
    "action/cartesian_position": (6,),
    "action/cartesian_velocity": (6,),
    "action/gripper_position": (),
    "action/gripper_velocity": (),
    "action/joint_position": (7,),
    "action/joint_velocity": (7,),
    "action/target_cartesian_position": (6,),
    "action/target_gripper_position": (),
}
TIMESTAMPS = ("control/step_start", "control/step_end", "robot_state/read_start", "robot_state/read_end")


def camera_serial(name: str) -> str:
    """An eight-digit serial that stands for a simulated camera's name, the same everywhere."""
    return f"{zlib.crc32(name.encode()) % 10**8:08d}"


def episode_time(seed: int) -> datetime:
    """The nominal moment that names a seed's episode."""
    return EPOCH + timedelta(minutes=MINUTES_PER_SEED * seed)


def episode_name(seed: int) -> str:
    """`<YYYY-MM-DD>/<timestamp>` of a seed's episode, below `success/` or `failure/`."""
    return f"{episode_time(seed):%Y-%m-%d/%Hh%Mm%Ss}-seed{seed:07d}"


def find_episode(root: Path, lab: str, seed: int) -> Path | None:
    """The folder of a seed's finished episode, or None."""
    folders = [root / lab / outcome / episode_name(seed) for outcome in ("success", "failure")]
    return next((folder for folder in folders if folder.is_dir()), None)


def find_episodes(root: Path) -> list[Path]:
    """All finished episode folders under `root`, sorted by their date and time, then lab.

    Raises:
        EpisodeError: There is no such folder, or no episode in it.
    """
    if not root.is_dir():
        raise EpisodeError(f"{root}: {'a file, not a dataset folder' if root.exists() else 'no such folder'}")
    found = [f for f in root.glob("*/*/*/*") if f.is_dir() and f.parts[-3] in ("success", "failure")]
    found = [f for f in found if not any(part.startswith(".") for part in f.relative_to(root).parts)]
    if not found:
        raise EpisodeError(f"{root}: no episodes (<lab>/success|failure/<date>/<time>) in this folder")
    return sorted(found, key=lambda f: (f.parts[-2:], f.parts[-4]))


def assign_roles(cameras: Collection[str]) -> dict[str, str]:
    """Camera name -> DROID role. `wrist` is the wrist's; of the others at most two, in the order given.

    Raises:
        EpisodeError: There is no other camera, or more than two.
    """
    outside = [name for name in cameras if name != "wrist"]
    if not 1 <= len(outside) <= 2:
        raise EpisodeError(f"DROID has one or two exterior cameras beside the wrist's, got {outside or 'none'}")
    roles = dict(zip(outside, ROLES[1:], strict=False))
    return roles | ({"wrist": "wrist"} if "wrist" in cameras else {})


def write_episode(root: Path, episode: Episode, crf: int = CRF) -> Path:
    """Write one episode below `root` atomically; answers its folder.

    Raises:
        EpisodeError: The episode has no seed to be named by, or its cameras do not fit DROID's.
        DiskFull: Nothing of this episode is left, earlier ones are kept.
    """
    if episode.seed is None:
        raise EpisodeError("an episode needs a seed: its folder is named by it")
    folder = root / episode.lab / ("success" if episode.success else "failure") / episode_name(episode.seed)
    roles = assign_roles(episode.extrinsics)
    with new_folder(folder) as partial:
        (partial / "recordings" / "MP4").mkdir(parents=True)
        for name, frames in episode.frames.items():
            path = partial / "recordings" / "MP4" / f"{camera_serial(name)}.mp4"
            write_video(path, frames, 1 / episode.step_seconds, crf)
        # In memory first: HDF5 crashes the process when it closes a file on a full disk.
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            _write_trajectory(file, episode, roles)
        (partial / "trajectory.h5").write_bytes(content.getbuffer())
        metadata = _metadata(episode, roles, folder.relative_to(root / episode.lab))
        text = json.dumps(plain(metadata), indent=1, allow_nan=False) + "\n"
        (partial / f"metadata_{metadata['uuid']}.json").write_text(text)
    return folder


def _write_trajectory(file: h5py.File, episode: Episode, roles: Mapping[str, str]) -> None:
    states, step = episode.states, episode.step_seconds
    targets = apply_action(states, episode.actions)
    next_joints = np.concatenate([episode.joint_positions[1:], episode.joint_positions[-1:]])
    arrays = {
        "observation/robot_state/cartesian_position": states[:, :6],
        "observation/robot_state/gripper_position": states[:, 6],
        "observation/robot_state/joint_positions": episode.joint_positions,
        "observation/robot_state/joint_velocities": episode.joint_velocities,
        "action/cartesian_position": targets[:, :6],
        "action/cartesian_velocity": episode.actions[:, :6] / step,
        "action/gripper_position": targets[:, 6],
        "action/gripper_velocity": episode.actions[:, 6] / step,
        "action/joint_position": next_joints,
        "action/joint_velocity": (next_joints - episode.joint_positions) / step,
        "action/target_cartesian_position": targets[:, :6],
        "action/target_gripper_position": targets[:, 6],
    }
    for key, shape in TRAJECTORY_SHAPES.items():
        assert arrays[key].shape == (len(episode), *shape), key
        file.create_dataset(key, data=np.asarray(arrays[key], np.float64))
    start = int(episode_time(episode.seed or 0).timestamp() * 1000)
    clock = start + np.round(np.arange(len(episode)) * step * 1000).astype(np.int64)  # ms
    for key in TIMESTAMPS:
        late = round(step * 1000) - 1 if key.endswith("step_end") else 0
        file.create_dataset(f"observation/timestamp/{key}", data=clock + late)
    for name, role in roles.items():
        serial = camera_serial(name)
        file.create_dataset(f"observation/camera_extrinsics/{serial}_left", data=episode.extrinsics[name])
        file.create_dataset(f"observation/camera_type/{serial}", data=np.full(len(episode), CAMERA_TYPES[role]))
        for moment in ("read_start", "read_end"):
            file.create_dataset(f"observation/timestamp/cameras/{serial}_{moment}", data=clock)
    file.create_dataset("simulation/action", data=np.asarray(episode.actions, np.float64))
    for name, extra in (("simulation", episode.simulation), ("original", episode.original)):
        for key, array in extra.items():
            file.create_dataset(f"{name}/{key}", data=array, compression="gzip")


def _metadata(episode: Episode, roles: Mapping[str, str], relative: Path) -> dict[str, Any]:
    assert episode.seed is not None
    moment = episode_time(episode.seed)
    paths = {name: str(relative / "recordings" / "MP4" / f"{camera_serial(name)}.mp4") for name in roles}
    outside = sorted((n for n, role in roles.items() if role != "wrist"), key=lambda n: -episode.extrinsics[n][0, 1])
    names = {role: name for name, role in roles.items()}
    rate = 1 / episode.step_seconds
    view = f"-view{episode.details['view']['seed']}" if "view" in episode.details else ""
    metadata: dict[str, Any] = {
        "uuid": f"{episode.lab}+armworld+{moment:%Y-%m-%d-%Hh-%Mm-%Ss}-seed{episode.seed:07d}{view}",
        "lab": episode.lab,
        "user": "armworld",
        "user_id": "armworld",
        "date": f"{moment:%Y-%m-%d}",
        "timestamp": f"{moment:%Y-%m-%d-%Hh-%Mm-%Ss}",
        "hdf5_path": str(relative / "trajectory.h5"),
        "building": "simulation",
        "scene_id": zlib.crc32(episode.lab.encode()),
        "success": episode.success,
        "robot_serial": "simulated-panda",
        "droid_version": DROID_VERSION,
        "current_task": episode.task,
        "trajectory_length": len(episode),
    }
    for role in ROLES:
        name = names.get(role)
        metadata[f"{role}_cam_serial"] = camera_serial(name) if name else None
        metadata[f"{role}_cam_extrinsics"] = episode.extrinsics[name][0] if name else None
        metadata[f"{role}_svo_path"] = None  # no stereo recording exists
        metadata[f"{role}_mp4_path"] = paths[name] if name else None
    metadata["left_mp4_path"] = paths[outside[0]]  # DROID: the exterior camera with the larger base-frame y
    metadata["right_mp4_path"] = paths[outside[1]] if len(outside) > 1 else None
    metadata["control_hz"] = rate
    metadata["frame_hz"] = rate
    metadata["video_header_fps"] = rate
    metadata["step_seconds"] = episode.step_seconds
    metadata["seed"] = episode.seed
    metadata["cameras"] = {name: camera_serial(name) for name in roles}
    metadata["simulation"] = episode.details
    return metadata
