"""`armworld cache`: a frozen encoder's features of whole datasets, ahead of training, over processes or Ray.

`armworld posttrain --cache DIR` and the policies on features then open the result at once: the key is the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from armworld.datasets.features import FeatureCache, build_feature_cache, encoder_hash, feature_key
from armworld.datasets.packing import SHARD_FRAMES
from armworld.types import check_numbers
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.frozen import open_encoder
from armworld.worldmodel.processes import check_device, check_dtype
from armworld.worldmodel.training import pick_device, precision


@dataclass(frozen=True)
class CacheConfig:
    """Settings of `armworld cache`.

    Attributes:
        data: Dataset folders.
        encoder: Checkpoint of the encoder, or `random:SIZE[:DEPTH]` for an untrained one.
        out: Folder of the cache; a rerun makes the shards that are missing.
        camera: Whose frames.
        image_size: Frame height and width in pixels for a random encoder; a trained one brings its own.
        layers: Use the features after this many encoder blocks; none for all.
        workers: Processes, one shard each at a time.
        ray: Address of a Ray cluster that shares the folders, or `local` for one started here; none uses this
            machine's processes.
        batch: Frames encoded at once.
        shard_frames: Frames per shard at most.
        seed: Seed of a random encoder.
        device: auto, cpu or cuda.
        dtype: bfloat16 (autocast) or float32.
    """

    data: tuple[Path, ...]
    encoder: str
    out: Path
    camera: str = "left"
    image_size: int = 128
    layers: int | None = None
    workers: int = 2
    ray: str | None = None
    batch: int = 64
    shard_frames: int = SHARD_FRAMES
    seed: int = 0
    device: str = "auto"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        check_numbers(self, "layers", "workers", "batch", "shard_frames", least=1)
        check_numbers(self, "seed", least=0)
        check_device(self.device)
        check_dtype(self.dtype)


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that other processes open for themselves; uint8 [B, H, W, 3] -> features float32 [B, N, D].

    Attributes:
        name, image_size, seed: As in `open_encoder`.
        hash: Of the weights that are meant.
        layers, device, dtype: As in `CacheConfig`.

    Raises:
        ValueError: (when called) The weights under that name are others by now.
    """

    name: str
    image_size: int
    seed: int
    hash: str
    layers: int | None
    device: str
    dtype: str

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> Tensor:
        encoder = _opened(self.name, self.image_size, self.seed, self.device, self.hash)
        with precision(next(encoder.parameters()).device, self.dtype):
            return encoder.encode_frames(frames[:, None], self.layers)[:, 0].float().cpu()


@functools.lru_cache(maxsize=1)
def _opened(name: str, image_size: int, seed: int, device: str, expected: str) -> Encoder:
    encoder = open_encoder(name, image_size, seed)
    found = encoder_hash(encoder)
    if found != expected:
        raise ValueError(f"encoder {name} changed while its features were made: {found} now, {expected} at the start")
    return encoder.to(pick_device(device))


def cache(config: CacheConfig) -> FeatureCache:
    """Make what is missing of the cache and open it.

    Raises:
        ValueError: Bad settings or data, frames of another size than the encoder's, other features in `out`, or another
            process that builds there.
        EpisodeError: A damaged episode, by its path.
        DiskFull: No space left; finished shards are kept.
    """
    encoder = open_encoder(config.encoder, config.image_size, config.seed)
    encoder.check_layers(config.layers)
    key = feature_key(encoder, config.layers, config.dtype)
    encode = FrozenEncoder(
        config.encoder, config.image_size, config.seed, key["encoder"], config.layers, config.device, config.dtype
    )
    made = build_feature_cache(
        config.data, encode, key, Path(config.out), config.batch,
        camera=config.camera, shard_frames=config.shard_frames, processes=config.workers, ray=config.ray,
        image_size=encoder.config.image_size,
    )  # fmt: skip
    print(f"{config.out}: {len(made)} frames, {list(made.item_shape)} features each, {made.nbytes / 1e6:.0f} MB")
    return made
