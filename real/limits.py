"""What the safety gate enforces: boxes, fingers, speeds, ages. Metres, radians, robot base frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

MAX_SPEED_M_S = 0.25  # ISO 10218-1's reduced speed; the gate accepts no more
DEGREES_RAD = 0.8  # a rotation beyond 46 degrees in one step is taken for a unit mistake, never shortened
MILLIMETRES_M = 1.0  # a translation beyond 1 m in one step is taken for millimetres


@dataclass(frozen=True)
class Box:
    """An axis-aligned box, corners in metres, base frame."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        corners = np.array([self.low, self.high], float)
        if corners.shape != (2, 3) or not np.isfinite(corners).all() or not (corners[0] < corners[1]).all():
            raise ValueError(f"a box needs two finite corners [3] with low < high, got {self.low} and {self.high}")

    def outside(self, points: np.ndarray) -> np.ndarray:
        """How far points [..., 3] lie outside (m, largest axis); 0 or less inside."""
        return np.maximum(np.array(self.low) - points, points - np.array(self.high)).max(-1)


@dataclass(frozen=True)
class Fingers:
    """The fingertips, widest and longest: `length_m` along the flange's z, apart along its y turned by `yaw_rad`."""

    length_m: float
    half_span_m: float
    yaw_rad: float

    def points(self) -> np.ndarray:
        """Both fingertips [2, 3] in the flange frame."""
        across = self.half_span_m * np.array([-np.sin(self.yaw_rad), np.cos(self.yaw_rad), 0.0])
        tip = np.array([0.0, 0.0, self.length_m])
        return np.stack([tip + across, tip - across])

    def plane(self, spacing_m: float) -> np.ndarray:
        """Points [P, 3] in the flange frame, at most `spacing_m` apart along and across, over all that fingers take up
        at any opening: the rectangle from the flange down to both tips at their widest."""
        tips = self.points()
        middle = tips.mean(0)
        along, across = (
            np.linspace(low, 1, 1 + math.ceil((1 - low) * length / spacing_m))
            for low, length in ((0, self.length_m), (-1, self.half_span_m))
        )
        return (along[:, None, None] * middle + across[:, None] * (tips[0] - middle)).reshape(-1, 3)


# Franka Hand: tool centre 0.1034 m from the flange, 9 mm of finger beyond it; 80 mm opening; mounted at -45°.
FRANKA_HAND = Fingers(0.1124, 0.05, -np.pi / 4)
# Robotiq 2F-85: coupling 14 mm + 163 mm when closed, which is its longest (its fingers reach 13 mm farther closed than
# open; sim_assets' model ends at 0.1734); 85 mm opening plus the fingers' thickness, which is its widest.
ROBOTIQ_2F85 = Fingers(0.177, 0.055, 0.0)
FINGERS = {"franka_hand": FRANKA_HAND, "robotiq_2f85": ROBOTIQ_2F85}


@dataclass(frozen=True)
class Limits:
    """The gate's limits. The two boxes have no default: nobody else knows the table.

    Attributes:
        workspace: Where the flange may be.
        fingertips: Where the fingertips may be (its floor a little above the table).
        keep_out: Boxes that neither flange nor fingers may enter, at any opening (`Fingers.plane`).
        fingers: Fingertip geometry.
        step_seconds: Time of one action.
        max_speed: Of flange and fingertips, m/s; at most 0.25.
        max_rotation_rate: rad/s.
        max_tilt: Largest angle between the flange's z axis and straight down, rad.
        max_closedness_rate: Gripper, 1/s.
        tracking_m: How far outside a box the arm may stand (its tracking error) and still be led back in.
        max_frame_age, max_state_age, max_plan_age: Seconds.
        max_drift: How far the arm may be from the way from where the plan saw it to where it was last sent, m.
        gripper_stall: Seconds without motion before a gripper that is off its target counts as stalled.
        min_brightness, min_contrast: Mean and standard deviation (of 255); darker frames are black.
    """

    workspace: Box
    fingertips: Box
    keep_out: tuple[Box, ...] = ()
    fingers: Fingers = field(default=ROBOTIQ_2F85)
    step_seconds: float = 0.25
    max_speed: float = MAX_SPEED_M_S
    max_rotation_rate: float = 1.0
    max_tilt: float = 0.7
    max_closedness_rate: float = 4.0
    tracking_m: float = 0.005
    max_frame_age: float = 0.3
    max_state_age: float = 0.2
    max_plan_age: float = 1.0
    max_drift: float = 0.03
    gripper_stall: float = 1.0
    min_brightness: float = 4.0
    min_contrast: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.max_speed <= MAX_SPEED_M_S:
            raise ValueError(f"max_speed must lie in (0, {MAX_SPEED_M_S}] m/s, got {self.max_speed}")
        if not 0 < self.max_rotation_rate * self.step_seconds <= DEGREES_RAD:
            raise ValueError(
                f"max_rotation_rate * step_seconds must lie in (0, {DEGREES_RAD}] rad, "
                f"got {self.max_rotation_rate} * {self.step_seconds}"
            )
        for name in ("step_seconds", "max_closedness_rate", "max_frame_age", "max_state_age", "max_plan_age",
                     "max_drift", "gripper_stall", "max_tilt"):  # fmt: skip
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.tracking_m <= 0.02:
            raise ValueError(f"tracking_m must lie in [0, 0.02] m, got {self.tracking_m}")
