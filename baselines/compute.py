"""What a method costs: parameters, floating-point operations and core time of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

BACKWARD = 2  # a backward pass costs twice its forward pass


def parameters(module: nn.Module) -> int:
    """Numbers in the module, frozen ones included."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def forward_flop(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in `call` (a multiply-add is 2)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def training_flop(one_sample: Callable[[], object], samples: float) -> float:
    """Operations of training on `samples` samples, given a call that runs the forward pass of one."""
    return float((1 + BACKWARD) * forward_flop(one_sample) * samples)


def core_seconds(rows: Iterable[Mapping[str, Any]]) -> float:
    """Processor time of a run from its log, whose "core_seconds" begin anew wherever it was taken up again."""
    spent = [0.0, *(float(row["core_seconds"]) for row in rows if "core_seconds" in row)]
    return sum(b - a if b >= a else b for a, b in pairwise(spent))


def pretraining_flop(told: Mapping[str, Any], draws: int = 4) -> float:
    """Operations of a run of `armworld pretrain`, from what it wrote into its checkpoint (its settings and steps).

    Students, mask predictor and readout run forward and backward, the teacher forward alone; masks, whose sizes vary
    from step to step, are averaged over some `draws`.
    """
    from armworld.worldmodel.encoder import Encoder
    from armworld.worldmodel.mask_denoiser import MaskDenoiser
    from armworld.worldmodel.mask_predictor import MaskPredictor
    from armworld.worldmodel.masks import sample_masks
    from armworld.worldmodel.pretrain import PretrainConfig
    from armworld.worldmodel.sizes import PATCH, TUBELET

    known = {field.name for field in fields(PretrainConfig)} - {"out", "init", "weights"}
    config = PretrainConfig(out=Path(), **{name: told[name] for name in known & set(told)})
    denoiser = MaskDenoiser(Encoder(config.encoder), MaskPredictor(config.predictor), config.state_readout)
    generator = torch.Generator().manual_seed(0)
    size, side = config.image_size, config.image_size // PATCH

    def clip_cost(frames: int) -> float:
        clip, grid = torch.zeros(1, 3, frames, size, size), (max(frames // TUBELET, 1), side, side)
        masks = [sample_masks(grid, 1, generator) for _ in range(draws)]
        whole = sum(forward_flop(lambda mask=mask: denoiser(clip, mask)) for mask in masks) / draws
        return (1 + BACKWARD) * whole - BACKWARD * forward_flop(lambda: denoiser.targets(clip))

    still = torch.zeros(1, 3, 1, size, size)
    read = (1 + BACKWARD) * forward_flop(lambda: denoiser.state_readout(denoiser.student(still)))
    clips = config.still_share * clip_cost(1) + (1 - config.still_share) * clip_cost(config.frames)
    per_step = config.batch * clips + (config.state_batch * read if config.state_loss else 0.0)
    return float(per_step * told["steps"])
