"""Telling goal, cost, planner and model apart, with stand-ins for the runs."""

from pathlib import Path

import pytest

from armworld.evaluation import blame as blaming
from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.blame import blame, blame_cells, blame_sentence
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.setup import Setup

SOLVES = {"agent": {1}, "expert": {1, 2, 3, 4}, "oracle": {2}, "wide_oracle": {3}}


def test_each_failure_is_blamed_on_the_first_link_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def run(cells, seeds, workers):
        role = cells[0].out.name
        asked[role] = list(seeds), cells[0].settings.samples, cells[0].settings.oracle_planner
        return [[EpisodeResult(s, s in SOLVES[role], 0.1, 3, 0.0, 0.0, "missed") for s in seeds]]

    monkeypatch.setattr(blaming, "run_with_progress", run)
    setup = Setup(camera="left", image_size=64, step_seconds=0.25)
    cells = blame_cells(setup, AgentSettings(samples=10), ("reach", "cup", "lab1"), "mppi", tmp_path)
    found = blame(cells, [1, 2, 3, 4, 5])
    assert [e["blame"] for e in found["episodes"]] == [None, "model", "planner", "cost", "goal or controller"]
    assert found["counts"] == {"goal or controller": 1, "cost": 1, "planner": 1, "model": 1} and found["solved"] == 1
    assert asked["expert"][0] == [2, 3, 4, 5] and asked["oracle"] == ([2, 3, 4], 10, "mppi")
    assert asked["wide_oracle"] == ([3, 4], 40, "mppi")  # only what the oracle did not solve
    assert "failed 4 of 5" in blame_sentence(found) and "cost 1" in blame_sentence(found)


def test_nothing_is_blamed_where_nothing_fails() -> None:
    found = {"agent": "cem", "solved": 3, "counts": dict.fromkeys(blaming.PARTS, 0)}
    assert blame_sentence(found) == "Planning: cem solved all 3 episodes."
