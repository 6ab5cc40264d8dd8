"""Tasks for the simulated robot: a goal of its own drawing, or one of the simulation's with the object where it stands.

Reaching: the arm drives to a drawn pose, takes the picture and drives back. Grasping and pick-and-place: the start,
the object's place and the goal's pictures and states are those of `armworld plan` with the same seed, so that the two
can be compared; the arm drives to the start and the object is put under it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from armworld.real.driving import Driver
from armworld.real.goals import save_goal
from armworld.real.session import ENDED_WELL
from armworld.real.simulated import SimulatedRobot
from armworld.types import Goal

TASKS = ("reach", "grasp", "pick_place")
# Where reaching draws from: flange position (m) and turn about the vertical (rad).
GOAL_LOW, GOAL_HIGH = np.array([0.40, -0.22, 0.22, -0.3]), np.array([0.60, 0.22, 0.42, 0.3])
REST_S, REST_M = 0.3, 0.003  # an object that moved less than this meanwhile is at rest


@dataclass(frozen=True)
class Drawn:
    """A task as drawn.

    Attributes:
        goal: Sub-goals with states [7], and their budgets.
        start: State [7] that the arm drives to; None leaves it where it is.
        object_at: Where the object stands: x, y, z (m) and yaw (rad); None leaves it where it is.
        bystander_at: Where another object stands, the same way, that the task's pictures show; None for none.
        target: Where its origin shall end [3] (m); None where the object does not matter.
    """

    goal: Goal
    start: np.ndarray | None = None
    object_at: np.ndarray | None = None
    bystander_at: np.ndarray | None = None
    target: np.ndarray | None = None


@dataclass(frozen=True)
class Verdict:
    """What the simulated world says of the object at the end: solved, and how far it is from where it should be (m)."""

    solved: bool
    object_m: float


def draw_reach(driver: Driver, rng: np.random.Generator, folder: Path, name: str, steps: int) -> Drawn:
    """Drive to a drawn pose, look, save the picture as a goal folder, and drive back.

    Raises:
        ValueError: The arm did not get there, or not back.
    """
    home = np.asarray(driver.look()["state"], float)
    target = np.array([*rng.uniform(GOAL_LOW[:3], GOAL_HIGH[:3]), *home[3:6], 0.0])
    target[5] += rng.uniform(GOAL_LOW[3], GOAL_HIGH[3])
    go(driver, target, f"goal{name}")
    there = driver.look()
    save_goal(folder / f"goal{name}", there)
    go(driver, home, f"home{name}")
    return Drawn(Goal((there,), (steps,)))


def go(driver: Driver, state: np.ndarray, name: str) -> None:
    """Drive to a state [7]; ValueError where that does not end well, unless the operator stopped it."""
    outcome = driver.drive(state, name)
    if outcome.reason not in ENDED_WELL and not driver.stop.event.is_set():
        raise ValueError(f"the arm did not get to {np.round(state, 3).tolist()}: {outcome.reason}")


def draw_task(
    task: str, object_name: str, lab: str, camera: str, size: int, step_seconds: float, seed: int, subgoals: bool
) -> Drawn:
    """Grasp or pick_place as `armworld plan` draws it with this seed, without randomisation.

    Args:
        task: "grasp" or "pick_place".
        object_name, lab, camera, step_seconds: Of the environment.
        size: Height and width of the pictures.
        seed: Of the episode.
        subgoals: Show every moment of the way, as `armworld plan --subgoals`.
    """
    import gymnasium

    import armworld.envs  # noqa: F401  (registers the environments)

    names = {"grasp": "armworld/Grasp-v0", "pick_place": "armworld/PickPlace-v0"}
    settings: dict[str, Any] = {"object": object_name, "lab": lab, "cameras": (camera,), "image_size": size}
    env: Any = gymnasium.make(names[task], step_seconds=step_seconds, subgoals=subgoals, **settings)
    try:
        _, info = env.reset(seed=seed)
        target = np.array(env.unwrapped.task.targets["object"], float)
    finally:
        env.close()
    draws = info["draws"]
    objects = {name: np.array(place) for name, place in draws["objects"].items()}
    bystander = next((place for name, place in objects.items() if name != object_name), None)
    return Drawn(info["goal"], np.array(draws["start_state"]), objects[object_name], bystander, target)


def set_up(drawn: Drawn, driver: Driver, robot: SimulatedRobot, name: str) -> None:
    """Bring arm and object to the task's start, the arm first: it starts above the object."""
    if drawn.start is not None:
        go(driver, drawn.start, f"start{name}")
    if drawn.object_at is not None:
        x, y, z, yaw = drawn.object_at
        robot.place_object(np.array([x, y, z]), float(yaw))
    if drawn.bystander_at is not None:
        robot.show_bystander(drawn.bystander_at)


def judge(task: str, target: np.ndarray, stood_m: float, robot: SimulatedRobot) -> Verdict:
    """The task's own predicate (`envs.tasks`) on the simulated robot's world.

    Args:
        task: "grasp" or "pick_place".
        target: Where the object's origin should be [3], m.
        stood_m: The height at which it stood, m.
        robot: Its arm at rest.
    """
    from armworld.envs.tasks import LIFTED, UPRIGHT, PickPlace

    before = robot.truth()
    time.sleep(REST_S)
    after = robot.truth()
    resting = float(np.linalg.norm(after.object_pose[:3] - before.object_pose[:3])) < REST_M
    off = float(np.linalg.norm(after.object_pose[:3] - target))
    if task == "grasp":
        lifted = after.object_pose[2] - stood_m > LIFTED
        return Verdict(bool(after.touched and not after.supported and lifted and resting), off)
    w, x, y, z = after.object_pose[3:]
    tilt = float(np.arccos(np.clip(Rotation.from_quat([x, y, z, w]).as_matrix()[2, 2], -1, 1)))
    near = off < PickPlace.tolerance and tilt < UPRIGHT
    return Verdict(bool(near and after.supported and not after.touched and resting), off)
