"""Equal time and equal success on points whose answers are known; the suite on fakes that search."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from armworld.evaluation import suite
from armworld.evaluation.agents import AGENTS, Entry
from armworld.evaluation.effort import Effort, Point, at_equal_success, at_equal_time, effort_figure, parse_ladder
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.picture import figure_png
from armworld.evaluation.suite import EvaluateConfig, evaluate
from armworld.evaluation.table3 import check_methods

sys.path.insert(0, str(Path(__file__).parent))
import evaluation_fake as fake

EPISODES = 10


def point(agent: str, effort: str, seconds: float, wins: int) -> Point:
    results = [
        EpisodeResult(seed, seed < wins, 0.01, 5, 2 * seconds, seconds, "success" if seed < wins else "missed")
        for seed in range(EPISODES)
    ]
    return Point(agent, parse_ladder(effort)[0], results)


FAST = [point("fast", "8x1", 0.01, 2), point("fast", "16x1", 0.02, 6), point("fast", "64x1", 0.08, 9)]
SLOW = [point("slow", "8x1", 0.05, 4), point("slow", "16x1", 0.10, 8), point("slow", "64x1", 0.40, 8)]
LINES = {"fast": FAST, "slow": SLOW}


def test_at_equal_time_the_largest_search_that_fits_counts() -> None:
    rows = at_equal_time(LINES)
    assert [row["seconds"] for row in rows] == [0.05, 0.08, 0.10, 0.40]
    efforts = [(row["best"]["fast"]["effort"], row["best"]["slow"]["effort"]) for row in rows]
    assert efforts == [("16x1", "8x1"), ("64x1", "8x1"), ("64x1", "16x1"), ("64x1", "64x1")]
    wins = [(row["best"]["fast"]["wins"], row["best"]["slow"]["wins"]) for row in rows]
    assert wins == [(6, 4), (9, 4), (9, 8), (9, 8)]
    assert rows[0]["mcnemar"] == {"slow": {"only_first": 2, "only_second": 0, "p_value": 0.5}}


def test_at_equal_time_no_point_is_chosen_by_its_success() -> None:
    lucky = [point("lucky", "8x1", 0.01, 9), point("lucky", "16x1", 0.02, 3)]
    (first, second) = at_equal_time({"lucky": lucky, "other": [point("other", "8x1", 0.01, 3)]})
    assert (first["best"]["lucky"]["wins"], second["best"]["lucky"]["wins"]) == (9, 3)
    assert second["mcnemar"]["other"]["p_value"] == 1.0


def test_at_equal_success_the_quickest_that_reaches_it_counts() -> None:
    rows = at_equal_success(LINES)
    assert [row["wins"] for row in rows] == [8, 6, 4, 2]  # the slow one never reaches 9
    assert [row["best"]["fast"]["effort"] for row in rows] == ["64x1", "16x1", "16x1", "8x1"]
    assert [row["ratio"]["slow"] for row in rows] == pytest.approx([0.10 / 0.08, 5.0, 2.5, 5.0])


def test_nothing_in_common() -> None:
    hopeless = {"fast": FAST, "lost": [point("lost", "8x1", 0.5, 0)]}
    assert at_equal_success(hopeless) == []
    assert [row["best"]["lost"]["wins"] for row in at_equal_time(hopeless)] == [0]
    still = [replace(result, steps=0) for result in FAST[0].results]
    assert Point("still", Effort(1, 1), still).seconds == np.inf


def test_the_picture_is_drawn() -> None:
    assert figure_png(effort_figure({"a": LINES, "b": LINES, "c": LINES, "d": LINES}), dpi=40)[:4] == b"\x89PNG"


def test_ladders() -> None:
    assert parse_ladder("16x2, 64x4,16x2") == (Effort(16, 2), Effort(64, 4))
    for text in ("", "16", "0x2", "16x-1", "ax2"):
        with pytest.raises(ValueError, match="expected SAMPLESxITERATIONS"):
            parse_ladder(text)


@pytest.fixture
def searchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two agents that walk the straighter the more samples they have; the second needs twice as many."""
    for name, needed in {"keen": 8, "dull": 16}.items():

        def build(env: Any, model: Any, seed: int, settings: Any, needed: int = needed) -> fake.Walk:
            return fake.Walk(seed, noise=0.005 if settings.samples >= needed else 0.5)

        monkeypatch.setitem(AGENTS, name, Entry(build, False, "for tests"))
    monkeypatch.setitem(suite.SUITES, "table3", {fake.ID: ("cup",)})


def run(out: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"agents": "keen,dull", "seeds": "5-8", "labs": "lab1", "ladder": "4x1,8x1,16x1"}
    console = Console(file=io.StringIO(), width=160)
    return evaluate(EvaluateConfig(suite="table3", out=out, **(values | changes)), console)


def test_the_suite_runs_and_resumes(tmp_path: Path, searchers: None) -> None:
    record = run(tmp_path, videos=1)
    assert record == json.loads((tmp_path / "results.json").read_text())
    rates = {cell["agent"]: cell["success_rate"] for cell in record["cells"]}
    assert rates == {"keen 4x1": 0, "keen 8x1": 1, "keen 16x1": 1, "dull 4x1": 0, "dull 8x1": 0, "dull 16x1": 1}
    (place,) = record["places"]
    assert [row["wins"] for row in place["equal_success"]] == [4]
    assert place["equal_success"][0]["best"]["dull"]["effort"] == "16x1"
    cell = tmp_path / "cells" / fake.ID / "cup" / "lab1" / "keen" / "8x1"
    assert json.loads((cell / "results.json").read_text())["agent"] == "keen 8x1"
    text = (tmp_path / "table.md").read_text()
    assert "equal time**" in text and "equal success**" in text and "| 4/4 | dull | 16x1 |" in text
    page = (tmp_path / "index.html").read_text()
    assert "at equal success" in page and "keen 16x1" in page and (tmp_path / "suite.png").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("episodes/*.json")}
    assert len(before) == 24
    run(tmp_path, videos=1, ladder="4x1,8x1,16x1,32x1")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_what_cannot_be_compared_is_named(tmp_path: Path, searchers: None) -> None:
    with pytest.raises(ValueError, match="compares at least two searching planners: got 1"):
        run(tmp_path, agents="keen")
    with pytest.raises(ValueError, match="hold searches with no samples and iterations; valid: cem, "):
        run(tmp_path, agents="keen,hold")
    with pytest.raises(ValueError, match="leave out --baseline"):
        run(tmp_path, baseline="keen")
    with pytest.raises(ValueError, match="--models pixels=FOLDER"):
        evaluate(EvaluateConfig(suite="table3", out=tmp_path), Console(quiet=True))
    check_methods(("cem", "pixels"), "cem=a, pixels = b")
    with pytest.raises(ValueError, match="--ladder is for the suites table3, got suite table2"):
        EvaluateConfig(suite="table2", ladder="8x1")
