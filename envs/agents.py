"""The floors that every method is reported beside: hold still, and move at random."""

from __future__ import annotations

import numpy as np

from armworld.types import Goal, Observation


class HoldAgent:
    """Does nothing."""

    def reset(self, goal: Goal) -> None:
        """Begin an episode; there is nothing to remember."""

    def act(self, observation: Observation) -> np.ndarray:
        """The zero action [7]."""
        return np.zeros(7)


class RandomAgent:
    """Draws every action uniformly within bounds.

    Args:
        rng: Source of the draws.
        bounds: Largest magnitude per component, float [7] (m, rad, closedness).
    """

    def __init__(self, rng: np.random.Generator, bounds: np.ndarray):
        self._rng = rng
        self._bounds = np.asarray(bounds, float)
        if self._bounds.shape != (7,) or (self._bounds < 0).any():
            raise ValueError(f"bounds must be 7 magnitudes, got {self._bounds.tolist()}")

    def reset(self, goal: Goal) -> None:
        """Begin an episode; the generator runs on."""

    def act(self, observation: Observation) -> np.ndarray:
        """A random action [7]."""
        return self._rng.uniform(-self._bounds, self._bounds)
