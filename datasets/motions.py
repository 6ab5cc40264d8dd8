"""Agents that make the arm move for data's sake: along waypoints, or at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from armworld.envs.controller import ACTION_BOUND, Workspace
from armworld.types import Agent, Goal, Observation

MAX_STEP = float(ACTION_BOUND[0])  # m per axis and step


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A draw whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def bounded(action: np.ndarray) -> np.ndarray:
    """`action` [7] clipped to the largest that one step allows."""
    return np.clip(action, -ACTION_BOUND, ACTION_BOUND)


@dataclass(frozen=True)
class Waypoint:
    """Where to go: flange position [3] (m), closedness, largest step per axis (m), dwell and patience (steps)."""

    position: np.ndarray
    closedness: float
    speed: float = MAX_STEP
    dwell: int = 0
    patience: int = 12


class WaypointAgent:
    """Follows a stream of waypoints with noise, overshoot, pauses and stray gripper motions.

    Args:
        waypoints: Called with a function that answers the present flange position [3]; yields without end.
        noise: Standard deviation of every step's position noise, m.
        gain: Share of the remaining way that is commanded; above 1 overshoots.
        pause: Chance per step of standing still for one to three steps.
        stray: Chance per step of a stray gripper target.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        waypoints: Iterator[Waypoint],
        noise: float,
        gain: float = 1.0,
        pause: float = 0.04,
        stray: float = 0.0,
    ) -> None:
        self.rng, self.waypoints = rng, waypoints
        self.noise, self.gain, self.pause, self.stray = noise, gain, pause, stray
        self.still = 0
        self.closedness: float | None = None
        self._next()

    def reset(self, goal: Goal) -> None:
        """Nothing to do: targets come from the stream, not from the goal."""

    def _next(self) -> None:
        self.waypoint = next(self.waypoints)
        self.patience, self.dwell = self.waypoint.patience, self.waypoint.dwell
        self.closedness = self.waypoint.closedness

    def act(self, observation: Observation) -> np.ndarray:
        """The next action [7]: towards the waypoint, or still during a pause."""
        rng, state = self.rng, np.asarray(observation["state"], np.float64)
        if self.still == 0 and rng.random() < self.pause:
            self.still = int(rng.integers(1, 4))
        if self.still > 0:
            self.still -= 1
            return np.zeros(7)
        way = self.waypoint.position - state[:3]
        arrived = np.abs(way).max() < 0.008 + self.noise
        if (arrived and self.dwell <= 0) or self.patience <= 0:
            self._next()
            way = self.waypoint.position - state[:3]
        elif arrived:
            self.dwell -= 1
        self.patience -= 1
        if rng.random() < self.stray:
            self.closedness = float(rng.choice([0.0, 1.0, rng.random()]))
        action = np.zeros(7)
        action[:3] = np.clip(self.gain * way, -self.waypoint.speed, self.waypoint.speed)
        action[:3] += rng.normal(0, self.noise, 3)
        change = (self.waypoint.closedness if self.closedness is None else self.closedness) - state[6]
        action[6] = np.clip(change, -0.5, 0.5) if abs(change) > 0.02 else 0.0
        return bounded(action)


class PlayAgent:
    """Random deltas in stretches of a few steps, each with its own scale and texture.

    A stretch is smooth (a first-order autoregression), abrupt (independent uniform deltas, as a planner samples
    them) or a drift to a point of the workspace; scales are log-uniform, so tiny motions are as frequent as large
    ones. Deltas that would leave the workspace are mirrored.
    """

    def __init__(self, rng: np.random.Generator, workspace: Workspace, turns: bool) -> None:
        self.rng, self.turns = rng, turns
        self.low, self.high = np.asarray(workspace.low), np.asarray(workspace.high)
        self.velocity = np.zeros(3)
        self.spin = np.zeros(3)
        self.left = 0
        self.closedness: float | None = None

    def reset(self, goal: Goal) -> None:
        """Nothing to do: play has no goal."""

    def _stretch(self) -> None:
        rng = self.rng
        self.left = int(rng.integers(3, 9))
        self.kind = str(rng.choice(["smooth", "abrupt", "drift"], p=[0.35, 0.3, 0.35]))
        self.scale = log_uniform(rng, 8e-4, MAX_STEP)
        self.target = rng.uniform(self.low, self.high)
        self.spin_scale = log_uniform(rng, 0.005, 0.1) if self.turns else 0.0
        self.closedness = float(rng.choice([0.0, 1.0, rng.random()])) if rng.random() < 0.25 else None

    def act(self, observation: Observation) -> np.ndarray:
        """The next action [7]."""
        if self.left == 0:
            self._stretch()
        self.left -= 1
        rng, state = self.rng, np.asarray(observation["state"], np.float64)
        if self.kind == "abrupt":
            self.velocity = rng.uniform(-self.scale, self.scale, 3)
        else:
            self.velocity = 0.7 * self.velocity + 0.71 * rng.normal(0, self.scale, 3)
        delta = self.velocity.copy()
        if self.kind == "drift":
            delta = 0.3 * delta + np.clip(self.target - state[:3], -MAX_STEP, MAX_STEP)
        delta = np.clip(delta, -MAX_STEP, MAX_STEP)
        outside = (state[:3] + delta < self.low) | (state[:3] + delta > self.high)
        self.velocity = np.where(outside, -self.velocity, self.velocity)
        delta = np.where(outside, -delta, delta)
        self.spin = 0.7 * self.spin + 0.71 * rng.normal(0, 1, 3) * self.spin_scale
        action = np.concatenate([delta, self.spin if self.turns else np.zeros(3), [0.0]])
        if self.closedness is not None:
            action[6] = np.clip(self.closedness - state[6], -0.5, 0.5)
        return bounded(action)


class ScriptAgent:
    """Plays a stream of actions [7] that reads the scene itself; it never ends."""

    def __init__(self, script: Iterator[np.ndarray]) -> None:
        self.script = script

    def reset(self, goal: Goal) -> None:
        """Nothing to do: the stream has its own aims."""

    def act(self, observation: Observation) -> np.ndarray:
        """The next action [7]."""
        return next(self.script)


class DisturbedAgent:
    """Another agent's actions with noise on each and, every few steps, a burst of unrelated motion.

    Args:
        noise: Standard deviation of the position noise, m.
        burst: Chance per step that a burst of one to three steps begins.
        flip: Chance per step that the gripper goes the other way.
    """

    def __init__(
        self, rng: np.random.Generator, agent: Agent, noise: float, burst: float = 0.0, flip: float = 0.0
    ) -> None:
        self.rng, self.agent, self.noise, self.burst, self.flip = rng, agent, noise, burst, flip
        self.left, self.push = 0, np.zeros(3)

    def reset(self, goal: Goal) -> None:
        """Begin the episode of the agent within."""
        self.agent.reset(goal)

    def act(self, observation: Observation) -> np.ndarray:
        """The next action [7]; during a burst the agent within is not asked, so its own plan waits."""
        rng = self.rng
        if self.left == 0 and rng.random() < self.burst:
            self.left, self.push = int(rng.integers(1, 4)), rng.uniform(-MAX_STEP, MAX_STEP, 3)
        if self.left > 0:
            self.left -= 1
            return bounded(np.concatenate([self.push, np.zeros(4)]))
        action = np.asarray(self.agent.act(observation), np.float64).copy()
        action[:3] += rng.normal(0, self.noise, 3)
        if rng.random() < self.flip:
            action[6] = rng.choice([-0.5, 0.5])
        return bounded(action)
