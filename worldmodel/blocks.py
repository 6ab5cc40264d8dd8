"""The pre-norm transformer block and the 3D rotary positions shared by the encoder and both predictors.

Shapes: B batch, N tokens, P width, M heads, K channels per head (P = M * K).

Rotary positions (V-JEPA 2): the K channels of a head are split into three chunks of c = 2 * floor(floor(K / 3) / 2)
for time, height and width; what is left over is not rotated. Channel pair (2i, 2i+1) of a chunk turns by
pos * f. Two layouts of the frequencies f_j = 10000^(-j / (c/2)), j = 0 ... c/2 - 1:

- "tiled", the published one: channel k uses f_(k mod c/2). The two channels of a pair then turn by different angles,
  so it is not quite a rotation; the published weights were trained with it.
- "paired": both channels of pair i use f_i, so that a dot product depends on relative positions only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armworld.types import check_name

LAYER_NORM_EPS = 1e-6  # of every learnt LayerNorm in the published models
ROPE_LAYOUTS = ("tiled", "paired")


class Rotary(NamedTuple):
    """Cosines and signed sines, [N, K] or [B, 1, N, K]: rotated = x * cos + swap_pairs(x) * sin."""

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Rotary:
        """The same tables elsewhere or in another precision."""
        return Rotary(self.cos.to(device, dtype), self.sin.to(device, dtype))

    def take(self, index: Tensor) -> Rotary:
        """Tables of the tokens `index`: [N'] for all clips, or [B, N'] for each its own."""
        if index.ndim == 1:
            return Rotary(self.cos[index], self.sin[index])
        return Rotary(self.cos[index].unsqueeze(1), self.sin[index].unsqueeze(1))


def rotary_from_positions(positions: Tensor, head_dim: int, layout: str = "tiled") -> Rotary:
    """Tables [N, K] for positions [N, 3] (time, height, width; any real numbers). See the file's top."""
    check_name("rotary layout", layout, ROPE_LAYOUTS)
    half = head_dim // 3 // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / max(half, 1))
    per_channel = frequency.repeat(2) if layout == "tiled" else frequency.repeat_interleave(2)
    angle = (positions.float()[:, :, None] * per_channel).flatten(1)  # [N, 3 * 2 * half]
    cos, sin = angle.cos(), angle.sin()
    sin[:, 0::2].neg_()  # channel 2i receives -x[2i+1]
    left_over = head_dim - cos.shape[1]
    return Rotary(F.pad(cos, (0, left_over), value=1.0), F.pad(sin, (0, left_over)))


def grid_positions(steps: int, height: int, width: int) -> Tensor:
    """Positions [steps * height * width, 3] of a grid of patches in token order (time, then rows, then columns)."""
    axes = (torch.arange(steps), torch.arange(height), torch.arange(width))
    return torch.cartesian_prod(*axes).float()


@lru_cache(maxsize=64)
def grid_rotary(
    steps: int, height: int, width: int, head_dim: int, layout: str, device: torch.device, dtype: torch.dtype
) -> Rotary:
    """Tables of a whole grid, computed once per grid, device and precision."""
    with torch.inference_mode(False), torch.no_grad():  # cached tensors must also be usable in training
        tables = rotary_from_positions(grid_positions(steps, height, width), head_dim, layout)
        return tables.to(device, dtype)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn [B, M, N, K] by its tokens' positions."""
    if x.shape[-1] % 2:  # the last channel belongs to no pair
        cos, sin = (table[..., :-1] for table in rotary)
        return torch.cat([rotate(x[..., :-1], Rotary(cos, sin)), x[..., -1:]], -1)
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * rotary.cos, swapped, rotary.sin)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)) v of [B, M, N, K] queries and [B, M, L, K] keys and values.

    On CPUs the fused kernel is slow in bfloat16 and in short backward passes (measured: 4 and 2 times slower at 64
    clips of 128 tokens), so there the three products are written out while the scores fit the caches.
    """
    scores = q.shape[-2] * k.shape[-2]
    low = q.dtype == torch.bfloat16
    if q.device.type != "cpu" or scores > 2**20 or not (low or (q.requires_grad and scores <= 2**14)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    # The float32 kernel is the faster one for short rows; with gradients, keeping its output would cost memory.
    precise = None if logits.requires_grad else torch.float32
    return logits.softmax(-1, dtype=precise).to(v.dtype) @ v


@lru_cache(maxsize=16)
def block_causal_mask(steps: int, tokens_per_step: int, device: torch.device) -> Tensor:
    """bool [L, L], L = steps * tokens_per_step: True where the row's step is not earlier than the column's."""
    with torch.inference_mode(False):
        step = torch.arange(steps, device=device).repeat_interleave(tokens_per_step)
        return step[:, None] >= step[None, :]


def attend_block_causal(q: Tensor, k: Tensor, v: Tensor, steps: int) -> Tensor:
    """Attention of [B, M, N, K] in which a token sees all tokens of its own and earlier steps.

    Step by step without a mask: half the arithmetic, and every backend's fused kernel applies. Few tokens on a CPU
    are quicker with one masked product (measured: below about 256 tokens).
    """
    tokens = q.shape[2] // steps
    if steps == 1:
        return attend(q, k, v)
    if q.device.type == "cpu" and q.shape[2] <= 256:
        return attend(q, k, v, block_causal_mask(steps, tokens, q.device))
    seen = (slice(0, (step + 1) * tokens) for step in range(steps))
    return torch.cat([attend(own, k[:, :, s], v[:, :, s]) for own, s in zip(q.split(tokens, 2), seen, strict=True)], 2)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; `project`, `attend` and `proj` are its three parts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys and values, [B, M, N, K] each, of tokens [B, N, P]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        rotary = rotary.to(q.device, q.dtype)
        return rotate(q, rotary), rotate(k, rotary), v

    def forward(self, x: Tensor, rotary: Rotary, steps: int = 1) -> Tensor:
        q, k, v = self.project(x, rotary)
        return self.proj(attend_block_causal(q, k, v, steps).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, int(width * mlp_ratio + 1e-6))  # + 1e-6: 48/11 is not exact in binary

    def forward(self, x: Tensor, rotary: Rotary, steps: int = 1) -> Tensor:
        """Tokens [B, N, P] -> [B, N, P] of N / steps tokens per step, block-causal over steps."""
        x = x + self.attn(self.norm1(x), rotary, steps)
        return x + self.mlp(self.norm2(x))


def run_blocks(blocks: nn.ModuleList, x: Tensor, rotary: Rotary, steps: int = 1, recompute: bool = False) -> Tensor:
    """Apply blocks in order; with `recompute`, activations are recomputed in the backward pass to save memory."""
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, rotary, steps, use_reentrant=False)
        else:
            x = block(x, rotary, steps)
    return x


def initialise(module: nn.Module, blocks: nn.ModuleList, std: float = 0.02) -> None:
    """Truncated-normal weights, zero biases; output layers of block i scaled by 1 / sqrt(2 i) (i from 1)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    with torch.no_grad():
        for i, block in enumerate(blocks, start=1):
            assert isinstance(block, Block)
            block.attn.proj.weight /= (2.0 * i) ** 0.5
            block.mlp.fc2.weight /= (2.0 * i) ** 0.5


def normalize(features: Tensor) -> Tensor:
    """Layer-norm [..., D] over D without parameters: what losses, rollouts and energies see (V-JEPA 2)."""
    return F.layer_norm(features, features.shape[-1:])
