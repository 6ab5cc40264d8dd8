"""A world model adapted to where its camera stands now, from random moves: no pose, no marker, no goal, no labels.

Seen from elsewhere a predictor imagines worse than if it copied the frame, and a readout reads the hand many
centimetres off. But the arm knows its own states and actions: a minute of random moves is a small data set of this very
view. The predictor goes on learning from it with the loss of post-training (paper, equations 2 to 4), then the readout
with that of `armworld align`; the encoder stays frozen. For the axes alone the paper suggests such an unsupervised
calibration from random moves; that is `planners.turning`.

Legend: T frames, N patches, D features.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from armworld.pose import action_between
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_checkpoint, save_world_model
from armworld.worldmodel.model import VJEPA2AC
from armworld.worldmodel.prediction_loss import PredictionLoss
from armworld.worldmodel.processes import precision
from armworld.worldmodel.readout import reading_loss

ENCODED = 32  # frames per pass through the encoder
FEWEST = 16  # frames: `planners.calibrating.FEWEST_MOVES` and one


@dataclass(frozen=True)
class AdaptConfig:
    """How long a model learns from the moves, and how fast.

    Attributes:
        predictor_steps: Optimiser steps of the predictor; 0 leaves it as it is.
        readout_steps: Optimiser steps of the readout; 0 leaves it as it is.
        clips: Clips of `rollout` + 1 frames per step of the predictor.
        rollout: Length of the rollout loss, as in post-training; 1 is teacher forcing alone (four steps ahead it
            imagines as well as with 2, at two thirds of the time).
        frames: Frames per step of the readout.
        noise: Standard deviation of noise on the readout's features, which have deviation 1.
        imagined_share: Share of the readout's steps whose features the predictor imagined.
        learning_rate: Peak of both; a tenth of the steps rises linearly, then it falls as a cosine.
        dtype: bfloat16 (autocast) or float32, of the predictor's steps.
    """

    predictor_steps: int = 200
    readout_steps: int = 300
    clips: int = 32
    rollout: int = 1
    frames: int = 128
    noise: float = 0.1
    imagined_share: float = 0.5
    learning_rate: float = 1e-3
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if min(self.predictor_steps, self.readout_steps) < 0 or min(self.clips, self.rollout, self.frames) < 1:
            raise ValueError(f"steps must be >= 0 and clips, rollout and frames >= 1, got {self}")
        if self.noise < 0 or not 0 <= self.imagined_share <= 1 or self.learning_rate <= 0:
            raise ValueError(
                f"noise must be >= 0, imagined_share lie in [0, 1] and learning_rate be positive, got {self}"
            )

    @staticmethod
    def for_moves(moves: int) -> AdaptConfig:
        """The defaults, and more steps where there is more to learn from: 400 and 900 for 512 moves."""
        default = AdaptConfig()
        predictor, readout = round(moves / 1.28), round(moves / 0.57)
        return replace(
            default,
            predictor_steps=max(default.predictor_steps, predictor),
            readout_steps=max(default.readout_steps, readout),
        )


def adapt(
    model: VJEPA2AC,
    frames: np.ndarray,
    states: np.ndarray,
    generator: torch.Generator,
    config: AdaptConfig | None = None,
) -> VJEPA2AC:
    """A copy of the model that has learned from one recording; `model` itself stays as it is.

    Args:
        model: A world model in float32.
        frames: uint8 [T, H, W, 3] RGB, one step of the model apart.
        states: The arm's states [T, 7] there (m, rad, closedness; base frame).
        generator: Draws clips and noise.
        config: See `AdaptConfig`; by default `AdaptConfig.for_moves`.

    Raises:
        ValueError: Frames and states that do not belong together, too few of them, values that are not finite, a model
            in another precision, or a loss that is not a number.
    """
    config = config or AdaptConfig.for_moves(len(frames) - 1)
    states = np.asarray(states, np.float32)
    if frames.ndim != 4 or states.shape != (len(frames), 7) or len(frames) < max(FEWEST, config.rollout + 1):
        fewest = max(FEWEST, config.rollout + 1)
        raise ValueError(
            f"expected frames [T, H, W, 3] and states [T, 7] with T >= {fewest}, got {frames.shape} and {states.shape}"
        )
    if not np.isfinite(states).all():
        raise ValueError("states must be finite")
    if next(model.predictor.parameters()).dtype != torch.float32:
        raise ValueError("adapting needs a model in float32")
    parts = [model.encode(part[:, None])[:, 0] for part in np.array_split(frames, math.ceil(len(frames) / ENCODED))]
    z, told = torch.cat(parts).to(model.device), torch.from_numpy(states).to(model.device)
    adapted = copy.copy(model)
    adapted.config = replace(model.config, camera_frame=None)  # what it learns is told in the base frame
    adapted.predictor = copy.deepcopy(model.predictor)
    _teach_predictor(adapted, z, told, generator, config)
    if model.readout is not None:
        adapted.readout = copy.deepcopy(model.readout)
        _teach_readout(adapted, z, told, generator, config)
    return adapted


def adapt_and_save(
    model: VJEPA2AC,
    frames: np.ndarray,
    states: np.ndarray,
    seed: int,
    out: Path,
    name: str,
    config: AdaptConfig | None = None,
) -> VJEPA2AC:
    """`adapt` with a generator of that seed; the model is stored as the checkpoint folder `out`.

    Its card keeps that of `name`, the checkpoint that `model` was loaded from.
    """
    config = config or AdaptConfig.for_moves(len(frames) - 1)
    adapted = adapt(model, frames, states, torch.Generator().manual_seed(seed), config)
    learned = {"from": name, "moves": len(frames) - 1, "seed": seed, **asdict(config)}
    about = {**load_checkpoint(name).about, "adapted": learned}
    parts = adapted.encoder, adapted.predictor, adapted.config
    save_world_model(out, *parts, readout=adapted.readout, about=about, storage="float16")
    return adapted


def _teach_predictor(
    model: VJEPA2AC, z_TND: Tensor, states_TA: Tensor, generator: torch.Generator, config: AdaptConfig
) -> None:
    """Teacher forcing and rollout over clips of the recording, in place."""
    loss = PredictionLoss(model.predictor, config.rollout)
    optimizer = _optimizer(model.predictor, config)
    offsets = torch.arange(config.rollout + 1)
    for step in range(config.predictor_steps):
        first = torch.randint(len(z_TND) - config.rollout, (config.clips, 1), generator=generator)
        clip = (first + offsets).to(z_TND.device)
        told = states_TA[clip]
        with precision(z_TND.device, config.dtype):
            error = loss(z_TND[clip], told, action_between(told[:, :-1], told[:, 1:]), _cameras(model, told))["loss"]
        _learn(optimizer, model.predictor, error, step / config.predictor_steps, config, "predictor")
    model.predictor.requires_grad_(False)


def _teach_readout(
    model: VJEPA2AC, z_TND: Tensor, states_TA: Tensor, generator: torch.Generator, config: AdaptConfig
) -> None:
    """Readings of real and of imagined frames, each with the state recorded there, in place."""
    readout = model.readout
    assert readout is not None
    imagined_TND = _imagined(model, z_TND, states_TA)
    optimizer = _optimizer(readout, config)
    for step in range(config.readout_steps):
        imagined = float(torch.rand((), generator=generator)) < config.imagined_share
        source = imagined_TND if imagined else z_TND
        index = torch.randint(int(imagined), len(z_TND), (config.frames,), generator=generator).to(z_TND.device)
        features = source[index - 1] if imagined else source[index]
        noise = torch.randn(features.shape, generator=generator).to(features)
        error = reading_loss(readout(features + config.noise * noise), states_TA[index])
        _learn(optimizer, readout, error, step / config.readout_steps, config, "readout")
    readout.requires_grad_(False)


@torch.no_grad()
def _imagined(model: VJEPA2AC, z_TND: Tensor, states_TA: Tensor) -> Tensor:
    """What the predictor imagines of every frame but the first, from the one before: [T - 1, N, D]."""
    actions = action_between(states_TA[:-1], states_TA[1:])
    ahead = [
        normalize(model.predictor(z[:, None], action[:, None], state[:, None], _cameras(model, state[:, None])).z[:, 0])
        for z, action, state in zip(
            *(part.split(ENCODED) for part in (z_TND[:-1], actions, states_TA[:-1])), strict=True
        )
    ]
    return torch.cat(ahead).float()


def _cameras(model: VJEPA2AC, states_BTA: Tensor) -> Tensor | None:
    """The camera's pose [B, T, 6] for predictors that read it."""
    pose = model.config.extrinsics
    return None if pose is None else states_BTA.new_tensor(pose).expand(*states_BTA.shape[:2], -1)


def _optimizer(module: nn.Module, config: AdaptConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.requires_grad_(True).parameters(), config.learning_rate, weight_decay=0.0)


def _learn(
    optimizer: torch.optim.Optimizer, module: nn.Module, error: Tensor, progress: float, config: AdaptConfig, what: str
) -> None:
    """One step at the rate of that progress in [0, 1)."""
    if not bool(error.isfinite()):
        raise ValueError(f"adapting the {what} diverged; try a lower learning_rate than {config.learning_rate:g}")
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, progress / 0.1 + 0.01) * 0.5 * (1 + math.cos(math.pi * progress))
    optimizer.zero_grad()
    error.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
