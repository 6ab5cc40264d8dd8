"""Calibration without labels: a few random moves, and from them the turn of the model's axes.

What the paper suggests to do after putting the camera somewhere: no pose of the camera, no markers, no goal. A model
that learns from such moves (`worldmodel.adapt`) gets more out of them than their turn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from armworld.planners.mpc import PlanningAgent
from armworld.planners.turning import Moves, Turn, TurnedModel, fit_turn
from armworld.pose import action_between
from armworld.types import Goal, Observation

MOVE_M, RADIUS_M, RISE_M = 0.06, 0.12, 0.02
FEWEST_MOVES = 15  # that a model is adapted with; fewer tell too little of a view
WIDE_M = 0.10  # length of a move through the whole workspace
WORKSPACE = np.array([[0.36, -0.25, 0.24], [0.62, 0.25, 0.46]])  # m, flange: where reach begins and ends
LOW_M = 0.17  # m, flange: where the shipped grippers' fingers are just above the table
TURN_RAD, LARGEST_TURN_RAD, GRIP_SHARE = 0.7, 0.3, 0.4  # of hands' moves: yaw either way, in one move, gripper's moves


class RandomMoves:
    """Horizontal moves of one length in random directions, with a little up and down, kept near where they began."""

    def __init__(self, rng: np.random.Generator, length_m: float = MOVE_M, radius_m: float = RADIUS_M) -> None:
        """Within `radius_m` of the first position, in the horizontal plane."""
        if not 0 < length_m <= radius_m:
            raise ValueError(f"expected 0 < length_m <= radius_m, got {length_m} and {radius_m}")
        self.rng, self.length_m, self.radius_m = rng, length_m, radius_m
        self._start: np.ndarray | None = None

    def next(self, state: np.ndarray) -> np.ndarray:
        """The next action float32 [7] from the robot state [7]: back towards the start where it would lead away."""
        here = np.asarray(state, np.float64)[:3]
        if self._start is None:
            self._start = here.copy()
        angle, rise = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(-RISE_M, RISE_M)
        step = self.length_m * np.array([np.cos(angle), np.sin(angle)])
        away = here - self._start
        if np.linalg.norm(away[:2] + step) > self.radius_m:
            back = -away[:2] * min(1.0, self.length_m / max(float(np.linalg.norm(away[:2])), 1e-9))
            step = -step if step @ away[:2] > 0 else back
        if abs(away[2] + rise) > 2 * RISE_M:
            rise = -rise
        return np.array([*step, rise, 0, 0, 0, 0], np.float32)


class WideMoves:
    """Moves through a box towards random places in it: what a model is adapted with (`worldmodel.adapt`).

    With `hands` each also turns the hand about the vertical, to a random yaw near the one that it began with, and some
    open or close the gripper, fully or in part: what a model must see to grasp.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        low: np.ndarray = WORKSPACE[0],
        high: np.ndarray = WORKSPACE[1],
        step_m: float = WIDE_M,
        hands: bool = False,
    ) -> None:
        """The box's corners [3] (m, base frame; flange) and the longest move (m)."""
        if not (np.asarray(low) < np.asarray(high)).all() or step_m <= 0:
            raise ValueError(f"expected low < high and step_m > 0, got {low}, {high} and {step_m}")
        self.rng, self.low, self.high, self.step_m, self.hands = rng, low, high, step_m, hands
        self._yaw: float | None = None

    def next(self, state: np.ndarray) -> np.ndarray:
        """The next action float32 [7] from the robot state [7]."""
        state = np.asarray(state, np.float64)
        way = self.rng.uniform(self.low, self.high) - state[:3]
        way *= min(1.0, self.step_m / max(float(np.linalg.norm(way)), 1e-9))
        return np.array([*way, 0, 0, *(self._hand(state) if self.hands else (0, 0))], np.float32)

    def _hand(self, state: np.ndarray) -> tuple[float, float]:
        """Change of yaw (rad) and closedness."""
        if self._yaw is None:
            self._yaw = float(state[5])
        yaw = self._yaw + self.rng.uniform(-TURN_RAD, TURN_RAD)
        turn = (yaw - state[5] + np.pi) % (2 * np.pi) - np.pi
        closedness = self.rng.choice([0.0, 1.0, self.rng.uniform()])
        moved = self.rng.random() < GRIP_SHARE
        return float(np.clip(turn, -LARGEST_TURN_RAD, LARGEST_TURN_RAD)), closedness - state[6] if moved else 0.0


def roaming_box(hands: bool) -> np.ndarray:
    """Corners [2, 3] (m) of `WORKSPACE`; for hands' moves down to just above the table."""
    return np.vstack([[*WORKSPACE[0, :2], LOW_M], WORKSPACE[1]]) if hands else WORKSPACE


def moves_from(z: Tensor, states: np.ndarray) -> Moves:
    """The moves between consecutive frames: features [T+1, N, D] and robot states [T+1, 7]."""
    states = np.asarray(states, np.float32)
    actions = torch.from_numpy(action_between(states[:-1], states[1:]).astype(np.float32))
    return Moves(z[:-1], torch.from_numpy(states[:-1]), actions, z[1:])


class CalibratingAgent:
    """Begins with random moves, then plans with the model's axes turned back; an `Agent` (armworld.types).

    The moves cost steps of the first episode. The fit is kept for later episodes of the same agent: the camera is taken
    to stand still.

    Attributes:
        agent: The planning agent, whose model is replaced by a `TurnedModel` after the moves.
        turn: The turn that was fitted; None before.
    """

    def __init__(self, agent: PlanningAgent, moves: int, rng: np.random.Generator) -> None:
        """`moves` random moves from `rng`; at least 2."""
        if moves < 2:
            raise ValueError(f"calibration needs at least 2 moves, got {moves}")
        self.agent, self.moves = agent, moves
        self.turn: Turn | None = None
        self._random = RandomMoves(rng)
        self._frames: list[tuple[np.ndarray, np.ndarray]] = []

    def reset(self, goal: Goal) -> None:
        """Begin an episode."""
        self._frames = []
        self._random = RandomMoves(self._random.rng)  # near where this episode begins
        self.agent.reset(goal)

    def act(self, observation: Observation) -> np.ndarray:
        """A random move while calibrating, else the planned action; float32 [7]."""
        if self.turn is None:
            if self.agent.camera not in observation:
                return self.agent.act(observation)  # which says what is missing
            self._frames.append((observation[self.agent.camera], observation["state"]))
            if len(self._frames) <= self.moves:
                return self._random.next(observation["state"])
            self._fit()
        return self.agent.act(observation)

    def _fit(self) -> None:
        images, states = (np.stack(part) for part in zip(*self._frames, strict=True))
        z = self.agent.model.encode(images[:, None])[:, 0]
        self.turn = fit_turn(self.agent.model, moves_from(z, states))
        self.agent.model = TurnedModel(self.agent.model, self.turn.yaw_deg)
        self._frames = []
