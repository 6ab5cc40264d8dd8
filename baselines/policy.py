"""The goal-conditioned policy shared by the Octo-style baseline and by behaviour cloning on frozen features.

Legend: B samples, T window of observations, H x W pixels, N patches, D features per patch, P width, K chunk length,
L tokens in all. Per step there are N patch tokens, with proprioception one state token, and one readout token; the
readout sees all tokens of its own and earlier steps and is seen by none but itself. The diffusion head turns each
step's readout into K actions.

Octo-style (facts after arXiv 2405.12213): the goal image is stacked with each frame channel-wise and goes through a
weight-standardised convolutional stem. On frozen features the stem is a linear map of (frame, goal) per patch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.baselines.diffusion import DiffusionHead
from armworld.pose import euler_to_matrix
from armworld.types import check_name
from armworld.worldmodel.blocks import LAYER_NORM_EPS, MLP, attend

STATE_FEATURES = 10  # position (3), first two columns of the rotation (6), closedness (1)
STEM_STRIDE = 16  # pixels per patch side: four convolutions of stride 2


@dataclass(frozen=True)
class PolicyConfig:
    """A policy network.

    Attributes:
        width, depth, heads: Of the transformer.
        stem: Channels of the four convolutions; empty for a policy on frozen features.
        features: D of frozen features; 0 for a policy on pixels.
        patches: N.
        proprioception: Whether a token holds the arm's state and the goal's.
        window: T, observations seen.
        chunk: K, actions predicted.
        diffusion_steps, head_width, head_blocks: Of the diffusion head.
        action_mean, action_std: z-score of actions [7] (m, rad, closedness); gripper: 0 and 1.
        state_mean, state_std: z-score of positions [3] (m).
    """

    width: int
    depth: int
    heads: int
    patches: int
    stem: tuple[int, ...] = ()
    features: int = 0
    proprioception: bool = True
    window: int = 2
    chunk: int = 4
    diffusion_steps: int = 20
    head_width: int = 256
    head_blocks: int = 3
    action_mean: tuple[float, ...] = (0.0,) * 7
    action_std: tuple[float, ...] = (1.0,) * 7
    state_mean: tuple[float, ...] = (0.0,) * 3
    state_std: tuple[float, ...] = (1.0,) * 3

    def __post_init__(self) -> None:
        if bool(self.stem) == bool(self.features) or len(self.stem) not in (0, 4):
            raise ValueError(
                f"a policy reads pixels through 4 stem channels or frozen features, one of both; "
                f"got stem {self.stem} and features {self.features}"
            )
        if self.width % self.heads or min(self.window, self.chunk, self.depth, self.patches) < 1:
            raise ValueError(f"need width % heads == 0 and positive window, chunk, depth and patches, got {self}")
        if len(self.action_mean) != 7 or len(self.action_std) != 7:
            raise ValueError(f"action_mean and action_std need 7 values, got {self.action_mean}, {self.action_std}")


SIZES = {
    "debug": {"width": 32, "depth": 2, "heads": 2, "stem": (8, 8, 16, 16), "head_width": 64},
    "cpu": {"width": 128, "depth": 3, "heads": 4, "stem": (16, 32, 64, 128)},
    "octo-small": {"width": 384, "depth": 12, "heads": 6, "stem": (32, 96, 192, 384)},
    "octo-base": {"width": 768, "depth": 12, "heads": 12, "stem": (32, 96, 192, 384)},
}


def policy_config(size: str, patches: int, features: int = 0) -> PolicyConfig:
    """The configuration of a size by name, on pixels or, with `features` > 0, on frozen features of that width."""
    config = PolicyConfig(patches=patches, **SIZES[check_name("policy size", size, SIZES)])  # type: ignore[arg-type]
    return replace(config, stem=(), features=features) if features else config


class StandardConv(nn.Conv2d):
    """A convolution whose kernels are shifted and scaled to zero mean and unit variance per output channel."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        std = weight.var((1, 2, 3), keepdim=True, correction=0).add(1e-5).sqrt()
        return self._conv_forward(input, (weight - mean) / std, self.bias)


