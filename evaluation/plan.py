"""`armworld plan`: planning episodes beside the floors and the ceiling, with numbers, videos, a picture and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from armworld.evaluation.agents import AGENTS, AgentSettings, needs_model
from armworld.evaluation.cells import Cell, env_id_of, run_cells
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.files import commit, plain, versions, write_bytes, write_json
from armworld.evaluation.picture import figure_png, summary_figure
from armworld.evaluation.records import TABLE_HEAD, names_of, parse_seeds, score, summary, table_row
from armworld.evaluation.report import Page, provenance
from armworld.types import check_name

FIRST_REPORTED_SEED = 2_000_000  # training data: below 1,000,000; choosing: below 1,001,000
FILMS_ON_PAGE = 24
THRESHOLDS = {"reach": 0.04}  # m; the other tasks are judged by where the object is


@dataclass(frozen=True)
class PlanConfig(AgentSettings):
    """Run planning episodes in simulation; success is judged at the end of each, and must hold.

    Attributes:
        task: reach, grasp, reach_with_object, pick_place, or a Gymnasium id (module:Name-v0).
        object: cup, box or bottle.
        lab: lab1 or lab2.
        agent: Who drives the arm (`armworld.evaluation.agents.AGENTS`).
        model: Name of a shipped world model, or a checkpoint folder.
        episodes: How many; their seeds are seed, seed + 1, ...
        seed: First episode's seed.
        seeds: Seeds as A-B, A,B,C or a file with one per line, in place of `episodes` and `seed`.
        out: Folder for results.json, index.html, summary.png and the videos. Finished episodes in it are kept.
        workers: Processes, one thread each.
        level: Randomisation of the scene: none, ... (see the environments).
        camera: Camera that the agent sees; by default the model's.
        image_size: Height and width of the images (pixels); by default the model's, or 128.
        step_seconds: Length of a step (s); by default the model's, or 0.25.
        max_steps: Steps per episode; by default the task's.
        baselines: Methods run beside it on the same seeds, separated by commas; none for none.
        videos: Episodes of the agent to film; all by default.
    """

    task: str = "reach"
    object: str = "cup"
    lab: str = "lab1"
    agent: str = "cem"
    model: str = "default"
    episodes: int = 10
    seed: int = FIRST_REPORTED_SEED
    seeds: str | None = None
    out: Path = Path("runs/plan")
    workers: int = 1
    level: str = "none"
    camera: str | None = None
    image_size: int | None = None
    step_seconds: float | None = None
    max_steps: int | None = None
    baselines: str = "hold,random,expert"
    videos: int | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            check_name("agent", name, AGENTS)
        if self.episodes < 1 or self.workers < 1 or self.seed < 0:
            raise ValueError(
                "episodes and workers must be at least 1 and the seed not negative, got "
                f"episodes {self.episodes}, workers {self.workers}, seed {self.seed}"
            )

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

    @property
    def settings(self) -> AgentSettings:
        """The planner's part."""
        return AgentSettings(**{name: getattr(self, name) for name in AgentSettings.__dataclass_fields__})


