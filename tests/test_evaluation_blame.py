"""Telling controller, goal, cost, planner and model apart, with stand-ins for the runs."""

from pathlib import Path

import pytest

from armworld.evaluation import blame as blaming
from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.blame import blame, blame_cells, blame_sentence
from armworld.evaluation.doctor import DoctorConfig, planning_cells
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.setup import Setup

SOLVES = {"agent": {1}, "expert": {1, 2, 3, 4}, "oracle": {2}, "wide_oracle": {3}}
OFF = {5: (0.002, 0.004), 6: (0.03, 0.0), 7: (0.001, 0.3), 8: (None, None)}  # of the expert: m, rad


def episode(seed: int, success: bool) -> EpisodeResult:
    off_m, off_rad = OFF.get(seed, (0.0, 0.0))
    steps = 3 if seed < 9 else 0  # the environment of the last one finds no start
    return EpisodeResult(seed, success, 0.1, steps, 0.0, 0.0, "missed", off_m=off_m, off_rad=off_rad)


def test_each_failure_is_blamed_on_the_first_link_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def run(cells, seeds, workers):
        role = cells[0].out.name
        asked[role] = list(seeds), cells[0].settings.samples, cells[0].settings.oracle_planner
        return [[episode(s, s in SOLVES[role]) for s in seeds]]

    monkeypatch.setattr(blaming, "run_with_progress", run)
    setup = Setup(camera="left", image_size=64, step_seconds=0.25)
    cells = blame_cells(setup, AgentSettings(samples=10), ("reach", "cup", "lab1"), "mppi", tmp_path)
    found = blame(cells, range(1, 10))
    told = [None, "model", "planner", "cost", "goal", "controller", "controller", "goal or controller", "goal"]
    assert [e["blame"] for e in found["episodes"]] == told
    assert found["counts"] == {
        "controller": 2, "goal": 2, "goal or controller": 1, "cost": 1, "planner": 1, "model": 1,
    }  # fmt: skip
    assert found["solved"] == 1
    assert asked["expert"][0] == list(range(2, 10)) and asked["oracle"] == ([2, 3, 4], 10, "mppi")
    assert asked["wide_oracle"] == ([3, 4], 40, "mppi")  # only what the oracle did not solve
    assert "failed 8 of 9" in blame_sentence(found) and "controller 2, goal 2" in blame_sentence(found)


def test_the_doctor_blames_a_planner_with_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What turns the learned model's axes, or hurries it, is nothing for the simulator."""
    monkeypatch.setattr("armworld.evaluation.doctor.resolve", lambda setup, agents: setup)
    monkeypatch.setattr("armworld.evaluation.doctor.claim", lambda cell: None)
    config = DoctorConfig(
        "some", planner=True, samples=48, iterations=3, objective="final", axes_yaw=20.0, seconds_per_action=0.1,
        camera="left", out=tmp_path,
    )  # fmt: skip
    cells = planning_cells(config)
    settings = {name: cell.settings for name, cell in cells.items()}
    assert all((s.iterations, s.objective, s.max_gripper) == (3, "final", 0.0) for s in settings.values())
    assert [settings[name].samples for name in ("agent", "oracle", "wide oracle")] == [48, 48, 4 * 48]
    assert (settings["agent"].axes_yaw, settings["agent"].seconds_per_action) == (20.0, 0.1)
    assert (settings["oracle"].axes_yaw, settings["oracle"].seconds_per_action) == (None, None)


def test_nothing_is_blamed_where_nothing_fails() -> None:
    found = {"agent": "cem", "solved": 3, "counts": dict.fromkeys(blaming.PARTS, 0)}
    assert blame_sentence(found) == "Planning: cem solved all 3 episodes."
