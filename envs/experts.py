"""Scripted experts: the ceiling. They read the simulator's true state and act through the same 7-D actions."""

from __future__ import annotations

import gymnasium
import numpy as np

from armworld.envs.base import ArmEnv
from armworld.envs.scripts import Script, action_towards
from armworld.types import Goal, Observation

__all__ = ["ScriptedExpert", "action_towards", "make_expert"]


class ScriptedExpert:
    """Plays the script of an environment's task, each action from the true state, and holds still at its end.

    Attributes:
        phase: Name of the phase that the last action belongs to ("hold" at the end).
    """

    def __init__(self, env: ArmEnv):
        self._env = env
        self._script: Script = iter(())
        self.phase = "hold"

    def reset(self, goal: Goal) -> None:
        """Begin the episode that the environment was just reset to."""
        self._script = self._env.task.script(self._env.simulator)
        self.phase = "hold"

    def act(self, observation: Observation) -> np.ndarray:
        """The next action [7]."""
        self.phase, action = next(self._script, ("hold", np.zeros(7)))
        return action


def make_expert(env: gymnasium.Env) -> ScriptedExpert:
    """The scripted expert of an environment's task; it follows that very environment from reset to reset."""
    arm = env.unwrapped
    if not isinstance(arm, ArmEnv):
        raise ValueError(f"experts are for armworld's own environments, got {type(arm).__name__}")
    return ScriptedExpert(arm)
