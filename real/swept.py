"""The way that one action takes: a straight line of the flange, and a rotation about one axis of the base frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from armworld.pose import euler_to_matrix, matrix_to_euler


@dataclass(frozen=True)
class Path:
    """From a state to another; fractions of it are in [0, 1].

    Attributes:
        start: Flange position [3], m, base frame.
        travel: Translation of the whole path [3], m.
        turned: The flange's rotation at the start [3, 3].
        axis: Unit axis of the turn [3]; zeros where there is none.
        turn: Angle of the whole path's turn, rad, at most pi.
    """

    start: np.ndarray
    travel: np.ndarray
    turned: np.ndarray
    axis: np.ndarray
    turn: float

    @classmethod
    def between(cls, state: np.ndarray, wanted: np.ndarray) -> Path:
        """The path between two states [7] (or poses [6])."""
        before, after = euler_to_matrix(np.stack([state[3:6], wanted[3:6]]))
        vector = Rotation.from_matrix(after @ before.T).as_rotvec()
        angle = float(np.sqrt(vector @ vector))
        axis = vector / angle if angle > 0 else np.zeros(3)
        return cls(np.array(state[:3]), wanted[:3] - state[:3], before, axis, angle)

    @property
    def length(self) -> float:
        """Of the flange's line, m."""
        return float(np.sqrt(self.travel @ self.travel))

    def rotation(self, fractions: np.ndarray) -> np.ndarray:
        """What the path has turned by so far, [S, 3, 3]: I + sin(a) K + (1 - cos(a)) K K (Rodrigues)."""
        x, y, z = self.axis
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        angle = (fractions * self.turn)[:, None, None]
        return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)

    def points(self, fractions: np.ndarray, tips: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flange [S, 3], points [S, K, 3] that are fixed to it (`tips` [K, 3], flange frame) and tilt [S] (rad).

        The tilt is the angle between the flange's z axis and straight down.
        """
        matrices = self.rotation(fractions) @ self.turned
        flange = self.start + fractions[:, None] * self.travel
        return flange, flange[:, None] + tips @ matrices.swapaxes(1, 2), np.arccos(np.clip(-matrices[:, 2, 2], -1, 1))

    def pose(self, fraction: float) -> np.ndarray:
        """The flange's pose [6] at a fraction."""
        matrix = self.rotation(np.array([fraction]))[0] @ self.turned
        return np.concatenate([self.start + fraction * self.travel, matrix_to_euler(matrix)])
