"""Post-training of the action-conditioned predictor on a frozen encoder's features (V-JEPA 2-AC, section 3).

Loss: mean |ẑ − z| of teacher forcing over all steps of a clip, plus the same for a rollout that starts from the first
frame and feeds on its own (layer-normed) predictions. Features are cached once; the encoder never runs in training.

Shapes: B clips, T frames, N patches, D features; T - 1 actions lie between T states.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.datasets.features import FeatureCache, build_feature_cache, encoder_hash
from armworld.pose import action_between
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_encoder, save_world_model
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.sizes import ACPredictorConfig, encoder_config
from armworld.worldmodel.training import (
    Budget,
    Processes,
    TrainingRun,
    make_optimizer,
    pick_device,
    plot_metrics,
    precision,
)

ACTION_SCALE = (20.0, 20.0, 20.0, 5.0, 5.0, 5.0, 2.0)  # 5 cm, 0.2 rad and half a gripper stroke become 1
STATE_SCALE = (5.0, 5.0, 5.0, 2.0, 2.0, 2.0, 2.0)  # 20 cm, 0.5 rad and half a gripper stroke become 1


@dataclass(frozen=True)
class PosttrainConfig:
    """Training of the action-conditioned predictor.

    Attributes:
        data: Dataset folders, as `armworld collect` writes them.
        encoder: Checkpoint folder of the frozen encoder, or `random:SIZE[:DEPTH]` for an untrained one.
        out: Run folder; the same command goes on with what it holds.
        cache: Folder of cached features; by default beside the run's folder.
        camera: The camera whose frames are used.
        image_size: Frame height and width in pixels for a random encoder; a trained one brings its own.
        layers: Use the features after this many encoder blocks; none for all.
        step_seconds: Seconds per step; must be what the data was recorded at or a multiple.
        frames: Frames per clip (8 in the paper).
        rollout: Steps of the rollout loss; 0 leaves it out (2 in the paper).
        pair_share: Share of the optimiser steps taken on pairs of frames alone (no rollout, batches twice as large):
            cheap, and what planning one step ahead asks for.
        width: Predictor width.
        depth: Its blocks.
        heads: Its heads.
        merge: Side of the square of patches that share a token (1 in the paper).
        residual: Predict the change of the features rather than the features.
        batch: Clips per optimiser step, over all processes.
        steps: Optimiser steps; none to train by time alone.
        minutes: Wall-time budget, resumed runs included; none to train by steps alone.
        optimizer: adamw (as published), or muon for the blocks' matrices: half the steps on small budgets.
        learning_rate: Peak of the warmup-constant-decay schedule.
        weight_decay: AdamW's decay of matrices.
        held_out: Share of the episodes kept for validation.
        validate_every: Steps between validations.
        save_minutes: Minutes between saved states.
        seed: Seed of weights and clips.
        device: auto, cpu or cuda.
        dtype: bfloat16 (autocast) or float32.
    """

    data: tuple[Path, ...]
    encoder: str
    out: Path
    cache: Path | None = None
    camera: str = "left"
    image_size: int = 128
    layers: int | None = None
    step_seconds: float = 0.25
    frames: int = 3
    rollout: int = 2
    pair_share: float = 0.0
    width: int = 192
    depth: int = 6
    heads: int = 3
    merge: int = 1
    residual: bool = True
    batch: int = 64
    steps: int | None = None
    minutes: float | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.04
    held_out: float = 0.03
    validate_every: int = 250
    save_minutes: float = 3.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "bfloat16"

    def identity(self) -> dict[str, object]:
        """What must be equal for a run to be resumed; where it runs and for how long may change."""
        free = {"out", "cache", "device", "steps", "minutes", "save_minutes", "data"}
        return {k: v for k, v in asdict(self).items() if k not in free}


class FeatureClips(Protocol):
    """Cached features and states of whole episodes, drawn as clips of T consecutive steps."""

    def sample(self, generator: np.random.Generator, batch: int, frames: int) -> tuple[Tensor, Tensor]:
        """Features [B, T, N, D] and states [B, T, 7]."""
        ...


class PredictionLoss(nn.Module):
    """Teacher forcing plus rollout (paper, equations 2 to 4), as one forward that DDP can wrap."""

    def __init__(self, predictor: ACPredictor, rollout: int) -> None:
        super().__init__()
        self.predictor, self.rollout = predictor, rollout

    def forward(self, z_BTND: Tensor, states_BTA: Tensor, actions_BTA: Tensor) -> dict[str, Tensor]:
        """The parts of the loss and their sum, `loss`; `actions` has T - 1 steps. Short clips have no rollout part."""
        forced = self.predictor(z_BTND[:, :-1], actions_BTA, states_BTA[:, :-1])
        z_hat = normalize(forced.z.float())
        parts = {"teacher_forcing": F.l1_loss(z_hat, z_BTND[:, 1:].float())}
        if self.rollout > 1 and z_BTND.shape[1] > self.rollout:
            parts["rollout"] = self._rollout(z_BTND, states_BTA, actions_BTA, z_hat[:, :1])
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _rollout(self, z_BTND: Tensor, states_BTA: Tensor, actions_BTA: Tensor, first_B1ND: Tensor) -> Tensor:
        """L1 of the frame reached by feeding on own predictions; the first one is teacher forcing's own."""
        context = torch.cat([z_BTND[:, :1].float(), first_B1ND], 1)
        for step in range(2, self.rollout + 1):
            prediction = self.predictor(context, actions_BTA[:, :step], states_BTA[:, :step])
            context = torch.cat([context, normalize(prediction.z[:, -1:].float())], 1)
        return F.l1_loss(context[:, -1], z_BTND[:, self.rollout].float())


