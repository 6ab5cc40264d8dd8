"""Looking through a camera: the moves that are told to the model are those that the arm really made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
from test_planners_turning import TurnedWorld, see  # noqa: E402

from armworld.evaluation import looking  # noqa: E402
from armworld.evaluation.cells import Cell  # noqa: E402
from armworld.evaluation.looking import HELD_OUT, Look, fit, look, walk  # noqa: E402
from armworld.planners.calibrating import MOVE_M, WORKSPACE  # noqa: E402
from armworld.planners.turning import turn_actions  # noqa: E402
from armworld.pose import apply_action  # noqa: E402


class Slack(gymnasium.Env):
    """An arm that goes half the way that it is told, turned by 40 degrees; the picture is where it is."""

    cameras = ("left",)

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.state = np.array([0.5, 0.0, 0.3, np.pi, 0.0, 0.0, 0.0])
        return see(self.state), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.asked.append(action)
        turned = turn_actions(torch.from_numpy(0.5 * action.astype(np.float64)), np.radians(40)).numpy()
        self.state = apply_action(self.state, turned)
        return see(self.state), 0.0, False, False, {}


def test_a_model_is_told_the_moves_that_were_made_and_not_those_that_were_asked_for() -> None:
    env = Slack()
    frames, states = walk(env, 12, seed=3)
    assert len(frames) == len(states) == 13 and len(env.asked) == 12
    np.testing.assert_allclose(frames, states[:, :3], atol=1e-6)  # each frame with its own state
    lengths = np.linalg.norm(np.diff(states[:, :2], axis=0), axis=1)
    np.testing.assert_allclose(lengths, MOVE_M / 2, atol=1e-5)
    turn = fit(TurnedWorld(0.0), frames, states)
    assert abs(turn["yaw_deg"]) < 0.5 and turn["energy"] < 0.01 < turn["copy_energy"]
    found = fit(TurnedWorld(25.0), frames, states)
    assert found["yaw_deg"] == pytest.approx(25, abs=0.5)


def test_walks_are_drawn_from_their_seed_and_wide_ones_fill_the_workspace() -> None:
    first, again, other = (walk(Slack(), 6, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[1:], other[1:])
    wide = np.ptp(walk(Slack(), 60, 1, wide=True)[1][:, :3], axis=0)
    assert (wide[:2] > 0.4 * (WORKSPACE[1] - WORKSPACE[0])[:2]).all()
    assert (np.ptp(walk(Slack(), 60, 1)[1][:, :2], axis=0) < 0.3).all()


def test_what_a_model_learns_from_and_what_it_is_judged_by_are_different_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns from the first moves; before and after are both read from the further ones alone."""
    told: dict[str, list[np.ndarray]] = {"fit": [], "adapt": []}
    model = TurnedWorld(0.0)
    monkeypatch.setattr(looking, "open_env", lambda *_: Slack())
    monkeypatch.setattr(looking, "load_model", lambda *_: model)
    monkeypatch.setattr(looking, "jpeg", lambda frame: b"")
    monkeypatch.setattr(looking, "fit", lambda model, frames, states: told["fit"].append(states) or {})
    monkeypatch.setattr(looking, "adapt_to", lambda job, model, frames, states: told["adapt"].append(states))
    monkeypatch.setattr(Look, "question", lambda self: {})
    cell = Cell("some-v0", {}, "cem", tmp_path, "some")
    look(Look(cell, 20, 5, tmp_path / "a", adapt=True))
    states = walk(Slack(), 20 + HELD_OUT, 5, wide=True)[1]
    np.testing.assert_array_equal(told["adapt"], [states[:21]])
    np.testing.assert_array_equal(told["fit"], [states[20:], states[20:]])
    look(Look(cell, 20, 5, tmp_path / "b"))
    np.testing.assert_array_equal(told["fit"][2], walk(Slack(), 20, 5)[1])
