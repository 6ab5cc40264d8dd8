"""What can stand in a scene: robots, objects and labs, each as a `mujoco.MjSpec` to be composed.

Frames: the robot's base frame is the world frame; z up, table top at z = 0, x forward from the arm.
Everything is named, so that a compiled model can be changed in place (`model.mat("lab_table").rgba = …`).

Quick use:
    spec = scene_spec(lab="lab1", objects=("cup",))
    model = spec.compile()
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mujoco
import numpy as np

from armworld.sim_assets.labs import LABS, lab_spec
from armworld.sim_assets.objects import GRASP_HEIGHT, OBJECTS, object_spec
from armworld.sim_assets.physics import TIMESTEP, apply_options
from armworld.types import check_name

__all__ = [
    "ARM_JOINTS",
    "DRIVER_JOINT",
    "GRASP_HEIGHT",
    "HOME_QPOS",
    "LABS",
    "OBJECTS",
    "ROBOTS",
    "TIMESTEP",
    "apply_options",
    "closedness",
    "lab_spec",
    "object_spec",
    "robot_spec",
    "scene_spec",
]

MJCF = Path(__file__).parent / "mjcf"

ROBOTS = ("robotiq_2f85", "franka_hand")
ARM_JOINTS = tuple(f"joint{i}" for i in range(1, 8))
"""Names of the arm's joints and, the same, of its position actuators."""

HOME_QPOS = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
"""Arm joints (rad) at reset: DROID's. Flange at (0.360, 0, 0.490) m, straight down: Euler angles (pi, 0, 0).

The 2F-85 then opens along the base's y axis; the Franka Hand, mounted 45 degrees askew, along a diagonal
(turn joint7 by pi/4 to square it)."""

DRIVER_JOINT = {"robotiq_2f85": "right_driver_joint", "franka_hand": "right_finger_joint"}
"""The joint whose position tells how far the gripper is closed."""

DRIVER_RANGE = {"robotiq_2f85": (0.0026, 0.7972), "franka_hand": (0.0, 0.04)}
"""Driver joint position at rest when commanded open, and closed on nothing (rad, measured; m for the Franka Hand).
Zero is open for both, so a fresh or reset simulation starts with an open gripper."""


def closedness(driver_position: float, gripper: str = "robotiq_2f85") -> float:
    """Gripper closedness in [0, 1], 0 open and 1 closed, from the driver joint's position (rad or m)."""
    check_name("gripper", gripper, ROBOTS)
    opened, closed = DRIVER_RANGE[gripper]
    return float(np.clip((driver_position - opened) / (closed - opened), 0.0, 1.0))


def robot_spec(gripper: str = "robotiq_2f85") -> mujoco.MjSpec:
    """The Panda with a gripper at its flange, base at the world's origin.

    Joints and actuators joint1 … joint7, actuator "gripper" (ctrl 0 open … 1 closed), sites "flange"
    (panda_link8) and "tip", camera "wrist". Raises ValueError for an unknown gripper.
    """
    check_name("gripper", gripper, ROBOTS)
    spec = mujoco.MjSpec.from_file(str(MJCF / "panda.xml"))
    apply_options(spec)
    hand = mujoco.MjSpec.from_file(str(MJCF / f"{gripper}.xml"))
    spec.attach(hand, prefix="", site=spec.site("flange"))
    return spec


def scene_spec(lab: str = "lab1", gripper: str = "robotiq_2f85", objects: Iterable[str] = ()) -> mujoco.MjSpec:
    """A lab with the robot and objects in it, names unchanged; objects start side by side on the table."""
    scene = lab_spec(lab)
    scene.attach(robot_spec(gripper), prefix="", frame=scene.worldbody.add_frame())
    for i, name in enumerate(objects):
        scene.attach(object_spec(name, lab=lab), prefix="", frame=scene.worldbody.add_frame(pos=[0.5, 0.2 * i, 0.001]))
    return scene
