"""Imagining many candidate action sequences at once: exactly the predictor's forward, computed without repetition.

Shapes: B episodes, S candidates, H imagined steps, T context steps, N patches, D feature width, P predictor width,
M heads, K channels per head, n tokens per step (conditioning, then merged patches).

What is not repeated:
- Attention is block-causal, so keys and values of a finished step never change: each layer keeps them.
- Context steps before the last are the same for all candidates of an episode: computed once per episode.
- In the first imagined step the patches and the state are shared too; candidates differ by the action token alone,
  so embedding, first LayerNorm and first query/key/value product are computed once per episode.
- The last layer's attention output and MLP are computed for patch tokens only: the others are never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from armworld.pose import action_between, apply_action
from armworld.worldmodel.ac_predictor import ACPredictor, block_causal_mask
from armworld.worldmodel.blocks import Block, Rotary, normalize


@dataclass
class _Cache:
    """Keys and values [B * S, M, L, K] of finished steps, per layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def repeated(self, times: int) -> _Cache:
        """One copy per candidate."""
        return _Cache([(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in self.layers])


def imagine(
    predictor: ACPredictor,
    z_BTND: Tensor,
    state_BTA: Tensor,
    actions_BSHA: Tensor,
    extrinsics_BE: Tensor | None = None,
    grid: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Layer-normed features [B, S, H, N, D] (float32) and states [B, S, H, 7] after each action.

    Past actions are recovered from consecutive context states; imagined states follow `pose.apply_action`.
    """
    grid = predictor.check_features(z_BTND, grid)
    batch, samples, horizon = actions_BSHA.shape[:3]
    weight = predictor.predictor_embed.weight
    rollout = _Rollout(predictor, grid, z_BTND.shape[1] + horizon - 1, weight.device, weight.dtype, extrinsics_BE)
    z = z_BTND.to(weight.device, weight.dtype)
    cache = rollout.context(z, state_BTA)
    step = z.shape[1] - 1
    now = state_BTA[:, None, -1].expand(-1, samples, -1)
    features, states = [], []
    for h in range(horizon):
        action = actions_BSHA[:, :, h]
        if h == 0:
            x, cache = rollout.first_step(z[:, -1], action, state_BTA[:, -1], cache)
            before = z[:, None, -1]
        else:
            before = features[-1].to(weight.dtype)
            x, cache = rollout.next_step(before, action, now, step + h, cache)
        features.append(rollout.read_out(x.unflatten(0, (batch, samples)), before))
        now = apply_action(now, action)
        states.append(now)
    return torch.stack(features, 2), torch.stack(states, 2)


class _Rollout:
    """The predictor's layers with caches; one object per call of `imagine`."""

    def __init__(
        self,
        predictor: ACPredictor,
        grid: tuple[int, int],
        steps: int,
        device: torch.device,
        dtype: torch.dtype,
        extrinsics_BE: Tensor | None,
    ) -> None:
        if steps > predictor.config.max_steps:
            raise ValueError(
                f"context and horizon need {steps} steps; this predictor was built for {predictor.config.max_steps}"
            )
        self.predictor, self.grid, self.extrinsics = predictor, grid, extrinsics_BE
        self.blocks: list[Block] = list(predictor.predictor_blocks)  # type: ignore[arg-type]
        self.tokens = predictor.conditioning + grid[0] * grid[1] // predictor.config.merge**2
        self.tables = predictor.rotary(steps, grid, device, dtype)

    def context(self, z_BTND: Tensor, state_BTA: Tensor) -> _Cache:
        """Keys and values of all context steps but the last."""
        steps = z_BTND.shape[1] - 1
        if steps == 0:
            return _Cache()
        past = action_between(state_BTA[:, :-1], state_BTA[:, 1:])
        extrinsics = None if self.extrinsics is None else self.extrinsics[:, None].expand(-1, steps, -1)
        conditioning = self.predictor.embed_conditioning(past, state_BTA[:, :-1], extrinsics)
        x = torch.cat([conditioning, self.predictor.embed_patches(z_BTND[:, :-1], self.grid)], 2).flatten(1, 2)
        rotary = Rotary(*(table[: x.shape[1]] for table in self.tables))
        mask = block_causal_mask(steps, self.tokens, x.device) if steps > 1 else None
        cache = _Cache()
        for block in self.blocks:
            q, k, v = block.attn.project(block.norm1(x), rotary)
            cache.layers.append((k, v))
            x = _after_attention(block, x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return cache

    def first_step(self, z_BND: Tensor, action_BSA: Tensor, state_BA: Tensor, cache: _Cache) -> tuple[Tensor, _Cache]:
        """Last layer's patch tokens [B * S, n - C, P] of the first imagined step, and the caches after it."""
        samples = action_BSA.shape[1]
        rotary = self._step_tables(len(cache.layers) and cache.layers[0][0].shape[2] // self.tokens)
        shared = self._shared_tokens(z_BND, state_BA)
        action = self.predictor.embed_actions(action_BSA.flatten(0, 1)).unsqueeze(1)
        if cache.layers:
            cache = cache.repeated(samples)
        block = self.blocks[0]
        first = block.attn.project(block.norm1(action), Rotary(*(table[:1] for table in rotary)))
        rest = block.attn.project(block.norm1(shared), Rotary(*(table[1:] for table in rotary)))
        q, k, v = (torch.cat([a, _repeat(r, samples)], 2) for a, r in zip(first, rest, strict=True))
        x = torch.cat([action, _repeat(shared, samples)], 1)
        return self._layers(x, rotary, cache, projected=(q, k, v))

    def next_step(
        self, z_BSND: Tensor, action_BSA: Tensor, state_BSA: Tensor, step: int, cache: _Cache
    ) -> tuple[Tensor, _Cache]:
        """The same for a later step, whose patches [B, S, N, D] differ between candidates."""
        samples = action_BSA.shape[1]
        extrinsics = None if self.extrinsics is None else self.extrinsics.repeat_interleave(samples, 0)
        conditioning = self._conditioning(action_BSA.flatten(0, 1), state_BSA.flatten(0, 1), extrinsics)
        patches = self.predictor.embed_patches(z_BSND.flatten(0, 1).unsqueeze(1), self.grid).squeeze(1)
        return self._layers(torch.cat([conditioning, patches], 1), self._step_tables(step), cache)

    def read_out(self, x_BSLP: Tensor, before: Tensor) -> Tensor:
        """Layer-normed next features [B, S, N, D], float32, from patch tokens and the features before the step."""
        return normalize(self.predictor.project_out(x_BSLP, before, self.grid).float())

    def _shared_tokens(self, z_BND: Tensor, state_BA: Tensor) -> Tensor:
        conditioning = self._conditioning(torch.zeros_like(state_BA), state_BA, self.extrinsics)[:, 1:]
        patches = self.predictor.embed_patches(z_BND.unsqueeze(1), self.grid).squeeze(1)
        return torch.cat([conditioning, patches], 1)

    def _conditioning(self, action: Tensor, state: Tensor, extrinsics: Tensor | None) -> Tensor:
        extra = None if extrinsics is None else extrinsics[:, None]
        return self.predictor.embed_conditioning(action[:, None], state[:, None], extra).squeeze(1)

    def _step_tables(self, step: int) -> Rotary:
        tokens = slice(step * self.tokens, (step + 1) * self.tokens)
        return Rotary(*(table[tokens] for table in self.tables))

    def _layers(
        self, x: Tensor, rotary: Rotary, cache: _Cache, projected: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> tuple[Tensor, _Cache]:
        grown = _Cache()
        for i, block in enumerate(self.blocks):
            q, k, v = projected or block.attn.project(block.norm1(x), rotary)
            projected = None
            if cache.layers:
                k, v = (torch.cat(pair, 2) for pair in zip(cache.layers[i], (k, v), strict=True))
            grown.layers.append((k, v))
            if i == len(self.blocks) - 1:
                patches = self.predictor.conditioning
                q, x = q[:, :, patches:], x[:, patches:]
            x = _after_attention(block, x, F.scaled_dot_product_attention(q, k, v))
        return x, grown


def _after_attention(block: Block, x: Tensor, attended_BMNK: Tensor) -> Tensor:
    x = x + block.attn.proj(attended_BMNK.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def _repeat(x: Tensor, times: int) -> Tensor:
    """[B, ...] -> [B * times, ...] without copying when B = 1."""
    return x.unsqueeze(1).expand(-1, times, *x.shape[1:]).flatten(0, 1)
