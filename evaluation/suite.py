"""`armworld evaluate`: a table of methods × tasks × objects × labs on shared seeds, resumable at every episode."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.cells import Cell
from armworld.evaluation.configuring import check_agent
from armworld.evaluation.effort import parse_ladder
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.files import write_bytes, write_json, write_text
from armworld.evaluation.folders import check_out
from armworld.evaluation.picture import FLOORS, figure_png, suite_figure
from armworld.evaluation.records import TABLE_HEAD, add_films, names_of, origin, parse_seeds, score, summary, table_row
from armworld.evaluation.report import Page, provenance, told_commits
from armworld.evaluation.setup import Setup, check_scene, make_cell, resolve, run_with_progress
from armworld.evaluation.statistics import mcnemar_exact
from armworld.types import check_name, check_numbers


class Place(NamedTuple):
    """A column of the table."""

    task: str
    object: str
    lab: str

    def __str__(self) -> str:
        return " · ".join(self)


BOTH = ("cup", "box")
SUITES: dict[str, dict[str, tuple[str, ...]]] = {  # task -> objects
    "reach": {"reach": ("cup",)},
    "table2": {"reach": ("cup",), "grasp": BOTH, "reach_with_object": BOTH, "pick_place": BOTH},
    "table3": {"reach": ("cup",), "grasp": BOTH, "pick_place": BOTH},
}
EFFORT_SUITES = ("table3",)  # run at every effort of a ladder: `table3.py`
# Success rates (%) of V-JEPA 2-AC on two real arms, ten trials each, mean of both labs (its Table 2): a reference.
PAPER = {
    ("reach", "cup"): 100,
    ("grasp", "cup"): 65,
    ("grasp", "box"): 25,
    ("reach_with_object", "cup"): 75,
    ("reach_with_object", "box"): 75,
    ("pick_place", "cup"): 80,
    ("pick_place", "box"): 65,
}


@dataclass(frozen=True)
class Table2:
    """Which cells of which table.

    Attributes:
        suite: reach (one task), table2 (the paper's four tasks with cup and box) or table3 (latent against pixel
            planning at equal time and at equal success; give --models pixels=FOLDER).
        agents: Methods, separated by commas (see `armworld plan --help`); with table3, cem,pixels if left out.
        seeds: Seeds shared by all cells: A-B, A,B,C or a file with one per line.
        tasks: Only these tasks of the suite, separated by commas; all by default.
        objects: Only these objects; all of the suite's by default.
        labs: Labs, separated by commas.
        baseline: Method that the others are compared with by McNemar's exact test, or none; by default the first of
            `agents` that is neither a floor nor the expert (hold, random, expert), or the first where all are.
        videos: Episodes to film per cell.
        ladder: With table3: the efforts SAMPLESxITERATIONS that every method runs at.
    """

    suite: str = "table2"
    agents: str = "cem,expert,hold,random"
    seeds: str = "2000000-2000099"
    tasks: str = ""
    objects: str = ""
    labs: str = "lab1,lab2"
    baseline: str | None = None
    videos: int = 2
    ladder: str = "16x2,32x2,32x4,64x4"


@dataclass(frozen=True)
class EvaluateConfig(AgentSettings, Setup, Table2):
    """Run a whole table; the same command continues it after an interruption."""

    out: Path = Path("runs/evaluate")

    def __post_init__(self) -> None:
        AgentSettings.__post_init__(self)
        Setup.__post_init__(self)
        check_name("suite", self.suite, SUITES)
        check_numbers(self, "videos", least=0)
        if self.ladder != Table2.ladder and self.suite not in EFFORT_SUITES:
            raise ValueError(f"--ladder is for the suites {', '.join(EFFORT_SUITES)}, got suite {self.suite}")
        efforts = parse_ladder(self.ladder) if self.suite in EFFORT_SUITES else [None]
        for task in names_of(self.tasks):
            check_name(f"task of suite {self.suite}", task, SUITES[self.suite])
        if not self.methods or not self.places:
            raise ValueError(
                f"nothing to evaluate: {len(self.methods)} agents, {len(self.places)} cells (agents {self.agents!r}, "
                f"tasks {self.tasks!r}, objects {self.objects!r}, labs {self.labs!r})"
            )
        for place in self.places:
            check_scene(self, place)
            for name, effort in itertools.product(self.methods, efforts):
                check_agent(name, place.task, self, **({} if effort is None else asdict(effort)))
        if self.baseline is not None:
            check_name("baseline", self.baseline, [*self.methods, "none"])
        self.check_models(self.methods)
        parse_seeds(self.seeds)

    @property
    def methods(self) -> list[str]:
        """The agents, in the order asked for."""
        untold = self.suite in EFFORT_SUITES and self.agents == Table2.agents
        return names_of("cem,pixels" if untold else self.agents)

    @property
    def compared_with(self) -> str | None:
        """The baseline in use; None where it is "none" or there is one method only."""
        if self.baseline == "none" or len(self.methods) < 2:
            return None
        return self.baseline or next((name for name in self.methods if name not in FLOORS), self.methods[0])

    @property
    def places(self) -> list[Place]:
        """The columns of the table."""
        tasks, objects = names_of(self.tasks), names_of(self.objects)
        return [
            Place(task, name, lab)
            for task, names in SUITES[self.suite].items()
            for name in names
            for lab in names_of(self.labs)
            if (not tasks or task in tasks) and (not objects or name in objects)
        ]


class Row(NamedTuple):
    """One cell with its episodes."""

    place: Place
    cell: Cell
    results: list[EpisodeResult]


def evaluate(config: EvaluateConfig, console: Console | None = None) -> dict[str, Any]:
    """Run what is missing, print the table, write results.json, table.md, suite.png and index.html.

    Every cell's folder gets its own results.json as well.

    Returns:
        What the top results.json holds.

    Raises:
        ValueError: Bad input.
        KeyboardInterrupt: Finished episodes are kept; the same command goes on.
    """
    console = console or Console()
    check_out(config.out, "evaluate")
    if config.suite in EFFORT_SUITES:
        from armworld.evaluation.table3 import table3

        return table3(config, console)
    config = resolve(config, config.methods)
    seeds = parse_seeds(config.seeds)
    filmed = frozenset(seeds[: config.videos])
    slots = [(place, agent) for place in config.places for agent in config.methods]
    cells = [
        make_cell(config, config, place, agent, config.out.joinpath("cells", *place, agent), filmed)
        for place, agent in slots
    ]
    runs = run_with_progress(cells, seeds, config.workers, config.ray)
    rows = [Row(place, cell, run) for (place, _), cell, run in zip(slots, cells, runs, strict=True)]
    record = suite_record(config, rows)
    write_suite(config, record, rows)
    console.print(_terminal_table(config, rows))
    console.print(f"Page: {config.out / 'index.html'}", soft_wrap=True)
    return record


def suite_record(config: EvaluateConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """What the top results.json holds: one record per cell, and where it came from."""
    return {
        "suite": config.suite,
        "baseline": config.compared_with,
        "cells": [cell_record(config, row, rows) for row in rows],
        **origin(config, [result for row in rows for result in row.results]),
    }


def cell_record(config: EvaluateConfig, row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """A cell's record: the keys of `armworld plan`, its summary, and the test against the baseline."""
    place, cell, results = row
    beside = [r.results for r in rows if r.place == place and r.cell.agent == config.compared_with]
    test = None
    if beside and cell.agent != config.compared_with:
        test = asdict(mcnemar_exact([r.success for r in results], [r.success for r in beside[0]]))
    return {
        **place._asdict(),
        "agent": cell.agent,
        "model": config.model_of(cell.agent),
        "step_seconds": config.step_seconds,
        **score(results),
        "summary": summary(results),
        "mcnemar": test,
    }


