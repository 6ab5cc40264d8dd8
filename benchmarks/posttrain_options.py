"""What the predictor's options are worth: the same training with and without each, at equal steps and seeds.

    python benchmarks/posttrain_options.py --data DIR... --encoder NAME --cache DIR --steps 600 [--seeds 0 1] [--doctor]

Every arm of the same clip length draws the same clips (same seed, data and features): one lever at a time. Compared
on held-out episodes: the gain (1 - one-step L1 / L1 of copying), and the share of the error that the right action takes
away; core seconds tell what an option costs. Compared in simulation, which also arms with other features or steps can
be: reach episodes with the published energy (seeds for choosing settings). Arms that are done are skipped.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from armworld.evaluation.doctor import DoctorConfig, doctor
from armworld.evaluation.files import read_json, write_json
from armworld.evaluation.plan import PlanConfig, plan
from armworld.types import check_name
from armworld.worldmodel.posttrain import PosttrainConfig, posttrain
from armworld.worldmodel.recipe import PREDICTOR

ARMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "state loss": {"state_loss": 0.3},
    "inverse loss": {"inverse_loss": 0.3},
    "no rollout": {"rollout": 0},
    "rollout of 4": {"rollout": 4, "frames": 5},
    "every patch a token": {"merge": 1},
    "16 patches a token": {"merge": 4},
    "AdamW": {"optimizer": "adamw", "learning_rate": 4e-4},
    "2 frames a second": {"step_seconds": 0.5},
}
FIRST_SEED = 1_000_500


@dataclass(frozen=True)
class Config:
    """What to train and compare.

    Attributes:
        data: Dataset folders.
        encoder: Frozen encoder.
        cache: Its cached features (made if they are not there).
        out: Folder for runs and `options.json`.
        steps: Optimiser steps of every arm.
        seeds: One training of every arm per seed.
        arms: Names of `ARMS`; all by default.
        camera: Whose frames.
        reach: Episodes of reaching per model; 0 for none.
        doctor: Also examine every model in simulation.
    """

    data: tuple[Path, ...]
    cache: Path
    encoder: str = "default"
    out: Path = Path("runs/options")
    steps: int = 600
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = tuple(ARMS)
    camera: str = "left"
    reach: int = 20
    doctor: bool = False

    def __post_init__(self) -> None:
        for name in self.arms:
            check_name("arm", name, ARMS)


def train_arm(config: Config, name: str, seed: int) -> dict[str, Any]:
    """Train one arm with the recipe's sizes; its held-out scores."""
    out = config.out / f"{name.replace(' ', '_')}-{seed}"
    if (out / "scores.json").exists():
        return read_json(out / "scores.json")
    started = time.process_time()
    model = posttrain(
        PosttrainConfig(
            data=config.data,
            encoder=config.encoder,
            cache=config.cache,
            out=out,
            steps=config.steps,
            seed=seed,
            camera=config.camera,
            **(PREDICTOR | ARMS[name]),
        )
    )
    scores = json.loads((model / "config.json").read_text())["about"]["validation"]
    row = {"arm": name, "seed": seed, "core_seconds": time.process_time() - started, **scores}
    row["right_action"] = 1 - scores["one_step"] / scores["shuffled_actions"]
    if config.reach:
        row |= reaching(config, str(model), out / "reach")
    if config.doctor:
        findings = doctor(DoctorConfig(str(model), out=out / "doctor"))["findings"]
        row |= {"top_1": findings["ranking"]["top_1"], "axes_error_m": findings["axes"]["imagined"]["error_m"]}
    write_json(out / "scores.json", row)
    return row


def reaching(config: Config, model: str, out: Path) -> dict[str, Any]:
    """Reach episodes by CEM with the published energy: how many succeed, and how far (m) the hand ends on average."""
    setting = PlanConfig(
        model=model,
        agent="cem",
        objective="final",
        samples=32,
        iterations=2,
        seed=FIRST_SEED,
        episodes=config.reach,
        baselines="none",
        videos=0,
        workers=1,
        out=out,
    )
    episodes = plan(setting, Console(quiet=True))["episodes"]
    distances = [episode["final_distance_m"] for episode in episodes]
    return {"reached": sum(episode["success"] for episode in episodes), "distance_m": sum(distances) / len(distances)}


def main(config: Config) -> None:
    """Train, compare, print and write options.json."""
    rows = [train_arm(config, name, seed) for seed in config.seeds for name in config.arms]
    title = f"{config.steps} steps, held-out episodes; reach with the published energy"
    table = Table("lever", "seed", "gain", "right action", "reached", "distance, cm", "core s", title=title)
    for row in rows:
        reached = (f"{row['reached']}/{config.reach}", f"{100 * row['distance_m']:.1f}") if config.reach else ("", "")
        scores = (f"{row['gain']:.3f}", f"{row['right_action']:.3f}", *reached, f"{row['core_seconds']:.0f}")
        table.add_row(row["arm"], str(row["seed"]), *scores)
    Console().print(table)
    write_json(config.out / "options.json", {"steps": config.steps, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
