"""The planners' benchmarks, as small as they go: they run, and write what they promise."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import evaluation_fake as fake
from benchmarks_helpers import load_benchmark

from armworld.evaluation.effort import Effort
from armworld.evaluation.files import read_json
from armworld.planners.registry import PLANNERS, make_planner


def test_the_curve_is_drawn_and_goes_on(tmp_path: Path) -> None:
    curve = load_benchmark("planner_curve")
    settings = {"out": tmp_path / "out", "task": fake.ID, "model": fake.save_debug_model(tmp_path / "model")}
    settings |= {"planners": ("cem", "random_shooting"), "episodes": 1, "objective": "final"}
    curve.main(curve.Config(ladder="2x1", **settings))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("episodes/*.json")}
    curve.main(curve.Config(ladder="2x1,8x2", **settings))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()) and len(stamps) == 2
    rows = read_json(tmp_path / "out" / "curve.json")
    assert [(row["agent"], row["effort"]) for row in rows] == [
        ("cem", "2x1"), ("cem", "8x2"), ("random_shooting", "2x1"), ("random_shooting", "16x1"),
    ]  # fmt: skip
    assert all(row["episodes"] == 1 and len(row["wilson_95"]) == 2 for row in rows)
    assert (tmp_path / "out" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_every_planner_can_run_every_rung() -> None:
    """With at most half of the samples for elites, where it has any."""
    curve = load_benchmark("planner_curve")
    config = curve.Config(Path("out"))
    assert set(PLANNERS) - {"servo"} == set(curve.SEARCHERS)
    for planner in curve.SEARCHERS:
        for effort in curve.parse_ladder(config.ladder):
            made = make_planner(planner, **curve.settings_at(config, planner, effort).planner_settings(planner))
            assert 2 * getattr(made.config, "elites", 1) <= max(4, effort.samples)
    assert curve.settings_at(config, "cem", Effort(16, 2)).elites is None  # its own six are fewer than half
    with pytest.raises(ValueError, match="unknown planner 'servo'; valid: random_shooting, cem_published"):
        curve.Config(Path("out"), planners=("servo",))
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        curve.Config(Path("out"), episodes=0)
    with pytest.raises(ValueError, match="expected SAMPLESxITERATIONS"):
        curve.Config(Path("out"), ladder="16")


def test_the_planning_time_is_measured_and_the_plans_agree(tmp_path: Path) -> None:
    planning = load_benchmark("planning")
    sizes = {"width": 24, "depth": 1, "heads": 2, "image_size": 32, "horizons": (1, 2), "samples": 12, "repeats": 1}
    planning.main(planning.Config(**sizes, others=("random_shooting",), out=tmp_path / "out.json"))
    record = json.loads((tmp_path / "out.json").read_text())
    assert [row["horizon"] for row in record["published"]] == [1, 2]
    assert all(row["largest_difference"] < 1e-5 and row["our_seconds"] > 0 for row in record["published"])
    assert record["others"][0]["planner"] == "random_shooting"
