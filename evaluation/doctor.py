"""`armworld doctor PATH`: is this world model fit for planning, and if not, which part is to blame?

Seven examinations on fresh simulated motion: can the features tell where the arm is; do actions matter to the
predictor; do they point the right way; can it tell true outcomes apart; does latent distance follow true distance;
how far ahead can it imagine; and what do single frames tell of the arm's state and of the object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor

from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.blame import BLAMABLE, blame, blame_cells, blame_sentence
from armworld.evaluation.cells import TASKS, Cell, claim, env_id_of, open_env, single_thread
from armworld.evaluation.configuring import check_agent
from armworld.evaluation.doctor_picture import doctor_figure
from armworld.evaluation.doctor_stills import FEWEST_STILLS, Stills, read_stills, take_stills
from armworld.evaluation.doctor_verdict import OPEN, judge, mark_of
from armworld.evaluation.files import plain, write_bytes, write_json
from armworld.evaluation.folders import check_out
from armworld.evaluation.horizon import imagine_far, most_steps
from armworld.evaluation.picture import figure_png
from armworld.evaluation.probing import (
    Probe,
    aligned_distances,
    fit_axes,
    fit_probe,
    latent_and_true_distances,
    ranking,
    spearman,
)
from armworld.evaluation.records import origin
from armworld.evaluation.report import Page, provenance
from armworld.evaluation.samples import JOGS, Samples, Travel, gather, per_camera, travel
from armworld.evaluation.setup import Setup, check_scene, resolve
from armworld.evaluation.statistics import signed
from armworld.planners.objectives import AlignedL1
from armworld.types import check_name, check_numbers

NEAR_M = 0.10  # "near the goal": where precision is won or lost
PLOTTED_PAIRS = 1500


@dataclass(frozen=True)
class Examination:
    """What is examined, on how much motion.

    Attributes:
        model: Name of a shipped world model, or a checkpoint folder.
        task: Task whose scene is used.
        object: cup, box or bottle.
        lab: lab1 or lab2.
        level: Variation between episodes: none, jitter or full.
        camera: Camera; by default the model's.
        episodes: Episodes of free motion; a quarter of them is held out for the probe.
        steps: Steps per episode.
        candidates: Actions to tell apart in the ranking.
        far_seconds: Longest horizon that is imagined.
        far_episodes: Episodes as long as that.
        stills: Single frames, each of an episode of its own, for the probes of arm and object.
        planner: Also plan episodes, and repeat the failures with the simulator as the model, to tell which part
            is to blame (minutes per episode). It plans as the other options say.
        agent: The planner examined then: cem, icem, mppi or servo.
        planner_episodes: How many episodes it plans.
        workers: Processes for planning.
        seed: First episode's seed (by default of the range for choosing checkpoints and settings).
        out: Folder for doctor.json, doctor.png and index.html.
    """

    model: Annotated[str, tyro.conf.Positional]
    task: str = "reach"
    object: str = "cup"
    lab: str = "lab1"
    level: str = "none"
    camera: str | None = None
    episodes: int = 40
    steps: int = 12
    candidates: int = 16
    far_seconds: float = 16.0
    far_episodes: int = 6
    stills: int = 240
    planner: bool = False
    agent: str = "cem"
    planner_episodes: int = 10
    workers: int = 1
    seed: int = 1_000_000
    out: Path = Path("runs/doctor")


@dataclass(frozen=True)
class DoctorConfig(AgentSettings, Examination):
    """Examine a world model on fresh simulated motion."""

    def __post_init__(self) -> None:
        AgentSettings.__post_init__(self)
        check_numbers(self, "planner_episodes", "far_episodes", least=1)
        check_numbers(self, "episodes", least=4)
        check_numbers(self, "steps", least=3)
        check_numbers(self, "candidates", least=2)
        check_numbers(self, "stills", least=FEWEST_STILLS)
        check_numbers(self, "far_seconds", above=0)
        check_numbers(self, "seed", least=0)
        check_name("task", self.task, TASKS)
        setup = Setup(workers=self.workers, level=self.level, camera=self.camera)
        check_scene(setup, (self.task, self.object, self.lab))
        check_name("planner to examine", self.agent, BLAMABLE)
        if self.planner:
            check_agent(self.agent, self.task, self)


def doctor(config: DoctorConfig, console: Console | None = None) -> dict[str, Any]:
    """Examine, print the verdict, write doctor.json, doctor.png and index.html; returns what doctor.json holds.

    Raises:
        ValueError: No such model, task, camera ...
    """
    from armworld.worldmodel.checkpoint import load_world_model

    console = console or Console()
    check_out(config.out, "doctor")
    model = load_world_model(config.model)
    cells = planning_cells(config) if config.planner else {}  # refuses what cannot be run before minutes are spent
    kwargs = {
        "object": config.object,
        "lab": config.lab,
        "level": config.level,
        "cameras": (config.camera or model.camera,),
        "image_size": model.image_size[0],
        "step_seconds": model.step_seconds,
        "max_steps": config.steps,
    }
    env = open_env(env_id_of(config.task), kwargs)
    try:
        with single_thread(), torch.no_grad():
            count = max(config.episodes + config.far_episodes, config.stills)
            seeds = list(range(config.seed, config.seed + count))
            samples = gather(env, model, seeds[: config.episodes], config.steps, config.candidates)
            far_steps = max(1, round(config.far_seconds / model.step_seconds))
            far = travel(env, model, seeds[config.episodes :][: config.far_episodes], far_steps)  # new to the probe
            stills = take_stills(env, model, seeds[: config.stills])
            findings = examine(model, samples, far, stills, np.random.default_rng([config.seed]))
    finally:
        env.close()
    marks = judge(findings)
    blamed = find_blame(config, cells) if config.planner else None
    if blamed is not None:
        marks.append(
            (mark_of(-sum(blamed["counts"].values()), 0, -0.1 * config.planner_episodes), blame_sentence(blamed))
        )
    record = {
        "model": config.model,
        "step_seconds": model.step_seconds,
        "verdict": [f"{mark.upper()}: {text}" for mark, text in marks],
        "findings": plain(findings),
        "planner": blamed,
        **origin(config),
    }
    _write(config, record, marks, findings)
    colour = {"good": "green", "weak": "yellow", "bad": "red", OPEN: "blue"}
    for mark, text in marks:
        console.print(f"[{colour[mark]}]{mark:>4}[/]  {text}", highlight=False, soft_wrap=True)
    console.print(f"Page: {config.out / 'index.html'}", soft_wrap=True)
    return record


def planning_cells(config: DoctorConfig) -> dict[str, Cell]:
    """The cells of `blame` in the same scene, claimed.

    Raises:
        ValueError: Bad settings, or cells of another run.
    """
    setup = Setup(model=config.model, workers=config.workers, level=config.level, camera=config.camera)
    where = (config.task, config.object, config.lab)
    resolved = resolve(setup, [config.agent])
    cells = blame_cells(resolved, config, where, config.agent, config.out / "planner")
    for cell in cells.values():
        claim(cell)
    return cells


def find_blame(config: DoctorConfig, cells: Mapping[str, Cell]) -> dict[str, Any]:
    """Plan episodes and tell which part fails; see `blame`."""
    return blame(cells, range(config.seed, config.seed + config.planner_episodes), config.workers)


def examine(model: Any, samples: Samples, far: Travel, stills: Stills, rng: np.random.Generator) -> dict[str, Any]:
    """All seven examinations, as numbers; see each function."""
    episodes = len(samples.z)
    order = rng.permutation(episodes)
    held_out = np.sort(order[: max(1, episodes // 4)])
    train = np.sort(order[max(1, episodes // 4) :])
    groups = np.repeat(train, samples.states.shape[1])
    positions = samples.states[..., :3].astype(np.float64)
    probe = fit_probe(samples.z[train].flatten(0, 1), positions[train].reshape(-1, 3), groups, rng)
    return {
        "probe": probe_error(probe, samples, train, held_out),
        "sensitivity": sensitivity(model, samples, rng),
        "axes": action_axes(model, probe, samples, held_out),
        "ranking": outcome_ranking(model, samples),
        "latent_distance": latent_distance(model, samples, rng),
        "drift": drift(model, probe, far),
        "stills": read_stills(model, stills, rng),
    }


def probe_error(probe: Probe, samples: Samples, train: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Mean error (m) of the flange position read from held-out episodes' features; and of always guessing the mean.

    `frames` is how many the probe has learned from.
    """
    truth = samples.states[held_out, :, :3]
    guess = samples.states[train, :, :3].reshape(-1, 3).mean(0)
    read = probe(samples.z[held_out])
    return {
        "frames": len(train) * truth.shape[1],
        "position_error_m": float(np.linalg.norm(read - truth, axis=-1).mean()),
        "error_per_axis_m": np.abs(read - truth).reshape(-1, 3).mean(0),
        "guessing_error_m": float(np.linalg.norm(guess - truth, axis=-1).mean()),
        "read_m": read.reshape(-1, 3),
        "true_m": truth.reshape(-1, 3),
    }


