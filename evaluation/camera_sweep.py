"""`armworld sweep camera`: from where may the camera look? Success, error and the model's axes, per camera."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from armworld.envs.cameras import EXTERIOR, RIGS
from armworld.evaluation.agents import AgentSettings, make_agent, plans_on_features
from armworld.evaluation.camera_page import write_page
from armworld.evaluation.cells import Cell, Worker, find_env, load_episode, single_thread
from armworld.evaluation.configuring import check_agent
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.files import plain, write_json
from armworld.evaluation.folders import check_out
from armworld.evaluation.looking import Look, look
from armworld.evaluation.records import parse_seeds, score, study_head, summary
from armworld.evaluation.setup import Setup, check_scene, make_cell, resolve, run_with_progress
from armworld.evaluation.statistics import mcnemar_exact
from armworld.evaluation.views import View, Views, make_views, varying_axes
from armworld.jobs import run_with_progress as run_jobs_with_progress
from armworld.planners.calibrating import FEWEST_MOVES
from armworld.sim_assets.catalog import LABS
from armworld.types import check_name, check_numbers

MOVES = {None: 24, "turn": 24, "adapt": 128}
LEARNING_S = 45.0  # of a processor core, at each camera
LOOK_SEED = 1_000_900  # of the range for choosing settings: the fit is a setting
TRIAL_STEPS = 2


@dataclass(frozen=True)
class SweepEpisodes:
    """Which episodes at every camera, and who drives.

    Attributes:
        task: reach, grasp, reach_with_object, pick_place, or a Gymnasium id whose environment takes `placements`.
        object: cup, box or bottle.
        lab: lab1 or lab2.
        agent: Who drives the arm: hold, random, expert, cem, cem_published, cem_adam, icem, mppi, gradient,
            random_shooting, servo, oracle, pixels, octo, features_bc, sac.
        episodes: Episodes per camera; their seeds are seed, seed + 1, ..., the same at every camera.
        seed: First episode's seed.
        seeds: Seeds as A-B, A,B,C or a file with one per line, in place of `episodes` and `seed`.
        moves: Random moves at every camera, from which the turn of the model's axes is fitted (by default 24), or with
            --correct adapt the model learns (by default 128).
        correct: Run the episodes a second time: "turn", with that turn taken out of the model's actions; "adapt", with
            the model adapted to the camera by those moves, which then go through the whole workspace.
    """

    task: str = "reach"
    object: str = "cup"
    lab: str = "lab1"
    agent: str = "cem"
    episodes: int = 10
    seed: int = 2_000_000
    seeds: str | None = None
    moves: int | None = None
    correct: Literal["turn", "adapt"] | None = None


@dataclass(frozen=True)
class CameraSweep(AgentSettings, Setup, Views, SweepEpisodes):
    """Move the camera and measure; the same command continues the sweep after an interruption."""

    out: Path = Path("runs/sweep_camera")

    def __post_init__(self) -> None:
        AgentSettings.__post_init__(self)
        Setup.__post_init__(self)
        check_numbers(self, "episodes", least=1)
        check_numbers(self, "seed", least=0)
        check_numbers(self, "moves", least=FEWEST_MOVES if self.correct == "adapt" else 2)
        check_name("lab", self.lab, LABS)
        check_scene(self, (self.task, self.object, self.lab))
        check_agent(self.agent, self.task, self)
        check_name("camera to place", self.camera or "left", EXTERIOR)
        make_views(self, RIGS[self.lab][self.camera or "left"])
        self.check_models([self.agent])
        _ = self.episode_seeds
        learned = self.agent != "oracle" and plans_on_features(self.agent)
        if self.correct == "turn" and self.agent == "servo":
            raise ValueError("servo imagines nothing whose axes could turn; valid for it: --correct adapt")
        if self.correct == "turn" and not learned and self.agent != "pixels":
            raise ValueError(f"--correct turn is for planners on a learned world model, not for {self.agent!r}")
        if self.correct == "adapt" and not learned:
            raise ValueError(f"--correct adapt is for planners on a world model of features, not for {self.agent!r}")

    @property
    def moves_there(self) -> int:
        """Random moves at every camera."""
        return self.moves if self.moves is not None else MOVES[self.correct]

    @property
    def episode_seeds(self) -> list[int]:
        """The environment seeds of the episodes at every camera."""
        if self.seeds is not None:
            return parse_seeds(self.seeds)
        return list(range(self.seed, self.seed + self.episodes))


class Station(NamedTuple):
    """One camera with what is to be run there."""

    view: View
    cell: Cell
    look: Look


def camera_sweep(config: CameraSweep, console: Console | None = None) -> dict[str, Any]:
    """Look, run, and write sweep.json, sweep.png and index.html.

    Returns:
        What `sweep.json` holds.

    Raises:
        ValueError: Bad input.
        KeyboardInterrupt: Finished cameras and episodes are kept; the same command goes on from there.
    """
    console = console or Console()
    check_out(config.out, "sweep camera")
    config = resolve(config, [config.agent])
    check_name("camera to place", config.camera or "left", EXTERIOR)
    views = make_views(config, RIGS[config.lab][config.camera or "left"])
    stations = [make_station(config, view) for view in views]
    seeds = config.episode_seeds
    console.print(estimate(config, stations, seeds), soft_wrap=True, highlight=False)
    looks = look_through(stations, config.workers, config.ray)
    runs = run_with_progress([station.cell for station in stations], seeds, config.workers, config.ray)
    corrected = run_corrected(config, stations, looks, seeds) if config.correct else {}
    rows = [
        camera_record(station.view, run, found, corrected.get(station.view.name), config.correct)
        for station, run, found in zip(stations, runs, looks, strict=True)
    ]
    record = sweep_record(config, stations, rows)
    pictures = {s.view.name: (s.look.out / "view.jpg").read_bytes() for s in stations}
    write_page(config.out, record, pictures)
    write_json(config.out / "sweep.json", record)
    for line in record["verdict"]:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"Page: {config.out / 'index.html'}", soft_wrap=True)
    return record


def make_station(config: CameraSweep, view: View) -> Station:
    """The cell and the look of one camera, in a folder of its name."""
    folder = config.out / "views" / view.name
    cell = make_cell(config, config, (config.task, config.object, config.lab), config.agent, folder / config.agent)
    camera = config.camera or "left"
    cell = replace(cell, env_kwargs=cell.env_kwargs | {"placements": {camera: view.placement.as_dict()}})
    find_env(cell.env_id, cell.env_kwargs)
    return Station(view, cell, Look(cell, config.moves_there, LOOK_SEED, folder, config.correct == "adapt"))


def look_through(stations: Sequence[Station], workers: int, ray: str | None = None) -> list[dict[str, Any]]:
    """What was found at every camera (`look`); stored ones are not redone."""
    jobs = [station.look for station in stations if station.look.stored() is None]
    if jobs:
        run_jobs_with_progress(look, jobs, workers, "cameras", len(stations), ray)
    return [station.look.stored() or {} for station in stations]


def run_corrected(
    config: CameraSweep, stations: Sequence[Station], looks: Sequence[dict[str, Any]], seeds: list[int]
) -> dict[str, list[EpisodeResult]]:
    """The same episodes with what the moves told put to use, by the view's name."""
    turned = [(s, found) for s, found in zip(stations, looks, strict=True) if found["turn"] is not None]
    cells = [corrected_cell(config, station, found) for station, found in turned]
    runs = run_with_progress(cells, seeds, config.workers, config.ray)
    return {s.view.name: run for (s, _), run in zip(turned, runs, strict=True)}


