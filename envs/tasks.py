"""The tasks: how an episode starts, what its goal is, and the strict physical predicate that decides it.

A task object holds the present episode's targets; `armworld.envs.base.ArmEnv` owns it and counts the dwell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import mujoco
import numpy as np

from armworld.envs.layout import ExpertFailed, NoRoom, flange_state, footprint, move_arm, place_bystanders
from armworld.envs.scripts import (
    HOVER,
    Script,
    action_towards,
    carry_phases,
    grasp_height,
    grasp_phases,
    place_phases,
    play,
    tilt,
    up,
)
from armworld.envs.simulator import Simulator
from armworld.types import Goal, Observation

Observe = Callable[[], Observation]
REACH_LOW = np.array([0.36, -0.25, 0.24])  # m: flange starts and goals of reach; the fingertips stay 8 cm up
REACH_HIGH = np.array([0.62, 0.25, 0.46])
OBJECT_LOW, OBJECT_HIGH = np.array([0.40, -0.22]), np.array([0.60, 0.22])  # m: where task objects stand and go
LIFTED = 0.02  # m that the underside of a held object must be above the table
DWELL = 3  # success: the predicate holds now and at the two previous steps
SLIP_SPEED = 0.02  # m/s between a held object and the fingertips
REST_SPEED = 0.01  # m/s of an object at rest
UPRIGHT = float(np.deg2rad(15))


class Task(ABC):
    """One task for one object.

    Attributes:
        object: The object that the task is about (a bystander in reach).
        subgoals: Show more moments on the way than the paper does (grasp and pick_place).
        max_steps: Episode length unless the environment is told otherwise.
        tolerance: Distance that the predicate allows, m.
        bystanders: The other objects of the present episode.
        start_yaw: Yaw of the arm at the start of the present episode, rad.
    """

    name: str
    max_steps: int
    tolerance: float

    def __init__(self, object_name: str, subgoals: bool = False):
        self.object = object_name
        self.subgoals = subgoals
        self.bystanders: tuple[str, ...] = ()
        self.start_yaw = 0.0
        self.targets: dict[str, Any] = {}

    @abstractmethod
    def begin(self, sim: Simulator, rng: np.random.Generator, observe: Observe) -> tuple[Goal, dict]:
        """Bring the scene to a random start; return the goal and the draws. NoRoom: the caller tries again."""

    @abstractmethod
    def script(self, sim: Simulator) -> Script:
        """The scripted expert's (phase name, action [7]) for each coming state of the present episode."""

    @abstractmethod
    def distance(self, sim: Simulator) -> float:
        """Distance to the goal, m."""

    @abstractmethod
    def solved(self, sim: Simulator) -> bool:
        """Whether the predicate holds at this instant."""

    @abstractmethod
    def targets_here(self, sim: Simulator) -> dict[str, Any]:
        """Targets that the present configuration would satisfy, for a goal taken from a saved state."""

    def targets_from_state(self, state: np.ndarray) -> dict[str, Any]:
        """Targets that an arm state [7] tells; {}: it does not tell enough to judge this task."""
        return {}

    def snapshot(self) -> dict[str, Any]:
        """The episode's targets, for `ArmEnv.save_state`."""
        return deepcopy(self.targets)


class Reach(Task):
    """Bring the flange to a pose: within 4 cm of the goal (the paper's figure).

    The goal's image shows where the expert stops, at most 1 mm from the pose drawn, by which success is judged.
    """

    name, max_steps, tolerance = "reach", 15, 0.04
    arrived = 0.001  # m from the target at which the expert stops
    nearest, furthest = 0.10, 0.50  # m between start and goal

    def begin(self, sim: Simulator, rng: np.random.Generator, observe: Observe) -> tuple[Goal, dict]:
        start, goal = rng.uniform(REACH_LOW, REACH_HIGH, (2, 3))
        if not self.nearest <= np.linalg.norm(goal - start) <= self.furthest:
            raise NoRoom("start and goal are too near or too far")
        start, goal = flange_state(start, self.start_yaw), flange_state(goal, self.start_yaw)
        move_arm(sim, start)
        tool = sim.tip - sim.state[:3]
        path = (start[:3] + tool, goal[:3] + tool)
        placed = place_bystanders(sim, (self.object, *self.bystanders), rng, [path], [])
        settle(sim)
        saved = sim.save()
        self.targets = self.targets_from_state(goal)
        frames = film(sim, self.script(sim), observe, limit=type(self).max_steps - DWELL)
        sim.restore(saved)
        draws = {"start_state": start.tolist(), "goal_state": goal.tolist(), "objects": placed}
        return Goal(tuple(frames), (self.max_steps,)), draws

    def script(self, sim: Simulator) -> Script:
        while self.distance(sim) > self.arrived:
            state = sim.state
            yield "reach", action_towards(state, np.concatenate([self.targets["position"], state[3:]]))

    def targets_here(self, sim: Simulator) -> dict[str, Any]:
        return self.targets_from_state(sim.state)

    def targets_from_state(self, state: np.ndarray) -> dict[str, Any]:
        return {"position": np.asarray(state[:3], float)}

    def distance(self, sim: Simulator) -> float:
        return mujoco.mju_norm3(sim.flange - self.targets.get("position", np.nan))

    def solved(self, sim: Simulator) -> bool:
        return self.distance(sim) < self.tolerance


