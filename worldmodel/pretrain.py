"""Mask-denoising pretraining of the encoder in feature space (V-JEPA 2, arXiv 2506.09985, section 2).

A student sees the unmasked patches of a clip; a predictor fills in the features of the masked ones; the target is
the layer-normed output of an exponential moving average of the student, which saw the whole clip. The loss is L1.
Masks come in two families (many small blocks, few large ones), each kept for the clip's full duration.

On few frames of one scene this alone lets features drift towards what is easiest to predict, the still background.
`state_loss` (off by default; not in the paper) adds a linear readout of the hand's position and closedness from the
mean of the normalised features of whole stills, which holds the arm's motion in them.

Shapes: B clips, T frames, H x W pixels, N tokens = (T/2) (H/16) (W/16), D features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import save_encoder
from armworld.worldmodel.encoder import Encoder, clip_grid, pixels_to_clip, take_tokens
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.masks import Mask, sample_masks
from armworld.worldmodel.sizes import PATCH, TUBELET, EncoderConfig, MaskPredictorConfig, encoder_config
from armworld.worldmodel.training import (
    Budget,
    Processes,
    TrainingRun,
    make_optimizer,
    pick_device,
    plot_metrics,
    precision,
)

READOUT_INDEX = (0, 1, 2, 6)  # x, y, z (m) and closedness
READOUT_SCALE = (5.0, 5.0, 5.0, 2.0)


@dataclass(frozen=True)
class PretrainConfig:
    """Mask-denoising pretraining.

    Attributes:
        data: Dataset folders, as `armworld collect` writes them.
        out: Run folder; the same command goes on with what it holds.
        size: Encoder size: tiny, small, base, L, H, g, g-384 or debug.
        depth: Blocks, if not the size's own number.
        image_size: Frame height and width in pixels; a multiple of 16.
        frames: Frames per clip; a multiple of 2.
        step_seconds: Seconds between the frames of a clip.
        still_share: Share of the clips that is a still (one frame twice), as planning shows them to the encoder.
        batch: Clips per optimiser step, over all processes.
        steps: Optimiser steps; none to train by time alone.
        minutes: Wall-time budget, resumed runs included; none to train by steps alone.
        state_loss: Weight of the readout of the robot's state from whole stills; 0 is the paper's objective.
        state_batch: Stills per optimiser step for that readout, over all processes.
        optimizer: adamw (as published), or muon for the blocks' matrices.
        learning_rate: Peak of the warmup-constant-decay schedule.
        weight_decay: AdamW's decay of matrices.
        ema: Decay of the teacher's moving average. The paper's 0.99925 is for 250k steps; short runs need less.
        predictor_width: Width of the mask predictor.
        predictor_depth: Its blocks.
        predictor_heads: Its heads.
        save_minutes: Minutes between saved states.
        seed: Seed of weights, clips and masks.
        device: auto, cpu or cuda.
        dtype: bfloat16 (autocast) or float32.
    """

    data: tuple[Path, ...]
    out: Path
    size: str = "tiny"
    depth: int | None = None
    image_size: int = 128
    frames: int = 4
    step_seconds: float = 0.25
    still_share: float = 0.25
    batch: int = 64
    steps: int | None = None
    minutes: float | None = None
    state_loss: float = 0.0
    state_batch: int = 32
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.04
    ema: float = 0.998
    predictor_width: int = 192
    predictor_depth: int = 4
    predictor_heads: int = 6
    save_minutes: float = 3.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "bfloat16"

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder's configuration."""
        changes = {} if self.depth is None else {"depth": self.depth}
        return encoder_config(self.size, image_size=(self.image_size, self.image_size), **changes)

    @property
    def predictor(self) -> MaskPredictorConfig:
        """The mask predictor's configuration."""
        return MaskPredictorConfig(self.encoder.width, self.predictor_width, self.predictor_depth, self.predictor_heads)

    def identity(self) -> dict[str, object]:
        """What must be equal for a run to be resumed; where it runs and for how long may change."""
        free = {"out", "device", "steps", "minutes", "save_minutes", "data"}
        return {k: v for k, v in asdict(self).items() if k not in free}


