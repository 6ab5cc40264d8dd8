"""The attentive probe of V-JEPA 2: classes from frozen features, by self-attention and one query that reads all tokens.

Shapes: B videos, N tokens, D features, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.worldmodel.blocks import LAYER_NORM_EPS, MLP, Block, Rotary


class QueryBlock(nn.Module):
    """One learnt query attends to all tokens; then an MLP. [B, N, D] -> [B, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x_BND: Tensor) -> Tensor:
        k, v = self.kv(self.norm1(x_BND)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query = self.query.expand(len(x_BND), -1, -1)
        q = self.q(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        x = query + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (x + self.mlp(self.norm2(x)))[:, 0]


class AttentiveProbe(nn.Module):
    """`depth` - 1 self-attention blocks, a query's block, and a linear classifier.

    The features carry their positions already: the blocks turn nothing.
    """

    def __init__(self, features: int, classes: int, heads: int, depth: int = 4) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"a probe needs at least 1 layer, got {depth}")
        self.blocks = nn.ModuleList(Block(features, heads, 4.0) for _ in range(depth - 1))
        self.pool = QueryBlock(features, heads)
        self.classify = nn.Linear(features, classes)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        nn.init.trunc_normal_(self.pool.query, std=0.02)
        self.head_dim = features // heads

    def forward(self, x_BND: Tensor) -> Tensor:
        """Logits [B, K]."""
        still = Rotary(x_BND.new_ones(1, self.head_dim), x_BND.new_zeros(1, self.head_dim))
        for block in self.blocks:
            x_BND = block(x_BND, still)
        return self.classify(self.pool(x_BND))
