"""The V-JEPA 2 encoder: a vision transformer over 2 x 16 x 16 tubelets with 3D rotary positions.

Shapes: B clips, T frames, H x W pixels, N tokens = (T/2) (H/16) (W/16), D width. Token order: time, rows, columns.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.worldmodel.blocks import LAYER_NORM_EPS, Block, grid_rotary, initialise, normalize, run_blocks
from armworld.worldmodel.sizes import PATCH, TUBELET, EncoderConfig, check_image_size

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as in the published preprocessing
IMAGE_STD = (0.229, 0.224, 0.225)


class PatchEmbed(nn.Module):
    """Linear map of each tubelet. `proj` is a Conv3d with stride = kernel, evaluated as one matrix product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kernel = (TUBELET, PATCH, PATCH)
        self.proj = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel)

    def forward(self, clip_BCTHW: Tensor, index: Tensor | None = None) -> Tensor:
        """Clip [B, 3, T, H, W] -> tokens [B, N, D]; T = 1 is a still, i.e. that frame twice.

        With `index` ([N'] or [B, N']) only those tokens are computed. A still is a repeated frame, so the temporal
        kernel can be summed first: half the arithmetic, the same result up to rounding.
        """
        weight = self.proj.weight
        depth = TUBELET
        if clip_BCTHW.shape[2] == 1:
            weight, depth = weight.sum(2, keepdim=True), 1
        patches = _patchify(clip_BCTHW, depth)
        if index is not None:
            patches = take_tokens(patches, index)
        return F.linear(patches, weight.flatten(1), self.proj.bias)


def _patchify(clip_BCTHW: Tensor, depth: int) -> Tensor:
    """Clip -> [B, N, 3 * depth * 16 * 16], channels in the order of Conv3d's kernel."""
    x = clip_BCTHW.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH)).unflatten(2, (-1, depth))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def take_tokens(tokens_BND: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, N', D] at `index`: [N'] for all, or [B, N'] for each its own."""
    if index.ndim == 1:
        return tokens_BND[:, index]
    return tokens_BND.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens_BND.shape[-1]))


class Encoder(nn.Module):
    """The vision transformer; parameter names are the published ones.

    Attributes:
        recompute: Recompute each block's activations in the backward pass (less memory, more time).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.patch_embed = PatchEmbed(config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        initialise(self, self.blocks)

    def forward(self, clip_BCTHW: Tensor, context_index: Tensor | None = None, layers: int | None = None) -> Tensor:
        """Features [B, N, D] of normalised clips [B, 3, T, H, W] (T = 1: stills), final LayerNorm applied.

        Args:
            context_index: Keep only these tokens, [N'] or [B, N'] (ascending or not); then [B, N', D].
            layers: Stop after this many blocks (default all); the final LayerNorm still applies.
        """
        grid = clip_grid(clip_BCTHW)
        x = self.patch_embed(clip_BCTHW, context_index)
        head_dim = self.config.width // self.config.heads
        rotary = grid_rotary(*grid, head_dim, self.config.rope, x.device, x.dtype)
        if context_index is not None:
            rotary = rotary.take(context_index)
        blocks = self.blocks[: self.check_layers(layers)]
        return self.norm(run_blocks(blocks, x, rotary, recompute=self.recompute))

    def encode_frames(self, images: np.ndarray | Tensor, layers: int | None = None, chunk: int = 64) -> Tensor:
        """uint8 [B, T, H, W, 3] RGB -> layer-normed features [B, T, N, D], each frame a still of its own.

        As V-JEPA 2-AC sees frames. `chunk` frames go through the encoder at a time.
        """
        frames = torch.as_tensor(images)
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 [B, T, H, W, 3], got {frames.dtype} {tuple(frames.shape)}")
        check_image_size((frames.shape[2], frames.shape[3]))
        parts = [self._encode_stills(part, layers) for part in frames.flatten(0, 1).split(chunk)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    def _encode_stills(self, frames: Tensor, layers: int | None) -> Tensor:
        weight = self.patch_embed.proj.weight
        stills = pixels_to_clip(frames.to(weight.device)[:, None]).to(weight.dtype)
        return normalize(self(stills, layers=layers))

    def check_layers(self, layers: int | None) -> int | None:
        """Return `layers`, a number of blocks or None for all; a ValueError where there are fewer."""
        if layers is not None and not 1 <= layers <= len(self.blocks):
            raise ValueError(f"layers must lie in 1 ... {len(self.blocks)}, got {layers}")
        return layers


def pixels_to_clip(pixels: Tensor) -> Tensor:
    """uint8 [B, T, H, W, 3] RGB -> float32 clip [B, 3, T, H, W] with ImageNet's mean and deviation removed."""
    mean = torch.tensor(IMAGE_MEAN, device=pixels.device) * 255
    std = torch.tensor(IMAGE_STD, device=pixels.device) * 255
    return ((pixels - mean) / std).permute(0, 4, 1, 2, 3)


def clip_grid(clip_BCTHW: Tensor) -> tuple[int, int, int]:
    """Token grid (time, rows, columns) of a clip [B, 3, T, H, W]."""
    if clip_BCTHW.ndim != 5 or clip_BCTHW.shape[1] != 3:
        raise ValueError(f"a clip is [B, 3, T, H, W], got {tuple(clip_BCTHW.shape)}")
    frames = clip_BCTHW.shape[2]
    if frames != 1 and frames % TUBELET:
        raise ValueError(f"a clip has 1 frame or a multiple of {TUBELET}, got {frames}")
    return (max(frames // TUBELET, 1), *check_image_size((clip_BCTHW.shape[3], clip_BCTHW.shape[4])))
