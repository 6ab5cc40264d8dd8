"""The horizon study: long rollouts in pieces, errors of a model that is known, verdict, and a whole small run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from armworld.evaluation.doctor_verdict import useful_steps
from armworld.evaluation.files import read_json
from armworld.evaluation.horizon import (
    HorizonSweep,
    horizon_sweep,
    imagine_far,
    look_ahead,
    most_steps,
    verdict,
)
from armworld.evaluation.horizon_picture import horizon_figure
from armworld.evaluation.probing import fit_probe
from armworld.evaluation.samples import Travel
from armworld.pose import apply_action
from armworld.worldmodel.model import Rollout

IMAGINED = ("imagined", "imagined step by step")


class Drifting:
    """Features [1, 3] are the position; every imagined step is off by `drift` along x. Three steps at most."""

    class predictor:
        class config:
            max_steps = 3

    def __init__(self, drift: float) -> None:
        self.drift, self.calls = torch.tensor([drift, 0.0, 0.0]), []

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        self.calls.append(actions.shape[2])
        moved = (actions[..., :3] + self.drift).cumsum(2)
        states = [state[:, -1:].expand(-1, actions.shape[1], -1)]
        for action in actions.unbind(2):
            states.append(apply_action(states[-1], action))
        return Rollout(z=z[:, -1:, None] + moved[..., None, :], state=torch.stack(states[1:], 2))


def journeys(episodes: int = 8, steps: int = 7) -> Travel:
    rng = np.random.default_rng(0)
    actions = np.zeros((episodes, steps, 7), np.float32)
    actions[..., :3] = rng.uniform(-0.05, 0.05, (episodes, steps, 3))
    states = np.concatenate([np.zeros((episodes, 1, 7)), actions.cumsum(1)], 1).astype(np.float32)
    states[..., :3] += rng.uniform(-0.3, 0.3, (episodes, 1, 3)).astype(np.float32)
    return Travel(torch.from_numpy(states[..., None, :3]), states, actions)


def test_long_rollouts_go_on_in_pieces() -> None:
    walked, model = journeys(), Drifting(0.0)
    assert most_steps(model) == 3
    imagined = imagine_far(model, walked.z[:, 0], walked.states[:, 0], walked.actions, 3)
    assert model.calls == [3, 3, 1]
    torch.testing.assert_close(imagined, walked.z[:, 1:], atol=1e-5, rtol=0)


def test_a_known_drift_is_measured() -> None:
    ahead = look_ahead(Drifting(0.01), journeys(), np.random.default_rng(1))
    np.testing.assert_allclose(ahead["l1"], 0.01 * np.arange(1, 8) / 3, atol=1e-5)
    np.testing.assert_allclose(ahead["position_error_m"], 0.01 * np.arange(1, 8), atol=2e-3)
    np.testing.assert_allclose(ahead["stepwise_l1"], ahead["l1"], atol=1e-5)
    assert ahead["probe_error_m"].max() < 2e-3 and ahead["imagined_episodes"] == 2
    told = verdict(ahead, {}, 0.25)
    assert "within 5 cm of where it really goes for 1 s" in told[1] or "for 1.25 s" in told[1]


def test_useful_time_ends_where_the_error_first_crosses() -> None:
    assert useful_steps([1, 1, 3, 1], [2, 2, 2, 2]) == 2
    assert useful_steps([3], [2]) == 0 and useful_steps([1, 1], [2, 2]) == 2


def test_bad_plans_are_named() -> None:
    with pytest.raises(ValueError, match="servo looks one step ahead"):
        HorizonSweep(agent="servo", plans="1,2")
    with pytest.raises(ValueError, match="plans '1,x'"):
        HorizonSweep(plans="1,x")
    with pytest.raises(ValueError, match="rollouts"):
        HorizonSweep(rollouts=2)


@pytest.mark.slow
def test_a_small_study_of_the_shipped_model(tmp_path: Path) -> None:
    config = HorizonSweep(
        seconds=1.0, rollouts=4, plans="1", episodes=1, max_steps=1, samples=8, elites=2, iterations=1, out=tmp_path
    )
    record = horizon_sweep(config, Console(quiet=True))
    assert record == read_json(tmp_path / "sweep.json") and len(record["ahead"]["l1"]) == 4
    assert record["plans"][0]["horizon"] == 1
    assert "How far ahead?" in (tmp_path / "index.html").read_text()


class Still(Drifting):
    """Imagines that nothing changes; features of any width."""

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        steps = actions.shape[2]
        return Rollout(z[:, -1:, None].expand(-1, -1, steps, -1, -1), state[:, -1:, None].expand(-1, -1, steps, -1))


def test_the_probe_is_fitted_to_other_episodes_than_are_imagined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that tell their frame and nothing else: where the probe was not fitted to them it reads nothing."""
    asked: list[tuple[Tensor, np.ndarray]] = []

    def spy(features: Tensor, targets: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> Any:
        asked.append((features, groups))
        return fit_probe(features, targets, groups, rng)

    monkeypatch.setattr("armworld.evaluation.horizon.fit_probe", spy)
    z = torch.randn(8, 8, 1, 400, generator=torch.Generator().manual_seed(0))
    z[..., 0] = torch.arange(8.0)[:, None, None]
    walked = replace(journeys(), z=z)
    ahead = look_ahead(Still(0.0), walked, np.random.default_rng(0))
    spread = np.linalg.norm(walked.states[:, 1:, :3] - walked.states[:, 1:, :3].mean((0, 1)), axis=-1).mean()
    assert ahead["probe_error_m"].mean() > 0.7 * spread
    ((features, groups),) = asked
    np.testing.assert_array_equal(features[:, 0, 0], groups)


def test_lines_that_lie_on_one_another_show_all_the_same() -> None:
    keys = ("l1", "stepwise_l1", "copy_l1", "stranger_l1", "position_error_m", "stepwise_position_error_m")
    ahead = {key: [0.1, 0.1, 0.1] for key in (*keys, "moved_m", "probe_error_m")}
    for panel in horizon_figure(ahead, 0.25, {}).axes:
        whole, broken = (next(line for line in panel.lines if line.get_label() == name) for name in IMAGINED)
        assert whole.get_linestyle() == "-" and broken.get_linestyle() == "--"
        assert whole.get_linewidth() > 2 * broken.get_linewidth() and whole.get_zorder() == broken.get_zorder()
        assert panel.lines.index(whole) < panel.lines.index(broken)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seconds": float("nan")}, "seconds must be above 0, got nan"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"rollouts": 3}, "rollouts must be at least 4, got 3"),
        ({"level": "wild"}, "unknown level 'wild'"),
        ({"task": "CartPole-v1"}, "not of armworld's interface"),
        ({"plans": "2,4", "execute": 4}, "execute_steps 4 exceeds the planner's horizon 2"),
    ],
)
def test_bad_settings_are_named_beforehand(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        HorizonSweep(**changes)
    assert HorizonSweep(plans="4", execute=4).planned == [4]
