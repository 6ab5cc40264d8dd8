"""The action-conditioned predictor of V-JEPA 2-AC: features and robot state now, plus an action -> features next.

Shapes: B batch, T steps, N patches per step, D encoder width, P predictor width, C conditioning tokens per step.
Token order within a step: action, state, [extrinsics], patches. A token sees its own and all earlier steps.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from armworld.worldmodel.blocks import (
    LAYER_NORM_EPS,
    Block,
    Rotary,
    grid_positions,
    initialise,
    rotary_from_positions,
    run_blocks,
)
from armworld.worldmodel.sizes import ACPredictorConfig

ACTION_DIM = 7
STATE_DIM = 7
EXTRINSICS_DIM = 6


class Prediction(NamedTuple):
    """Next features [B, T, N, D] (not yet layer-normed) and, with a state head, the state's change [B, T, 7]."""

    z: Tensor
    state_delta: Tensor | None


@lru_cache(maxsize=64)
def conditioned_rotary(
    steps: int,
    grid: tuple[int, int],
    training_rows: int,
    conditioning: int,
    head_dim: int,
    layout: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Rotary:
    """Tables [steps * (conditioning + rows * columns), K]; computed once per shape.

    Rows and columns are scaled by training_rows / rows and training_rows / columns, so that any resolution spans
    the positions seen in training. Conditioning tokens turn by time only.
    """
    rows, columns = grid
    positions = grid_positions(steps, rows, columns) * torch.tensor(
        [1.0, training_rows / rows, training_rows / columns]
    )
    times = torch.arange(steps, dtype=torch.float32)[:, None, None].expand(-1, conditioning, 1)
    tokens = torch.cat([nn.functional.pad(times, (0, 2)), positions.unflatten(0, (steps, -1))], 1)
    with torch.inference_mode(False), torch.no_grad():
        return rotary_from_positions(tokens.flatten(0, 1).clone(), head_dim, layout).to(device, dtype)


class ACPredictor(nn.Module):
    """Parameter names are the published ones. `recompute` trades time for memory in training.

    `extrinsics_encoder` exists always, as in the published files; without `config.extrinsics` it is unused and frozen.
    """

    def __init__(self, config: ACPredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        group = config.merge**2 * config.features
        self.predictor_embed = nn.Linear(group, config.width)
        self.action_encoder = nn.Linear(ACTION_DIM, config.width)
        self.state_encoder = nn.Linear(STATE_DIM, config.width)
        self.extrinsics_encoder = nn.Linear(EXTRINSICS_DIM, config.width)
        self.extrinsics_encoder.requires_grad_(config.extrinsics)
        self.predictor_blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(config.width, group)
        self.state_head = nn.Linear(2 * config.width, STATE_DIM) if config.state_head else None
        initialise(self, self.predictor_blocks)

    @property
    def conditioning(self) -> int:
        """Conditioning tokens per step."""
        return 3 if self.config.extrinsics else 2

    def forward(
        self,
        z_BTND: Tensor,
        actions_BTA: Tensor,
        states_BTA: Tensor,
        extrinsics_BTE: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Prediction:
        """Features one step after each of the T steps.

        Args:
            z_BTND: Layer-normed features of each step.
            actions_BTA: Action taken at each step (m, rad, closedness).
            states_BTA: Robot state at each step.
            extrinsics_BTE: Camera pose at each step, needed exactly if the configuration asks for it.
            grid: Patch grid (rows, columns) of the features; by default the training grid.
        """
        grid = self.check_inputs(z_BTND, actions_BTA, states_BTA, extrinsics_BTE, grid)
        steps = z_BTND.shape[1]
        patches = self.embed_patches(z_BTND, grid)
        conditioning = self.embed_conditioning(actions_BTA, states_BTA, extrinsics_BTE).to(patches.dtype)
        x = torch.cat([conditioning, patches], 2)
        rotary = self.rotary(steps, grid, x.device, x.dtype)
        x = run_blocks(self.predictor_blocks, x.flatten(1, 2), rotary, steps, self.recompute)
        return self.read_out(x.unflatten(1, (steps, -1)), z_BTND, grid)

    def embed_patches(self, z_BTND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens [B, T, N / merge^2, P] before the first block."""
        weight = self.predictor_embed.weight
        return self.predictor_embed(merge_patches(z_BTND.to(weight.dtype), grid, self.config.merge))

    def embed_conditioning(self, actions_BTA: Tensor, states_BTA: Tensor, extrinsics_BTE: Tensor | None) -> Tensor:
        """Conditioning tokens [B, T, C, P] before the first block."""
        dtype = self.action_encoder.weight.dtype
        tokens = [self.embed_actions(actions_BTA), self.state_encoder(self._scale_states(states_BTA).to(dtype))]
        if extrinsics_BTE is not None:
            tokens.append(self.extrinsics_encoder(extrinsics_BTE.to(dtype)))
        return torch.stack(tokens, -2)

    def embed_actions(self, actions: Tensor) -> Tensor:
        """Action tokens [..., P] of actions [..., 7]."""
        scale = self.config.action_scale
        actions = actions if scale is None else actions * actions.new_tensor(scale)
        return self.action_encoder(actions.to(self.action_encoder.weight.dtype))

    def read_out(self, x_BTLP: Tensor, z_BTND: Tensor, grid: tuple[int, int]) -> Prediction:
        """Prediction from the last block's tokens [B, T, C + N / merge^2, P] and the features that went in."""
        z = self.project_out(x_BTLP[:, :, self.conditioning :], z_BTND, grid)
        if self.state_head is None:
            return Prediction(z, None)
        delta = self.state_head(self.predictor_norm(x_BTLP[:, :, :2]).flatten(2)).float()
        scale = self.config.action_scale
        return Prediction(z, delta if scale is None else delta / delta.new_tensor(scale))

    def project_out(self, x_BTNP: Tensor, z_BTND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Next features [B, T, N, D] from the last block's patch tokens and the features that went in."""
        z = split_patches(self.predictor_proj(self.predictor_norm(x_BTNP)), grid, self.config.merge)
        return z + z_BTND if self.config.residual else z

    def rotary(self, steps: int, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Rotary:
        """Tables of all tokens of `steps` steps."""
        config = self.config
        coarse = (grid[0] // config.merge, grid[1] // config.merge)
        rows = config.grid[0] // config.merge
        head_dim = config.width // config.heads
        return conditioned_rotary(steps, coarse, rows, self.conditioning, head_dim, config.rope, device, dtype)

    def check_inputs(
        self,
        z_BTND: Tensor,
        actions_BTA: Tensor,
        states_BTA: Tensor,
        extrinsics_BTE: Tensor | None,
        grid: tuple[int, int] | None,
    ) -> tuple[int, int]:
        """The patch grid, or a ValueError that says what does not fit."""
        grid = self.check_features(z_BTND, grid)
        lead = tuple(z_BTND.shape[:2])
        wanted = {"actions": (actions_BTA, ACTION_DIM), "states": (states_BTA, STATE_DIM)}
        if (extrinsics_BTE is None) == self.config.extrinsics:
            raise ValueError(
                f"extrinsics must be given exactly if config.extrinsics, which is {self.config.extrinsics}"
            )
        if extrinsics_BTE is not None:
            wanted["extrinsics"] = (extrinsics_BTE, EXTRINSICS_DIM)
        for name, (value, size) in wanted.items():
            if tuple(value.shape) != (*lead, size):
                raise ValueError(f"{name} must be {[*lead, size]} beside these features, got {list(value.shape)}")
        return grid

    def check_features(self, z_BTND: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        """The patch grid of features [B, T, N, D], or a ValueError that says what does not fit."""
        config = self.config
        grid = grid or config.grid
        if z_BTND.ndim != 4 or z_BTND.shape[-1] != config.features or z_BTND.shape[2] != grid[0] * grid[1]:
            raise ValueError(
                f"features must be [B, T, {grid[0] * grid[1]}, {config.features}] for a {grid[0]} x {grid[1]} grid, "
                f"got {list(z_BTND.shape)}"
            )
        if not 1 <= z_BTND.shape[1] <= config.max_steps:
            raise ValueError(f"steps must lie in 1 ... {config.max_steps}, got {z_BTND.shape[1]}")
        if grid[0] % config.merge or grid[1] % config.merge:
            raise ValueError(f"merge {config.merge} does not divide the {grid[0]} x {grid[1]} patch grid")
        return grid

    def _scale_states(self, states: Tensor) -> Tensor:
        if self.config.state_offset is not None:
            states = states - states.new_tensor(self.config.state_offset)
            angles = torch.remainder(states[..., 3:6] + math.pi, 2 * math.pi) - math.pi
            states = torch.cat([states[..., :3], angles, states[..., 6:]], -1)
        scale = self.config.state_scale
        return states if scale is None else states * states.new_tensor(scale)


def merge_patches(z_ND: Tensor, grid: tuple[int, int], merge: int) -> Tensor:
    """[.., N, D] -> [.., N / merge^2, merge^2 D]: squares of neighbouring patches side by side in channels."""
    if merge == 1:
        return z_ND
    x = z_ND.unflatten(-2, (grid[0] // merge, merge, grid[1] // merge, merge))
    return x.transpose(-4, -3).flatten(-3).flatten(-3, -2)


def split_patches(x_ND: Tensor, grid: tuple[int, int], merge: int) -> Tensor:
    """The inverse of `merge_patches`."""
    if merge == 1:
        return x_ND
    x = x_ND.unflatten(-2, (grid[0] // merge, grid[1] // merge)).unflatten(-1, (merge, merge, -1))
    return x.transpose(-4, -3).flatten(-5, -2)
