"""`armworld plan`: planning episodes beside the floors and the ceiling, with numbers, videos, a picture and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.cells import Cell
from armworld.evaluation.configuring import check_agent
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.files import write_bytes, write_json
from armworld.evaluation.folders import check_out
from armworld.evaluation.picture import figure_png, summary_figure
from armworld.evaluation.records import TABLE_HEAD, add_films, names_of, origin, parse_seeds, score, summary, table_row
from armworld.evaluation.report import Page, provenance
from armworld.evaluation.setup import Setup, check_scene, make_cell, resolve, run_with_progress
from armworld.types import check_numbers

FIRST_REPORTED_SEED = 2_000_000  # training data: below 1,000,000; choosing: below 1,001,000


@dataclass(frozen=True)
class Episodes:
    """Which episodes, and who drives.

    Attributes:
        task: reach, grasp, reach_with_object, pick_place, or a Gymnasium id (module:Name-v0).
        object: cup, box or bottle.
        lab: lab1 or lab2.
        agent: Who drives the arm: hold, random, expert, cem, cem_published, cem_adam, icem, mppi, gradient,
            random_shooting, servo, oracle, pixels, octo, features_bc, sac.
        episodes: How many; their seeds are seed, seed + 1, ...
        seed: First episode's seed.
        seeds: Seeds as A-B, A,B,C or a file with one per line, in place of `episodes` and `seed`.
        baselines: Methods run beside it on the same seeds, separated by commas; none for none.
        videos: Episodes of the agent to film; all by default.
    """

    task: str = "reach"
    object: str = "cup"
    lab: str = "lab1"
    agent: str = "cem"
    episodes: int = 10
    seed: int = FIRST_REPORTED_SEED
    seeds: str | None = None
    baselines: str = "hold,random,expert"
    videos: int | None = None


@dataclass(frozen=True)
class PlanConfig(AgentSettings, Setup, Episodes):
    """Run planning episodes in simulation; success is judged at the end of each, and must hold."""

    def __post_init__(self) -> None:
        AgentSettings.__post_init__(self)
        Setup.__post_init__(self)
        check_numbers(self, "episodes", least=1)
        check_numbers(self, "seed", "videos", least=0)
        check_scene(self, (self.task, self.object, self.lab))
        for name in self.methods:
            check_agent(name, self.task, self)
        self.check_models(self.methods)
        _ = self.episode_seeds

    @property
    def methods(self) -> list[str]:
        """The agent first, then its baselines."""
        return list(dict.fromkeys([self.agent, *names_of(self.baselines)]))

    @property
    def episode_seeds(self) -> list[int]:
        """The environment seeds of the episodes."""
        if self.seeds is not None:
            return parse_seeds(self.seeds)
        return list(range(self.seed, self.seed + self.episodes))


def plan(config: PlanConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the episodes, print the table, write the files; see `PlanConfig`.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: Bad input.
        KeyboardInterrupt: Finished episodes are kept in `out`; the same command goes on from there.
    """
    console = console or Console()
    check_out(config.out, "plan")
    config = resolve(config, config.methods)
    seeds = config.episode_seeds
    cells = plan_cells(config, seeds)
    runs = run_with_progress(cells, seeds, config.workers, config.ray)
    results = {cell.agent: run for cell, run in zip(cells, runs, strict=True)}
    console.print(results_table(results, f"{config.task} · {config.object} · {config.lab} · {len(seeds)} seeds"))
    record = plan_record(config, results)
    write_outputs(config, record, results, cells[0])
    console.print(f"Page with videos: {config.out / 'index.html'}", soft_wrap=True)
    return record


def plan_cells(config: PlanConfig, seeds: Sequence[int]) -> list[Cell]:
    """One cell per method, the agent's first; only the agent is filmed."""
    filmed = frozenset(seeds[: config.videos])
    return [
        make_cell(
            config,
            config,
            (config.task, config.object, config.lab),
            name,
            config.out / "cells" / name,
            filmed if name == config.agent else frozenset(),
        )
        for name in config.methods
    ]


def results_table(results: Mapping[str, Sequence[EpisodeResult]], title: str) -> Table:
    """The table of the terminal, one row per method; the page has the CPU time as well."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    shown = [index for index, head in enumerate(TABLE_HEAD) if head != "CPU s"]
    for index in shown:
        text = index in (0, len(TABLE_HEAD) - 1)
        table.add_column(TABLE_HEAD[index], justify="left" if text else "right", no_wrap=index < len(TABLE_HEAD) - 1)
    for name, episodes in results.items():
        row = table_row(name, episodes)
        table.add_row(*(row[index] for index in shown))
    return table


def plan_record(config: PlanConfig, results: Mapping[str, Sequence[EpisodeResult]]) -> dict[str, Any]:
    """What results.json holds: the agent's record, the methods beside it, and where it came from."""
    own = results[config.agent]
    return {
        "task": config.task,
        "object": config.object,
        "lab": config.lab,
        "agent": config.agent,
        "model": config.model_of(config.agent),
        "step_seconds": config.step_seconds,
        **score(own),
        "summary": summary(own),
        "baselines": {
            name: {**score(episodes), "summary": summary(episodes)}
            for name, episodes in results.items()
            if name != config.agent
        },
        **origin(config, [result for episodes in results.values() for result in episodes]),
    }


def write_outputs(
    config: PlanConfig, record: dict[str, Any], results: Mapping[str, Sequence[EpisodeResult]], cell: Cell
) -> None:
    """results.json, summary.png and index.html."""
    where = f"{config.task} · {config.object} · {config.lab}"
    png = figure_png(summary_figure(results, cell.threshold_m, f"{config.agent} on {where}"))
    page = Page(f"{config.agent} on {where}", _lead(config, record))
    page.picture(png, "success, final distances and distance over the steps, per method")
    page.heading("Numbers").table(TABLE_HEAD, [table_row(*item) for item in results.items()], first=True)
    add_films(page, cell, results[config.agent], config.out)
    provenance(page, record)
    write_bytes(config.out / "summary.png", png)
    page.write(config.out / "index.html")
    write_json(config.out / "results.json", record)


def _lead(config: PlanConfig, record: Mapping[str, Any]) -> str:
    model = f"model {record['model']}, " if record["model"] else ""
    low, high = record["wilson_95"]
    return (
        f"{100 * record['success_rate']:.0f} % success (95 % Wilson interval {100 * low:.0f}–{100 * high:.0f} %) over "
        f"{len(record['episodes'])} seeds, judged at the end of each episode; {model}camera {config.camera}, "
        f"{config.step_seconds:g} s per step."
    )
