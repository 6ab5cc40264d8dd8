"""Scripted experts: the ceiling. They read the simulator's true state and act through the same 7-D actions."""

from __future__ import annotations

import gymnasium
import numpy as np

from armworld.envs.base import ArmEnv
from armworld.envs.controller import ACTION_BOUND
from armworld.envs.simulator import Simulator
from armworld.envs.tasks import Reach
from armworld.pose import action_between
from armworld.types import Goal, Observation


def action_towards(state: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The action [7] from state [7] towards a target state [7], along a straight line and within the bounds.

    Translation and rotation are each shortened as a whole, so that the direction is kept.
    """
    action = action_between(state, target)
    for part in (slice(0, 3), slice(3, 6), slice(6, 7)):
        action[part] /= max(1.0, float(np.max(np.abs(action[part]) / ACTION_BOUND[part])))
    return action


class ReachExpert:
    """Straight to the goal position, orientation and gripper as they are."""

    def __init__(self, sim: Simulator, task: Reach):
        self._sim, self._task = sim, task

    def reset(self, goal: Goal) -> None:
        """Begin an episode; the task knows the target."""

    def act(self, observation: Observation) -> np.ndarray:
        """The next action [7]."""
        state = self._sim.state
        return action_towards(state, np.concatenate([self._task.targets["position"], state[3:]]))


EXPERTS = {"reach": ReachExpert}


def make_expert(env: gymnasium.Env) -> ReachExpert:
    """The scripted expert of an environment's task; it follows that very environment from reset to reset."""
    arm = env.unwrapped
    if not isinstance(arm, ArmEnv):
        raise ValueError(f"experts are for armworld's own environments, got {type(arm).__name__}")
    return EXPERTS[arm.task.name](arm.simulator, arm.task)
