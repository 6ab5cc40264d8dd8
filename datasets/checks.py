"""What a DROID-raw episode must satisfy: files, keys, units, rates, videos. Each fault becomes a `Problem`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from armworld.datasets.droid import METADATA_KEYS, ROLES, TRAJECTORY_SHAPES
from armworld.datasets.episode import EpisodeError
from armworld.datasets.trajectory import CLOSEDNESS, arrays_below, open_h5, read_array, read_metadata
from armworld.datasets.video import VideoError, count_frames, read_video, video_header
from armworld.pose import euler_to_matrix

# Panda, modified Denavit-Hartenberg (Franka's documentation): a, d, alpha of joints 1 to 7, then the flange.
DH_A = (0, 0, 0, 0.0825, -0.0825, 0, 0.088, 0)
DH_D = (0.333, 0, 0.316, 0, 0.384, 0, 0, 0.107)
DH_ALPHA = (0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2, 0)
FRANKA_HAND = 0.1034  # m from the flange to libfranka's O_T_EE with the Franka Hand

OWN_KEYS = ("seed", "cameras")  # of the metadata, beside DROID's; the rates are checked by their values
REACH = 1.3  # m: farther from the base than this no Panda flange gets (0.855 m of arm, with slack)
JOINT_LIMIT = 3.8  # rad, beyond every Panda joint's range
WIDEST_GRIPPER = 0.0885  # m: the 2F-85 opens to 85 mm, the Franka Hand to 80 mm
CLOSING_ROWS = 4  # a gripper that is told to close for this long and hardly moves is logged in metres
CAMERA_REACH = 10.0  # m
FLANGE_TOLERANCE = 0.02  # m: a calibrated arm's reported pose against its joints


@dataclass(frozen=True)
class Problem:
    """One fault: where, of which kind, in words."""

    path: Path
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: [{self.kind}] {self.message}"


@dataclass
class Findings:
    """Collects the problems of one episode, and what checks over all episodes need."""

    folder: Path
    problems: list[Problem]
    uuid: str | None = None
    closedness: tuple[float, float] | None = None

    def add(self, path: Path, kind: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(path, kind, message))


def check_episode(folder: Path, strict: bool = True, decode: bool = True) -> Findings:
    """Check one episode folder.

    Args:
        folder: The episode.
        strict: Ask for all of our own layout; False accepts the gaps of real DROID folders (missing timestamps,
            optional keys, one frame fewer than rows, a header rate that is not the frames').
        decode: Decode every frame; False counts packets only.
    """
    found = Findings(folder, [])
    try:
        metadata = read_metadata(folder)
    except EpisodeError as error:
        found.add(folder, "metadata", str(error))
        metadata = {}
    else:
        _check_metadata(found, metadata, strict)
    path = folder / "trajectory.h5"
    rows = None
    if not path.is_file():
        found.add(path, "missing", "no trajectory.h5")
    else:
        try:
            with open_h5(path) as file:
                rows = _check_trajectory(found, file, path, metadata, strict)
        except EpisodeError as error:
            found.add(path, "trajectory", str(error).removeprefix(f"{path}: "))
    _check_videos(found, metadata, rows, strict, decode)
    return found


def _check_metadata(found: Findings, metadata: Mapping[str, Any], strict: bool) -> None:
    folder = found.folder
    path = next(iter(folder.glob("*.json")))
    absent = [key for key in (*METADATA_KEYS, *(OWN_KEYS if strict else ())) if key not in metadata]
    if absent:
        found.add(path, "metadata", f"keys are missing: {', '.join(absent)}")
    found.uuid = metadata.get("uuid")
    if found.uuid and path.name != f"metadata_{found.uuid}.json":
        found.add(path, "metadata", f"the file should be named metadata_{found.uuid}.json after its uuid")
    if strict and metadata.get("lab") != folder.parents[2].name:
        found.add(path, "metadata", f"lab {metadata.get('lab')!r}, but the folder is {folder.parents[2].name!r}")
    if strict and bool(metadata.get("success")) != (folder.parents[1].name == "success"):
        found.add(path, "metadata", f"success is {metadata.get('success')}, the folder says {folder.parents[1].name}")
    left = metadata.get("left_mp4_path")
    if not left or "recordings/MP4/" not in left:
        found.add(path, "metadata", f"left_mp4_path must contain recordings/MP4/, got {left!r}")
    keys = [f"{role}_mp4_path" for role in ROLES] + ["left_mp4_path", "right_mp4_path", "hdf5_path"]
    for key in keys:
        value = metadata.get(key)
        if value and strict and not (folder.parents[2] / value).is_file():
            found.add(path, "missing", f"{key} names {value}, which does not exist below {folder.parents[2]}")
    if strict:
        _check_rates(found, metadata, path)


def _check_rates(found: Findings, metadata: Mapping[str, Any], path: Path) -> None:
    names = ("control_hz", "frame_hz", "video_header_fps", "step_seconds")
    values = [metadata.get(name) for name in names]
    if not all(isinstance(value, int | float) and value > 0 for value in values):
        found.add(path, "rate", f"{', '.join(names)} must be positive numbers, got {values}")
    elif abs(metadata["control_hz"] * metadata["step_seconds"] - 1) > 1e-6:
        control, step = metadata["control_hz"], metadata["step_seconds"]
        found.add(path, "rate", f"control_hz {control} and step_seconds {step} contradict each other")


def _check_trajectory(
    found: Findings, file: h5py.File, path: Path, metadata: Mapping[str, Any], strict: bool
) -> int | None:
    """Check keys, types, lengths, units and times; answers the number of rows."""
    needed = dict(TRAJECTORY_SHAPES)
    if not strict:
        needed = {key: shape for key, shape in needed.items() if key.startswith("observation/") or key in file}
    serials = _serials(metadata)
    needed |= {f"observation/camera_extrinsics/{serial}_left": (6,) for serial in serials}
    arrays: dict[str, np.ndarray] = {}
    for key, shape in needed.items():
        try:
            arrays[key] = read_array(file, path, key, shape)
        except EpisodeError as error:
            found.add(path, "trajectory", str(error).removeprefix(f"{path}: "))
    pose = arrays.get("observation/robot_state/cartesian_position")
    if pose is None:
        return None
    rows = len(pose)
    for key, array in arrays.items():
        if len(array) != rows:
            found.add(path, "trajectory", f"{key} has {len(array)} rows, cartesian_position has {rows}")
    stated = metadata.get("trajectory_length", rows)
    if stated != rows:
        found.add(path, "trajectory", f"trajectory_length is {stated} in the metadata, the file has {rows} rows")
    for name in ("simulation", "original"):
        for key, array in arrays_below(file, name):
            if array.shape[:1] != (rows,):
                shape = list(array.shape)
                found.add(path, "trajectory", f"{name}/{key} has shape {shape}, cartesian_position has {rows} rows")
            elif name == "simulation" and array.dtype.kind == "f" and not np.isfinite(array).all():
                found.add(path, "trajectory", f"{name}/{key} holds NaN or infinity")
    _check_units(found, path, arrays)
    _check_cameras(found, path, file, arrays, metadata, serials, strict)
    _check_times(found, path, file, metadata, rows, strict)
    return rows


def _serials(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Serial -> role of the cameras that have a video."""
    named = {metadata.get(f"{role}_cam_serial"): role for role in ROLES if metadata.get(f"{role}_mp4_path")}
    return {str(serial): role for serial, role in named.items() if serial}


def _check_units(found: Findings, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    pose = arrays["observation/robot_state/cartesian_position"]
    key = "cartesian_position"
    angle = np.abs(pose[:, 3:]).max()
    if angle > 2 * np.pi:
        found.add(path, "units", f"{key} holds an angle of {angle:.1f}: degrees? radians are expected")
    distance = np.linalg.norm(pose[:, :3], axis=1).max()
    if distance > REACH:
        found.add(path, "units", f"{key} lies {distance:.2f} from the base: metres and a Panda's reach are expected")
    joints = arrays.get("observation/robot_state/joint_positions")
    if joints is not None and np.abs(joints).max() > JOINT_LIMIT:
        largest = np.abs(joints).max()
        found.add(path, "units", f"joint_positions reach {largest:.1f}, beyond a Panda's range: degrees?")
    elif joints is not None and joints.any() and angle <= 2 * np.pi and distance <= REACH:
        _check_flange(found, path, pose, joints)
    gripper = arrays.get("observation/robot_state/gripper_position")
    if gripper is None:
        return
    low, high = float(gripper.min()), float(gripper.max())
    found.closedness = (low, high)
    if low < CLOSEDNESS[0] or high > CLOSEDNESS[1]:
        found.add(path, "units", f"gripper_position spans {low:.3f} ... {high:.3f}; 0 open ... 1 closed is expected")
    target = arrays.get("action/gripper_position")
    closing = 0 if target is None else int((target > 0.5).sum())
    if closing >= CLOSING_ROWS and high <= WIDEST_GRIPPER:
        message = f"gripper_position stays below {high:.3f} while {closing} rows command more than 0.5: metres?"
        found.add(path, "units", message)


def flange_pose(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position [T, 3] (m) and rotation [T, 3, 3] of panda_link8 in the base frame from joint angles [T, 7] (rad)."""
    angles = np.concatenate([joints, np.zeros((len(joints), 1))], 1)
    pose = np.tile(np.eye(4), (len(joints), 1, 1))
    for index, (a, d, alpha) in enumerate(zip(DH_A, DH_D, DH_ALPHA, strict=True)):
        c, s = np.cos(angles[:, index]), np.sin(angles[:, index])
        ca, sa = np.cos(alpha), np.sin(alpha)
        step = np.zeros_like(pose)
        step[:, 0, 0], step[:, 0, 1], step[:, 0, 3] = c, -s, a
        step[:, 1, 0], step[:, 1, 1], step[:, 1, 2], step[:, 1, 3] = s * ca, c * ca, -sa, -d * sa
        step[:, 2, 0], step[:, 2, 1], step[:, 2, 2], step[:, 2, 3] = s * sa, c * sa, ca, d * ca
        step[:, 3, 3] = 1
        pose = pose @ step
    return pose[:, :3, 3], pose[:, :3, :3]


def _check_flange(found: Findings, path: Path, pose: np.ndarray, joints: np.ndarray) -> None:
    """The stated pose must be the flange's: a tool frame, another base or wrong angles show against the joints."""
    position, rotation = flange_pose(joints)
    gap = float(np.median(np.linalg.norm(position - pose[:, :3], axis=1)))
    if gap > FLANGE_TOLERANCE:
        hint = "; 0.1034 m is the Franka Hand's O_T_EE" if abs(gap - FRANKA_HAND) < 0.01 else ""
        found.add(path, "frame", f"cartesian_position is {gap:.3f} m from panda_link8 as the joints give it{hint}")
    cosine = (np.trace(np.swapaxes(rotation, 1, 2) @ euler_to_matrix(pose[:, 3:]), axis1=1, axis2=2) - 1) / 2
    turn = float(np.median(np.arccos(np.clip(cosine, -1, 1))))
    if turn > 0.1:
        degrees = np.rad2deg(turn)
        found.add(path, "frame", f"the Euler angles are {degrees:.0f} deg from panda_link8's as the joints give it")


def _check_cameras(
    found: Findings,
    path: Path,
    file: h5py.File,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    serials: Mapping[str, str],
    strict: bool,
) -> None:
    heights = {}
    for serial, role in serials.items():
        poses = arrays.get(f"observation/camera_extrinsics/{serial}_left")
        if poses is None:
            continue
        if np.linalg.norm(poses[:, :3], axis=1).max() > CAMERA_REACH or np.abs(poses[:, 3:]).max() > 2 * np.pi:
            found.add(path, "extrinsics", f"camera {serial} stands at {poses[0].round(2).tolist()}: not m and rad")
        stated = metadata.get(f"{role}_cam_extrinsics")
        if strict and (stated is None or not np.allclose(stated, poses[0], atol=1e-6)):
            found.add(path, "extrinsics", f"{role}_cam_extrinsics in the metadata differ from row 0 of {serial}_left")
        if strict and f"observation/camera_type/{serial}" not in file:
            found.add(path, "trajectory", f"key observation/camera_type/{serial} is missing")
        if role != "wrist":
            heights[serial] = poses[0, 1]
    left, right = (Path(metadata.get(f"{side}_mp4_path") or "").stem for side in ("left", "right"))
    if left in heights and right in heights and heights[left] < heights[right]:
        found.add(path, "extrinsics", f"left_mp4_path is camera {left}, but {right} has the larger base-frame y")


def _check_times(
    found: Findings, path: Path, file: h5py.File, metadata: Mapping[str, Any], rows: int, strict: bool
) -> None:
    group = file.get("observation/timestamp")
    if not isinstance(group, h5py.Group):
        if strict:
            found.add(path, "timestamps", "group observation/timestamp is missing")
        return
    for key, times in _datasets(group):
        name = f"observation/timestamp/{key}"
        if times.dtype.kind not in "iu":
            if strict:
                found.add(path, "timestamps", f"{name} has dtype {times.dtype}, expected an integer (ms)")
            continue
        if strict and len(times) != rows:
            found.add(path, "timestamps", f"{name} has {len(times)} entries for {rows} rows")
        steps = np.diff(times[()].astype(np.int64))
        if (strict or key == "control/step_start") and (steps <= 0).any():
            found.add(path, "timestamps", f"{name} does not increase at row {int(np.argmax(steps <= 0)) + 1}")
        elif strict and len(steps) and isinstance(metadata.get("step_seconds"), float | int):
            step = float(np.median(steps)) / 1000
            if abs(step - metadata["step_seconds"]) > 0.05 * metadata["step_seconds"] + 0.001:
                expected = metadata["step_seconds"]
                found.add(path, "rate", f"{name} steps by {step:.3f} s, step_seconds says {expected}")


def _datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from ((f"{name}/{key}", value) for key, value in _datasets(item))
        elif isinstance(item, h5py.Dataset) and item.ndim == 1:
            yield name, item


def _check_videos(found: Findings, metadata: Mapping[str, Any], rows: int | None, strict: bool, decode: bool) -> None:
    folder = found.folder / "recordings" / "MP4"
    serials = [Path(metadata[f"{role}_mp4_path"]).stem for role in ROLES if metadata.get(f"{role}_mp4_path")]
    for path in [folder / f"{serial}.mp4" for serial in serials]:
        try:
            header = video_header(path)
            frames = len(read_video(path)) if decode else count_frames(path)
        except VideoError as error:
            found.add(path, "video", str(error).removeprefix(f"{path}: "))
            continue
        if header["codec"] == "av1":
            found.add(path, "video", "AV1: decord and OpenCV, and so the public loader, cannot read it")
        missing = 0 if rows is None else rows - frames
        if missing and not (not strict and missing == 1):
            found.add(path, "frames", f"{frames} frames for {rows} rows")
        stated = metadata.get("video_header_fps")
        if strict and isinstance(stated, int | float) and abs(float(header["fps"]) - stated) > 0.01 * stated:
            found.add(path, "rate", f"the header says {header['fps']:g} fps, the metadata {stated:g}")