class ConvStem(nn.Module):
    """Frame and goal, stacked channel-wise, to patch tokens: four strided 3 x 3 convolutions, then a 1 x 1 one."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        sizes = (6, *channels)
        self.convs = nn.ModuleList(
            StandardConv(sizes[i], sizes[i + 1], 3, stride=2, padding=1) for i in range(len(channels))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(_groups(c), c) for c in channels)
        self.proj = nn.Conv2d(channels[-1], width, 1)

    def forward(self, frames: Tensor, goals: Tensor) -> Tensor:
        """uint8 or [0, 255] float [B, 3, H, W] each -> [B, N, P]."""
        kind = frames.device.type  # the largest tensors of all: cast before they are computed with
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        x = torch.cat([frames.to(dtype), goals.to(dtype)], 1).div_(127.5).sub_(1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)), inplace=True)
        return self.proj(x).flatten(2).transpose(1, 2)


def _groups(channels: int) -> int:
    """32 groups as usual, fewer where they would hold fewer than 4 channels or not divide."""
    return next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and channels // g >= min(4, channels))


class FeatureStem(nn.Module):
    """Frozen features of frame and goal, stacked per patch, to tokens."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * features, width)

    def forward(self, frames: Tensor, goals: Tensor) -> Tensor:
        """[B, N, D] each -> [B, N, P]."""
        return self.proj(torch.cat([frames.float(), goals.float()], -1))


class MaskedBlock(nn.Module):
    """A pre-norm transformer block with learned positions elsewhere and an explicit mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, mask: Tensor, rows: slice = slice(None)) -> Tensor:
        """Tokens [B, L, P] -> those of `rows`; mask bool [B, 1, L, L], True where the row may read the column."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        read = attend(q[:, :, rows], k, v, mask[:, :, rows]).transpose(1, 2).flatten(2)
        x = x[:, rows] + self.proj(read)
        return x + self.mlp(self.norm2(x))


def token_mask(valid: Tensor, tokens_per_step: int) -> Tensor:
    """Who reads whom, bool [B, 1, L, L], L = T * tokens_per_step; the last token of a step is its readout.

    A token reads its own and earlier steps, never a readout but itself, and never a step that `valid` [B, T] says is
    padding (from before the episode), unless it belongs to that step.
    """
    steps = valid.shape[1]
    step = torch.arange(steps, device=valid.device).repeat_interleave(tokens_per_step)
    readout = (torch.arange(len(step), device=valid.device) + 1) % tokens_per_step == 0
    same = torch.eye(len(step), dtype=torch.bool, device=valid.device)
    allowed = (step[:, None] >= step[None]) & (~readout[None] | same)
    seen = valid[:, step][:, None] | (step[:, None] == step[None])[None]
    return (allowed[None] & seen)[:, None]


