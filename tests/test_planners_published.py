"""The published planner, number for number on the recorded runs."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from armworld.planners.published import published_config, replay_reference

RECORDED = sorted((Path(__file__).parent / "reference").glob("cem_*.npz"))


@pytest.fixture(params=RECORDED, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    with np.load(request.param) as file:
        return dict(file)


def test_recorded_runs_are_there() -> None:
    assert len(RECORDED) >= 2


def test_actions_match(recorded: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(replay_reference(recorded), recorded["actions"], atol=1e-5, rtol=0)


def test_every_recorded_setting_matters(recorded: dict[str, np.ndarray]) -> None:
    """Changing a setting changes the actions: the match above is no accident."""
    config = ast.literal_eval(str(recorded["config"]))
    for key in ("topk", "momentum_mean", "momentum_std", "momentum_mean_gripper", "maxnorm"):
        changed = {**config, key: config[key] + 1 if key == "topk" else config[key] / 2}
        actions = replay_reference({**recorded, "config": np.array(repr(changed))})
        assert np.abs(actions - recorded["actions"]).max() > 1e-4, key


def test_published_defaults() -> None:
    config = published_config()
    assert (config.samples, config.iterations, config.elites) == (800, 10, 10)
    assert config.execute == "mean"
    assert not config.hold_candidate
    spread = torch.tensor(config.space.limits) * torch.tensor([config.position_std] * 3 + [config.gripper_std])
    torch.testing.assert_close(spread, torch.tensor([0.075, 0.075, 0.075, 1.0]))


def test_small_gripper_deltas_become_zero() -> None:
    space = published_config().space
    rounded = space.round_gripper(torch.tensor([[0.05, 0, 0, 0.2499], [0.05, 0, 0, -0.26]]), 0.25)
    assert rounded[0, 3] == 0
    assert rounded[1, 3] == pytest.approx(-0.26)
    assert (rounded[:, 0] == 0.05).all()
