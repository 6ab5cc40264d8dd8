"""A frozen encoder over recorded frames: its features, cached once or made anew for every batch.

Shapes: B clips, T frames, H x W pixels, N patches, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from armworld.datasets.clips import load_frames
from armworld.datasets.features import FeatureCache, FeatureClips, build_feature_cache, feature_key
from armworld.datasets.store import WHOLE, Share
from armworld.worldmodel.checkpoint import load_encoder
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.processes import precision
from armworld.worldmodel.sizes import encoder_config

CPU = torch.device("cpu")


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


def open_features(
    encoder: Encoder,
    data: Sequence[Path],
    folder: Path,
    camera: str,
    layers: int | None,
    dtype: str,
    device: torch.device = CPU,
) -> FeatureCache:
    """The cache of layer-normed features [N, D] of all frames; made now if it is not there.

    Args:
        encoder: Frozen. It is on the device only while it encodes, and on the CPU afterwards: the training that follows
            has the device's memory for itself.
        data: Dataset folders.
        folder: The cache's folder. Every training over the same encoder and data may share it.
        camera: Whose frames.
        layers: Encoder blocks used; None for all.
        dtype: Precision in which the encoder runs: float32 or bfloat16.
        device: Where it runs.

    Raises:
        ValueError: No such camera, frames of another size than the encoder's (they are not resized), or a folder that
            holds other features.
    """

    @torch.no_grad()
    def encode(frames: np.ndarray) -> Tensor:
        with precision(device, dtype):
            return encoder.to(device).encode_frames(frames[:, None], layers)[:, 0].float().cpu()

    key, size = feature_key(encoder, layers, dtype), encoder.config.image_size
    cache = build_feature_cache(data, encode, key, folder, camera=camera, image_size=size)
    encoder.cpu()
    return cache


class EncodedFrames(FeatureCache):
    """Packed frames uint8 [H, W, 3] whose clips come as features: the encoder sees each clip when it is drawn.

    That takes the encoder's time at every step, and 3 H W bytes a frame on the disk: 0.2 MB at 256 pixels, where
    ViT-g's features take 0.7 MB and those of a small encoder less.
    """

    def __init__(self, folder: Path, encoder: Encoder, layers: int | None, dtype: str, device: torch.device) -> None:
        super().__init__(folder)
        self.encoder, self.layers, self.dtype, self.device = encoder.to(device), layers, dtype, device

    @torch.no_grad()
    def encode(self, frames_BTHWC: Tensor) -> Tensor:
        """Layer-normed features float32 [B, T, N, D] on the device."""
        with precision(self.device, self.dtype):
            return self.encoder.encode_frames(frames_BTHWC, self.layers).float()

    def clips(
        self, episodes: np.ndarray | None = None, step_seconds: float | None = None, camera_frame: float | None = None
    ) -> FeatureClips:
        """See `FeatureCache.clips`."""
        super().clips(episodes, step_seconds, camera_frame)  # refuses what lacks the cameras' poses
        return EncodedClips(self, episodes, step_seconds, camera_frame)


class EncodedClips(FeatureClips):
    """Draws clips of frames and encodes them; the same clips, by the same draws, as of cached features."""

    def sample(
        self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `FeatureClips.sample`; features are float32."""
        assert isinstance(self.cache, EncodedFrames)
        pixels, states, cameras = super().sample(generator, batch, frames, share)
        return self.cache.encode(pixels), states, cameras


def open_frames(
    encoder: Encoder,
    data: Sequence[Path],
    folder: Path,
    camera: str,
    layers: int | None,
    dtype: str,
    device: torch.device = CPU,
) -> EncodedFrames:
    """All frames, squashed to the encoder's size and packed into `folder` once, to be encoded as they are drawn.

    Args as of `open_features`, but the encoder stays on the device.

    Raises:
        ValueError: Also for an encoder of frames that are not square.
    """
    height, width = encoder.config.image_size
    if height != width:
        raise ValueError(f"frames are packed as squares; the encoder was trained at {height} x {width}")
    load_frames(list(data), camera, height, folder)
    return EncodedFrames(folder, encoder, layers, dtype, device)
