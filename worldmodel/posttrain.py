"""Post-training of the action-conditioned predictor on a frozen encoder's features (V-JEPA 2-AC, section 3).

Loss: mean |ẑ − z| of teacher forcing over all steps of a clip, plus the same for a rollout that starts from the first
frame and feeds on its own (layer-normed) predictions. The rollout's error is that of the last frame that it reaches, as
in the paper (equation 3); the public code takes the mean over all its frames. Features are cached once, and the encoder
never runs in training; or (`train_from`) frames are encoded as they are drawn.

Shapes: B clips, T frames, N patches, D features; T - 1 actions lie between T states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from armworld.datasets.clips import check_clips
from armworld.datasets.features import FeatureClips, encoder_hash
from armworld.datasets.store import PRELOAD_SHARE
from armworld.pose import action_between
from armworld.types import check_folder, check_numbers, require
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_checkpoint, save_world_model
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.finetune import add_lora, fit_predictor, merge_lora, train_last_blocks
from armworld.worldmodel.frozen import open_encoder, open_features, open_frames
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.prediction_loss import ACTION_SCALE, PredictionLoss
from armworld.worldmodel.processes import unsharded
from armworld.worldmodel.sizes import ACPredictorConfig
from armworld.worldmodel.training import (
    DECAY_SHARE,
    Processes,
    TrainingConfig,
    TrainingRun,
    check_optimizer,
    make_optimizer,
    pick_device,
    plot_metrics,
    precision,
)

CURVES = ("teacher_forcing", "rollout", "state", "inverse", "one_step", "gain")  # panels of the plot
STATE_SCALE = (5.0, 5.0, 5.0, 2.0, 2.0, 2.0, 2.0)  # 20 cm, 0.5 rad and half a gripper stroke become 1


@dataclass(frozen=True, kw_only=True)
class PosttrainConfig(TrainingConfig):
    """Training of the action-conditioned predictor.

    Attributes:
        encoder: Checkpoint of the frozen encoder, or `random:SIZE[:DEPTH]` for an untrained one; by default that of
            --init.
        train_from: Features cached once for all frames (cache), or frames, encoded anew in every step: slower, without
            the disk space (0.7 MB a frame for ViT-g at 256 pixels), and squashed to the encoder's size.
        cache: Folder of cached features, or of packed frames; by default in the run's folder.
        camera: The camera whose frames are used.
        image_size: Frame height and width in pixels for a random encoder; a trained one brings its own.
        layers: Use the features after this many encoder blocks; none for all.
        extrinsics: The predictor reads the camera's extrinsics too, in a token of their own. For data from many views;
            at planning time they have to be known.
        camera_frame: States and actions in each episode's camera frame: turned about the vertical so that a camera at
            this azimuth (degrees) has the base frame. For data from many views, planned with after calibration.
        step_seconds: Seconds per step; must be what the data was recorded at or a multiple.
        frames: Frames per clip (8 in the paper).
        rollout: Steps of the rollout loss; 0 leaves it out (2 in the paper).
        window: Steps that the trained model attends to when it imagines, itself included; by default as many as a
            clip has.
        pair_share: Share of the optimiser steps taken on pairs of frames alone (no rollout, batches twice as large):
            cheap, and what planning one step ahead asks for.
        width: Predictor width.
        depth: Its blocks.
        heads: Its heads.
        merge: Side of the square of patches that share a token (1 in the paper).
        residual: Predict the change of the features rather than the features.
        normalise: Scale actions and states to about unit size before the predictor reads them. Not in the paper:
            without it, and without --residual, the predictor is the published one and can be exported as such.
        state_loss: Weight of a loss on the robot's state after each step, by a head of its own; 0 leaves it out.
        inverse_loss: Weight of an inverse-dynamics loss: the action read from real and predicted features; 0: none.
        init: World model to start from (name, folder, published file); its predictor's shape and options hold
            instead of --width, --depth, --heads, --merge, --residual and --normalise.
        trainable_blocks: Train only this many last blocks and the output layers of --init.
        lora_rank: Train only adapters of this rank beside the blocks' matrices of --init (needs the extra `lora`).
        batch: Clips per optimiser step, over all processes.
        optimizer: adamw (as published), or muon for the blocks' matrices: half the steps on small budgets.
        learning_rate: Peak of the warmup-constant-decay schedule.
        cooldown: Share of the budget, at its end, over which the learning rate falls to 0 (0.05 in the paper).
        weight_decay: AdamW's decay of matrices.
        held_out: Share of the episodes kept for validation.
        validate_every: Steps between validations.
        log_every: Steps between rows of the log.
        recompute: Recompute activations in the backward pass: less memory, about a third more time.
        fsdp: Spread parameters and optimiser states over the processes of `torchrun`.
        tensorboard: Also log to out/tensorboard (needs the extra of that name).
    """

    FREE = TrainingConfig.FREE | {"cache", "log_every", "recompute", "fsdp", "tensorboard"}

    encoder: str | None = None
    train_from: Literal["cache", "frames"] = "cache"
    cache: Path | None = None
    camera: str = "left"
    image_size: int = 128
    layers: int | None = None
    extrinsics: bool = False
    camera_frame: float | None = None
    step_seconds: float = 0.25
    frames: int = 3
    rollout: int = 2
    window: int | None = None
    pair_share: float = 0.0
    width: int = 192
    depth: int = 6
    heads: int = 3
    merge: int = 1
    residual: bool = True
    normalise: bool = True
    state_loss: float = 0.0
    inverse_loss: float = 0.0
    init: str | None = None
    trainable_blocks: int | None = None
    lora_rank: int = 0
    batch: int = 64
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    cooldown: float = DECAY_SHARE
    weight_decay: float = 0.04
    held_out: float = 0.03
    validate_every: int = 250
    log_every: int = 25
    recompute: bool = False
    fsdp: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "frames", least=2, most=ACPredictorConfig.max_steps + 1)
        check_numbers(self, "rollout", "trainable_blocks", "lora_rank", least=0)
        check_numbers(self, "layers", "window", "batch", "validate_every", "log_every", least=1)
        check_numbers(self, "step_seconds", "learning_rate", above=0)
        check_numbers(self, "camera_frame")
        check_numbers(self, "state_loss", "inverse_loss", "weight_decay", least=0)
        check_numbers(self, "pair_share", least=0, most=1)
        check_numbers(self, "cooldown", above=0, most=1)
        check_numbers(self, "held_out", above=0, below=1)
        check_optimizer(self.optimizer)
        ACPredictorConfig(1, self.width, self.depth, self.heads, image_size=(self.image_size, self.image_size))
        if self.cache is not None:
            check_folder("cache", self.cache, written=False)
        if self.tensorboard:
            require("tensorboard", "tensorboard")
        if self.frames < max(self.rollout, 1) + 1:
            raise ValueError(f"a rollout of {self.rollout} steps needs frames > {self.rollout}, got {self.frames}")
        if self.init is None and (self.window or 0) >= self.frames:
            raise ValueError(f"window must be below frames (it would not be trained), got {self.window}, {self.frames}")
        if self.encoder is None and self.init is None:
            raise ValueError("posttrain needs --encoder (whose features?) or --init (a world model to start from)")
        if self.init is None and (self.trainable_blocks is not None or self.lora_rank):
            raise ValueError("trainable_blocks and lora_rank train parts of a trained predictor; name it with --init")
        if self.lora_rank and (self.trainable_blocks is not None or self.fsdp):
            raise ValueError("lora_rank goes with neither trainable_blocks nor fsdp; adapters are small without them")


def predictor_config(config: PosttrainConfig, encoder: Encoder, states: np.ndarray) -> ACPredictorConfig:
    """The predictor's configuration; where asked for, actions and states are scaled to about unit size.

    Args:
        states: [F, 7], all frames' states.
    """
    angles = np.angle(np.exp(1j * states[:, 3:6]).mean(0))  # circular: roll lies around +-pi
    centre = np.concatenate([states[:, :3].mean(0), angles, [0.5]])
    scaled = {
        "action_scale": ACTION_SCALE,
        "state_offset": tuple(round(float(value), 6) for value in centre),
        "state_scale": STATE_SCALE,
    }
    return ACPredictorConfig(
        features=encoder.config.width,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        image_size=encoder.config.image_size,
        extrinsics=config.extrinsics,
        residual=config.residual,
        merge=config.merge,
        state_head=config.state_loss > 0,
        **(scaled if config.normalise else {}),
    )


def new_predictor(config: PosttrainConfig, encoder: Encoder, states: np.ndarray) -> ACPredictor:
    """A predictor before its first step, drawn from the seed.

    Args:
        states: [F, 7], all frames' states.
    """
    torch.manual_seed(config.seed)
    predictor = ACPredictor(predictor_config(config, encoder, states))
    if config.residual:  # start from copying the frame: from a random change, small models fall back to it and stay
        nn.init.zeros_(predictor.predictor_proj.weight)
    return predictor


def tuned_predictor(config: PosttrainConfig, encoder: Encoder, initial: ACPredictor) -> ACPredictor:
    """A copy of the predictor of `config.init` before its first step, frozen where it is not to learn.

    Raises:
        ValueError: It does not fit the encoder or the options.
    """
    torch.manual_seed(config.seed)
    name, state_head = str(config.init), config.state_loss > 0
    predictor = fit_predictor(initial, name, encoder, state_head, config.extrinsics).train()
    if config.trainable_blocks is not None:
        train_last_blocks(predictor, config.trainable_blocks)
    if config.lora_rank:
        add_lora(predictor, config.lora_rank)
    if predictor.state_head is not None and not config.state_loss:
        predictor.state_head.requires_grad_(False)
    if config.extrinsics and not initial.config.extrinsics:
        predictor.extrinsics_encoder.requires_grad_(True)  # untrained so far, whatever else stays as it is
    return predictor


def _open_models(config: PosttrainConfig) -> tuple[Encoder, ACPredictor | None]:
    """The frozen encoder (that asked for, or that of --init) and the predictor of --init; a checkpoint is read once.

    Raises:
        ValueError: --init has no predictor, or would go on with features after other blocks of its own encoder than it
            has learned.
    """
    encoder = None if config.encoder is None else open_encoder(config.encoder, config.image_size, config.seed)
    if config.init is None:
        assert encoder is not None, "the configuration has one of them"
        return encoder, None
    loaded = load_checkpoint(config.init)
    if loaded.predictor is None:
        raise ValueError(f"{config.init} holds an encoder only; --init needs a checkpoint with a predictor")
    if encoder is not None:
        return encoder, loaded.predictor
    usage = loaded.config
    if usage is not None and usage.layers != config.layers:
        raise ValueError(
            f"--init {config.init} reads features after {usage.layers or 'all'} blocks of its encoder, asked for: "
            f"{config.layers or 'all'}; give --layers {usage.layers}, or --encoder where it is to learn others"
        )
    return loaded.encoder, loaded.predictor


def posttrain(config: PosttrainConfig) -> Path:
    """Train a predictor and return the world model's checkpoint folder, `out/model`.

    Raises:
        ValueError: Bad settings or data, a run folder of other settings, or a loss that is not a number.
    """
    device = pick_device(config.device)
    processes = Processes.from_environment(device, config.fsdp)
    singles, doubles = processes.share(config.batch), processes.share(2 * config.batch)
    encoder, initial = _open_models(config)
    encoder.check_layers(config.layers)
    tuned = None if initial is None else tuned_predictor(config, encoder, initial)
    if initial is None:
        predictor_config(config, encoder, np.zeros((1, 7)))  # refuses what does not fit the encoder, before it runs
    del initial  # copied: a large one need not be held twice
    check_clips(config.data, config.frames, config.step_seconds, config.camera)
    if config.train_from == "cache":
        opened, folder = open_features, config.cache or config.out / "features"
    else:
        opened, folder = open_frames, config.cache or config.out / "frames"
    cache = processes.in_turn(
        lambda: opened(encoder, config.data, folder, config.camera, config.layers, config.dtype, device)
    )
    if config.extrinsics:
        cache.check_poses("--extrinsics")
    cache.preload(PRELOAD_SHARE / processes.world_size)
    train_episodes, held_out_episodes = cache.split(config.held_out, config.seed)
    train, held_out = (
        cache.clips(part, config.step_seconds, config.camera_frame) for part in (train_episodes, held_out_episodes)
    )

    predictor = new_predictor(config, encoder, cache.states) if tuned is None else tuned
    predictor.recompute = config.recompute
    seen_by = cache.key.get("encoder") or encoder_hash(encoder)  # packed frames' key has none
    told = {"data": cache.content(), "views": cache.views(), "features": seen_by}
    if config.init is not None:
        told["initial"] = encoder_hash(predictor)
    predictor = predictor.to(device)
    objective = PredictionLoss(predictor, config.rollout, config.state_loss, config.inverse_loss).to(device)
    model = processes.wrap(objective, predictor)
    optimizer = make_optimizer(
        config.optimizer, objective, predictor.predictor_blocks, config.learning_rate, config.weight_decay
    )
    generators = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    modules: dict[str, nn.Module] = {"predictor": predictor}
    if objective.inverse is not None:
        modules["inverse"] = objective.inverse
    run = TrainingRun(config, modules, optimizer, generators, processes, told, tensorboard=config.tensorboard)
    for step in run.steps():
        run.set_learning_rate(config.learning_rate * 0.18, config.learning_rate, config.cooldown)
        pairs = generators[0].random() < config.pair_share
        batch, frames, share = (2 * config.batch, 2, doubles) if pairs else (config.batch, config.frames, singles)
        with run.memory_advice():
            drawn = train.sample(generators[0], batch, frames, share)
            z, states, cameras = (part.to(device) for part in drawn)
            with precision(device, config.dtype):
                actions = action_between(states[:, :-1], states[:, 1:])
                parts = model(z, states, actions, cameras if config.extrinsics else None)
            run.optimise(parts["loss"])
        if step % config.log_every == 0:
            run.log({name: float(value.detach()) for name, value in parts.items()})
        if step and step % config.validate_every == 0:
            run.log(validate(predictor, held_out, config, device))
    out = config.out / "model"
    scores = validate(predictor, held_out, config, device)
    merge_lora(predictor)
    whole = unsharded(predictor)
    if processes.is_main:
        assert isinstance(whole, ACPredictor)
        training = {**config.identity(), "encoder": seen_by}
        about = {"training": training, "steps": run.budget.step, "seconds": round(run.budget.elapsed)}
        about |= {"data": [path.name for path in config.data], "frames": len(cache.states), "device": device.type}
        size, window = encoder.config.image_size, config.window or config.frames - 1
        usage = WorldModelConfig(config.step_seconds, size, config.camera, config.layers, window)
        usage = replace(usage, camera_frame=config.camera_frame, extrinsics=_usual_camera(config, cache.extrinsics))
        save_world_model(out, encoder, whole, usage, about={**about, "validation": scores})
        plot_metrics(run.metrics_path, config.out / "curves.png", CURVES)
    return out


def _usual_camera(config: PosttrainConfig, extrinsics: np.ndarray) -> tuple[float, ...] | None:
    """The middle of the data's camera poses [F, 6], which a predictor that reads them takes until told the real one."""
    return tuple(np.median(extrinsics, 0).tolist()) if config.extrinsics else None


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
        z, states, cameras = (part.to(device) for part in clips.sample(rng, config.batch, 2))
        actions, seen_from = action_between(states[:, :1], states[:, 1:]), cameras[:, :1] if config.extrinsics else None
        with precision(device, config.dtype):
            own = predictor(z[:, :1], actions, states[:, :1], seen_from).z
            other = predictor(z[:, :1], actions.roll(1, 0), states[:, :1], seen_from).z
        target = z[:, 1:].float()
        sums["one_step"] += float(F.l1_loss(normalize(own.float()), target))
        sums["copy"] += float(F.l1_loss(z[:, :1].float(), target))
        sums["shuffled_actions"] += float(F.l1_loss(normalize(other.float()), target))
    scores = {name: value / batches for name, value in sums.items()}
    return {**scores, "gain": 1 - scores["one_step"] / scores["copy"]}
