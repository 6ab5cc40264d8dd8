"""Agents for a deployment: the scripted expert that reads the goal's state, and the planners on a world model."""

from __future__ import annotations

from typing import Any

import numpy as np

from armworld.evaluation.agents import AGENTS, AgentSettings, load_model, settings_for
from armworld.pose import action_between
from armworld.types import Agent, Goal, Observation, check_name

ARRIVED_M, ARRIVED_RAD, ARRIVED_CLOSEDNESS = 0.005, 0.03, 0.05


class ServoAgent:
    """Goes straight to the goal's state, in steps: the expert on a real arm, where no simulator can be read.

    Args:
        max_step_m: Longest translation of an action.
        max_turn_rad: Largest rotation of an action, per angle.
        full_grip: Where the arm has arrived, and only there, open or close fully until the gripper is as in the goal;
            at the goal's own closedness the fingers would touch an object without pressing.
    """

    def __init__(self, max_step_m: float = 0.05, max_turn_rad: float = 0.15, full_grip: bool = False) -> None:
        self.max_step_m, self.max_turn_rad, self.full_grip = max_step_m, max_turn_rad, full_grip
        self._targets: list[np.ndarray] = []
        self._at = 0

    def reset(self, goal: Goal) -> None:
        """Begin an episode. Raises ValueError when a sub-goal has no state (a goal from a picture only)."""
        if any("state" not in observation for observation in goal.observations):
            raise ValueError("the expert goes to a state; this goal has a picture only. Capture it by driving there")
        self._targets = [np.asarray(observation["state"], float) for observation in goal.observations]
        self._at = 0

    def act(self, observation: Observation) -> np.ndarray:
        """The action [7] towards the present sub-goal; the next one is shown on arrival."""
        state = np.asarray(observation["state"], float)
        action = action_between(state, self._targets[self._at])
        if self._at + 1 < len(self._targets) and _arrived(action):
            self._at += 1
            action = action_between(state, self._targets[self._at])
        length, turn = float(np.linalg.norm(action[:3])), float(np.abs(action[3:6]).max())
        if self.full_grip:
            action[6] = np.sign(action[6]) if _there(action) and abs(action[6]) >= ARRIVED_CLOSEDNESS else 0.0
        action[:6] *= min(1.0, self.max_step_m / max(length, 1e-9), self.max_turn_rad / max(turn, 1e-9))
        return action


def _there(action: np.ndarray) -> bool:
    """Whether an action that leads to a state has hardly any way left for the arm."""
    return bool(np.linalg.norm(action[:3]) < ARRIVED_M and np.linalg.norm(action[3:6]) < ARRIVED_RAD)


def _arrived(action: np.ndarray) -> bool:
    return _there(action) and bool(abs(action[6]) < ARRIVED_CLOSEDNESS)


class ReplayAgent:
    """Repeats logged actions [T, 7], whatever it sees."""

    def __init__(self, actions: np.ndarray) -> None:
        self._actions, self._next = np.asarray(actions, float), 0

    def reset(self, goal: Goal) -> None:
        """Begin again."""
        self._next = 0

    def act(self, observation: Observation) -> np.ndarray:
        """The next logged action; zeros after the last."""
        action = self._actions[self._next] if self._next < len(self._actions) else np.zeros(7)
        self._next += 1
        return action


def agent_names() -> tuple[str, ...]:
    """Agents that need no simulator to read: `expert` here is `ServoAgent`; `oracle` and `sac` read its state."""
    return tuple(name for name in AGENTS if name not in ("random", "oracle", "sac"))


def plans(name: str) -> bool:
    """Whether the agent needs a model: a world model to plan on, or a trained policy."""
    return AGENTS[check_name("agent", name, agent_names())].model


def imagines(name: str) -> bool:
    """Whether the agent plans on a world model, rather than play a policy or a script."""
    return plans(name) and AGENTS[name].load is AGENTS["cem"].load


def agent_settings(name: str, task: str, settings: AgentSettings, goal: Goal | None) -> AgentSettings:
    """What the agent plans with, as in simulation (`settings_for`).

    Raises:
        ValueError: The settings ask for the gripper recorded with a goal that is a picture alone.
    """
    chosen = settings_for(name, task, settings)
    recorded = goal is None or all("state" in observation for observation in goal.observations)
    if chosen.goal_gripper and not chosen.read_gripper and not recorded:
        raise ValueError("--no-read-gripper takes the closedness that was recorded with the goal, and a goal is a "
                         "picture only; capture it with `armworld goal`, or leave that flag out")  # fmt: skip
    return chosen


def build_agent(name: str, model: str, seed: int, settings: AgentSettings) -> Agent:
    """Make an agent inside its process.

    Args:
        name: One of `agent_names()`.
        model: World model's name or path, for those that plan.
        seed: Of the agent's own draws.
        settings: How planners plan.
    """
    check_name("agent", name, agent_names())
    if name == "expert":
        return ServoAgent(full_grip=bool(settings.full_grip))
    world: Any = None
    if plans(name):
        world = load_model(name, model)
    environment: Any = None  # none of these reads one
    return AGENTS[name].build(environment, world, seed, settings)