def held(sim: Simulator, name: str) -> bool:
    """Whether both fingers, and nothing but the robot, touch the object and it is lifted and does not slip."""
    contact = sim.contact_report()[name]
    if not (contact["left"] and contact["right"]) or contact["other"]:
        return False
    if sim.underside(name) < sim.table_height + LIFTED:
        return False
    return mujoco.mju_norm3(sim.object_velocity(name)[:3] - sim.tip_velocity) < SLIP_SPEED


def settle(sim: Simulator) -> None:
    """Hold still for one control step, so that objects rest and servos arrive."""
    sim.step(np.zeros(7))


def film(
    sim: Simulator, script: Script, observe: Observe | None = None, keep: tuple[str, ...] = (), limit: int = 40
) -> list[Observation]:
    """Run a script and then hold for one step; the observations at the end of the phases `keep` and at the very end.

    ExpertFailed if it takes more than `limit` steps.
    """
    frames, previous = [], None
    for count, (phase, action) in enumerate(script):
        if count == limit:
            raise ExpertFailed(f"the script needs more than {limit} steps")
        if observe and previous in keep and phase != previous:
            frames.append(observe())
        sim.step(action)
        previous = phase
    settle(sim)
    return [*frames, observe()] if observe else frames


class ObjectTask(Task):
    """What the tasks that move an object share: its distance to where the expert leaves it."""

    def place(self, sim: Simulator, rng: np.random.Generator, spot: np.ndarray) -> list[float]:
        """Stand the task's object at `spot` [2] (m), at a random yaw; returns [x, y, z, yaw]."""
        yaw = float(rng.uniform(-np.pi, np.pi))
        sim.place_object(self.object, np.array([*spot, sim.table_height]), yaw)
        return [*spot.tolist(), sim.table_height, yaw]

    def demonstrate(self, sim: Simulator, observe: Observe, keep: tuple[str, ...] = ()) -> list[Observation]:
        """Film the expert from here to its end, remember where the object ends, and return to here.

        ExpertFailed if it does not end solved, or passes over one of `keep`: such a start has no goal images.
        """
        saved = sim.save()
        frames = film(sim, self.script(sim), observe, keep, type(self).max_steps - DWELL)
        self.targets["object"] = sim.object_pose(self.object)[0]
        solved = self.solved(sim)
        sim.restore(saved)
        if not solved or len(frames) != len(keep) + 1:
            raise ExpertFailed("the scripted expert does not solve this start")
        return frames

    def targets_here(self, sim: Simulator) -> dict[str, Any]:
        place = sim.object_pose(self.object)[0]
        return {"object": place, "place": place, "position": sim.state[:3]}

    def distance(self, sim: Simulator) -> float:
        """Distance from the object to where it is in the goal, m."""
        return mujoco.mju_norm3(sim.object_pose(self.object)[0] - self.targets.get("object", np.nan))


class Grasp(ObjectTask):
    """Take the object with both fingers and lift it by at least 2 cm, without slipping.

    The goal is one image, the object lifted, as in the paper. With `subgoals` it is three: the hand above the object,
    the fingers closed around it, the object lifted.
    """

    name, max_steps, tolerance = "grasp", 20, LIFTED
    budgets = (8, 6, 6)

    def begin(self, sim: Simulator, rng: np.random.Generator, observe: Observe) -> tuple[Goal, dict]:
        self.targets = {}
        start = flange_state(rng.uniform(REACH_LOW, REACH_HIGH), self.start_yaw)
        placed = self.place(sim, rng, rng.uniform(OBJECT_LOW, OBJECT_HIGH))
        move_arm(sim, start)
        over = np.array([*placed[:2], 0.0])
        taken = [(over[:2], footprint(sim, self.object) + 0.10)]
        others = place_bystanders(sim, self.bystanders, rng, [(sim.tip, over)], taken)
        settle(sim)
        frames = self.demonstrate(sim, observe, ("approach", "close") if self.subgoals else ())
        draws = {"start_state": start.tolist(), "objects": {self.object: placed, **others}}
        return Goal(tuple(frames), self.budgets if self.subgoals else (self.max_steps,)), draws

    def script(self, sim: Simulator) -> Script:
        yield from play(sim, grasp_phases(sim, self.object))

    def solved(self, sim: Simulator) -> bool:
        return held(sim, self.object)


