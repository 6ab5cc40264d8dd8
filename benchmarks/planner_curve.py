"""Success and final distance against the planner's effort, for each planner: which one buys most with how much.

    python benchmarks/planner_curve.py --out DIR [--model default] [--task reach] [--episodes 20] [--workers 2]

Every point is a planner at some samples x iterations over the same seeds (of the selection range: this is for
choosing settings). Resumable: finished episodes in DIR are kept. Writes curve.json and curve.png.
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
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.files import write_bytes, write_json
from armworld.evaluation.picture import figure_png, method_colours, tidy
from armworld.evaluation.statistics import wilson_interval
from armworld.worldmodel.checkpoint import load_world_model

FIRST_SEED = 1_000_000  # the selection range
# (samples, iterations) per planner, cheapest first; None: the planner has no such setting
LADDERS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "random_shooting": ((32, None), (64, None), (128, None), (256, None), (512, None)),
    "cem_published": ((32, 2), (32, 4), (64, 4), (128, 4), (128, 8)),
    "cem": ((16, 2), (32, 2), (32, 4), (64, 4), (64, 8)),
    "cem_adam": ((16, 1), (32, 1), (32, 2), (64, 2), (64, 4)),
    "icem": ((16, 2), (32, 2), (32, 4), (80, 4), (80, 8)),
    "mppi": ((16, 2), (32, 2), (32, 4), (64, 4), (64, 8)),
    "gradient": ((8, None), (16, None), (32, None), (64, None)),
}


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        out: Folder of episodes and results.
        model: Shipped name or checkpoint folder.
        task, object, lab: The environment.
        planners: Which planners.
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
    planners: tuple[str, ...] = tuple(LADDERS)
    episodes: int = 20
    workers: int = 1
    objective: str | None = None
    max_gripper: float = 0.0


@dataclass(frozen=True)
class Point:
    """One planner at one effort."""

    planner: str
    samples: int
    iterations: int | None
    results: list[EpisodeResult]

    @property
    def seconds(self) -> float:
        """Median CPU seconds per action over the episodes."""
        return float(np.median([r.cpu_seconds_per_action for r in self.results]))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able summary."""
        wins, count = sum(r.success for r in self.results), len(self.results)
        distances = [r.final_distance_m for r in self.results if r.final_distance_m is not None]
        return {
            "planner": self.planner,
            "samples": self.samples,
            "iterations": self.iterations,
            "episodes": count,
            "success_rate": wins / count,
            "wilson_95": wilson_interval(wins, count),
            "median_distance_m": float(np.median(distances)) if distances else None,
            "cpu_seconds_per_action": self.seconds,
        }


def cells(config: Config) -> list[tuple[str, int, int | None, Cell]]:
    """Every point's planner, samples, iterations and cell."""
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
        if planner not in LADDERS:
            raise ValueError(f"unknown planner {planner!r}; valid: {', '.join(LADDERS)}")
        for samples, iterations in LADDERS[planner]:
            settings = AgentSettings(
                samples=samples, iterations=iterations, objective=config.objective, max_gripper=config.max_gripper
            )
            out = config.out / f"{planner}_{samples}x{iterations or 1}"
            cell = Cell(env_id_of(config.task), env, planner, out, config.model, settings)
            found.append((planner, samples, iterations, cell))
    return found


def curve_figure(points: Sequence[Point], title: str) -> Figure:
    """Success (left) and median final distance (right) over CPU seconds per action, one line per planner."""
    lines: dict[str, list[Point]] = {}
    for point in points:
        lines.setdefault(point.planner, []).append(point)
    colours: Mapping[str, str] = method_colours(list(lines))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, line in lines.items():
        line = sorted(line, key=lambda point: point.seconds)
        seconds = [point.seconds for point in line]
        rows = [point.to_json() for point in line]
        left.plot(seconds, [100 * r["success_rate"] for r in rows], "o-", color=colours[name], label=name)
        right.plot(
            seconds,
            [np.nan if r["median_distance_m"] is None else 100 * r["median_distance_m"] for r in rows],
            "o-",
            color=colours[name],
            label=name,
        )
    tidy(left, "Success (%)")
    tidy(right, "Median final distance (cm)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("CPU seconds per action")
    left.set_ylim(-3, 103)
    right.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", fontweight="bold")
    return figure


def main(config: Config) -> None:
    """Run what is missing, then write the numbers and the picture."""
    planned = cells(config)
    seeds = range(FIRST_SEED, FIRST_SEED + config.episodes)
    results = run_cells([cell for *_, cell in planned], seeds, config.workers)
    points = [
        Point(planner, samples, iterations, found)
        for (planner, samples, iterations, _), found in zip(planned, results, strict=True)
    ]
    write_json(config.out / "curve.json", [point.to_json() for point in points])
    title = f"{config.task} {config.object} {config.lab}, {config.episodes} episodes per point"
    write_bytes(config.out / "curve.png", figure_png(curve_figure(points, title)))
    for row in (point.to_json() for point in points):
        print({key: value for key, value in row.items() if key != "wilson_95"})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