def open_encoder(name: str, image_size: int, seed: int) -> Encoder:
    """A trained encoder by path or shipped name, or an untrained one drawn from `seed`: `random:SIZE[:DEPTH]`."""
    if not name.startswith("random:"):
        return load_encoder(name)
    size, _, depth = name.removeprefix("random:").partition(":")
    if depth and not depth.isdecimal():
        raise ValueError(f"encoder {name!r}: expected random:SIZE or random:SIZE:DEPTH, e.g. random:tiny:6")
    torch.manual_seed(seed)
    changes = {"depth": int(depth)} if depth else {}
    return Encoder(encoder_config(size, image_size=(image_size, image_size), **changes)).eval()


def open_features(config: PosttrainConfig, encoder: Encoder) -> FeatureCache:
    """The cache of the encoder's features over the data; made now if it is not there."""
    device = next(encoder.parameters()).device

    @torch.no_grad()
    def encode(frames: np.ndarray) -> Tensor:
        with precision(device, config.dtype):
            return encoder.encode_frames(frames[:, None], config.layers)[:, 0].float().cpu()

    key = {"encoder": encoder_hash(encoder), "layers": config.layers, "image_size": encoder.config.image_size[0]}
    folder = config.cache or config.out / "features"
    return build_feature_cache(config.data, encode, key, folder, camera=config.camera)


def predictor_config(config: PosttrainConfig, encoder: Encoder, states: np.ndarray) -> ACPredictorConfig:
    """The predictor's configuration; actions and states are scaled to unit size by the data's own ranges.

    Args:
        states: [F, 7], all frames' states.
    """
    angles = np.angle(np.exp(1j * states[:, 3:6]).mean(0))  # circular: roll lies around +-pi
    centre = np.concatenate([states[:, :3].mean(0), angles, [0.5]])
    return ACPredictorConfig(
        features=encoder.config.width,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        image_size=encoder.config.image_size,
        residual=config.residual,
        merge=config.merge,
        action_scale=ACTION_SCALE,
        state_offset=tuple(round(float(value), 6) for value in centre),
        state_scale=STATE_SCALE,
    )


