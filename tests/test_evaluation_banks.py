"""Planners whose sub-goals are the model's own: by the settings, and from recorded frames."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from armworld.evaluation.agents import AGENTS, AgentSettings, settings_for
from armworld.evaluation.banks import load_bank
from armworld.evaluation.configuring import check_agent
from armworld.evaluation.setup import Setup
from armworld.planners.mpc import PlanningAgent
from armworld.planners.turning import TurnedModel
from armworld.planners.twolevel import TwoLevelAgent
from armworld.pose import apply_action
from armworld.types import Goal
from armworld.worldmodel.model import Rollout

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import write_dataset


class Means:
    """Features [1, 3]: the mean colour; actions brighten it."""

    step_seconds, camera, image_size = 0.25, "left", (64, 64)

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        self.encoded += 1
        return torch.as_tensor(images).float().mean((2, 3))[:, :, None] / 255

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        moved = actions[..., :3].cumsum(2)
        return Rollout(z=z[:, -1:, None] + moved[..., None, :], state=apply_action(state[:, -1:, None], actions))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bank")
    write_dataset(root, 3)
    return root


def build(model: Any, **settings: Any) -> PlanningAgent:
    environment: Any = None
    agent = AGENTS["cem"].build(environment, model, 0, AgentSettings(**settings))
    assert isinstance(agent, PlanningAgent)
    return agent


def test_a_bank_is_read_once_per_model(data: Path) -> None:
    model = Means()
    bank = load_bank(data, model, "left")
    assert bank.episode is not None and bank.episode.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert bank.z.shape == (24, 1, 3) and bank.state.shape == (24, 7) and model.encoded == 3
    assert load_bank(data, model, "left") is bank and model.encoded == 3
    assert load_bank(data, Means(), "left") is not bank

    class Oracle:
        encoder_model = model

    assert load_bank(data, Oracle(), "left") is bank


def test_what_is_wrong_with_a_bank_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no episodes"):
        load_bank(tmp_path, Means(), "left")
    model = Means()
    model.image_size = (128, 128)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="are 64 x 64, the model sees 128 x 128"):
        load_bank(data, model, "left")
    with pytest.raises(ValueError, match="--subgoals-from bank and --bank none"):
        build(Means(), subgoals_from="bank")
    with pytest.raises(ValueError, match=r"--bank, .* goes with .*; got --subgoals-from given and --bank"):
        AgentSettings(bank=data)
    with pytest.raises(ValueError, match="no episodes"):
        check_agent("cem", "reach", AgentSettings(subgoals_from="bank", bank=tmp_path))


def test_planners_take_the_settings_of_the_search_that_they_have() -> None:
    told = AgentSettings(samples=48, iterations=3, elites=4, horizon=2, hold_margin=0.1)
    kept = {name: set(told.planner_settings(name)) - {"space"} for name in ("cem", "random_shooting", "mppi", "servo")}
    assert kept["cem"] == {"samples", "iterations", "elites", "horizon", "hold_margin"}
    assert kept["mppi"] == kept["cem"] - {"elites"} and kept["random_shooting"] == kept["mppi"] - {"iterations"}
    assert kept["servo"] == {"hold_margin"}


def test_the_settings_say_whose_sub_goals(data: Path) -> None:
    assert type(build(Means())) is type(build(Means(), subgoals_from="given")) is PlanningAgent
    expected = {"final": (0, None), "imagined": (2, None), "bank": (2, 24), "recorded": (2, 24)}
    for subgoals, (count, frames) in expected.items():
        agent = build(Means(), subgoals_from=subgoals, bank=data if frames else None)
        assert isinstance(agent, TwoLevelAgent) and agent.levels.count == count
        assert agent.levels.along == (subgoals == "recorded")
        assert (None if agent.bank is None else len(agent.bank)) == frames
    agent = build(Means(), subgoals_from="bank", bank=data, stops=1)
    assert isinstance(agent, TwoLevelAgent) and agent.levels.count == 1


def test_settings_of_agents_and_of_runs_share_no_name() -> None:
    """One class holds both: a name of both would silently mean only one of them."""
    agent, run = ({field.name for field in fields(kind)} for kind in (AgentSettings, Setup))
    assert not agent & run


@pytest.mark.parametrize("subgoals", ["final", "imagined", "bank", "recorded"])
def test_they_act(data: Path, subgoals: str) -> None:
    bank = data if subgoals in ("bank", "recorded") else None
    agent = build(Means(), subgoals_from=subgoals, bank=bank, samples=8)
    views = [
        {"state": np.full(7, 0.1, np.float32), "left": np.full((64, 64, 3), value, np.uint8)} for value in (0, 200)
    ]
    agent.reset(Goal((views[0], views[1]), (2, 4)))
    assert agent.act(views[0]).shape == (7,)
    assert isinstance(agent, TwoLevelAgent) and agent.last_chain is not None


def test_known_turned_axes_are_for_models_that_imagine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build(Means(), axes_yaw=20.0).model, TurnedModel)
    environment: Any = None
    with pytest.raises(ValueError, match="servo imagines nothing whose axes could turn"):
        check_agent("servo", "reach", AgentSettings(axes_yaw=20.0))
    monkeypatch.setattr("armworld.envs.oracle.OracleDynamics", lambda env, model: model)
    oracle = AGENTS["oracle"].build(environment, Means(), 0, AgentSettings(axes_yaw=20.0))
    assert isinstance(oracle, PlanningAgent) and isinstance(oracle.model, Means)


def test_the_published_planner_keeps_its_settings_over_the_simulator_too() -> None:
    plain, usual = AgentSettings(oracle_planner="cem_published"), AgentSettings().for_task("reach")
    assert settings_for("oracle", "reach", plain) == plain
    assert settings_for("cem_published", "reach", AgentSettings()) == AgentSettings()
    assert settings_for("oracle", "reach", AgentSettings()) == settings_for("cem", "reach", AgentSettings()) == usual