def sensitivity(model: Any, samples: Samples, rng: np.random.Generator) -> dict[str, Any]:
    """One-step error, mean |ẑ - z|, with the true actions, with shuffled ones, with none, and of copying the frame.

    `response` is how much the imagined frame moves with the action, relative to how much the true frame moves.
    """
    z, after = samples.z[:, :-1].flatten(0, 1), samples.z[:, 1:].flatten(0, 1)
    state, action = samples.states[:, :-1].reshape(-1, 7), samples.actions.reshape(-1, 7)
    shuffled = action[rng.permutation(len(action))]
    cameras = None if samples.cameras is None else np.repeat(samples.cameras, samples.actions.shape[1], 0)
    actions = np.stack([action, shuffled, np.zeros_like(action)], 1)
    true, wrong, none = per_camera(model, cameras, imagine, z, state, actions).unbind(1)
    move = _l1(after, z)
    return {
        "true_l1": _l1(true, after),
        "shuffled_l1": _l1(wrong, after),
        "zero_l1": _l1(none, after),
        "copy_l1": move,
        "response": _l1(true, none) / max(move, 1e-12),
    }


def action_axes(model: Any, probe: Probe, samples: Samples, held_out: np.ndarray) -> dict[str, Any]:
    """Jogs of 5 cm along each axis: the displacement that the probe reads from the imagined and from the true frame."""
    chosen = np.flatnonzero(np.isin(samples.moments[:, 0], held_out))
    z, state = _at_moments(samples, chosen)
    jogs = slice(-len(JOGS), None)
    imagined = _imagine_moments(model, samples, chosen, samples.branch_actions[chosen][:, jogs])
    before = probe(z)[:, None]
    commanded = samples.branch_states[chosen][:, jogs, :3] - state[:, None, :3]
    predicted, encoded = probe(imagined) - before, probe(samples.branch_z[chosen][:, jogs]) - before
    flat = [moves.reshape(-1, 3) for moves in (commanded, predicted, encoded)]
    return {
        "imagined": asdict(fit_axes(flat[0], flat[1])),
        "encoded": asdict(fit_axes(flat[0], flat[2])),
        "commanded_m": commanded.mean(0),
        "predicted_m": predicted.mean(0),
        "encoded_m": encoded.mean(0),
    }