def posttrain(config: PosttrainConfig) -> Path:
    """Train a predictor and return the world model's checkpoint folder, `out/model`.

    Raises:
        ValueError: Bad settings or data, a run folder of other settings, or a loss that is not a number.
    """
    if config.frames < max(config.rollout, 1) + 1:
        raise ValueError(f"a rollout of {config.rollout} steps needs frames > {config.rollout}, got {config.frames}")
    device = pick_device(config.device)
    processes = Processes.from_environment(device)
    encoder = open_encoder(config.encoder, config.image_size, config.seed).to(device).eval()
    cache = open_features(config, encoder)
    cache.preload()
    train_episodes, held_out_episodes = cache.split(config.held_out, config.seed)
    train, held_out = (cache.clips(part, config.step_seconds) for part in (train_episodes, held_out_episodes))

    torch.manual_seed(config.seed)
    predictor = ACPredictor(predictor_config(config, encoder, cache.states)).to(device)
    if config.residual:  # start from copying the frame: from a random change, small models fall back to it and stay
        nn.init.zeros_(predictor.predictor_proj.weight)
    objective = PredictionLoss(predictor, config.rollout)
    model = processes.wrap(objective)
    optimizer = make_optimizer(
        config.optimizer, predictor, predictor.predictor_blocks, config.learning_rate, config.weight_decay
    )
    generators = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    budget = Budget(config.steps, config.minutes)
    run = TrainingRun(
        config.out,
        config.identity(),
        budget,
        {"predictor": predictor},
        optimizer,
        generators,
        processes,
        config.save_minutes,
    )
    share = processes.share(config.batch)
    for step in run.steps():
        run.set_learning_rate(config.learning_rate * 0.18, config.learning_rate)
        pairs = generators[0].random() < config.pair_share
        z, states = train.sample(generators[0], config.batch * (1 + pairs), 2 if pairs else config.frames)
        z, states = (part.unflatten(0, (config.batch, -1))[share].flatten(0, 1).to(device) for part in (z, states))
        with precision(device, config.dtype):
            parts = model(z, states, action_between(states[:, :-1], states[:, 1:]))
        run.optimise(parts["loss"])
        if step % 25 == 0:
            run.log({name: float(value.detach()) for name, value in parts.items()})
        if step and step % config.validate_every == 0:
            run.log(validate(predictor, held_out, config, device))
    out = config.out / "model"
    if processes.is_main:
        scores = validate(predictor, held_out, config, device)
        training = {**config.identity(), "encoder": encoder_hash(encoder)}
        about = {"training": training, "steps": budget.step, "seconds": round(budget.elapsed)}
        about |= {"data": [path.name for path in config.data], "frames": len(cache.states), "device": device.type}
        usage = WorldModelConfig(config.step_seconds, encoder.config.image_size, config.camera, config.layers)
        save_world_model(out, encoder, predictor, usage, about={**about, "validation": scores})
        plot_metrics(run.metrics_path, config.out / "curves.png", ("teacher_forcing", "rollout", "one_step", "gain"))
    return out


@torch.no_grad()
def validate(
    predictor: ACPredictor, clips: FeatureClips, config: PosttrainConfig, device: torch.device, batches: int = 8
) -> dict[str, float]:
    """One-step L1 on held-out episodes, beside that of copying the frame and of another sample's action.

    `gain` is 1 − one_step / copy: 0 for a predictor that does no better than repeating its input.
    """
    rng = np.random.default_rng(config.seed)
    sums = dict.fromkeys(("one_step", "copy", "shuffled_actions"), 0.0)
    for _ in range(batches):
        z, states = (part.to(device) for part in clips.sample(rng, config.batch, 2))
        actions = action_between(states[:, :1], states[:, 1:])
        with precision(device, config.dtype):
            own = predictor(z[:, :1], actions, states[:, :1]).z
            other = predictor(z[:, :1], actions.roll(1, 0), states[:, :1]).z
        target = z[:, 1:].float()
        sums["one_step"] += float(F.l1_loss(normalize(own.float()), target))
        sums["copy"] += float(F.l1_loss(z[:, :1].float(), target))
        sums["shuffled_actions"] += float(F.l1_loss(normalize(other.float()), target))
    scores = {name: value / batches for name, value in sums.items()}
    return {**scores, "gain": 1 - scores["one_step"] / scores["copy"]}
