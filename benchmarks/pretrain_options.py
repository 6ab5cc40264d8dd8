"""What the levers of pretraining are worth: short trainings at equal steps, each with one setting changed.

    python benchmarks/pretrain_options.py --data DIR... --steps 300 [--seeds 0 1]

All but the last two change one setting. Each encoder is judged by single frames of episodes that no training has seen
(`evaluation.doctor_stills`; seeds of the range for choosing settings): how far off a linear probe reads the hand and
the object. `random` is the untrained encoder, `paper` mask denoising alone.

Arms whose scores are stored are not run again, and one that was interrupted goes on. Frames of the recipe's size are
packed beside the data, as every training does; those of an arm with another size in its own folder, where they are
deleted once it is scored.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from armworld.datasets.clips import FrameClips, check_clips, load_frames
from armworld.evaluation.cells import env_id_of, open_env, single_thread
from armworld.evaluation.doctor_stills import read_stills, take_stills
from armworld.evaluation.files import plain, read_json, write_json
from armworld.types import check_name, check_numbers
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.frozen import open_encoder
from armworld.worldmodel.pretrain import PretrainConfig, pretrain
from armworld.worldmodel.recipe import RecipeConfig

ARMS: dict[str, dict[str, Any] | None] = {
    "random": None,
    "recipe": {},
    "paper": {"state_loss": 0.0},
    "mean readout": {"state_readout": "mean"},
    "hand readout": {"state_readout": "hand"},
    "no stills": {"still_share": 0.0},
    "stills alone": {"still_share": 1.0},
    "fewer hidden": {"mask_scales": (0.08, 0.4)},
    "blocks of half the clip": {"mask_duration": 0.5},
    "quicker teacher": {"ema": 0.99},
    "slower teacher": {"ema": 0.9995},
    "96 pixels": {"image_size": 96},
    "160 pixels": {"image_size": 160},
    "8 frames": {"frames": 8, "batch": 32},
    "AdamW": {"optimizer": "adamw", "learning_rate": 1e-3},
}

STEP_SECONDS = 0.25
PACKED = "frames"  # folder of an arm's own frames


@dataclass(frozen=True)
class Config:
    """What to train and compare.

    Attributes:
        data: Dataset folders.
        out: Folder for runs and `options.json`.
        steps: Optimiser steps of every arm.
        seeds: One training of every arm per seed.
        arms: Names of `ARMS`; all by default.
        stills: Frames to probe, each of an episode of its own; a quarter is held out.
        layers: Also probe after so many blocks of the recipe's encoder.
    """

    data: tuple[Path, ...]
    out: Path = Path("runs/pretrain_options")
    steps: int = 300
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = tuple(ARMS)
    stills: int = 600
    layers: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        check_numbers(self, "steps", least=1)
        check_numbers(self, "stills", least=16)
        for name in self.arms:
            check_name("arm", name, ARMS)
        depth = settings_of(self, "recipe", 0).encoder.depth
        if any(not 1 <= layers <= depth for layers in self.layers):
            raise ValueError(f"layers must lie in 1 ... {depth}, got {self.layers}")


class Eyes:
    """An encoder, and nothing else of a world model."""

    def __init__(self, encoder: Encoder, layers: int | None = None) -> None:
        self.encoder, self.layers = encoder.eval(), layers

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [B, T, H, W, 3] -> features [B, T, N, D]."""
        return self.encoder.encode_frames(images, self.layers)


def settings_of(config: Config, name: str, seed: int) -> PretrainConfig:
    """The recipe's first stage with the arm's setting changed, bounded by steps."""
    recipe = RecipeConfig(out=config.out, seed=seed).pretraining(config.data)
    return replace(recipe, out=_folder(config, name, seed), steps=config.steps, minutes=None, **(ARMS[name] or {}))


def _folder(config: Config, name: str, seed: int) -> Path:
    return config.out / f"{name.replace(' ', '_')}-{config.steps}-{seed}"


