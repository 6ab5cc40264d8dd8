"""Which behaviour cloning is the strongest rival? Train its variants, play each in several ways, on selection seeds.

    python benchmarks/bc_ablations.py --data data/reach --out runs/ablations --minutes 60

Variants: proprioception on and off, goals capped and not, all episodes and successes only, actions past the goal masked
and held, images augmented and not, AdamW as in Octo instead of Muon, one noise draw per readout. Ways to play: one and
four actions of a chunk, temporal ensembling; averaged and last weights. Every part is resumable: the same command goes
on. The best of the table is then scored once, on reported seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from armworld.baselines.bc import BCTrainConfig, train
from armworld.evaluation.agents import AgentSettings
from armworld.evaluation.cells import Cell, run_cells
from armworld.evaluation.files import write_json
from armworld.evaluation.records import parse_seeds
from armworld.evaluation.statistics import wilson_interval
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
        steps: Optimiser steps per run; none to train by time alone.
        minutes: Minutes per run; none to train by steps alone.
        optimizer, learning_rate, warmup: Of the variants that do not state their own, see `armworld bc`.
        encoder: Behaviour cloning on this frozen encoder's features instead of pixels.
        seeds: Environment seeds; selection seeds lie in 1,000,000 ... 1,000,999.
        env_id: Gymnasium id.
        image_size: Height and width of the frames (pixels).
        workers: Processes that play episodes.
    """

    data: tuple[Path, ...]
    out: Path
    variants: str = "base,blind,uncapped,hold,hold_uncapped,successes"
    training_seeds: str = "0"
    size: str = "cpu"
    batch: int = 64
    steps: int | None = None
    minutes: float | None = None
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    warmup: int = 200
    encoder: str | None = None
    seeds: str = "1000000-1000049"
    env_id: str = "armworld/Reach-v0"
    image_size: int = 128
    workers: int = 1


def train_variants(config: AblationConfig) -> dict[tuple[str, int], Path]:
    """Run folders of every variant and training seed, trained as far as the budget goes."""
    runs = {}
    base = BCTrainConfig(
        config.data,
        config.out,
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
    kwargs = {} if "armworld/" not in config.env_id else {"cameras": ("left",)}
    slots, cells = [], []
    for (variant, seed), run in runs.items():
        for weights, folder in WEIGHTS.items():
            for way, settings in WAYS.items():
                out = config.out / "cells" / f"{variant}-{seed}-{weights}-{way}"
                agent = "octo" if config.encoder is None else "features_bc"
                env = {**kwargs, "image_size": config.image_size}
                cells.append(Cell(config.env_id, env, agent, out, str(run / folder), settings))
                slots.append({"variant": variant, "training_seed": seed, "weights": weights, "play": way})
    seeds = parse_seeds(config.seeds)
    rows = []
    for slot, results in zip(slots, run_cells(cells, seeds, config.workers), strict=True):
        wins = sum(result.success for result in results)
        distances = [result.final_distance_m for result in results if result.final_distance_m is not None]
        mean = sum(distances) / len(distances) if distances else None
        rows.append({**slot, "wins": wins, "episodes": len(results), "wilson_95": wilson_interval(wins, len(results)),
                     "mean_distance_m": mean})  # fmt: skip
    return sorted(rows, key=lambda row: -row["wins"])


def main(config: AblationConfig) -> list[dict[str, Any]]:
    """Train, play, print the table and write ablations.json."""
    rows = score(config, train_variants(config))
    write_json(config.out / "ablations.json", rows)
    shown = Table(*rows[0])
    for row in rows:
        shown.add_row(*(str(value) for value in row.values()))
    Console().print(shown)
    return rows


if __name__ == "__main__":
    main(tyro.cli(AblationConfig, description=__doc__))
