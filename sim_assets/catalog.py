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

from armworld.types import check_name

MJCF = Path(__file__).parent / "mjcf"

ROBOTS = ("robotiq_2f85", "franka_hand")
OBJECTS = ("cup", "box", "bottle")
LABS = ("lab1", "lab2")
ARM_JOINTS = tuple(f"joint{i}" for i in range(1, 8))
"""Names of the arm's joints and, the same, of its position actuators."""

HOME_QPOS = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
"""Arm joints (rad) at reset: DROID's; flange at (0.36, 0, 0.49) m, gripper straight down."""

TIMESTEP = 0.002
"""Physics step, s."""

DRIVER_JOINT = {"robotiq_2f85": "right_driver_joint", "franka_hand": "right_finger_joint"}
"""The joint whose position tells how far the gripper is closed."""

DRIVER_RANGE = {"robotiq_2f85": (0.0, 0.8), "franka_hand": (0.04, 0.0)}
"""Driver joint position when open and when closed on nothing (rad; m for the Franka Hand)."""


def closedness(driver_position: float, gripper: str = "robotiq_2f85") -> float:
    """Gripper closedness in [0, 1], 0 open and 1 closed, from the driver joint's position (rad or m)."""
    check_name("gripper", gripper, ROBOTS)
    opened, closed = DRIVER_RANGE[gripper]
    return float(np.clip((driver_position - opened) / (closed - opened), 0.0, 1.0))


def apply_options(spec: mujoco.MjSpec) -> None:
    """Set the physics options that every scene shares (an attached child's own options are dropped)."""
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0  # frictional constraints harder than normal ones: held objects do not creep
    spec.visual.global_.offwidth = 1280
    spec.visual.global_.offheight = 1280


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


def object_spec(name: str, size: float = 1.0, rgba: Iterable[float] | None = None) -> mujoco.MjSpec:
    """One graspable object: a body and a free joint both named `name`, origin at the centre of its underside.

    Args:
        name: cup, box or bottle.
        size: scale of every length; masses scale with its cube.
        rgba: colour of the material named `name`; each object has its own default.
    """
    check_name("object", name, OBJECTS)
    spec = mujoco.MjSpec()
    apply_options(spec)
    material = spec.add_material(name=name, rgba=rgba or (0.8, 0.25, 0.2, 1))
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.025 * size] * 3,
        pos=[0, 0, 0.025 * size],
        mass=0.1,
        material=material.name,
    )
    return spec


def lab_spec(name: str) -> mujoco.MjSpec:
    """A room with a table: everything around the robot."""
    check_name("lab", name, LABS)
    spec = mujoco.MjSpec()
    apply_options(spec)
    spec.add_material(name="lab_table", rgba=(0.6, 0.5, 0.4, 1))
    spec.worldbody.add_geom(
        name="lab_table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.6, 0.8, 0.02],
        pos=[0.4, 0, -0.02],
        material="lab_table",
    )
    spec.worldbody.add_light(name="lab_key", pos=[0.5, 0.5, 2.0], dir=[0, -0.2, -1])
    return spec


def scene_spec(lab: str = "lab1", gripper: str = "robotiq_2f85", objects: Iterable[str] = ()) -> mujoco.MjSpec:
    """A lab with the robot and objects in it, names unchanged; objects start side by side on the table."""
    scene = lab_spec(lab)
    scene.attach(robot_spec(gripper), prefix="", frame=scene.worldbody.add_frame())
    for i, name in enumerate(objects):
        scene.attach(object_spec(name), prefix="", frame=scene.worldbody.add_frame(pos=[0.5, 0.2 * i, 0.001]))
    return scene