def plan(config: PlanConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the episodes, print the table, write the files; see `PlanConfig`.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: Bad input.
        KeyboardInterrupt: Finished episodes are kept in `out`; the same command goes on from there.
    """
    console = console or Console()
    config = resolve_model(config)
    seeds = config.episode_seeds
    cells = plan_cells(config, seeds)
    runs = run_with_progress(cells, seeds, config.workers)
    results = {cell.agent: run for cell, run in zip(cells, runs, strict=True)}
    console.print(results_table(results, f"{config.task} · {config.object} · {config.lab} · {len(seeds)} seeds"))
    record = plan_record(config, results)
    write_outputs(config, record, results, cells[0])
    console.print(f"Page with videos: {config.out / 'index.html'}", soft_wrap=True)
    return record


def resolve_model(config: PlanConfig) -> PlanConfig:
    """Fill camera, image size and step length from the model where they were left open; refuse what contradicts it."""
    if any(needs_model(name) for name in config.methods):
        from armworld.worldmodel.checkpoint import load_world_model

        model = load_world_model(config.model)
        height, width = model.image_size
        if height != width:
            raise ValueError(f"model {config.model!r} sees {height}×{width} images; the environments render squares")
        told = {"image_size": height, "step_seconds": model.step_seconds}
        for name, value in told.items():
            if getattr(config, name) not in (None, value):
                raise ValueError(f"model {config.model!r} was made for {name} {value}, got {getattr(config, name)}")
        return replace(config, camera=config.camera or model.camera, **told)
    return replace(
        config,
        camera=config.camera or "left",
        image_size=config.image_size or 128,
        step_seconds=config.step_seconds or 0.25,
    )


def plan_cells(config: PlanConfig, seeds: Sequence[int], out: Path | None = None) -> list[Cell]:
    """One cell per method, the agent's first; only the agent is filmed."""
    kwargs: dict[str, Any] = {
        "object": config.object,
        "lab": config.lab,
        "level": config.level,
        "cameras": (config.camera,),
        "image_size": config.image_size,
        "step_seconds": config.step_seconds,
    }
    if config.max_steps is not None:
        kwargs["max_steps"] = config.max_steps
    filmed = frozenset(seeds[: config.videos])
    return [
        Cell(
            env_id=env_id_of(config.task),
            env_kwargs=kwargs,
            agent=name,
            out=(out or config.out) / "cells" / name,
            model=config.model if needs_model(name) else None,
            settings=config.settings,
            film=filmed if name == config.agent else frozenset(),
            threshold_m=THRESHOLDS.get(config.task),
        )
        for name in config.methods
    ]


def run_with_progress(cells: Sequence[Cell], seeds: Sequence[int], workers: int) -> list[list[EpisodeResult]]:
    """`run_cells` with a progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("episodes", total=len(cells) * len(seeds))

        def told(cell: Cell, result: EpisodeResult) -> None:
            progress.update(bar, advance=1, description=f"{cell.agent} {result.seed}: {result.reason.split(':')[0]}")

        return run_cells(cells, seeds, workers, told)


def results_table(results: Mapping[str, Sequence[EpisodeResult]], title: str) -> Table:
    """The table of the terminal, one row per method."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for index, head in enumerate(TABLE_HEAD):
        text = index in (0, len(TABLE_HEAD) - 1)
        table.add_column(head, justify="left" if text else "right", no_wrap=not text)
    for name, episodes in results.items():
        table.add_row(*table_row(name, episodes))
    return table


def plan_record(config: PlanConfig, results: Mapping[str, Sequence[EpisodeResult]]) -> dict[str, Any]:
    """What results.json holds: the agent's record, the methods beside it, and where it came from."""
    own = results[config.agent]
    return {
        "task": config.task,
        "object": config.object,
        "lab": config.lab,
        "agent": config.agent,
        "model": config.model if needs_model(config.agent) else None,
        "step_seconds": config.step_seconds,
        **score(own),
        "summary": summary(own),
        "baselines": {
            name: {**score(episodes), "summary": summary(episodes)}
            for name, episodes in results.items()
            if name != config.agent
        },
        "config": plain(asdict(config)),
        "commit": commit(),
        "versions": versions(),
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


def add_films(page: Page, cell: Cell, results: Sequence[EpisodeResult], base: Path) -> None:
    """The filmed episodes, failures first, at most `FILMS_ON_PAGE`."""
    films = [(cell.video_file(r.seed), r) for r in results if cell.video_file(r.seed).exists()]
    films.sort(key=lambda film: film[1].success)
    if films:
        shown = films[:FILMS_ON_PAGE]
        rest = f" (failures first; {len(films) - len(shown)} more in the folder)" if len(films) > len(shown) else ""
        page.heading(f"Episodes{rest}")
        page.videos([(path, _caption(result), result.success) for path, result in shown], base)


def _caption(result: EpisodeResult) -> str:
    distance = "" if result.final_distance_m is None else f", {100 * result.final_distance_m:.1f} cm at the end"
    return f"seed {result.seed}: {result.reason}{distance}"
