"""Behaviour cloning on the frozen features of our encoder: what the encoder gives, without planning.

The policy is that of `policy.py` with the convolutional stem replaced by a linear map of (frame, goal) per patch; its
trainer is `bc.train` with `encoder` set. Features are cached once, in the form that post-training uses too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from armworld.datasets.features import FeatureCache, build_feature_cache, encoder_hash
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.training import precision


def open_feature_store(
    data: Sequence[Path], encoder: Encoder, folder: Path, camera: str, layers: int | None, dtype: str
) -> FeatureCache:
    """The cache of layer-normed features [N, D] of all frames, made now if it is not there, and read into memory.

    Args:
        data: Dataset folders.
        encoder: The frozen encoder.
        folder: The cache's folder.
        camera: Whose frames.
        layers: Encoder blocks used; None for all.
        dtype: Precision in which the encoder runs: float32 or bfloat16.
    """
    device = next(encoder.parameters()).device

    @torch.no_grad()
    def encode(frames: np.ndarray) -> Tensor:
        with precision(device, dtype):
            return encoder.encode_frames(frames[:, None], layers)[:, 0].float().cpu()

    key = {"encoder": encoder_hash(encoder), "layers": layers, "image_size": encoder.config.image_size[0]}
    cache = build_feature_cache(data, encode, key, folder, camera=camera)
    cache.preload()
    return cache
