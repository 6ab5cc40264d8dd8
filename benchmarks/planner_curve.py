"""Success and final distance against the planner's effort, for each planner: which one buys most with how much.

    python benchmarks/planner_curve.py --out DIR [--model default] [--task reach] [--episodes 20] [--workers 2]
        [--ladder 2x1,4x1,8x1,8x2,16x2,32x2,64x4]

Every point is a planner at some samples x iterations over the same seeds (of the selection range: this is for
choosing settings), with its 95 % Wilson interval. The ladder begins where a search hardly deserves the name: where
everything succeeds, nothing can be told apart. Resumable: finished episodes in DIR are kept. Writes curve.json and
curve.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.cells import Cell, env_id_of, run_cells
from armworld.evaluation.effort import Effort, Point, draw_success, log_axis, parse_ladder
from armworld.evaluation.files import write_bytes, write_json
from armworld.evaluation.picture import figure_png, method_colours, tidy
from armworld.evaluation.statistics import wilson_interval
from armworld.planners.registry import PLANNERS
from armworld.types import check_name
from armworld.worldmodel.checkpoint import load_world_model

FIRST_SEED = 1_000_000  # the selection range
SEARCHERS = ("random_shooting", "cem_published", "cem", "cem_adam", "icem", "mppi", "gradient")
AT_ONCE = ("random_shooting", "gradient")  # no iterations: they draw a rung's samples x iterations at once
DODGE = 1.035  # points of neighbouring planners at one effort are drawn apart by this factor


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        out: Folder of episodes and results.
        model: Shipped name or checkpoint folder.
        task, object, lab: The environment.
        planners: Which planners.
        ladder: The efforts SAMPLESxITERATIONS that each of them runs at, separated by commas.
        episodes: Per point.
        workers: Processes.
        objective: The energy; by default the model's (`planners.objectives.make_objective`).
        max_gripper: Bound of the planned closedness delta; 0 leaves the gripper out.
    """

    out: Path
    model: str = "default"
    task: str = "reach"
    object: str = "cup"
    lab: str = "lab1"
    planners: tuple[str, ...] = SEARCHERS
    ladder: str = "2x1,4x1,8x1,8x2,16x2,32x2,64x4"
    episodes: int = 20
    workers: int = 1
    objective: str | None = None
    max_gripper: float = 0.0

    def __post_init__(self) -> None:
        for planner in self.planners:
            check_name("planner", planner, SEARCHERS)
        parse_ladder(self.ladder)
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")


def settings_at(config: Config, planner: str, effort: Effort) -> AgentSettings:
    """How a planner plans at an effort: where its own number of elites is more than half the samples, with half."""
    elites = getattr(PLANNERS[planner].defaults, "elites", 0)
    return AgentSettings(
        samples=effort.samples,
        iterations=None if planner in AT_ONCE else effort.iterations,
        elites=max(2, effort.samples // 2) if 2 * elites > effort.samples else None,
        objective=config.objective,
        max_gripper=config.max_gripper,
    )


def rungs(config: Config) -> list[tuple[str, Effort, Cell]]:
    """Every point's planner, effort and cell."""
    model = load_world_model(config.model)
    if model.image_size[0] != model.image_size[1]:
        raise ValueError(f"the environments render squares; this model sees {model.image_size} pixels")
    env = {
        "object": config.object,
        "lab": config.lab,
        "cameras": (model.camera,),
        "image_size": model.image_size[0],
        "step_seconds": model.step_seconds,
    }
    found = []
    for planner in config.planners:
        for effort in parse_ladder(config.ladder):
            if planner in AT_ONCE:
                effort = Effort(effort.samples * effort.iterations, 1)
            out = config.out / f"{planner}_{effort}"
            settings = settings_at(config, planner, effort)
            found.append((planner, effort, Cell(env_id_of(config.task), env, planner, out, config.model, settings)))
    return found


def row(point: Point) -> dict[str, Any]:
    """A point's numbers, JSON-able."""
    distances = [r.final_distance_m for r in point.results if r.final_distance_m is not None]
    return {
        **point.to_json(),
        "success_rate": point.wins / len(point.results),
        "wilson_95": wilson_interval(point.wins, len(point.results)),
        "median_distance_m": float(np.median(distances)) if distances else None,
    }


def curve_figure(points: Sequence[Point], title: str) -> Figure:
    """Success over samples x iterations and over CPU seconds, and median final distance; one line per planner."""
    lines: dict[str, list[Point]] = {}
    for point in points:
        lines.setdefault(point.agent, []).append(point)
    colours: Mapping[str, str] = method_colours(list(lines))
    figure = Figure(figsize=(15, 4.7), layout="constrained")
    by_effort, by_time, distance = figure.subplots(1, 3)
    for index, (name, line) in enumerate(lines.items()):
        line = sorted(line, key=lambda point: point.effort.samples * point.effort.iterations)
        size = [point.effort.samples * point.effort.iterations * DODGE ** (index - len(lines) / 2) for point in line]
        draw_success(by_effort, size, line, colours[name])
        line = sorted((point for point in line if np.isfinite(point.seconds)), key=lambda point: point.seconds)
        seconds = [point.seconds for point in line]
        draw_success(by_time, seconds, line, colours[name])
        medians = np.array([row(point)["median_distance_m"] for point in line], float)
        distance.plot(seconds, 100 * medians, "o-", color=colours[name], lw=1.8)
    tidy(by_effort, "Success, % (95 % Wilson)")
    tidy(by_time, "Success, % (95 % Wilson)")
    tidy(distance, "Median final distance (cm)")
    log_axis(by_effort, "samples × iterations (without Adam's steps)")
    for axes in (by_time, distance):
        log_axis(axes, "CPU seconds per action")
    for axes in (by_effort, by_time):
        axes.set_ylim(-3, 103)
    distance.set_yscale("log")
    distance.yaxis.set_major_formatter("{x:g}")
    figure.legend(*by_effort.get_legend_handles_labels(), loc="outside lower center", ncols=len(lines), frameon=False)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", fontweight="bold")
    return figure


def main(config: Config) -> None:
    """Run what is missing, then write the numbers and the picture."""
    planned = rungs(config)
    seeds = range(FIRST_SEED, FIRST_SEED + config.episodes)
    results = run_cells([cell for *_, cell in planned], seeds, config.workers)
    points = [Point(planner, effort, found) for (planner, effort, _), found in zip(planned, results, strict=True)]
    write_json(config.out / "curve.json", [row(point) for point in points])
    title = f"{config.task} {config.object} {config.lab}, {config.episodes} episodes per point"
    write_bytes(config.out / "curve.png", figure_png(curve_figure(points, title)))
    for numbers in map(row, points):
        print({key: value for key, value in numbers.items() if key != "wilson_95"})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
