"""Imagining many candidate action sequences at once: the predictor's forward, computed without repetition.

Shapes: B episodes, S candidates, T context steps, H imagined steps, D feature width, P predictor width, M heads,
K channels per head; per step C conditioning tokens (the action first), G merged patch tokens, n = C + G tokens.

What is not repeated, all of it exact but for rounding:
- Attention is block-causal, so keys and values of a finished step never change: each layer keeps them.
- Context steps before the last are the same for all candidates of an episode: computed once per episode.
- In the first imagined step candidates differ by the action token alone. Patches are embedded once per episode, and
  in the first layer their queries, keys, values and attention to one another too; a candidate only mixes its action
  token's value in, with the weight that its softmax would have given.
- In the last layer only the patch tokens' outputs are computed: nothing reads the others.
- On CPUs, float32 products go through the quicker of PyTorch's two libraries (`linear.py`).
- The channels of queries and keys are reordered per head (even ones, then odd ones), which no dot product notices and
  which makes the rotary positions three contiguous products.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from armworld.pose import action_between, apply_action
from armworld.worldmodel.ac_predictor import ACPredictor, merge_patches, split_patches
from armworld.worldmodel.blocks import Block, Rotary, attend, attend_block_causal, normalize
from armworld.worldmodel.linear import apply, linear

KeysValues = tuple[Tensor, Tensor]  # [B or B * S, M, L, K] each


class Layer(NamedTuple):
    """One block and its query/key/value weights with reordered channels."""

    block: Block
    weight: Tensor
    bias: Tensor

    def project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, [.., M, N, K] each, of tokens [.., N, P]."""
        qkv = linear(self.block.norm1(x), self.weight, self.bias).unflatten(-1, (3, self.block.attn.heads, -1))
        qk = _rotate_halves(qkv[..., :2, :, :], rotary)
        q, k = qk.unbind(-3)
        return q.transpose(-3, -2), k.transpose(-3, -2), qkv[..., 2, :, :].transpose(-3, -2)

    def finish(self, x: Tensor, attended_BMNK: Tensor) -> Tensor:
        """The block's output from its input and what its attention read."""
        x = apply(self.block.attn.proj, attended_BMNK.transpose(1, 2).flatten(2)) + x
        mlp = self.block.mlp
        return apply(mlp.fc2, apply(mlp.fc1, self.block.norm2(x), gelu=True)) + x