def outcome_ranking(model: Any, samples: Samples) -> dict[str, Any]:
    """Given a true outcome, does its own action have the lowest energy of all candidates from that moment?"""
    candidates = samples.branch_actions.shape[1] - len(JOGS)
    everywhere = np.arange(len(samples.moments))
    imagined = _imagine_moments(model, samples, everywhere, samples.branch_actions[:, :candidates])
    ranks = ranking(imagined, samples.branch_z[:, :candidates])
    return {
        "candidates": candidates,
        "top_1": float((ranks == 1).mean()),
        "chance": 1 / candidates,
        "mean_rank": float(ranks.mean()),
        "histogram": np.bincount(ranks.reshape(-1), minlength=candidates + 1)[1:],
    }


def latent_distance(model: Any, samples: Samples, rng: np.random.Generator) -> dict[str, Any]:
    """Rank correlation of mean |z_i - z_j| with the flange's distance, within episodes; all pairs, and near ones.

    `aligned` holds the same of the aligned energy, where the model has a readout.
    """
    latent, true = latent_and_true_distances(list(samples.z), list(samples.states[..., :3]))
    shown = rng.permutation(len(true))[:PLOTTED_PAIRS]
    readout = getattr(model, "readout", None)
    aligned = None if readout is None else latent + aligned_distances(AlignedL1(readout), list(samples.z))
    return {
        **_correlations(latent, true),
        "near_m": NEAR_M,
        "latent": latent[shown],
        "true_m": true[shown],
        "aligned": None if aligned is None else {**_correlations(aligned, true), "cost": aligned[shown]},
    }


