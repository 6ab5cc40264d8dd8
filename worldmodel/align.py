"""`armworld align`: train the readout of the hand that aligns a world model's planning energy with distance.

Encoder and predictor stay as they are. The readout sees real features, slightly disturbed, and features that the
predictor imagines one step ahead, each with the state recorded there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from armworld.datasets.clips import check_clips
from armworld.datasets.features import FeatureCache, FeatureClips, encoder_hash
from armworld.pose import action_between
from armworld.types import check_folder, check_numbers
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_checkpoint, save_world_model
from armworld.worldmodel.frozen import open_features
from armworld.worldmodel.readout import HandReadout, ReadoutConfig, reading_errors, reading_loss
from armworld.worldmodel.training import (
    Processes,
    TrainingConfig,
    TrainingRun,
    make_optimizer,
    pick_device,
    plot_metrics,
    precision,
)

CURVES = ("error", "position_m", "yaw_rad", "closedness")  # panels of the plot


@dataclass(frozen=True, kw_only=True)
class AlignConfig(TrainingConfig):
    """Training of a readout of the hand over a world model's features; the model that carries it is `out/model`.

    Attributes:
        model: World model: a folder, or the name of shipped weights.
        cache: Folder of cached features (that of `armworld posttrain`); by default in the run's folder.
        imagined_share: Share of the batches whose features the predictor imagined.
        noise: Standard deviation of noise on the features, which have deviation 1.
        channels: What the network compresses each patch to.
        hidden: Width of its two hidden layers.
        batch: Frames per optimiser step.
        learning_rate: Peak of the warmup-cosine schedule.
        weight_decay: AdamW's decay of matrices.
        held_out: Share of the episodes kept for validation.
        validate_every: Steps between validations.
        log_every: Steps between rows of the log.
    """

    FREE = TrainingConfig.FREE | {"model", "cache", "log_every"}

    model: str
    cache: Path | None = None
    imagined_share: float = 0.5
    noise: float = 0.1
    channels: int = 32
    hidden: int = 256
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    held_out: float = 0.03
    validate_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "imagined_share", least=0, most=1)
        check_numbers(self, "noise", "weight_decay", least=0)
        check_numbers(self, "channels", "hidden", "batch", "validate_every", "log_every", least=1)
        check_numbers(self, "learning_rate", above=0)
        check_numbers(self, "held_out", above=0, below=1)
        if self.cache is not None:
            check_folder("cache", self.cache, written=False)


def align(config: AlignConfig) -> Path:
    """Train the readout and return the world model that carries it, `out/model`.

    Raises:
        ValueError: Bad settings or data, a model without a predictor, or a loss that is not a number.
    """
    device = pick_device(config.device)
    loaded = load_checkpoint(config.model)
    if loaded.predictor is None or loaded.config is None:
        raise ValueError(f"{config.model} holds an encoder only; align needs a world model (armworld posttrain)")
    encoder, predictor = loaded.encoder, loaded.predictor.requires_grad_(False).to(device)
    folder, usage = config.cache or config.out / "features", loaded.config
    check_clips(config.data, 2, usage.step_seconds, usage.camera)
    cache = open_features(encoder, config.data, folder, usage.camera, usage.layers, config.dtype, device)
    cache.preload()
    train, held_out = (
        cache.clips(part, usage.step_seconds, usage.camera_frame) for part in cache.split(config.held_out, config.seed)
    )
    readout = build_readout(config, cache).to(device)
    optimizer = make_optimizer("adamw", readout, [], config.learning_rate, config.weight_decay)
    generators = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    run = TrainingRun(
        config,
        {"readout": readout},
        optimizer,
        generators,
        Processes(),
        {"data": cache.content(), "views": cache.views(), "features": cache.key["encoder"]},
        settings={"model": encoder_hash(predictor)},
    )
    for step in run.steps():
        run.set_cosine_rate(config.learning_rate, 100)
        imagined = generators[0].random() < config.imagined_share
        z, states = draw(train, predictor if imagined else None, config, generators[0], device)
        z = z + config.noise * torch.randn(z.shape, generator=generators[1]).to(device)
        with run.memory_advice():
            with precision(device, config.dtype):
                read = readout(z)
            error = reading_loss(read, states)
            run.optimise(error)
        if step % config.log_every == 0:
            run.log({"error": float(error.detach())})
        if step and step % config.validate_every == 0:
            run.log(validate(readout, held_out, predictor, config, device))
    scores = validate(readout, held_out, predictor, config, device)
    about = {**loaded.about, "readout": {**run.settings, "steps": run.budget.step, "validation": scores}}
    out = save_world_model(config.out / "model", encoder, loaded.predictor, usage, about=about, readout=readout)
    plot_metrics(run.metrics_path, config.out / "curves.png", CURVES)
    return out


def build_readout(config: AlignConfig, cache: FeatureCache) -> HandReadout:
    """A readout before its first step, drawn from the seed."""
    torch.manual_seed(config.seed)
    patches, features = cache.item_shape
    centre = tuple(round(float(value), 4) for value in np.asarray(cache.states)[:, :3].mean(0))
    return HandReadout(ReadoutConfig(features, patches, config.channels, config.hidden, centre))


@torch.no_grad()
def draw(
    clips: FeatureClips,
    predictor: ACPredictor | None,
    config: AlignConfig,
    generator: np.random.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Features [B, N, D], real or (with a predictor) imagined one step ahead, and the states [B, 7] recorded there."""
    frames = 1 if predictor is None else 2
    z, states, cameras = (part.to(device) for part in clips.sample(generator, config.batch, frames))
    if predictor is None:
        return z[:, 0].float(), states[:, 0]
    with precision(device, config.dtype):
        seen_from = cameras[:, :1] if predictor.config.extrinsics else None
        ahead = predictor(z[:, :1], action_between(states[:, :1], states[:, 1:]), states[:, :1], seen_from).z
    return normalize(ahead[:, 0].float()), states[:, 1]


@torch.no_grad()
def validate(
    readout: HandReadout,
    clips: FeatureClips,
    predictor: ACPredictor,
    config: AlignConfig,
    device: torch.device,
    batches: int = 4,
) -> dict[str, float]:
    """Errors of the readout on held-out episodes, of real and (`imagined_...`) of imagined features."""
    scores: dict[str, float] = {}
    for prefix, source in (("", None), ("imagined_", predictor)):
        rng = np.random.default_rng(config.seed)
        drawn = [draw(clips, source, config, rng, device) for _ in range(batches)]
        z, states = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        scores |= {prefix + name: value for name, value in reading_errors(readout(z), states).items()}
    return scores
