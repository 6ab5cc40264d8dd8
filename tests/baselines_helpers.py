"""Small stores and policies for the tests of the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from armworld.datasets.store import Store
from armworld.pose import apply_action

SIZE = 32
START = np.array([0.5, 0.0, 0.35, np.pi, 0.0, 0.0, 0.2])


class FakeStore(Store):
    """A store in memory: frames in which a spot shows where the arm is."""

    def __init__(self, lengths: Sequence[int], step_seconds: float = 0.25, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.folder, self.names = Path("fake"), [f"episode{i}" for i in range(len(lengths))]
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.step_seconds = step_seconds
        self.states = np.concatenate([walk(rng, rows) for rows in lengths]).astype(np.float32)
        self._shards = [np.stack([picture(state) for state in self.states])]
        self._starts = np.array([0, len(self.states)], np.int64)


def walk(rng: np.random.Generator, rows: int) -> np.ndarray:
    """States [rows, 7] of a random walk near the workspace's middle."""
    states = [START + rng.uniform(-0.05, 0.05, 7) * [1, 1, 1, 0, 0, 0, 0]]
    for _ in range(rows - 1):
        action = rng.uniform(-0.05, 0.05, 7) * [1, 1, 1, 0.2, 0.2, 0.2, 2]
        states.append(apply_action(states[-1], action))
    return np.stack(states)


def picture(state: np.ndarray, size: int = SIZE) -> np.ndarray:
    """A frame [size, size, 3] in which a spot stands for the flange, brighter the higher it is."""
    y, x = np.mgrid[0:size, 0:size] / size
    spot = np.exp(-((x - 0.5 - state[1]) ** 2 + (y - state[0]) ** 2) / 0.01)
    image = np.stack([spot, spot * (0.3 + state[2]), 0.3 + 0 * spot], -1)
    return (255 * image.clip(0, 1)).astype(np.uint8)
