"""Which behaviour cloning is the strongest rival? Train its variants, play each in several ways, on selection seeds.

    python benchmarks/bc_ablations.py --data data/reach --out runs/ablations --minutes 60

Variants: proprioception on and off, goals capped and not, all episodes and successes only, actions past the goal masked
and held, images augmented and not, AdamW as in Octo instead of Muon, one noise draw per readout. Ways to play: one and
four actions of a chunk, temporal ensembling; averaged and last weights. Every part is resumable: the same command goes
on. The best of the table is then scored once, on reported seeds.

Seeds of training, with intervals across them:

    python benchmarks/bc_ablations.py --data data/expert --out runs/seeds --steps 600 --variants base,blind \
        --training-seeds 0,1,2 --ways execute1 --weights ema

It writes ablations.json and ablations.md: a row per trained policy and way to play it, then one per setting over its
training seeds. Where all settings succeed alike, the final distances tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from armworld.baselines.bc import BCTrainConfig, train
from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.cells import Cell, env_id_of, run_cells
from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.files import write_json, write_text
from armworld.evaluation.records import parse_seeds
from armworld.evaluation.statistics import mean_interval, wilson_interval
from armworld.types import check_name

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "blind": {"proprioception": False},
    "uncapped": {"goal_cap": None},
    "hold": {"past_goal": "hold"},
    "hold_uncapped": {"past_goal": "hold", "goal_cap": None},
    "successes": {"successes_only": True},
    "plain_images": {"augment": False},
    "adamw": {"optimizer": "adamw", "learning_rate": 3e-4},
    "one_draw": {"noise_draws": 1},
}
WAYS = {
    "execute1": AgentSettings(execute=1),
    "execute4": AgentSettings(execute=4),
    "ensemble": AgentSettings(ensemble=0.0),
}
WEIGHTS = {"ema": "model", "last": "model_last"}


@dataclass(frozen=True)
class AblationConfig:
    """Train and score the variants.

    Attributes:
        data: Dataset folders.
        out: Folder of all runs, and of ablations.json.
        variants: Names of variants, separated by commas.
        training_seeds: Seeds of training, separated by commas.
        size: Network size.
        batch: Samples per step.
        noise_draws: Of the variants that do not state their own.
        steps: Optimiser steps per run; none to train by time alone.
        minutes: Minutes per run; none to train by steps alone.
        optimizer, learning_rate, warmup: Of the variants that do not state their own, see `armworld bc`.
        encoder: Behaviour cloning on this frozen encoder's features instead of pixels.
        weights: ema (the average) and last, or one of them.
        ways: Names of `WAYS`, separated by commas.
        seeds: Environment seeds; selection seeds lie in 1,000,000 ... 1,000,999.
        task: A task's name, or a Gymnasium id; its usual gripper and sub-goal settings hold.
        image_size: Height and width of the frames (pixels).
        workers: Processes that play episodes.
    """

    data: tuple[Path, ...]
    out: Path
    variants: str = "base,blind,uncapped,hold,hold_uncapped,successes"
    training_seeds: str = "0"
    size: str = "cpu"
    batch: int = 64
    noise_draws: int = 8
    steps: int | None = None
    minutes: float | None = None
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    warmup: int = 200
    encoder: str | None = None
    weights: str = "ema,last"
    ways: str = "execute1,execute4,ensemble"
    seeds: str = "1000000-1000049"
    task: str = "reach"
    image_size: int = 128
    workers: int = 1


def train_variants(config: AblationConfig) -> dict[tuple[str, int], Path]:
    """Run folders of every variant and training seed, trained as far as the budget goes."""
    runs = {}
    base = BCTrainConfig(
        data=config.data,
        out=config.out,
        size=config.size,
        encoder=config.encoder,
        cache=None if config.encoder is None else config.out / "features",
        image_size=config.image_size,
        batch=config.batch,
        steps=config.steps,
        minutes=config.minutes,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        noise_draws=config.noise_draws,
    )
    for name in config.variants.split(","):
        changes = VARIANTS[check_name("variant", name, VARIANTS)]
        for seed in map(int, config.training_seeds.split(",")):
            run = config.out / "runs" / f"{name}-{seed}"
            train(replace(base, out=run, seed=seed, **changes))
            runs[name, seed] = run
    return runs


def score(config: AblationConfig, runs: dict[tuple[str, int], Path]) -> list[dict[str, Any]]:
    """One row per variant, training seed, weights and way to play; the best first."""
    env_id = env_id_of(config.task)
    kwargs: dict[str, Any] = {"image_size": config.image_size}
    kwargs |= {"cameras": ("left",)} if env_id.startswith("armworld/") else {}
    agent = "octo" if config.encoder is None else "features_bc"
    slots, cells = [], []
    for (variant, seed), run in runs.items():
        for weights in config.weights.split(","):
            folder = run / WEIGHTS[check_name("weights", weights, WEIGHTS)]
            for way in config.ways.split(","):
                settings = WAYS[check_name("way to play", way, WAYS)].for_task(config.task)
                out = config.out / "cells" / f"{variant}-{seed}-{weights}-{way}"
                cells.append(Cell(env_id, kwargs, agent, out, str(folder), settings))
                slots.append({"variant": variant, "training_seed": seed, "weights": weights, "play": way})
    results = run_cells(cells, parse_seeds(config.seeds), config.workers)
    rows = [{**slot, **measures(episodes)} for slot, episodes in zip(slots, results, strict=True)]
    return sorted(rows, key=lambda row: (-row["wins"], row["mean_distance_m"]))


def measures(episodes: list[EpisodeResult]) -> dict[str, Any]:
    """Successes and final distances (m; infinite where no episode was observed to its end)."""
    wins = sum(result.success for result in episodes)
    finals = [result.final_distance_m for result in episodes if result.final_distance_m is not None] or [np.inf]
    return {
        "wins": wins,
        "episodes": len(episodes),
        "wilson_95": wilson_interval(wins, len(episodes)),
        "mean_distance_m": float(np.mean(finals)),
        "median_distance_m": float(np.median(finals)),
    }


def across_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per variant, weights and way to play that was trained from several seeds: means and their t intervals."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["variant"], row["weights"], row["play"]), []).append(row)
    found = []
    for (variant, weights, play), own in groups.items():
        if len(own) < 2:
            continue
        rates = mean_interval([row["wins"] / row["episodes"] for row in own])
        distances = mean_interval([row["mean_distance_m"] for row in own])
        seeds = sorted(row["training_seed"] for row in own)
        found.append({"variant": variant, "weights": weights, "play": play, "training_seeds": seeds,
                      "success_rate": rates[0], "success_95": tuple(np.clip(rates[1:], 0, 1).tolist()),
                      "mean_distance_m": distances[0], "distance_95_m": distances[1:]})  # fmt: skip
    return found


def markdown(rows: list[dict[str, Any]], seeds: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = [
        "| variant | training seed | weights | play | success | Wilson 95 % | cm: mean | median |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["wilson_95"]
        distances = f"{100 * row['mean_distance_m']:.1f} | {100 * row['median_distance_m']:.1f}"
        told = f"{row['wins']}/{row['episodes']} | {100 * low:.0f}–{100 * high:.0f} % | {distances}"
        lines.append(f"| {row['variant']} | {row['training_seed']} | {row['weights']} | {row['play']} | {told} |")
    if seeds:
        lines += [
            "",
            "| variant | weights | play | training seeds | success, 95 % across seeds | cm, 95 % across seeds |",
        ]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
    for row in seeds:
        (low, high), (near, far) = row["success_95"], row["distance_95_m"]
        rate = f"{100 * row['success_rate']:.0f} % ({100 * low:.0f}–{100 * high:.0f})"
        distance = f"{100 * row['mean_distance_m']:.1f} ({100 * near:.1f}–{100 * far:.1f})"
        names = ", ".join(map(str, row["training_seeds"]))
        lines.append(f"| {row['variant']} | {row['weights']} | {row['play']} | {names} | {rate} | {distance} |")
    return "\n".join(lines) + "\n"


def main(config: AblationConfig) -> list[dict[str, Any]]:
    """Train, play, print the tables and write them."""
    rows = score(config, train_variants(config))
    seeds = across_seeds(rows)
    write_json(config.out / "ablations.json", {"rows": rows, "across_seeds": seeds})
    write_text(config.out / "ablations.md", markdown(rows, seeds))
    Console().print(markdown(rows, seeds), highlight=False, soft_wrap=True)
    return rows


if __name__ == "__main__":
    main(tyro.cli(AblationConfig, description=__doc__))
