"""The predictor of mask-denoising pretraining: features at hidden positions from features at visible ones.

Shapes: B clips, K visible tokens, M hidden tokens, D encoder width, P predictor width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from armworld.worldmodel.blocks import LAYER_NORM_EPS, Block, grid_rotary, initialise, run_blocks
from armworld.worldmodel.sizes import MaskPredictorConfig


class MaskPredictor(nn.Module):
    """Parameter names are the published ones. `recompute` trades time for memory in training."""

    def __init__(self, config: MaskPredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.predictor_embed = nn.Linear(config.features, config.width)
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.zeros(1, 1, config.width)) for _ in range(config.mask_tokens)
        )
        self.predictor_blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(config.width, config.features)
        initialise(self, self.predictor_blocks)

    def forward(
        self,
        context_BKD: Tensor,
        context_index: Tensor,
        target_index: Tensor,
        grid: tuple[int, int, int],
        mask_index: int = 0,
    ) -> Tensor:
        """Predicted features [B, M, D] at `target_index`.

        Args:
            context_BKD: The encoder's features of the visible tokens.
            context_index: Their positions in the flattened grid, [K] or [B, K].
            target_index: Positions to predict, [M] or [B, M].
            grid: Token grid (time, rows, columns) that the positions refer to.
            mask_index: Which mask token stands for the hidden tokens (one per mask family; wraps around).
        """
        batch, visible = context_BKD.shape[:2]
        context_index = context_index.expand(batch, -1)
        target_index = target_index.expand(batch, -1)
        x = self.predictor_embed(context_BKD)
        token = self.mask_tokens[mask_index % len(self.mask_tokens)].to(x.dtype)
        x = torch.cat([x, token.expand(batch, target_index.shape[1], -1)], 1)
        config = self.config
        rotary = grid_rotary(*grid, config.width // config.heads, config.rope, x.device, x.dtype)
        rotary = rotary.take(torch.cat([context_index, target_index], 1))
        x = run_blocks(self.predictor_blocks, x, rotary, recompute=self.recompute)
        return self.predictor_proj(self.predictor_norm(x[:, visible:]))