def write_suite(config: EvaluateConfig, record: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """All files of a finished table."""
    for row, cell in zip(rows, record["cells"], strict=True):
        write_json(row.cell.out / "results.json", cell)
    write_text(config.out / "table.md", markdown(config, record))
    bars = {str(row.place): {} for row in rows}
    for row in rows:
        bars[str(row.place)][row.cell.agent] = row.results
    paper = {str(row.place): PAPER.get(row.place[:2]) for row in rows}
    png = figure_png(suite_figure(bars, paper))
    write_bytes(config.out / "suite.png", png)
    page = Page(f"{config.suite}: {', '.join(config.methods)}", _lead(config, rows))
    page.picture(png, "success per cell and method with Wilson intervals")
    page.heading("Success").table(*success_grid(config, rows))
    _failure_section(page, rows)
    for place in config.places:
        here = [row for row in rows if row.place == place]
        page.heading(str(place))
        head = (*TABLE_HEAD, f"McNemar vs {config.compared_with}") if config.compared_with else TABLE_HEAD
        page.table(head, [_detail(config, row, record) for row in here])
        for row in here:
            add_films(page, row.cell, row.results, config.out)
    provenance(page, record)
    page.write(config.out / "index.html")
    write_json(config.out / "results.json", record)


def _lead(config: EvaluateConfig, rows: Sequence[Row]) -> str:
    return (
        f"{len(rows)} cells of {len(rows[0].results)} shared seeds each; success is judged at the end of an episode "
        f"and must hold; 95 % Wilson intervals. Model {config.model}, camera {config.camera}, "
        f"{config.step_seconds:g} s per step."
    )


def _detail(config: EvaluateConfig, row: Row, record: Mapping[str, Any]) -> list[str]:
    cells = table_row(row.cell.agent, row.results)
    if config.compared_with is None:
        return cells
    key = {**row.place._asdict(), "agent": row.cell.agent}
    own = next(cell for cell in record["cells"] if all(cell[name] == value for name, value in key.items()))
    return [*cells, mcnemar_text(own["mcnemar"])]


def mcnemar_text(test: Mapping[str, Any] | None) -> str:
    """`+7 −2, p = 0.18`: seeds that only this method, and only the other one, solved."""
    if test is None:
        return "–"
    return f"+{test['only_first']} −{test['only_second']}, p = {test['p_value']:.2g}"


def success_grid(config: EvaluateConfig, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the short table: places down, methods across, `wins/n` and the interval."""
    found = {(row.place, row.cell.agent): table_row("", row.results) for row in rows}
    head = ["task · object · lab", *config.methods, "paper, real arm"]
    body = []
    for place in config.places:
        cells = [found[place, agent] for agent in config.methods]
        paper = PAPER.get(place[:2])
        body.append([str(place), *(f"{c[1]} ({c[2]})" for c in cells), "–" if paper is None else f"{paper} %"])
    return head, body


def markdown(config: EvaluateConfig, record: Mapping[str, Any]) -> str:
    """The table for a README: one row per cell."""
    test = "McNemar" if config.compared_with is None else f"McNemar vs {config.compared_with}"
    head = f"| task | object | lab | method | success | Wilson 95 % | final cm, median | s/action | failures | {test} |"
    lines = [head, "|" + " --- |" * 10]
    for cell in record["cells"]:
        low, high = (round(100 * end) for end in cell["wilson_95"])
        means, n = cell["summary"], len(cell["episodes"])
        final, seconds = means["final_distance_median_m"], means["seconds_per_action"]
        failures = ", ".join(f"{count} {name}" for name, count in means["reasons"].items() if name != "success")
        wins = sum(episode["success"] for episode in cell["episodes"])
        values = [cell["task"], cell["object"], cell["lab"], cell["agent"], f"{wins}/{n}", f"{low}–{high} %"]
        values += ["–" if final is None else f"{100 * final:.1f}", "–" if seconds is None else f"{seconds:.3f}"]
        lines.append("| " + " | ".join([*values, failures or "none", mcnemar_text(cell["mcnemar"])]) + " |")
    lines += ["", f"Model {config.model}, seeds {config.seeds}, commit {told_commits(record)}."]
    return "\n".join(lines) + "\n"


def _failure_section(page: Page, rows: Sequence[Row]) -> None:
    """How each method fails, over all cells."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        own = counts.setdefault(row.cell.agent, {})
        for reason, count in summary(row.results)["reasons"].items():
            own[reason] = own.get(reason, 0) + count
    reasons = sorted({reason for own in counts.values() for reason in own} - {"success"})
    if reasons:
        page.heading("How episodes failed, over all cells")
        page.table(
            ["method", *(reason.replace("_", " ") for reason in reasons)],
            [[agent, *(own.get(reason, 0) for reason in reasons)] for agent, own in counts.items()],
        )


def _terminal_table(config: EvaluateConfig, rows: Sequence[Row]) -> Table:
    head, body = success_grid(config, rows)
    table = Table(title=f"{config.suite}: success (Wilson 95 %)", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head[:-1]):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for place, *cells in body:
        table.add_row(place.replace(" · ", " "), *cells[:-1])
    return table
