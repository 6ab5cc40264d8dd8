"""`armworld evaluate --suite table3`: latent against pixel planning, at equal time per action and at equal success.

    armworld evaluate --suite table3 --models pixels=runs/pixels --seeds 2000000-2000049 --labs lab1 --out runs/table3

Every method runs at every effort of a ladder (samples x iterations) on the same seeds. Then two questions are answered
per place: within the same time, each with its largest search that fits, who succeeds more often; for the same success,
who takes less time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from armworld.evaluation.agents import AGENTS
from armworld.evaluation.cells import Cell
from armworld.evaluation.effort import (
    Lines,
    Point,
    at_equal_success,
    at_equal_time,
    effort_figure,
    parse_ladder,
)
from armworld.evaluation.files import plain, write_bytes, write_json, write_text
from armworld.evaluation.picture import figure_png
from armworld.evaluation.records import TABLE_HEAD, origin, parse_seeds, score, summary, table_row
from armworld.evaluation.report import Page, provenance
from armworld.evaluation.setup import make_cell, resolve, run_with_progress

if TYPE_CHECKING:
    from armworld.evaluation.suite import EvaluateConfig, Place

NO_SEARCH = ("hold", "random", "expert", "octo", "features_bc", "sac", "gradient", "random_shooting", "servo")
TIME_HEAD = ("at most s/action", "method", "effort", "s/action", "success", "McNemar against the first")
SUCCESS_HEAD = ("at least", "method", "effort", "s/action", "success", "times the first one's s/action")

NOTHING_SHARED = "There is no success that all methods reach."


class Slot(NamedTuple):
    """One cell of the ladder with its episodes."""

    place: Place
    point: Point
    cell: Cell


def check_methods(methods: Sequence[str], models: str) -> None:
    """Raise ValueError where there is nothing to compare, or a method that has no samples and iterations."""
    unfit = [name for name in methods if name in NO_SEARCH]
    if unfit or len(methods) < 2:
        told = f"{', '.join(unfit)} searches with no samples and iterations" if unfit else f"got {len(methods)}"
        valid = ", ".join(name for name in AGENTS if name not in NO_SEARCH)
        raise ValueError(f"suite table3 compares at least two searching planners: {told}; valid: {valid}")
    if "pixels" in methods and "pixels=" not in models.replace(" ", ""):
        raise ValueError("give the pixel model: --models pixels=FOLDER (armworld pixels trains one)")


def table3(config: EvaluateConfig, console: Console) -> dict[str, Any]:
    """Run what is missing, write results.json, table.md, suite.png and index.html; returns what results.json holds."""
    check_methods(config.methods, config.models)
    if config.baseline is not None:
        raise ValueError("suite table3 compares with the first of --agents; leave out --baseline")
    efforts = parse_ladder(config.ladder)
    config = resolve(config, config.methods)
    seeds = parse_seeds(config.seeds)
    filmed = frozenset(seeds[: config.videos])
    slots, cells = [], []
    for place in config.places:
        for agent in config.methods:
            for effort in efforts:
                settings = replace(config, samples=effort.samples, iterations=effort.iterations)
                out = config.out.joinpath("cells", *place, agent, str(effort))
                slots.append((place, agent, effort))
                cells.append(make_cell(config, settings, place, agent, out, filmed))
    runs = run_with_progress(cells, seeds, config.workers, config.ray)
    found = [
        Slot(place, Point(agent, effort, results), cell)
        for (place, agent, effort), cell, results in zip(slots, cells, runs, strict=True)
    ]
    record = table3_record(config, found)
    write_table3(config, record, found)
    for line in markdown(record).splitlines():
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"Page: {config.out / 'index.html'}", soft_wrap=True)
    return record


def lines_of(found: Sequence[Slot], place: Place) -> Lines:
    """The points at a place by method."""
    lines: dict[str, list[Point]] = {}
    for slot in found:
        if slot.place == place:
            lines.setdefault(slot.point.agent, []).append(slot.point)
    return lines


def table3_record(config: EvaluateConfig, found: Sequence[Slot]) -> dict[str, Any]:
    """What results.json holds: the cells, both comparisons per place, and where it came from."""
    cells = [
        {
            **slot.place._asdict(),
            "agent": f"{slot.point.agent} {slot.point.effort}",
            "model": config.model_of(slot.point.agent),
            "step_seconds": config.step_seconds,
            **score(slot.point.results),
            "summary": summary(slot.point.results),
            "cpu_seconds_per_action": slot.point.seconds,
        }
        for slot in found
    ]
    places = [
        {
            **place._asdict(),
            "equal_time": at_equal_time(lines_of(found, place)),
            "equal_success": at_equal_success(lines_of(found, place)),
        }
        for place in config.places
    ]
    return plain(
        {
            "suite": config.suite,
            "methods": config.methods,
            "cells": cells,
            "places": places,
            **origin(config, [result for slot in found for result in slot.point.results]),
        }
    )


def time_rows(place: dict[str, Any]) -> list[list[str]]:
    """Rows of `TIME_HEAD`."""
    rows = []
    for row in place["equal_time"]:
        for name, best in row["best"].items():
            test = row["mcnemar"].get(name)
            told = "–" if test is None else f"+{test['only_first']} −{test['only_second']}, p = {test['p_value']:.2g}"
            rows.append([f"{row['seconds']:.3f}", *_point(name, best), told])
    return rows


def success_rows(place: dict[str, Any]) -> list[list[str]]:
    """Rows of `SUCCESS_HEAD`."""
    rows = []
    for row in place["equal_success"]:
        for name, best in row["best"].items():
            ratio = row["ratio"].get(name)
            told = "–" if ratio is None else f"{ratio:.2f}"
            rows.append([f"{row['wins']}/{best['episodes']}", *_point(name, best), told])
    return rows


def _point(name: str, best: dict[str, Any]) -> list[str]:
    return [name, best["effort"], f"{best['cpu_seconds_per_action']:.3f}", f"{best['wins']}/{best['episodes']}"]


def markdown(record: dict[str, Any]) -> str:
    """Both comparisons of every place, for a README."""
    lines = []
    for place in record["places"]:
        where = " · ".join(place[key] for key in ("task", "object", "lab"))
        for title, head, rows in (
            ("equal time", TIME_HEAD, time_rows(place)),
            ("equal success", SUCCESS_HEAD, success_rows(place)),
        ):
            lines += [f"**{where}, {title}**", ""]
            if rows:
                lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
            else:
                lines.append(NOTHING_SHARED)
            lines.append("")
    return "\n".join(lines)


def write_table3(config: EvaluateConfig, record: dict[str, Any], found: Sequence[Slot]) -> None:
    """All files of a finished comparison."""
    for slot, cell in zip(found, record["cells"], strict=True):
        write_json(slot.cell.out / "results.json", cell)
    write_text(config.out / "table.md", markdown(record))
    png = figure_png(effort_figure({str(place): lines_of(found, place) for place in config.places}))
    write_bytes(config.out / "suite.png", png)
    page = Page(
        f"{config.suite}: {' against '.join(config.methods)}",
        f"{len(parse_seeds(config.seeds))} shared seeds per point, efforts {config.ladder} (samples x iterations); "
        "time is CPU time per action.",
    )
    page.picture(png, "success over time per action, with Wilson intervals")
    for place, told in zip(config.places, record["places"], strict=True):
        page.heading(f"{place}: at equal time").table(TIME_HEAD, time_rows(told))
        page.heading(f"{place}: at equal success")
        rows = success_rows(told)
        page.table(SUCCESS_HEAD, rows) if rows else page.text(NOTHING_SHARED)
        here = [slot.point for slot in found if slot.place == place]
        page.heading(f"{place}: all points")
        page.table(TABLE_HEAD, [table_row(f"{point.agent} {point.effort}", point.results) for point in here])
    show_imagined(page, config)
    provenance(page, record)
    page.write(config.out / "index.html")
    write_json(config.out / "results.json", record)


def show_imagined(page: Page, config: EvaluateConfig) -> None:
    """What the pixel model imagines beside the truth, where its training drew that (`baselines.pixels_picture`)."""
    from armworld.baselines.pixels_picture import PICTURE
    from armworld.worldmodel.checkpoint import resolve as folder_of

    model = config.model_of("pixels") if "pixels" in config.methods else None
    drawn = None if model is None else folder_of(model) / PICTURE
    if drawn is not None and drawn.is_file():
        page.heading("What the pixel model imagines, beside the truth (held-out episodes, one rollout each)")
        page.picture(drawn.read_bytes(), "truth, imagined frames, and their difference in grey levels")