class Predictor:
    """A predictor prepared for rollouts of given features' grid and number of steps.

    Attributes:
        run_layers: `_run_layers`, or the same compiled.
    """

    def __init__(self, predictor: ACPredictor, grid: tuple[int, int], steps: int, compiled: bool = False) -> None:
        self.run_layers = _compiled_layers() if compiled else _run_layers
        config = predictor.config
        if steps > config.max_steps:
            raise ValueError(f"context and horizon need {steps} steps; this predictor was built for {config.max_steps}")
        self.module, self.grid, self.merge = predictor, grid, config.merge
        weight = predictor.predictor_embed.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.tokens = predictor.conditioning + grid[0] * grid[1] // config.merge**2
        order = _halves_order(config.width // config.heads)
        cos, sin = predictor.rotary(steps, grid, self.device, self.dtype)
        self._tables = Rotary(cos[:, order, None].movedim(2, 1), sin[:, order, None].movedim(2, 1))  # [L, 1, K]
        rows = _reordered_rows(config.width, config.heads).to(self.device)
        self.layers = [_layer(block, rows) for block in predictor.predictor_blocks]

    def tables(self, step: int, steps: int = 1) -> Rotary:
        """Rotary tables [steps * n, 1, K] of `steps` steps from `step` on."""
        return _slice(self._tables, step * self.tokens, (step + steps) * self.tokens)

    def conditioning(self, action: Tensor, state: Tensor, extrinsics: Tensor | None) -> Tensor:
        """Conditioning tokens [.., C, P] of actions and states [.., 7]."""
        return self.module.embed_conditioning(action, state, extrinsics)

    def read_out(self, x_BSGP: Tensor, before_BSGD: Tensor) -> Tensor:
        """Layer-normed next features [B, S, G, merge^2 D] from patch tokens and the (merged) features before."""
        z = apply(self.module.predictor_proj, self.module.predictor_norm(x_BSGP))
        if self.module.config.residual:
            z = z + before_BSGD
        return normalize(z.unflatten(-1, (self.merge**2, -1))).flatten(-2)


def imagine(
    predictor: ACPredictor,
    z_BTND: Tensor,
    state_BTA: Tensor,
    actions_BSHA: Tensor,
    extrinsics_BE: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    chunk: int | None = None,
    compiled: bool = False,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Layer-normed features [B, S, H, N, D] in the predictor's precision and states [B, S, H, 7] after each action.

    Past actions are recovered from consecutive context states; imagined states follow `pose.apply_action`.
    At most `chunk` candidates per episode go through the predictor together. With `compiled`, torch.compile fuses the
    layers' smaller operations; the first calls of each shape then take a minute. Each step attends to itself and the
    `window` - 1 steps before it, as if nothing had been before them; None: to all.
    """
    grid = predictor.check_features(z_BTND, grid)
    if window is not None:
        z_BTND, state_BTA = z_BTND[:, -window:], state_BTA[:, -window:]
    steps, horizon = z_BTND.shape[1], actions_BSHA.shape[2]
    longest = steps + horizon - 1
    prepared = Predictor(predictor, grid, longest if window is None else min(longest, window), compiled)
    z = merge_patches(z_BTND.to(prepared.device, prepared.dtype), grid, predictor.config.merge)
    context = _context(prepared, z, state_BTA, extrinsics_BE)
    shared = _SharedStep(prepared, z[:, -1], state_BTA[:, -1], extrinsics_BE, context, steps - 1)
    states = _states(state_BTA[:, -1], actions_BSHA)
    parts = [
        _imagine_chunk(shared, action, state[:, :, :-1], None if window is None else (z, state_BTA, window))
        for action, state in zip(_split(actions_BSHA, chunk), _split(states, chunk), strict=True)
    ]
    z_merged = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return split_patches(z_merged, grid, predictor.config.merge), states[:, :, 1:]


def _imagine_chunk(
    shared: _SharedStep,
    actions_BSHA: Tensor,
    states_BSHA: Tensor,
    bounded: tuple[Tensor, Tensor, int] | None,
) -> Tensor:
    """Merged features [B, S, H, G, merge^2 D]; `bounded` holds the context's features and states and the window."""
    prepared, (batch, samples, horizon) = shared.prepared, actions_BSHA.shape[:3]
    past = None if bounded is None or horizon == 1 else _Past(*bounded[:2], samples, bounded[2])
    x, cache = shared.run(actions_BSHA[:, :, 0], keep=horizon > 1 and past is None)
    z = [prepared.read_out(x.unflatten(0, (batch, samples)), shared.z_BGD[:, None])]
    extrinsics = None if shared.extrinsics is None else shared.extrinsics[:, None].expand(-1, samples, -1)
    camera = None if extrinsics is None else extrinsics.flatten(0, 1)
    for h in range(1, horizon):
        conditioning = prepared.conditioning(actions_BSHA[:, :, h], states_BSHA[:, :, h], extrinsics)
        tokens = torch.cat([conditioning, apply(prepared.module.predictor_embed, z[-1])], 2).flatten(0, 1)
        step = shared.step + h
        if past is not None:
            past.add(actions_BSHA[:, :, h - 1], z[-1], states_BSHA[:, :, h])
            step = past.z.shape[1] - 1
            cache = _context(prepared, past.z, past.states, camera, past.taken)
        keep = past is None and h < horizon - 1
        x, cache = prepared.run_layers(prepared, tokens, prepared.tables(step), cache, keep=keep)
        z.append(prepared.read_out(x.unflatten(0, (batch, samples)), z[-1]))
    return z[0].unsqueeze(2) if horizon == 1 else torch.stack(z, 2)


class _Past:
    """The frames and states that each candidate's next step may look back on, where a window bounds them."""

    def __init__(self, z_BTGD: Tensor, state_BTA: Tensor, samples: int, window: int) -> None:
        self.window = window
        self.z, self.states = _repeat(z_BTGD, samples), _repeat(state_BTA, samples)  # [B * S, T, ..]
        self.taken = action_between(self.states[:, :-1], self.states[:, 1:])

    def add(self, action: Tensor, z: Tensor, state: Tensor) -> None:
        """Append an action [B, S, 7] and the frame [B, S, G, D] and state [B, S, 7] that it led to."""
        self.taken, self.z, self.states = (
            torch.cat([old, new.flatten(0, 1).unsqueeze(1)], 1)
            for old, new in ((self.taken, action), (self.z, z), (self.states, state))
        )
        self.z, self.states = self.z[:, -self.window :], self.states[:, -self.window :]
        self.taken = self.taken[:, self.taken.shape[1] - self.z.shape[1] + 1 :]


def _context(
    prepared: Predictor,
    z_BTGD: Tensor,
    state_BTA: Tensor,
    extrinsics_BE: Tensor | None,
    taken_BTA: Tensor | None = None,
) -> list[KeysValues | None]:
    """Each layer's keys and values [B, M, L, K] of all context steps but the last; None where there are none.

    The actions `taken` between the T states are recovered from them where they are not given.
    """
    steps = z_BTGD.shape[1] - 1
    if steps == 0:
        return [None] * len(prepared.layers)
    past = action_between(state_BTA[:, :-1], state_BTA[:, 1:]) if taken_BTA is None else taken_BTA
    extrinsics = None if extrinsics_BE is None else extrinsics_BE[:, None].expand(-1, steps, -1)
    conditioning = prepared.conditioning(past, state_BTA[:, :-1], extrinsics)
    x = torch.cat([conditioning, prepared.module.predictor_embed(z_BTGD[:, :-1])], 2).flatten(1, 2)
    cache: list[KeysValues | None] = []
    for layer in prepared.layers:
        q, k, v = layer.project(x, prepared.tables(0, steps))
        cache.append((k, v))
        x = layer.finish(x, attend_block_causal(q, k, v, steps))
    return cache


class _SharedStep:
    """The first imagined step of B episodes: what all candidates share, computed once."""

    def __init__(
        self,
        prepared: Predictor,
        z_BGD: Tensor,
        state_BA: Tensor,
        extrinsics_BE: Tensor | None,
        context: list[KeysValues | None],
        step: int,
    ) -> None:
        self.prepared, self.z_BGD, self.extrinsics = prepared, z_BGD, extrinsics_BE
        self.context, self.step = context, step
        tokens = prepared.conditioning(torch.zeros_like(state_BA), state_BA, extrinsics_BE)[:, 1:]
        self.x = torch.cat([tokens, prepared.module.predictor_embed(z_BGD)], 1)  # [B, n - 1, P]
        self.q, self.k, self.v = prepared.layers[0].project(self.x, _slice(prepared.tables(step), 1))
        self.keys, self.values = _grow(context[0], (self.k, self.v))
        precise = torch.promote_types(self.q.dtype, torch.float32)
        logits = (self.q.to(precise) @ self.keys.to(precise).transpose(-1, -2)) * self.q.shape[-1] ** -0.5
        self.log_sum = logits.logsumexp(-1)  # [B, M, n - 1]
        self.attended = logits.softmax(-1).to(self.v.dtype) @ self.values  # [B, M, n - 1, K]

    def run(self, action_BSA: Tensor, keep: bool) -> tuple[Tensor, list[KeysValues | None]]:
        """Last layer's patch tokens [B * S, G, P] and, if kept, all layers' keys and values up to this step."""
        prepared, samples = self.prepared, action_BSA.shape[1]
        action = prepared.module.embed_actions(action_BSA)  # [B, S, P]
        x, grown = self._first_layer(action, keep)
        context = [None if pair is None else _repeat_pair(pair, samples) for pair in self.context[1:]]
        x, rest = prepared.run_layers(prepared, x, prepared.tables(self.step), context, keep, first=1)
        return x, [grown, *rest]

    def _first_layer(self, action_BSP: Tensor, keep: bool) -> tuple[Tensor, KeysValues | None]:
        layer, samples = self.prepared.layers[0], action_BSP.shape[1]
        q, k, v = layer.project(
            action_BSP.unsqueeze(2), _slice(self.prepared.tables(self.step), 0, 1)
        )  # [B, S, M, 1, K]
        # Softmax over the shared keys and the action's: a = sigmoid(q k_action - log sum exp of the shared logits).
        scale = k.shape[-1] ** -0.5
        logit = torch.einsum("bmik,bsmk->bsim", self.q * scale, k.squeeze(3)).to(self.log_sum.dtype)
        weight = torch.sigmoid(logit - self.log_sum.transpose(1, 2)[:, None]).to(v.dtype)  # [B, S, n - 1, M]
        shared = self.attended.transpose(1, 2)[:, None]  # [B, 1, n - 1, M, K]
        mixed = shared + weight.unsqueeze(-1) * (v.transpose(2, 3) - shared)
        own = self._action_attends(q, k, v)  # [B, S, M, 1, K]
        attended = torch.cat([own.transpose(2, 3), mixed], 2).flatten(0, 1).transpose(1, 2)
        x = torch.cat([action_BSP.unsqueeze(2), self.x[:, None].expand(-1, samples, -1, -1)], 2).flatten(0, 1)
        skip = self.prepared.module.conditioning if len(self.prepared.layers) == 1 else 0
        out = layer.finish(x[:, skip:], attended[:, :, skip:])
        if not keep:
            return out, None
        fresh = tuple(torch.cat([a.flatten(0, 1), _repeat(s, samples)], 2) for a, s in ((k, self.k), (v, self.v)))
        context = None if self.context[0] is None else _repeat_pair(self.context[0], samples)
        return out, _grow(context, (fresh[0], fresh[1]))

    def _action_attends(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the action tokens read [B, S, M, 1, K] from the shared tokens and themselves."""
        scale = q.shape[-1] ** -0.5
        to_shared = torch.einsum("bsmik,bmjk->bsmij", q * scale, self.keys)
        to_self = (q * scale * k).sum(-1, keepdim=True)
        weights = torch.cat([to_shared, to_self], -1).softmax(-1)
        return torch.einsum("bsmij,bmjk->bsmik", weights[..., :-1], self.values) + weights[..., -1:] * v


def _run_layers(
    prepared: Predictor,
    x: Tensor,
    rotary: Rotary,
    cache: list[KeysValues | None],
    keep: bool,
    first: int = 0,
) -> tuple[Tensor, list[KeysValues | None]]:
    """Layers from `first` on over one step's tokens [B * S, n, P]: patch tokens of the last, and the grown caches."""
    layers = prepared.layers[first:]
    grown: list[KeysValues | None] = []
    for i, (layer, earlier) in enumerate(zip(layers, cache, strict=True)):
        q, k, v = layer.project(x, rotary)
        k, v = _grow(earlier, (k, v))
        grown.append((k, v) if keep else None)
        if i == len(layers) - 1:
            q, x = q[:, :, prepared.module.conditioning :], x[:, prepared.module.conditioning :]
        x = layer.finish(x, attend(q, k, v))
    return x, grown


@lru_cache(maxsize=1)
def _compiled_layers() -> Callable[..., tuple[Tensor, list[KeysValues | None]]]:
    return torch.compile(_run_layers)


def check_compiler(device: torch.device) -> None:
    """A ValueError where torch.compile would look for a C++ compiler in vain."""
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise ValueError("compile needs a C++ compiler on a CPU; install g++, or leave it out")


def _states(state_BA: Tensor, actions_BSHA: Tensor) -> Tensor:
    """States [B, S, H + 1, 7]: the present one and those after each action."""
    states = [state_BA[:, None].expand(-1, actions_BSHA.shape[1], -1)]
    for action in actions_BSHA.unbind(2):
        states.append(apply_action(states[-1], action))
    return torch.stack(states, 2)


def _layer(block: torch.nn.Module, rows: Tensor) -> Layer:
    assert isinstance(block, Block)
    return Layer(block, block.attn.qkv.weight[rows], block.attn.qkv.bias[rows])


def _halves_order(head_dim: int) -> Tensor:
    """A head's channels with the even ones of all pairs first, then the odd ones, then what belongs to no pair."""
    paired = head_dim // 2 * 2
    return torch.cat([torch.arange(0, paired, 2), torch.arange(1, paired, 2), torch.arange(paired, head_dim)])


def _reordered_rows(width: int, heads: int) -> Tensor:
    """Rows of the query/key/value weight with queries' and keys' channels in `_halves_order` in each head."""
    rows = torch.arange(3 * width).view(3, heads, -1)
    rows[:2] = rows[:2, :, _halves_order(width // heads)]
    return rows.flatten()


def _rotate_halves(x: Tensor, rotary: Rotary) -> Tensor:
    """`blocks.rotate` for tokens [.., N, 2, M, K] in `_halves_order`; tables [N, 1, K]."""
    cos, sin = rotary.cos[:, None], rotary.sin[:, None]
    half = x.shape[-1] // 2
    even, odd = slice(0, half), slice(half, 2 * half)
    turned = x * cos
    turned[..., even].addcmul_(x[..., odd], sin[..., even])
    turned[..., odd].addcmul_(x[..., even], sin[..., odd])
    return turned


def _slice(rotary: Rotary, start: int, stop: int | None = None) -> Rotary:
    return Rotary(rotary.cos[start:stop], rotary.sin[start:stop])


def _split(x: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
    return x.split(chunk or x.shape[1], dim=1)


def _grow(earlier: KeysValues | None, new: KeysValues) -> KeysValues:
    """Keys and values of earlier steps, then the new ones."""
    if earlier is None:
        return new
    return torch.cat([earlier[0], new[0]], 2), torch.cat([earlier[1], new[1]], 2)


def _repeat(x: Tensor, times: int) -> Tensor:
    """[B, ...] -> [B * times, ...], each episode's part `times` times."""
    return x.unsqueeze(1).expand(-1, times, *x.shape[1:]).flatten(0, 1)


def _repeat_pair(pair: KeysValues, times: int) -> KeysValues:
    return _repeat(pair[0], times), _repeat(pair[1], times)
