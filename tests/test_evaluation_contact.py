"""The words for what became of the object: on scripted manipulation in the simulator."""

import itertools

import numpy as np
import pytest

from armworld.envs.experts import make_expert
from armworld.evaluation.cells import open_env
from armworld.evaluation.episodes import run_episode

OPEN, STILL = np.array([0, 0, 0, 0, 0, 0, -1.0]), np.zeros(7)
UP, DOWN = np.array([0, 0, 0.05, 0, 0, 0, 0]), np.array([0, 0, -0.03, 0, 0, 0, 0])


def put_down_early(step: int, action: np.ndarray) -> np.ndarray:
    """Grasps and carries, then lowers, lets go and rises short of the place."""
    if step < 9:
        return action
    return DOWN if step < 15 else OPEN if step < 17 else UP


class Meddled:
    """The expert's actions, changed by `meddle(step, action)`."""

    def __init__(self, env, meddle) -> None:
        self.expert, self.meddle = make_expert(env), meddle

    def reset(self, goal) -> None:
        self.expert.reset(goal)
        self.steps = itertools.count()

    def act(self, observation):
        return self.meddle(next(self.steps), np.array(self.expert.act(observation), float))


def play(task: str, meddle, seed: int = 2_000_001):
    env = open_env(f"armworld/{task}-v0", {"object": "box", "cameras": ("left",), "image_size": 32})
    try:
        return run_episode(env, Meddled(env, meddle), seed)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("task", "meddle", "reason"),
    [
        ("Grasp", lambda i, a: STILL, "missed"),
        ("Grasp", lambda i, a: a if i < 14 else OPEN, "dropped"),
        ("Grasp", lambda i, a: np.where(np.arange(7) == 2, np.minimum(a, 0), a), "slipped"),
        ("PickPlace", lambda i, a: a, "success"),
        ("PickPlace", lambda i, a: a if i < 9 else OPEN, "dropped"),
        ("PickPlace", put_down_early, "wrong_place"),
        ("ReachWithObject", lambda i, a: OPEN, "dropped"),
    ],
)
def test_what_became_of_the_object(task: str, meddle, reason: str) -> None:
    assert play(task, meddle).reason == reason