def state_features(state: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Arm states [..., 7] as [..., 10] without the jump of Euler angles at +-pi; positions z-scored."""
    rotation = euler_to_matrix(state[..., 3:6])[..., :2].flatten(-2)
    return torch.cat([(state[..., :3] - mean) / std, rotation, state[..., 6:]], -1)


class Policy(nn.Module):
    """Observations and goal to a distribution over action chunks."""

    action_mean: Tensor
    action_std: Tensor
    state_mean: Tensor
    state_std: Tensor

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = ConvStem(config.stem, width) if config.stem else FeatureStem(config.features, width)
        self.state_embed = nn.Linear(2 * STATE_FEATURES, width) if config.proprioception else None
        self.tokens_per_step = config.patches + int(config.proprioception) + 1
        self.readout = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, config.window, self.tokens_per_step, width))
        self.blocks = nn.ModuleList(MaskedBlock(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.head = DiffusionHead(
            width, 7 * config.chunk, config.diffusion_steps, config.head_width, config.head_blocks
        )
        nn.init.normal_(self.positions, std=0.02)
        for name in ("action_mean", "action_std", "state_mean", "state_std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)), persistent=False)

    def readouts(self, frames: Tensor, goal: Tensor, states: Tensor, goal_state: Tensor, valid: Tensor) -> Tensor:
        """Readouts [B, T, P].

        Args:
            frames: Pixels [B, T, 3, H, W] (0 ... 255), or frozen features [B, T, N, D].
            goal: [B, 3, H, W] or [B, N, D].
            states, goal_state: [B, T, 7] and [B, 7]; not read without proprioception.
            valid: bool [B, T]; False where the window reaches back before the episode.
        """
        batch, steps = frames.shape[:2]
        repeated = goal[:, None].expand_as(frames)
        tokens = [self.stem(frames.flatten(0, 1), repeated.flatten(0, 1)).unflatten(0, (batch, steps))]
        if tokens[0].shape[2] != self.config.patches:
            raise ValueError(f"this policy reads {self.config.patches} patches, got {tokens[0].shape[2]}")
        if self.state_embed is not None:
            both = torch.stack([states, goal_state[:, None].expand_as(states)], -2)
            described = state_features(both, self.state_mean, self.state_std)
            tokens.append(self.state_embed(described.flatten(-2))[:, :, None])
        tokens.append(self.readout.expand(batch, steps, -1, -1))
        x = (torch.cat(tokens, 2) + self.positions[:, -steps:]).flatten(1, 2)
        mask = token_mask(valid, self.tokens_per_step)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        readouts = slice(self.tokens_per_step - 1, None, self.tokens_per_step)  # nothing else leaves the last block
        return self.norm(self.blocks[-1](x, mask, readouts))

    def forward(self, batch: Batch, step: Tensor, noise: Tensor) -> Tensor:
        """The diffusion loss: mean squared error of the noise over the actions that count.

        Args:
            batch: Samples.
            step, noise: Diffusion steps [B, T, R] and noise [B, T, R, K * 7], see `DiffusionHead.draw`; R draws per
                readout, for one pass of the costly transformer.
        """
        condition = self.readouts(batch.frames, batch.goal, batch.states, batch.goal_state, batch.valid)
        actions = self.normalise(batch.actions).flatten(2)
        condition, actions = (part[:, :, None].expand(-1, -1, step.shape[2], -1) for part in (condition, actions))
        errors = self.head.errors(condition, actions, step, noise).mean(2).unflatten(-1, (self.config.chunk, 7))
        weight = (batch.mask & batch.valid[..., None]).float()[..., None]
        return (errors * weight).sum() / (7 * weight.sum()).clamp_min(1)

    @torch.no_grad()
    def act(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Action chunks [B, K, 7] (m, rad, closedness) drawn for the latest observation; `actions` is not read."""
        condition = self.readouts(batch.frames, batch.goal, batch.states, batch.goal_state, batch.valid)[:, -1]
        drawn = self.head.sample(condition.float(), generator).unflatten(-1, (self.config.chunk, 7))
        return drawn * self.action_std + self.action_mean

    def normalise(self, actions: Tensor) -> Tensor:
        """z-scores of actions [..., 7]; the gripper's delta stays as it is."""
        return (actions - self.action_mean) / self.action_std


@dataclass(frozen=True)
class Batch:
    """What a policy is shown, and what it should do.

    Attributes:
        frames: Pixels [B, T, 3, H, W] (0 ... 255) or features [B, T, N, D].
        goal: [B, 3, H, W] or [B, N, D].
        states, goal_state: [B, T, 7], [B, 7].
        valid: bool [B, T].
        actions: [B, T, K, 7], from each step of the window.
        mask: bool [B, T, K], actions that count.
    """

    frames: Tensor
    goal: Tensor
    states: Tensor
    goal_state: Tensor
    valid: Tensor
    actions: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same elsewhere."""
        return Batch(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    def __getitem__(self, part: slice) -> Batch:
        return Batch(**{name: getattr(self, name)[part] for name in self.__dataclass_fields__})
