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
from armworld.datasets.droid import find_episodes
from armworld.datasets.features import FeatureCache, FeatureClips, build_feature_cache, feature_key
from armworld.datasets.store import WHOLE, Share
from armworld.datasets.trajectory import read_frames, read_trajectory
from armworld.types import check_name
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


def check_frames(data: Sequence[Path], camera: str, image_size: tuple[int, int]) -> None:
    """A ValueError unless each dataset's first frame has that size (height, width), before hours of encoding.

    Args:
        data: Dataset folders.
        camera: Whose frames.
        image_size: Height and width in pixels that the encoder was trained at.
    """
    for root in data:
        trajectory = read_trajectory(find_episodes(Path(root))[0])
        check_name(f"camera of {root}", camera, trajectory.videos)
        height, width = read_frames(trajectory, camera, np.zeros(1, np.int64)).shape[1:3]
        if (height, width) != image_size:
            raise ValueError(
                f"{root}: its frames are {height} x {width} pixels, the encoder was trained at {image_size[0]} x "
                f"{image_size[1]}; make them so with --image-size of armworld collect, rerender or import, or give "
                "posttrain --train-from frames, which squashes them"
            )


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
    """

    @torch.no_grad()
    def encode(frames: np.ndarray) -> Tensor:
        with precision(device, dtype):
            return encoder.to(device).encode_frames(frames[:, None], layers)[:, 0].float().cpu()

    cache = build_feature_cache(data, encode, feature_key(encoder, layers, dtype), folder, camera=camera)
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