class ReachWithObject(ObjectTask):
    """Bring the held object to where the goal shows it: within 5 cm, still held."""

    name, max_steps, tolerance = "reach_with_object", 15, 0.05
    nearest, furthest = 0.10, 0.50

    def begin(self, sim: Simulator, rng: np.random.Generator, observe: Observe) -> tuple[Goal, dict]:
        self.targets = {}
        low = REACH_LOW + up(max(0.0, grasp_height(sim, self.object) - 0.04))
        start, goal = rng.uniform(low, np.maximum(REACH_HIGH, low + 0.05), (2, 3))
        if not self.nearest <= np.linalg.norm(goal - start) <= self.furthest:
            raise NoRoom("start and goal are too near or too far")
        placed = self.place(sim, rng, rng.uniform(OBJECT_LOW, OBJECT_HIGH))
        spot, height = np.array(placed[:3]), sim.object_extent(self.object)[1, 2]
        tool = up(float(np.linalg.norm(sim.tip - sim.state[:3])))
        move_arm(sim, flange_state(spot + tool + up(height + HOVER)))
        hang = tool + up(grasp_height(sim, self.object))  # from the object's underside up to the flange
        paths = [(spot, spot), (spot + up(0.1), start - hang), (start - hang, goal - hang)]
        others = place_bystanders(sim, self.bystanders, rng, paths, [])
        settle(sim)
        film(sim, play(sim, grasp_phases(sim, self.object)))
        film(sim, play(sim, carry_phases(sim, start)))
        if not held(sim, self.object):
            raise ExpertFailed("the object was lost on the way to the start")
        self.targets = {"position": goal}
        frames = self.demonstrate(sim, observe)
        draws = {
            "start_state": sim.state.tolist(),
            "goal_position": goal.tolist(),
            "objects": {self.object: placed, **others},
        }
        return Goal(tuple(frames), (self.max_steps,)), draws

    def script(self, sim: Simulator) -> Script:
        yield from play(sim, carry_phases(sim, self.targets["position"]))

    def solved(self, sim: Simulator) -> bool:
        return held(sim, self.object) and self.distance(sim) < self.tolerance


class PickPlace(ObjectTask):
    """Put the object where the goal shows it: within 5 cm, upright, at rest, released.

    Three sub-goals, as in the paper: grasped, near the place, placed (and let go, the hand still there); budgets 4, 10
    and 4 steps. With `subgoals` there are two more, the hand above the object before and above the placed object after
    them, and four steps more.
    """

    name, max_steps, tolerance = "pick_place", 22, 0.05
    nearest, furthest = 0.12, 0.40
    budgets = (4, 10, 4)
    all_budgets = (4, 4, 10, 4, 4)

    def __init__(self, object_name: str, subgoals: bool = False):
        super().__init__(object_name, subgoals)
        if subgoals:
            self.max_steps += 4

    def begin(self, sim: Simulator, rng: np.random.Generator, observe: Observe) -> tuple[Goal, dict]:
        spots = rng.uniform(OBJECT_LOW, OBJECT_HIGH, (2, 2))
        if not self.nearest <= np.linalg.norm(spots[1] - spots[0]) <= self.furthest:
            raise NoRoom("the object's place and its goal are too near or too far")
        placed = self.place(sim, rng, spots[0])
        source, place = (np.array([*spot, sim.table_height]) for spot in spots)
        self.targets = {"place": place}
        height = sim.object_extent(self.object)[1, 2]
        tool = up(float(np.linalg.norm(sim.tip - sim.state[:3])))
        hover = np.array([*rng.uniform(-0.08, 0.08, 2), height + HOVER + rng.uniform(0.0, 0.05)])
        start = flange_state(source + tool + hover, self.start_yaw)
        move_arm(sim, start)
        lifted = up(0.10)
        paths = [(source, source), (source + lifted, place + lifted), (place, place)]
        others = place_bystanders(sim, self.bystanders, rng, paths, [])
        settle(sim)
        above = ("approach",) if self.subgoals else ()
        frames = self.demonstrate(sim, observe, (*above, "close", "carry", "release"))
        frames = frames if self.subgoals else frames[:-1]  # not the retreat
        draws = {
            "start_state": start.tolist(),
            "goal_position": place.tolist(),
            "objects": {self.object: placed, **others},
        }
        return Goal(tuple(frames), self.all_budgets if self.subgoals else self.budgets), draws

    def script(self, sim: Simulator) -> Script:
        yield from play(sim, grasp_phases(sim, self.object))
        yield from play(sim, place_phases(sim, self.object, self.targets["place"]))

    def solved(self, sim: Simulator) -> bool:
        contact = sim.contact_report()[self.object]
        return (
            self.distance(sim) < self.tolerance
            and tilt(sim.object_pose(self.object)[1]) < UPRIGHT
            and contact["other"]
            and not contact["robot"]
            and contact["speed"] < REST_SPEED
        )


TASKS: dict[str, type[Task]] = {task.name: task for task in (Reach, Grasp, ReachWithObject, PickPlace)}
