"""The table over methods and places, and the page that joins runs: on a point world."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import evaluation_fake as fake  # noqa: E402

from armworld.evaluation import suite  # noqa: E402
from armworld.evaluation.joining import ReportConfig, compare, report, rules_of  # noqa: E402
from armworld.evaluation.plan import PlanConfig, plan  # noqa: E402
from armworld.evaluation.suite import EvaluateConfig, evaluate  # noqa: E402


@pytest.fixture(autouse=True)
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.SUITES, "points", {fake.ID: ("cup", "box")})


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


def run(out: Path, **changes):
    values: dict[str, Any] = {
        "suite": "points",
        "agents": "walk,broken",
        "seeds": "5-8",
        "labs": "lab1",
        "baseline": "broken",
    }
    return evaluate(EvaluateConfig(out=out, **(values | changes)), quiet())


def test_evaluate_writes_every_cell(tmp_path: Path) -> None:
    record = run(tmp_path, videos=1)
    assert record == json.loads((tmp_path / "results.json").read_text())
    assert [(c["object"], c["agent"], c["success_rate"]) for c in record["cells"]] == [
        ("cup", "walk", 1.0), ("cup", "broken", 0.0), ("box", "walk", 1.0), ("box", "broken", 0.0),
    ]  # fmt: skip
    assert record["cells"][0]["mcnemar"] == {"only_first": 4, "only_second": 0, "p_value": 0.125}
    assert record["cells"][1]["mcnemar"] is None
    cell = json.loads((tmp_path / "cells" / fake.ID / "cup" / "lab1" / "walk" / "results.json").read_text())
    assert cell == record["cells"][0] and [e["seed"] for e in cell["episodes"]] == [5, 6, 7, 8]
    text = (tmp_path / "table.md").read_text()
    assert "| walk | 4/4 |" in text and "4 planning_failed" in text and "p = 0.12" in text
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:video/mp4") == 4 and "planning failed" in page


def test_planning_on_nan_fails_its_episodes_and_the_table_goes_on(tmp_path: Path) -> None:
    """The model returns NaN and raises nothing."""
    record = run(tmp_path, agents="plans_on_nan,plans,walk", objects="cup", baseline=None, videos=1)
    lost, planned, walked = record["cells"]
    assert all(episode["reason"].startswith("planning_failed: PlanningError: no finite energy among") for episode in
               lost["episodes"]) and len(lost["episodes"]) == 4  # fmt: skip
    assert lost["success_rate"] == 0 and planned["success_rate"] == walked["success_rate"] == 1
    assert record["baseline"] == "plans_on_nan" and planned["mcnemar"]["only_first"] == 4


def test_a_goal_out_of_reach_is_missed_by_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.SUITES, "points", {fake.WALLED: ("cup",)})
    record = run(tmp_path, agents="plans,walk", baseline=None, videos=0)
    for cell in record["cells"]:
        assert cell["success_rate"] == 0 and set(cell["summary"]["reasons"]) == {"missed"}
        assert all(0.04 < episode["final_distance_m"] < 0.4 for episode in cell["episodes"])
    assert "| plans | 0/4 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("agents", "asked", "used"),
    [
        ("hold,random,cem,expert,icem", None, "cem"),
        ("cem,icem", "icem", "icem"),
        ("expert,hold", None, "expert"),
        ("cem,icem", "none", None),
        ("cem", None, None),
    ],
)
def test_the_baseline_is_the_first_real_method_unless_told(agents: str, asked: str | None, used: str | None) -> None:
    assert EvaluateConfig(agents=agents, baseline=asked).compared_with == used


def test_a_table_compares_with_its_first_method(tmp_path: Path) -> None:
    record = run(tmp_path, agents="hold,walk,broken", objects="cup", baseline=None, videos=0)
    assert record["baseline"] == "walk" and record["cells"][1]["mcnemar"] is None
    for other in (record["cells"][0], record["cells"][2]):
        assert other["mcnemar"] == {"only_first": 0, "only_second": 4, "p_value": 0.125}
    assert "| McNemar vs walk |" in (tmp_path / "table.md").read_text()
    assert "McNemar vs walk" in (tmp_path / "index.html").read_text()


def test_evaluate_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, agents="walk,interrupt", seeds="10-13", baseline=None, videos=0)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("episodes/*.json")}
    assert len(kept) == 6  # walk 10 to 13, interrupt 10 and 11
    record = run(tmp_path, agents="walk", seeds="10-13", baseline=None, videos=0)
    assert len(record["cells"]) == 2 and record["cells"][0]["mcnemar"] is None
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"suite": "table9"}, "unknown suite 'table9'; valid: reach, table2"),
        ({"agents": "walk,wlk"}, "unknown agent 'wlk'"),
        ({"agents": "", "baseline": None}, "nothing to evaluate: 0 agents"),
        ({"objects": "pan"}, "nothing to evaluate"),
        ({"tasks": "grsp"}, "unknown task of suite points 'grsp'"),
        ({"baseline": "octo"}, "unknown baseline 'octo'; valid: walk, broken"),
        ({"videos": -1}, "videos must be at least 0, got -1"),
        ({"agents": "walk,cem", "max_yaw": float("nan")}, "max_yaw must be at least 0, got nan"),
        ({"suite": "table3", "agents": "cem,icem", "ladder": "16x2,4x1", "baseline": None}, "2 <= elites <= samples"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        run(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [("[1]", "results.json is no record of a run"), ('{"episodes": []}', "holds a record without agent, lab, model")],
)
def test_records_of_no_run_are_named(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(content)
    with pytest.raises(ValueError, match=told):
        report(ReportConfig((tmp_path / "run",), tmp_path / "joined"), quiet())
    assert not (tmp_path / "joined").exists()


def test_report_joins_and_compares(tmp_path: Path) -> None:
    run(tmp_path / "table", videos=0)
    values: dict[str, Any] = {"task": fake.ID, "baselines": "broken", "seeds": "5-8", "videos": 0}
    plan(PlanConfig(out=tmp_path / "one", agent="walk", **values), quiet())
    joined = report(ReportConfig((tmp_path / "table", tmp_path / "one"), tmp_path / "joined"), quiet())
    assert len(joined["runs"]) == 2
    pairs = [pair for pair in joined["comparisons"] if pair["only_first"] == 4]
    assert pairs and all(pair["p_value"] == 0.125 for pair in pairs)
    page = (tmp_path / "joined" / "index.html").read_text()
    assert "McNemar" in page and 'href="../one/index.html"' in page and page.count("data:image/png") == 2
    assert json.loads((tmp_path / "joined" / "report.json").read_text()) == joined


def test_report_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        report(ReportConfig((tmp_path,)))
    with pytest.raises(ValueError, match="is not a folder"):
        report(ReportConfig((tmp_path / "nowhere",)))
    with pytest.raises(ValueError, match="at least one"):
        report(ReportConfig(()))


def cell(seeds: list[int], lab: str = "lab1", **more: Any) -> dict:
    episodes = [{"seed": seed, "success": True} for seed in seeds]
    return {"task": "t", "object": "o", "lab": lab, "agent": "a", "episodes": episodes, **more}


def test_only_equal_rules_are_compared() -> None:
    configs = [{}, {"level": "none", "max_steps": None}, {"level": "full"}, {"subgoals": True}, {"max_steps": 9}]
    rows = [(str(config), cell([1], rules=rules_of({"config": config}))) for config in configs]
    rows.append(("slow", cell([1], rules=rules_of({}), step_seconds=0.5)))
    (pair,) = compare(rows)
    assert pair["first"] == "a ({})" and "max_steps" in pair["second"]


def test_only_equal_seeds_are_compared() -> None:
    assert len(list(compare([("x", cell([1, 2])), ("y", cell([1, 2]))]))) == 1
    assert not list(compare([("x", cell([1, 2])), ("y", cell([1, 3])), ("z", cell([1, 2], "lab2"))]))