def _asked(config: Config) -> dict[str, Any]:
    return plain({"data": config.data, "stills": config.stills, "layers": config.layers})


def stored_rows(config: Config, name: str, seed: int) -> list[dict[str, Any]] | None:
    """The rows of an arm that has been scored, None of another; a ValueError where it was scored differently."""
    path = _folder(config, name, seed) / "scores.json"
    if not path.exists():
        return None
    stored, asked = read_json(path), _asked(config)
    if stored["asked"] != asked:
        raise ValueError(f"{path} was scored with {stored['asked']}, asked for {asked}; choose another --out")
    return stored["rows"]


def train(config: Config, settings: PretrainConfig) -> Path:
    """The arm's encoder; frames of another size than the recipe's are packed in the arm's own folder."""
    if settings.image_size == settings_of(config, "recipe", 0).image_size:
        return pretrain(settings)
    packed = (settings.out / PACKED / str(number) for number in range(len(config.data)))
    pairs = zip(config.data, packed, strict=True)
    stores = [load_frames(root, image_size=settings.image_size, out=folder) for root, folder in pairs]
    return pretrain(settings, FrameClips(stores, settings.step_seconds))


def run_arm(config: Config, name: str, seed: int) -> list[dict[str, Any]]:
    """Train one arm and probe it; a row per number of blocks."""
    out = _folder(config, name, seed)
    settings, started = settings_of(config, name, seed), time.process_time()
    untrained = f"random:{settings.size}:{settings.depth}"
    made = untrained if ARMS[name] is None else str(train(config, settings))
    encoder = open_encoder(made, settings.image_size, seed)
    spent = time.process_time() - started
    rows = []
    for layers in (None, *(config.layers if name == "recipe" else ())):
        label = name if layers is None else f"{name}, {layers} blocks"
        rows.append({"arm": label, "seed": seed, "core_seconds": spent, **probe(config, Eyes(encoder, layers))})
    shutil.rmtree(out / PACKED, ignore_errors=True)
    write_json(out / "scores.json", {"asked": _asked(config), "rows": rows})
    return rows


def probe(config: Config, eyes: Eyes) -> dict[str, float]:
    """Errors (m) of linear probes of hand and object on held-out frames of a grasp scene."""
    size = eyes.encoder.config.image_size[0]
    env = open_env(env_id_of("grasp"), {"cameras": ("left",), "image_size": size, "step_seconds": STEP_SECONDS})
    try:
        with single_thread():
            stills = take_stills(env, eyes, list(range(1_000_000, 1_000_000 + config.stills)))
    finally:
        env.close()
    found = read_stills(eyes, stills, np.random.default_rng(0))
    scores = {"hand_m": found["probe"]["position_m"], "object_m": found["object_error_m"]}
    return plain(scores | {"yaw_rad": found["probe"]["yaw_rad"], "guessing_m": found["object_guessing_m"]})


def main(config: Config) -> None:
    """Train, compare, print and write options.json."""
    check_clips(config.data, max((ARMS[name] or {}).get("frames", 1) for name in config.arms), STEP_SECONDS)
    console, rows = Console(), []
    arms = [(name, seed, stored_rows(config, name, seed)) for seed in config.seeds for name in config.arms]
    for number, (name, seed, stored) in enumerate(arms, 1):
        known = "" if stored is None else " (stored)"
        console.rule(f"arm {number} of {len(arms)}: {name}, seed {seed}{known}")
        rows += run_arm(config, name, seed) if stored is None else stored
    title = f"{config.steps} steps, {config.stills} frames of unseen episodes"
    table = Table("lever", "seed", "hand, cm", "object, cm", "yaw, rad", "core s", title=title)
    for row in rows:
        lengths = (f"{100 * row[key]:.2f}" for key in ("hand_m", "object_m"))
        table.add_row(row["arm"], str(row["seed"]), *lengths, f"{row['yaw_rad']:.3f}", f"{row['core_seconds']:.0f}")
    console.print(table)
    write_json(config.out / "options.json", {"steps": config.steps, "stills": config.stills, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
