"""The frozen-feature cache: an encoder runs once over a dataset, training reads float16 features.

The cache is keyed by a hash of the encoder's weights and by the transform (image size, precision), so that
features of another encoder are never taken for this one's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from armworld.datasets.droid import find_episodes
from armworld.datasets.packing import SHARD_FRAMES, Encode, build_store
from armworld.datasets.store import WHOLE, Share, Store
from armworld.planners.turning import camera_azimuth, turn_states
from armworld.worldmodel.encoder import Encoder


def encoder_hash(module: nn.Module) -> str:
    """Sixteen hex digits over names, shapes, types and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def feature_key(encoder: Encoder, layers: int | None, dtype: str) -> dict[str, Any]:
    """What an encoder's features depend on beside the frames: weights, depth, image size and precision.

    Args:
        encoder: Frozen.
        layers: Encoder blocks used; None for all.
        dtype: Precision in which it runs: float32 or bfloat16.
    """
    size = encoder.config.image_size[0]
    return {"encoder": encoder_hash(encoder), "layers": layers, "image_size": size, "precision": dtype}


def build_feature_cache(
    dataset_dir: Path | Sequence[Path],
    encode_fn: Encode,
    key: Mapping[str, Any],
    out: Path,
    batch: int = 64,
    workers: int = 2,
    camera: str = "left",
    shard_frames: int = SHARD_FRAMES,
    progress: str | None = "cache features",
    processes: int = 1,
    ray: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> FeatureCache:
    """Encode every frame of the dataset folders, resumably, and open the cache.

    Args:
        dataset_dir: One dataset folder or several.
        encode_fn: uint8 [B, H, W, 3] -> features [B, N, D].
        key: Must hold what the features depend on: `encoder` (see `encoder_hash`), image size, normalisation.
        out, batch, workers, camera, shard_frames, progress, processes, ray, image_size: As in `packing.build_store`.

    Raises:
        ValueError: Frames of another size, another key or other data cached in `out`, or features that do not fit
            float16.
        EpisodeError: A damaged episode or one without the camera, by its path.
        DiskFull: No space left; finished shards are kept.
    """
    roots = [Path(dataset_dir)] if isinstance(dataset_dir, str | Path) else [Path(root) for root in dataset_dir]
    folders = [folder for root in roots for folder in find_episodes(root)]
    build_store(
        folders, encode_fn, key, out, camera, batch, workers, "float16", shard_frames, progress, processes, ray,
        image_size, keep_others=True,
    )  # fmt: skip
    return FeatureCache(out)


class FeatureCache(Store):
    """A store whose values are features float16 [N, D]."""

    def clips(
        self,
        episodes: np.ndarray | None = None,
        step_seconds: float | None = None,
        camera_frame: float | None = None,
    ) -> FeatureClips:
        """Clips of some episodes (all by default) at `step_seconds` per step (the data's own by default).

        Args:
            camera_frame: Turn the states about the base's vertical axis into the camera's frame: that in which the
                camera stands at this azimuth (degrees). None leaves them in the base frame.
        """
        if camera_frame is not None:
            self.check_poses("--camera-frame")
        return FeatureClips(self, episodes, step_seconds, camera_frame)

    def check_poses(self, asked_by: str) -> None:
        """ValueError where frames came without their camera's pose (all zeros, as a real arm's own logs have it)."""
        unknown = ~self.extrinsics.any(1)
        if unknown.any():
            episode = self.names[int(np.searchsorted(self.offsets, np.argmax(unknown), "right")) - 1]
            raise ValueError(
                f"{asked_by} needs to know where the cameras stood; {int(unknown.sum())} of {len(self)} frames were "
                f"recorded without it (zeros), first in {episode}"
            )


class FeatureClips:
    """Draws clips of cached features with a generator; every process that draws alike gets the same clips."""

    def __init__(
        self,
        cache: FeatureCache,
        episodes: np.ndarray | None,
        step_seconds: float | None,
        camera_frame: float | None = None,
    ) -> None:
        self.cache, self.episodes, self.camera_frame = cache, episodes, camera_frame
        self.stride = stride_for(cache.step_seconds, cache.step_seconds if step_seconds is None else step_seconds)
        self._starts: dict[int, np.ndarray] = {}

    def starts(self, frames: int) -> np.ndarray:
        """First rows of all clips of `frames` steps.

        Raises:
            ValueError: No episode is long enough.
        """
        if frames not in self._starts:
            self._starts[frames] = self.cache.starts(frames, self.stride, self.episodes)
            if not len(self._starts[frames]):
                raise ValueError(f"no episode of {self.cache.folder} holds {frames} frames {self.stride} rows apart")
        return self._starts[frames]

    def sample(
        self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clips drawn uniformly, with replacement, of T = `frames` steps.

        Args:
            share: Of the batch that is drawn, what is read and answered.

        Returns:
            Features float16 [B, T, N, D], states float32 [B, T, 7] and the cameras' extrinsics float32 [B, T, 6] (base
            frame, whatever frame states are in).
        """
        starts = generator.choice(self.starts(frames), batch)[share]
        windows = self.cache.windows(starts, frames, self.stride)
        states, cameras = torch.from_numpy(windows.states), torch.from_numpy(windows.extrinsics)
        if self.camera_frame is not None:
            states = turn_states(states, math.radians(self.camera_frame) - camera_azimuth(cameras))
        return torch.from_numpy(windows.items), states, cameras


def stride_for(row_seconds: float, step_seconds: float, tolerance: float = 0.1) -> int:
    """Rows per step, so that one step is `step_seconds` to within `tolerance` (relative).

    Raises:
        ValueError: The rows are too coarse for such a step; the message lists steps that work.
    """
    stride = max(1, round(step_seconds / row_seconds))
    if abs(stride * row_seconds - step_seconds) > tolerance * step_seconds:
        possible = ", ".join(f"{k * row_seconds:.3g}" for k in range(1, 5))
        raise ValueError(
            f"step_seconds {step_seconds:g} does not fit data recorded every {row_seconds:.3g} s; "
            f"possible: {possible}, ..."
        )
    return stride
