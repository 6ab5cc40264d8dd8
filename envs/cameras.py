"""Camera rigs: where the cameras stand, and their pose as extrinsics.

A placement is (azimuth, elevation, distance, look-at, field of view). Azimuth is the direction from the look-at
point to the camera, counter-clockwise from the base frame's +x seen from above: 0 looks back at the robot from the
front, +45 stands at the front left (+y). Elevation is the camera's height angle above the look-at point.

Extrinsics float [6] are the camera's pose in the base frame: position (m) and extrinsic-xyz Euler angles (rad) of the
**OpenCV** camera frame (x right, y down, z into the scene), as in DROID. MuJoCo's own frame has y up and z backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mujoco
import numpy as np

from armworld.pose import euler_to_matrix, matrix_to_euler
from armworld.types import check_name

IMAGE_SIZES = 16, 1280  # of an environment's frames, pixels: smallest and largest
OPENCV_FROM_MUJOCO = np.diag([1.0, -1.0, -1.0])  # the same matrix both ways


@dataclass(frozen=True)
class Placement:
    """A camera that stands still in the base frame.

    Attributes:
        azimuth, elevation: Direction from `look_at` to the camera, degrees.
        distance: From `look_at` to the camera, m.
        look_at: Point at the image centre, base frame, m.
        fovy: Vertical field of view, degrees.
    """

    azimuth: float
    elevation: float
    distance: float
    look_at: tuple[float, float, float] = (0.45, 0.0, 0.20)
    fovy: float = 45.0

    def __post_init__(self) -> None:
        if not (-89 <= self.elevation <= 89 and self.distance > 0 and 0 < self.fovy < 180):
            raise ValueError(
                f"camera placement needs elevation in [-89, 89], distance > 0 and fovy in (0, 180), got {self}"
            )

    def as_dict(self) -> dict:
        """The fields as plain numbers, ready for JSON; `Placement(**fields)` reads them back."""
        fields = asdict(self)
        return {
            **{k: float(v) for k, v in fields.items() if k != "look_at"},
            "look_at": [float(v) for v in self.look_at],
        }

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) and rotation [3, 3] of MuJoCo's camera frame in the base frame."""
        azimuth, elevation = np.deg2rad([self.azimuth, self.elevation])
        back = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        rotation = np.stack([right, np.cross(back, right), back], axis=1)
        return np.asarray(self.look_at) + self.distance * back, rotation


def placement_from(fields: Mapping[str, Any] | str) -> Placement:
    """The placement of these fields (`Placement.as_dict` inverted) or of this preset; a ValueError lists the valid."""
    if isinstance(fields, str):
        return PRESETS[check_name("camera preset", fields, PRESETS)]
    for name in fields:
        check_name("field of a camera placement", name, Placement.__dataclass_fields__)
    try:
        return Placement(**{**fields, **({"look_at": tuple(fields["look_at"])} if "look_at" in fields else {})})
    except TypeError as error:
        raise ValueError(f"a camera placement needs azimuth, elevation and distance, got {dict(fields)}") from error


# "left" has the larger base-frame y, as in DROID; lab1's is the rig that the shipped models were trained on.
RIGS: dict[str, dict[str, Placement]] = {
    "lab1": {
        "left": Placement(azimuth=50.0, elevation=31.0, distance=1.0, look_at=(0.47, 0.0, 0.20), fovy=43.0),
        "right": Placement(azimuth=-50.0, elevation=31.0, distance=1.0, look_at=(0.47, 0.0, 0.20), fovy=43.0),
    },
    "lab2": {
        "left": Placement(azimuth=46.0, elevation=33.0, distance=1.08, look_at=(0.46, 0.0, 0.19), fovy=42.0),
        "right": Placement(azimuth=-54.0, elevation=29.0, distance=1.05, look_at=(0.48, 0.0, 0.21), fovy=42.0),
    },
}
# Presets around the table, to be placed by name; azimuth every 30 degrees, as camera sweeps ask for.
PRESETS: dict[str, Placement] = {
    "front": Placement(azimuth=0.0, elevation=31.0, distance=1.1, look_at=(0.45, 0.0, 0.20), fovy=43.0),
    "left_30": Placement(azimuth=30.0, elevation=31.0, distance=1.0, look_at=(0.47, 0.0, 0.20), fovy=43.0),
    "left_60": Placement(azimuth=60.0, elevation=31.0, distance=1.0, look_at=(0.47, 0.0, 0.20), fovy=43.0),
    "left_90": Placement(azimuth=90.0, elevation=31.0, distance=1.0, look_at=(0.47, 0.0, 0.20), fovy=43.0),
    "right_30": Placement(azimuth=-30.0, elevation=31.0, distance=1.0, look_at=(0.47, 0.0, 0.20), fovy=43.0),
    "right_60": Placement(azimuth=-60.0, elevation=31.0, distance=1.0, look_at=(0.47, 0.0, 0.20), fovy=43.0),
    "right_90": Placement(azimuth=-90.0, elevation=31.0, distance=1.0, look_at=(0.47, 0.0, 0.20), fovy=43.0),
    "above": Placement(azimuth=0.0, elevation=85.0, distance=1.3, look_at=(0.47, 0.0, 0.10), fovy=43.0),
}
EXTERIOR = ("left", "right")
CAMERAS = (*EXTERIOR, "wrist")  # the wrist camera belongs to the robot's model


def placement_quat(rotation: np.ndarray) -> np.ndarray:
    """Quaternion [4] (w first) of a rotation [3, 3]."""
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(rotation).ravel())
    return quat


def add_cameras(spec: mujoco.MjSpec, lab: str) -> None:
    """Add a lab's exterior rigs to a scene; they hang on the world body."""
    for name, placement in RIGS[lab].items():
        position, rotation = placement.pose()
        spec.worldbody.add_camera(name=name, pos=position, quat=placement_quat(rotation), fovy=placement.fovy)


def place_camera(model: mujoco.MjModel, name: str, placement: Placement) -> None:
    """Move an exterior camera of a compiled scene; takes effect at the next kinematics update.

    Raises:
        ValueError: The camera is unknown, or rides on the arm.
    """
    check_name("camera to place", name, EXTERIOR)
    camera = model.camera(name).id
    position, rotation = placement.pose()
    model.cam_pos[camera] = position
    model.cam_quat[camera] = placement_quat(rotation)
    model.cam_fovy[camera] = placement.fovy


def extrinsics(data: mujoco.MjData, name: str) -> np.ndarray:
    """Pose [6] of the OpenCV camera frame in the base frame: position (m), extrinsic-xyz Euler angles (rad)."""
    camera = data.camera(check_name("camera", name, CAMERAS))
    rotation = camera.xmat.reshape(3, 3) @ OPENCV_FROM_MUJOCO
    return np.concatenate([camera.xpos, matrix_to_euler(rotation)])


def intrinsics(model: mujoco.MjModel, name: str, height: int, width: int) -> np.ndarray:
    """Pinhole matrix [3, 3] in pixels for a frame of that size; the principal point is the image centre."""
    fovy = model.cam_fovy[model.camera(check_name("camera", name, CAMERAS)).id]
    focal = 0.5 * height / np.tan(0.5 * np.deg2rad(fovy))
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def project(point: np.ndarray, pose: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Pixels [..., 2] (column, row) of base-frame points [..., 3] (m), given extrinsics [6] and intrinsics [3, 3]."""
    local = (np.asarray(point) - pose[:3]) @ euler_to_matrix(pose[3:])
    return (local @ matrix.T)[..., :2] / local[..., 2:]
