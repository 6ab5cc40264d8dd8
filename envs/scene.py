"""Composition of a scene: lab + robot + objects + cameras, compiled once and reused over episodes."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from armworld.envs.cameras import add_cameras
from armworld.sim_assets import catalog


@dataclass(frozen=True)
class SceneConfig:
    """What a compiled model contains; another config needs another compilation.

    Attributes:
        robot: Gripper on the Panda: one of `catalog.ROBOTS`.
        lab: One of `catalog.LABS`.
        objects: Movable objects, in order; the task's own first.
    """

    robot: str = "robotiq_2f85"
    lab: str = "lab1"
    objects: tuple[str, ...] = ("cup", "box")


def build_model(config: SceneConfig) -> mujoco.MjModel:
    """Compile the scene. Raises ValueError for an unknown robot, lab or object."""
    spec = catalog.lab_spec(config.lab)
    spec.attach(catalog.robot_spec(config.robot), prefix="", frame=spec.worldbody.add_frame())
    for index, name in enumerate(config.objects):
        away = spec.worldbody.add_frame(pos=[0.0, 2.0 + index, 0.0])  # out of the arm's reach until it is placed
        spec.attach(catalog.object_spec(name, lab=config.lab), prefix="", frame=away)
    add_cameras(spec, config.lab)
    catalog.apply_options(spec)
    return spec.compile()


def subtree_geoms(model: mujoco.MjModel, body: str) -> np.ndarray:
    """Ids [n] of the geoms of a body and of everything below it."""
    root = model.body(body).id
    bodies = [b for b in range(model.nbody) if root in _ancestors(model, b)]
    return np.flatnonzero(np.isin(model.geom_bodyid, bodies))


def _ancestors(model: mujoco.MjModel, body: int) -> list[int]:
    """The body and its parents up to, not including, the world."""
    chain = []
    while body:
        chain.append(body)
        body = model.body_parentid[body]
    return chain


def object_extent(model: mujoco.MjModel, name: str) -> np.ndarray:
    """Bounding box [2, 3] (low, high; m) of an upright object's collision geoms, in its own frame."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    points = []
    for geom in subtree_geoms(model, name):
        if not model.geom_contype[geom] and not model.geom_conaffinity[geom]:
            continue
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        box = model.geom_aabb[geom, :3] + corners * model.geom_aabb[geom, 3:]
        points.append(model.geom_pos[geom] + box @ rotation.reshape(3, 3).T)
    points = np.concatenate(points)
    return np.stack([points.min(0), points.max(0)])