def _correlations(cost: np.ndarray, true: np.ndarray) -> dict[str, float]:
    near = true < NEAR_M
    return {"spearman": spearman(cost, true), "spearman_near": spearman(cost[near], true[near])}


def drift(model: Any, probe: Probe, far: Travel) -> dict[str, Any]:
    """Open-loop rollouts from the first frame with the true actions: error against the horizon, beside copying.

    Rollouts longer than the predictor was built for go on from their last imagined frame.
    """
    z, state = far.z, far.states
    run = partial(imagine_far, piece=most_steps(model))
    imagined = per_camera(model, far.cameras, run, z[:, 0], state[:, 0], far.actions)
    horizons = range(1, z.shape[1])
    return {
        "step_seconds": model.step_seconds,
        "horizon": list(horizons),
        "l1": [_l1(imagined[:, h - 1], z[:, h]) for h in horizons],
        "copy_l1": [_l1(z[:, 0], z[:, h]) for h in horizons],
        "position_error_m": np.linalg.norm(probe(imagined) - state[:, 1:, :3], axis=-1).mean(0),
        "moved_m": np.linalg.norm(state[:, 1:, :3] - state[:, :1, :3], axis=-1).mean(0),
    }


def imagine(model: Any, z: Tensor, state: np.ndarray, actions: np.ndarray, batch: int = 32) -> Tensor:
    """One step ahead: features [C, N, D], states [C, 7], actions [C, K, 7] -> imagined features [C, K, N, D]."""
    parts = []
    for i in range(0, len(z), batch):
        piece = slice(i, i + batch)
        rollout = model.rollout(
            z[piece, None].to(_device(model)),
            _tensor(state[piece, None], model),
            _tensor(actions[piece, :, None], model),
        )
        parts.append(rollout.z[:, :, 0].cpu())
    return torch.cat(parts)


def _device(model: Any) -> torch.device:
    return getattr(model, "device", torch.device("cpu"))


def _tensor(array: np.ndarray, model: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(_device(model))


def _at_moments(samples: Samples, chosen: np.ndarray) -> tuple[Tensor, np.ndarray]:
    episode, step = samples.moments[chosen].T
    return samples.z[episode, step], samples.states[episode, step]


def _imagine_moments(model: Any, samples: Samples, chosen: np.ndarray, actions: np.ndarray) -> Tensor:
    """`imagine` from the chosen moments, each seen from its episode's camera."""
    cameras = None if samples.cameras is None else samples.cameras[samples.moments[chosen, 0]]
    return per_camera(model, cameras, imagine, *_at_moments(samples, chosen), actions)


def _l1(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().mean())


def _write(
    config: DoctorConfig, record: Mapping[str, Any], marks: list[tuple[str, str]], findings: Mapping[str, Any]
) -> None:
    png = figure_png(doctor_figure(findings))
    page = Page(f"doctor: {config.model}", f"{config.episodes} episodes of free motion in {config.task}, {config.lab}.")
    page.heading("Verdict").table(["mark", "finding"], [list(mark) for mark in marks])
    if record["planner"]:
        page.heading("Which part fails the planner's episodes")
        page.table(
            ["seed", "reason", "to blame"],
            [[e["seed"], e["reason"], e["blame"] or "–"] for e in record["planner"]["episodes"]],
        )
    page.picture(png, "probe, sensitivity, axes, ranking, latent distance, drift, object, yaw and fingers")
    page.heading("Jogs along each axis").table(["jog", "commanded (cm)", "seen (cm)", "imagined (cm)"], _jogs(findings))
    provenance(page, record)
    page.details("All numbers", record["findings"])
    write_bytes(config.out / "doctor.png", png)
    page.write(config.out / "index.html")
    write_json(config.out / "doctor.json", record)


def _jogs(findings: Mapping[str, Any]) -> list[list[str]]:
    """A row per jog: its axis, and the mean displacement commanded, seen in the true frame, and imagined."""
    moves = [100 * np.asarray(findings["axes"][f"{kind}_m"]) for kind in ("commanded", "encoded", "predicted")]
    names = [f"{sign}{axis}" for sign in "+−" for axis in "xyz"]
    rows = [[", ".join(signed(value, 1) for value in move[row]) for move in moves] for row in range(6)]
    return [[name, *row] for name, row in zip(names, rows, strict=True)]
