"""Small encoders and predictors with random weights that make mistakes show."""

from __future__ import annotations

from dataclasses import replace

import torch

from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.sizes import (
    ACPredictorConfig,
    encoder_config,
)

SMALL_AC = ACPredictorConfig(features=20, width=36, depth=2, heads=2, image_size=(64, 32), max_steps=6)


def sharpen(module: torch.nn.Module, factor: float = 6.0) -> None:
    """Scale random weights up, so that attention is far from uniform and mistakes show."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)


def encoder(**changes) -> Encoder:
    model = Encoder(encoder_config("debug", **changes)).eval()
    sharpen(model)
    return model


def ac_predictor(**changes) -> ACPredictor:
    model = ACPredictor(replace(SMALL_AC, **changes)).eval()
    sharpen(model)
    return model


def ac_inputs(batch: int = 2, steps: int = 3, patches: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, steps, patches, 20), torch.randn(batch, steps, 7), torch.randn(batch, steps, 7)
