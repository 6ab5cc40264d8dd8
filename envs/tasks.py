"""The tasks: how an episode starts, what its goal is, and the strict physical predicate that decides it.

A task object holds the present episode's targets; `armworld.envs.base.ArmEnv` owns it and counts the dwell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from armworld.envs.layout import NoRoom, flange_state, move_arm, place_bystanders
from armworld.envs.simulator import Simulator
from armworld.types import Goal, Observation

Observe = Callable[[], Observation]
REACH_LOW = np.array([0.36, -0.25, 0.24])  # m: flange starts and goals of reach; the fingertips stay 8 cm up
REACH_HIGH = np.array([0.62, 0.25, 0.46])
SETTLE_SECONDS = 0.25


class Task(ABC):
    """One task for one object.

    Attributes:
        object: The object that the task is about (a bystander in reach).
        max_steps: Episode length unless the environment is told otherwise.
        tolerance: Distance that the predicate allows, m.
    """

    name: str
    max_steps: int
    tolerance: float

    def __init__(self, object_name: str, bystanders: tuple[str, ...]):
        self.object = object_name
        self.bystanders = bystanders
        self.targets: dict[str, Any] = {}

    @abstractmethod
    def begin(self, sim: Simulator, rng: np.random.Generator, observe: Observe) -> tuple[Goal, dict]:
        """Bring the scene to a random start; return the goal and the draws. NoRoom: the caller tries again."""

    @abstractmethod
    def distance(self, sim: Simulator) -> float:
        """Distance to the goal, m."""

    @abstractmethod
    def solved(self, sim: Simulator) -> bool:
        """Whether the predicate holds at this instant."""

    def snapshot(self) -> dict[str, Any]:
        """The episode's targets, for `ArmEnv.save_state`."""
        return deepcopy(self.targets)


class Reach(Task):
    """Bring the flange to a pose: within 4 cm of the goal (the paper's figure)."""

    name, max_steps, tolerance = "reach", 15, 0.04
    nearest, furthest = 0.10, 0.50  # m between start and goal

    def begin(self, sim: Simulator, rng: np.random.Generator, observe: Observe) -> tuple[Goal, dict]:
        start, goal = rng.uniform(REACH_LOW, REACH_HIGH, (2, 3))
        if not self.nearest <= np.linalg.norm(goal - start) <= self.furthest:
            raise NoRoom("start and goal are too near or too far")
        start, goal = flange_state(start), flange_state(goal)
        move_arm(sim, start)
        tool = sim.tip - sim.state[:3]
        path = (start[:3] + tool, goal[:3] + tool)
        placed = place_bystanders(sim, (self.object, *self.bystanders), rng, [path], [])
        settle(sim)
        saved = sim.save()
        move_arm(sim, goal)
        settle(sim)
        self.targets = {"position": sim.state[:3]}
        observation = observe()
        sim.restore(saved)
        draws = {"start_state": start.tolist(), "goal_state": goal.tolist(), "objects": placed}
        return Goal((observation,), (self.max_steps,)), draws

    def distance(self, sim: Simulator) -> float:
        return float(np.linalg.norm(sim.state[:3] - self.targets["position"]))

    def solved(self, sim: Simulator) -> bool:
        return self.distance(sim) < self.tolerance


def settle(sim: Simulator) -> None:
    """Hold still for one control step, so that objects rest and servos arrive."""
    sim.step(np.zeros(7))


TASKS: dict[str, type[Task]] = {"reach": Reach}