def corrected_cell(config: CameraSweep, station: Station, found: dict[str, Any]) -> Cell:
    """The camera's cell with the adapted model, or with the turn of the axes that was found there."""
    cell = replace(station.cell, out=station.cell.out.with_name("corrected"))
    if config.correct == "adapt":
        return replace(cell, model=str(station.look.adapted.resolve()))
    return replace(cell, settings=replace(cell.settings, axes_yaw=found["turn"]["yaw_deg"]))


def estimate(config: CameraSweep, stations: Sequence[Station], seeds: Sequence[int]) -> str:
    """How many episodes are left and how long they may take, from a few steps tried out at the first camera."""
    pending = sum(load_episode(station.cell, seed) is None for station in stations for seed in seeds)
    if config.correct:
        done = [station.cell.out.with_name("corrected") / "episodes" for station in stations]
        pending += len(stations) * len(seeds) - sum((path / f"{s}.json").exists() for path in done for s in seeds)
    what = f"{len(stations)} cameras, {len(seeds)} episodes each" + (" twice" if config.correct else "")
    if not pending:
        return f"{what}: all done before."
    each = _episode_seconds(stations[0].cell, seeds[0])
    if each is None:
        return f"{what}; {pending} to run on {config.workers} process(es), for how long is not known: a trial failed."
    seconds = pending * each / config.workers
    if config.correct == "adapt":
        seconds += LEARNING_S * sum(station.look.stored() is None for station in stations) / config.workers
    return f"{what}; {pending} to run: about {told_seconds(seconds)} on {config.workers} process(es)."


def _episode_seconds(cell: Cell, seed: int) -> float | None:
    """How long an episode may take (s); None where it fails, of which the episodes themselves tell."""
    worker = Worker()
    try:
        with single_thread():
            env, model = worker.open(cell)
            started = time.perf_counter()
            observation, info = env.reset(seed=seed)
            agent = make_agent(cell.agent, env, model, seed, cell.settings)
            agent.reset(info["goal"])
            begun = time.perf_counter()
            for _ in range(TRIAL_STEPS):
                observation, *_ = env.step(agent.act(observation))
            per_step = (time.perf_counter() - begun) / TRIAL_STEPS
            steps = getattr(env.unwrapped, "max_steps", None) or cell.env_kwargs.get("max_steps") or 20
            return begun - started + steps * per_step
    except RuntimeError:  # planning, or an environment that finds no start
        return None
    finally:
        worker.close()


def told_seconds(seconds: float) -> str:
    """A time for people: seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def camera_record(
    view: View,
    run: Sequence[EpisodeResult],
    found: dict[str, Any],
    corrected: Sequence[EpisodeResult] | None,
    by: str | None = None,
) -> dict[str, Any]:
    """One camera's part of sweep.json."""
    record = {**view.to_json(), "turn": found["turn"], **score(run), "summary": summary(run)}
    if corrected is not None:
        test = mcnemar_exact([r.success for r in corrected], [r.success for r in run])
        record["corrected"] = {**score(corrected), "summary": summary(corrected), "against_plain": asdict(test)}
        record["corrected"] |= {"turn": found.get("adapted_turn"), "by": by}
    return record


def sweep_record(config: CameraSweep, stations: Sequence[Station], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What sweep.json holds."""
    from armworld.evaluation.camera_verdict import verdict

    varying = varying_axes([station.view for station in stations])
    return {
        **study_head("camera", config),
        "varying": varying,
        "seeds": config.episode_seeds,
        "verdict": verdict(rows, varying),
        "views": plain(rows),
    }