class ClipSource(Protocol):
    """Anything that draws clips uint8 [B, T, H, W, 3] with a generator."""

    def sample(self, generator: np.random.Generator, batch: int, frames: int) -> np.ndarray: ...

    def sample_with_states(
        self, generator: np.random.Generator, batch: int, frames: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same, and the robot's states [B, T, 7]; needed for `state_loss` alone."""
        ...


class MaskDenoiser(nn.Module):
    """Student, mask predictor and the loss; the teacher is held beside them, outside of the parameters."""

    def __init__(self, student: Encoder, predictor: MaskPredictor) -> None:
        super().__init__()
        self.student, self.predictor = student, predictor
        self.state_readout = nn.Linear(student.config.width, len(READOUT_SCALE))
        self._teacher = [copy.deepcopy(student).requires_grad_(False)]  # in a list: not to be registered

    @property
    def teacher(self) -> Encoder:
        return self._teacher[0]

    @torch.no_grad()
    def targets(self, clip_BCTHW: Tensor) -> Tensor:
        """The teacher's layer-normed features [B, N, D] of whole clips."""
        return normalize(self.teacher(clip_BCTHW).float())

    def forward(
        self, clip_BCTHW: Tensor, masks: Sequence[Mask], stills: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`denoising`: mean over the mask families of the L1 at the hidden tokens; `state`: error of the readout.

        Args:
            clip_BCTHW: Clips.
            masks: One per family.
            stills: Whole frames [B, 3, 1, H, W] and their states [B, 7], for the readout.
        """
        targets, grid = self.targets(clip_BCTHW), clip_grid(clip_BCTHW)
        losses = []
        for family, mask in enumerate(masks):
            seen = self.student(clip_BCTHW, mask.context)
            filled = self.predictor(seen, mask.context, mask.target, grid, family)
            losses.append(F.l1_loss(filled.float(), take_tokens(targets, mask.target)))
        parts = {"denoising": torch.stack(losses).mean()}
        if stills is not None:
            parts["state"] = self._readout_error(*stills)
        return parts

    def _readout_error(self, stills: Tensor, states: Tensor) -> Tensor:
        """L1 of position and closedness, in units of 20 cm and half a stroke."""
        scale = states.new_tensor(READOUT_SCALE)
        features = normalize(self.student(stills).float()).mean(1)
        return F.l1_loss(self.state_readout(features).float(), states[:, READOUT_INDEX] * scale)

    @torch.no_grad()
    def update_teacher(self, decay: float) -> None:
        """teacher <- decay * teacher + (1 - decay) * student."""
        for average, current in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            average.lerp_(current, 1 - decay)


def collapse_monitors(features: Tensor) -> dict[str, float]:
    """How far features [..., D] are from collapse.

    `feature_std`: mean over channels of the deviation over tokens. `feature_rank`: effective rank, the exponential
    of the entropy of the normalised singular values, at most D.
    """
    flat = features.float().flatten(0, -2)
    flat = flat - flat.mean(0)
    chosen = torch.linspace(0, len(flat) - 1, min(len(flat), 2048)).long()
    values = torch.linalg.svdvals(flat[chosen.to(flat.device)])
    shares = (values / values.sum().clamp_min(1e-12)).clamp_min(1e-12)
    rank = torch.exp(-(shares * shares.log()).sum())
    return {"feature_std": float(flat.std(0).mean()), "feature_rank": float(rank)}


def pretrain(config: PretrainConfig, source: ClipSource | None = None) -> Path:
    """Train an encoder and return its checkpoint folder, `out/encoder`.

    The moving-average teacher is what is kept, as in the paper. `source` replaces the episodes in `config.data`.

    Raises:
        ValueError: Bad settings or data, a run folder of other settings, or a loss that is not a number.
    """
    device = pick_device(config.device)
    processes = Processes.from_environment(device)
    torch.manual_seed(config.seed)
    encoder = Encoder(config.encoder)
    denoiser = MaskDenoiser(encoder, MaskPredictor(config.predictor)).to(device)
    denoiser.teacher.to(device)
    if source is None:
        from armworld.datasets.clips import open_clips

        source = open_clips(config.data, config.image_size, config.step_seconds)
    model = processes.wrap(denoiser)
    blocks = [*denoiser.student.blocks, *denoiser.predictor.predictor_blocks]
    optimizer = make_optimizer(config.optimizer, denoiser, blocks, config.learning_rate, config.weight_decay)
    generators = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    modules = {"denoiser": denoiser, "teacher": denoiser.teacher}
    budget = Budget(config.steps, config.minutes)
    run = TrainingRun(
        config.out, config.identity(), budget, modules, optimizer, generators, processes, config.save_minutes
    )
    for step in run.steps():
        run.set_learning_rate(config.learning_rate / 5, config.learning_rate)
        clip, masks = _draw(config, source, generators, processes, device)
        with precision(device, config.dtype):
            parts = model(clip, masks, _draw_stills(config, source, generators[0], processes, device))
            loss = parts["denoising"] + config.state_loss * parts.get("state", 0.0)
        run.optimise(loss)
        denoiser.update_teacher(config.ema)
        if step % 20 == 0:
            with torch.no_grad(), precision(device, config.dtype):
                run.log({**{k: float(v) for k, v in parts.items()}, **collapse_monitors(denoiser.teacher(clip))})
    out = config.out / "encoder"
    if processes.is_main:
        about = {"training": "mask denoising", **config.identity(), "steps": budget.step}
        save_encoder(out, denoiser.teacher, about={**about, "seconds": round(budget.elapsed)})
        plot_metrics(run.metrics_path, config.out / "curves.png", ("denoising", "state", "feature_std", "feature_rank"))
    return out


def _draw(
    config: PretrainConfig,
    source: ClipSource,
    generators: tuple[np.random.Generator, torch.Generator],
    processes: Processes,
    device: torch.device,
) -> tuple[Tensor, list[Mask]]:
    """This rank's clips [B, 3, T, H, W] and masks. Every rank draws the whole batch, so all see the same draws."""
    numpy_rng, torch_rng = generators
    frames = 1 if numpy_rng.random() < config.still_share else config.frames
    side, share = config.image_size // PATCH, processes.share(config.batch)
    batch = source.sample(numpy_rng, config.batch, frames)[share]
    masks = sample_masks((max(frames // TUBELET, 1), side, side), config.batch, torch_rng)
    clip = pixels_to_clip(torch.from_numpy(batch).to(device))
    return clip, [Mask(m.context[share], m.target[share]).to(device) for m in masks]


def _draw_stills(
    config: PretrainConfig,
    source: ClipSource,
    numpy_rng: np.random.Generator,
    processes: Processes,
    device: torch.device,
) -> tuple[Tensor, Tensor] | None:
    """This rank's stills [B, 3, 1, H, W] and states [B, 7], or None where the readout is off."""
    if not config.state_loss:
        return None
    share = processes.share(config.state_batch)
    frames, states = source.sample_with_states(numpy_rng, config.state_batch, 1)
    stills = pixels_to_clip(torch.from_numpy(frames[share]).to(device))
    return stills, torch.from_numpy(states[share, 0]).to(device)
