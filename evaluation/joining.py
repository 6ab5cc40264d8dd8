"""`armworld report DIR…`: several runs on one page, compared where they share task and seeds."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from armworld.evaluation.camera_verdict import CORRECTED
from armworld.evaluation.files import read_json, write_json
from armworld.evaluation.folders import check_out
from armworld.evaluation.report import Page, relative_link
from armworld.evaluation.statistics import mcnemar_exact

RECORDS = {
    "results.json": "plan or evaluate",
    "doctor.json": "doctor",
    "landscape.json": "landscape",
    "sweep.json": "sweep",
    "preflight.json": "preflight",
}
PICTURES = ("summary.png", "suite.png", "doctor.png", "landscape.png", "sweep.png", "preflight.png")
HEAD = ("run", "task", "object", "place", "method", "model", "success", "Wilson 95 %", "cm: mean", "median", "s/action")
PLACE = ("task", "object", "lab", "view")  # what two methods must share to be compared; a view is a sweep's camera
SCORED = {*PLACE[:3], "step_seconds", "agent", "model", "summary", "wilson_95", "episodes"}  # of every scored method
RULES = {"level": "none", "subgoals": False, "max_steps": None}  # and how; of older runs: these


@dataclass(frozen=True)
class ReportConfig:
    """Join the results of runs into one page.

    Attributes:
        dirs: Folders written by plan, evaluate, doctor, landscape, sweep or preflight.
        out: Folder for index.html and report.json.
    """

    dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path = Path("runs/report")


def report(config: ReportConfig, console: Console | None = None) -> dict[str, Any]:
    """Write one page over all runs; returns what report.json holds.

    Raises:
        ValueError: No folder given, or one without results.
    """
    check_out(config.out, "report")
    runs = [(folder, find_record(folder)) for folder in config.dirs]
    if not runs:
        raise ValueError("report needs at least one folder of a run")
    rows = [(str(folder), {**cell, "rules": rules_of(record)}) for folder, record in runs for cell in cells_of(record)]
    for name, cell in rows:
        if absent := sorted(SCORED - set(cell)):
            raise ValueError(f"{name} holds a record without {', '.join(absent)}; run its command again")
    comparisons = list(compare(rows))
    page = Page("armworld report", f"{len(runs)} runs: {', '.join(str(folder) for folder, _ in runs)}")
    if rows:
        page.heading("Success").table(HEAD, [_row(name, cell) for name, cell in rows])
    if comparisons:
        page.heading("Pairs on the same seeds (McNemar's exact test)")
        head = ("task", "first", "second", "seeds", "only first", "only second", "p")
        page.table(head, [[str(value) for value in pair.values()] for pair in comparisons])
    for folder, record in runs:
        _section(page, folder, record, config.out)
    joined = {"runs": [{"folder": str(folder), **record} for folder, record in runs], "comparisons": comparisons}
    page.write(config.out / "index.html")
    write_json(config.out / "report.json", joined)
    (console or Console()).print(f"Page: {config.out / 'index.html'}", soft_wrap=True)
    return joined


def find_record(folder: Path) -> dict[str, Any]:
    """The machine-readable record of a run's folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the --out folders of finished runs")
    for name in RECORDS:
        if (folder / name).is_file():
            record = read_json(folder / name)
            if not isinstance(record, dict):
                raise ValueError(f"{folder / name} is no record of a run: expected a JSON object")
            return record
    raise ValueError(f"{folder} holds no finished run: none of {', '.join(RECORDS)} is there")


def cells_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The scored methods of a record: an agent and its baselines, cells of a suite or sweep; a doctor has none."""
    if "cells" in record:
        return [cell for cell in record["cells"] if "episodes" in cell]
    if record.get("study"):
        return list(_studied(record))
    if "episodes" not in record:
        return []
    where = {key: record[key] for key in ("task", "object", "lab", "step_seconds") if key in record}
    beside = [{**where, "agent": name, "model": None, **cell} for name, cell in record.get("baselines", {}).items()]
    return [record, *beside]


def rules_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a run's episodes were played by: `RULES`, as configured."""
    config = record.get("config") or {}
    return {key: config.get(key, usual) for key, usual in RULES.items()}


def _studied(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The scored cells of a sweep: every camera, plain and with what its moves told; every planning horizon."""
    where = {key: record[key] for key in ("task", "object", "lab", "step_seconds", "agent", "model")}
    for view in record.get("views", []):
        yield {**where, "view": view["name"], **view}
        if "corrected" in view:
            name = f"{record['agent']}, {CORRECTED[view['corrected'].get('by', 'turn')]}"
            yield {**where, "view": view["name"], "agent": name, **view["corrected"]}
    for plan in record.get("plans", []):
        yield {**where, "agent": f"{record['agent']}, {plan['horizon']} steps ahead", **plan}


def compare(rows: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """McNemar's test of all pairs of runs or methods that share place, rules and seeds, first against second."""
    for index, (first_run, first) in enumerate(rows):
        for second_run, second in rows[index + 1 :]:
            same_place = all(first.get(key) == second.get(key) for key in (*PLACE, "step_seconds", "rules"))
            seeds = [episode["seed"] for episode in first["episodes"]]
            if not same_place or seeds != [episode["seed"] for episode in second["episodes"]]:
                continue
            outcomes = ([episode["success"] for episode in cell["episodes"]] for cell in (first, second))
            test = mcnemar_exact(*outcomes)
            yield {
                "task": " · ".join(str(first[key]) for key in PLACE if first.get(key)),
                "first": f"{first['agent']} ({first_run})",
                "second": f"{second['agent']} ({second_run})",
                "seeds": len(seeds),
                "only_first": test.only_first,
                "only_second": test.only_second,
                "p_value": round(test.p_value, 4),
            }


def _row(run: str, cell: dict[str, Any]) -> list[str]:
    means = cell["summary"]
    wins, n = sum(episode["success"] for episode in cell["episodes"]), len(cell["episodes"])
    low, high = cell["wilson_95"]
    finals = [means["final_distance_mean_m"], means["final_distance_median_m"]]
    seconds = means["seconds_per_action"]
    return [
        run,
        *(str(cell[key]) for key in ("task", "object")),
        " · ".join(str(cell[key]) for key in ("lab", "view") if cell.get(key)),
        str(cell["agent"]),
        cell["model"] or "–",
        f"{wins}/{n}",
        f"{100 * low:.0f}–{100 * high:.0f} %",
        *("–" if value is None else f"{100 * value:.1f}" for value in finals),
        "–" if seconds is None else f"{seconds:.3f}",
    ]


def _section(page: Page, folder: Path, record: dict[str, Any], out: Path) -> None:
    page.heading(str(folder))
    for line in record.get("verdict", []):
        page.text(line)
    for name in PICTURES:
        if (folder / name).is_file():
            page.picture((folder / name).read_bytes(), f"{name} of {folder}")
    if (folder / "index.html").is_file():
        link = html.escape(relative_link(folder / "index.html", out), quote=True)
        page.raw(f'<p><a href="{link}">The run\'s own page</a></p>')
    page.details("Configuration", {key: record.get(key) for key in ("config", "commit", "commits", "versions")})
