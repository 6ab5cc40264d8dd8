"""`armworld sweep horizon`: how far ahead can a world model imagine, and how far ahead should it plan?

Open-loop rollouts under the actions really taken, against what then really happened: features beside copying the
first frame and beside a stranger's (a frame of another episode at that step), and the flange's position as a linear
probe reads it. Rollouts longer than the predictor was built for go on from their own last imagined frame; beside
them stands imagination that does so at every step, which a predictor trained on short clips may bear better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from armworld.evaluation.agents import AGENTS, AgentSettings
from armworld.evaluation.cells import Cell, claim, env_id_of, open_env, single_thread
from armworld.evaluation.configuring import check_agent
from armworld.evaluation.doctor_verdict import useful_steps
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.files import plain, write_bytes, write_json
from armworld.evaluation.folders import check_out
from armworld.evaluation.horizon_picture import horizon_figure
from armworld.evaluation.picture import figure_png
from armworld.evaluation.probing import Probe, fit_probe
from armworld.evaluation.records import names_of, score, study_head, summary, table_row
from armworld.evaluation.report import Page, provenance
from armworld.evaluation.samples import Travel, per_camera, travel
from armworld.evaluation.setup import Setup, check_scene, make_cell, resolve, run_with_progress
from armworld.types import check_name, check_numbers

CLEARLY = 1.1  # times as far off: worth telling one way of imagining from the other


@dataclass(frozen=True)
class HorizonEpisodes:
    """What is imagined, and which episodes are planned.

    Attributes:
        task: Task whose scene is used.
        object: cup, box or bottle.
        lab: lab1 or lab2.
        seconds: Longest horizon (s).
        rollouts: Episodes of free motion; a quarter is imagined, the others fit the probe.
        agent: The planner whose horizon is varied.
        plans: Planning horizons in steps, separated by commas; none for no planning.
        episodes: Planning episodes per horizon.
        seed: First seed, of the motion and of the planning episodes (of the range for choosing settings).
    """

    task: str = "reach"
    object: str = "cup"
    lab: str = "lab1"
    seconds: float = 16.0
    rollouts: int = 24
    agent: str = "cem"
    plans: str = "none"
    episodes: int = 10
    seed: int = 1_000_000


@dataclass(frozen=True)
class HorizonSweep(AgentSettings, Setup, HorizonEpisodes):
    """Imagine further and further ahead, and plan so too; planning episodes are resumed after an interruption."""

    out: Path = Path("runs/sweep_horizon")

    def __post_init__(self) -> None:
        AgentSettings.__post_init__(self)
        Setup.__post_init__(self)
        check_numbers(self, "seconds", above=0)
        check_numbers(self, "rollouts", least=4)
        check_numbers(self, "episodes", least=1)
        check_numbers(self, "seed", least=0)
        check_scene(self, (self.task, self.object, self.lab))
        check_name("agent", self.agent, [name for name, entry in AGENTS.items() if entry.model and name != "oracle"])
        if self.agent == "servo" and self.planned:
            raise ValueError("servo looks one step ahead: it has no horizon to vary; valid for it: --plans none")
        self.check_models([self.agent])
        for name in names_of(self.plans):
            if not name.isdecimal() or int(name) < 1:
                raise ValueError(f"plans {self.plans!r}: expected steps separated by commas, such as 1,2,4; or none")
        for steps in self.planned:
            check_agent(self.agent, self.task, self, horizon=steps)

    @property
    def planned(self) -> list[int]:
        """Planning horizons in steps."""
        return sorted({int(name) for name in names_of(self.plans)})


def horizon_sweep(config: HorizonSweep, console: Console | None = None) -> dict[str, Any]:
    """Imagine, plan, and write sweep.json, sweep.png and index.html; returns what sweep.json holds.

    Raises:
        ValueError: Bad input, or a model that imagines nothing.
        KeyboardInterrupt: Finished planning episodes are kept.
    """
    from armworld.evaluation.agents import load_model

    console = console or Console()
    check_out(config.out, "sweep horizon")
    config = resolve(config, [config.agent])
    name = config.model_of(config.agent)
    assert name is not None and config.step_seconds is not None, "a resolved setup of an agent with a model"
    model = load_model(config.agent, name)
    if not hasattr(model, "rollout"):
        raise ValueError(f"agent {config.agent!r} plays a policy, which imagines nothing; valid: planners")
    steps = max(1, round(config.seconds / config.step_seconds))
    cells = planning_cells(config)
    for cell in cells:
        claim(cell)  # refuses what cannot be run before minutes are spent
    env = open_env(env_id_of(config.task), {**config.env_kwargs(config.object, config.lab), "max_steps": steps})
    try:
        with single_thread(), torch.no_grad():
            journeys = travel(env, model, list(range(config.seed, config.seed + config.rollouts)), steps)
            ahead = look_ahead(model, journeys, np.random.default_rng([config.seed]))
    finally:
        env.close()
    plans = plan_ahead(config, cells)
    record = horizon_record(config, ahead, plans)
    write_page(config, record, plans)
    for line in record["verdict"]:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"Page: {config.out / 'index.html'}", soft_wrap=True)
    return record


def look_ahead(model: Any, journeys: Travel, rng: np.random.Generator) -> dict[str, Any]:
    """Errors against the horizon; every list is over horizons 1 ... T.

    l1, copy_l1 and stranger_l1: mean |ẑ - z| of imagining, of the first frame, and of another episode's frame at that
    step. position_error_m: of the imagined frame's probed position; probe_error_m: of the true frame's; moved_m: of
    guessing that the arm stays. `stepwise_` is of imagination that sees only its own last frame at every step.
    """
    episodes = len(journeys.z)
    order = rng.permutation(episodes)
    held_out, train = np.sort(order[: max(2, episodes // 4)]), np.sort(order[max(2, episodes // 4) :])
    probe = _probe(journeys, train, rng)
    z, states = journeys.z[held_out], journeys.states[held_out]
    cameras = None if journeys.cameras is None else journeys.cameras[held_out]
    imagined, stepwise = (
        per_camera(model, cameras, partial(imagine_far, piece=piece), z[:, 0], states[:, 0], journeys.actions[held_out])
        for piece in (most_steps(model), 1)
    )
    positions = states[:, 1:, :3]
    stranger = torch.roll(z, 1, 0)

    def l1(guess: Tensor) -> np.ndarray:
        return (guess - z[:, 1:]).abs().mean((0, 2, 3)).numpy()

    def off(guess: np.ndarray) -> np.ndarray:
        return np.linalg.norm(guess - positions, axis=-1).mean(0)

    return {
        "l1": l1(imagined),
        "stepwise_l1": l1(stepwise),
        "copy_l1": l1(z[:, :1]),
        "stranger_l1": l1(stranger[:, 1:]),
        "position_error_m": off(probe(imagined)),
        "stepwise_position_error_m": off(probe(stepwise)),
        "probe_error_m": off(probe(z[:, 1:])),
        "moved_m": off(states[:, :1, :3]),
        "imagined_episodes": len(held_out),
    }


def _probe(journeys: Travel, train: np.ndarray, rng: np.random.Generator) -> Probe:
    """The position probe of `doctor`, on at most 400 frames (its cost grows with their square)."""
    frames = journeys.z[train].flatten(0, 1)
    targets = journeys.states[train][..., :3].astype(np.float64).reshape(-1, 3)
    groups = np.repeat(train, journeys.states.shape[1])
    chosen = np.sort(rng.permutation(len(frames))[:400])
    return fit_probe(frames[chosen], targets[chosen], groups[chosen], rng)


def imagine_far(model: Any, z: Tensor, state: np.ndarray, actions: np.ndarray, piece: int) -> Tensor:
    """Features [E, T, N, D] imagined open-loop from z [E, N, D], state [E, 7] under actions [E, T, 7].

    In pieces of so many steps; each goes on from the last imagined frame alone.
    """
    device = getattr(model, "device", torch.device("cpu"))
    parts, here = [], torch.from_numpy(np.asarray(state, np.float32))[:, None]
    seen = z[:, None]
    for taken in torch.from_numpy(np.asarray(actions, np.float32)).split(piece, 1):
        rollout = model.rollout(seen.to(device), here.to(device), taken[:, None].to(device))
        parts.append(rollout.z[:, 0].float().cpu())
        seen, here = parts[-1][:, -1:], rollout.state[:, 0, -1:].float().cpu()
    return torch.cat(parts, 1)


def most_steps(model: Any) -> int:
    """Steps that one rollout of the model may have."""
    config = getattr(getattr(model, "predictor", None), "config", None)
    return int(getattr(config, "max_steps", 16))


def planning_cells(config: HorizonSweep) -> list[Cell]:
    """A cell for every planning horizon."""
    where = (config.task, config.object, config.lab)
    return [
        make_cell(
            config, replace(config, horizon=steps), where, config.agent, config.out / "cells" / f"horizon_{steps}"
        )
        for steps in config.planned
    ]


def plan_ahead(config: HorizonSweep, cells: Sequence[Cell]) -> dict[int, list[EpisodeResult]]:
    """Planning episodes on the same seeds for every planning horizon."""
    if not cells:
        return {}
    runs = run_with_progress(cells, range(config.seed, config.seed + config.episodes), config.workers, config.ray)
    return dict(zip(config.planned, runs, strict=True))


def verdict(ahead: dict[str, Any], plans: dict[int, list[EpisodeResult]], step_seconds: float) -> list[str]:
    """What the study says, in sentences."""
    total = len(ahead["l1"]) * step_seconds
    copying = step_seconds * useful_steps(ahead["l1"], ahead["copy_l1"])
    knowing = step_seconds * useful_steps(ahead["l1"], ahead["stranger_l1"])
    close = step_seconds * useful_steps(ahead["position_error_m"], [0.05] * len(ahead["l1"]))
    still = {True: f"all {total:g} s looked at"}
    lines = [
        f"Imagining beats copying the first frame for {still.get(copying >= total, f'{copying:g} s')}, and a frame of "
        f"another episode for {still.get(knowing >= total, f'{knowing:g} s')}.",
        f"The hand stays within 5 cm of where it really goes for {still.get(close >= total, f'{close:g} s')} of "
        f"open-loop imagination; the probe itself is off by {100 * float(np.mean(ahead['probe_error_m'])):.1f} cm.",
    ]
    if not np.array_equal(ahead["l1"], ahead["stepwise_l1"]):
        far, near = (float(np.mean(ahead[key])) for key in ("position_error_m", "stepwise_position_error_m"))
        better = "Seeing only its own last frame" if near < far else "Seeing all its own frames"
        told = f"over all horizons it is off by {100 * min(near, far):.1f} cm on average"
        lines.append(
            f"{better} keeps the hand closer: {told}, the other way by {100 * max(near, far):.1f} cm."
            if max(near, far) > CLEARLY * min(near, far)
            else f"Whether it sees all its own frames or only the last makes no difference to the hand: {told}."
        )
    if plans:
        rates = {steps: float(np.mean([e.success for e in run])) for steps, run in plans.items()}
        best = max(rates, key=lambda steps: (rates[steps], -steps))
        told = ", ".join(f"{100 * rate:.0f} % at {steps}" for steps, rate in rates.items())
        lines.append(f"Planning success by the planner's horizon in steps: {told}; best at {best}.")
    return lines


def horizon_record(
    config: HorizonSweep, ahead: dict[str, Any], plans: dict[int, list[EpisodeResult]]
) -> dict[str, Any]:
    """What sweep.json holds."""
    assert config.step_seconds is not None, "a resolved setup"
    return {
        **study_head("horizon", config),
        "verdict": verdict(ahead, plans, config.step_seconds),
        "ahead": plain(ahead),
        "plans": [{"horizon": steps, **score(run), "summary": summary(run)} for steps, run in plans.items()],
    }


def write_page(config: HorizonSweep, record: dict[str, Any], plans: dict[int, list[EpisodeResult]]) -> None:
    """sweep.json, sweep.png and index.html."""
    png = figure_png(horizon_figure(record["ahead"], record["step_seconds"], plans))
    page = Page(
        "How far ahead?",
        f"model {record['model']}, camera {record['camera']}, {record['lab']}; {record['ahead']['imagined_episodes']} "
        f"episodes of free motion imagined open-loop, steps of {record['step_seconds']:g} s.",
    )
    for line in record["verdict"]:
        page.text(line)
    page.picture(png, "error of imagination against the horizon")
    ahead, step = record["ahead"], record["step_seconds"]
    shown = [h for h in (1, 2, 4, 8, 16, 32, 64, 128, 256) if h <= len(ahead["l1"])]
    head = ("horizon", "imagined L1", "copying L1", "another's L1", "hand off, cm", "hand moved, cm")
    page.heading("Numbers").table(
        head,
        [
            [
                f"{h * step:g} s",
                *(f"{ahead[key][h - 1]:.3f}" for key in ("l1", "copy_l1", "stranger_l1")),
                *(f"{100 * ahead[key][h - 1]:.1f}" for key in ("position_error_m", "moved_m")),
            ]
            for h in shown
        ],
    )
    if plans:
        page.heading("Planning that far ahead")
        page.table(
            ("steps ahead", "success", "Wilson 95 %", "cm: mean", "median", "s/action", "CPU s", "failures"),
            [table_row(str(steps), run) for steps, run in plans.items()],
        )
    provenance(page, record)
    write_bytes(config.out / "sweep.png", png)
    page.write(config.out / "index.html")
    write_json(config.out / "sweep.json", record)
