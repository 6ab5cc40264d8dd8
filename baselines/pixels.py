"""A world model of pixels, in the role that Cosmos plays in the V-JEPA 2 paper: the same planner, energy in pixels.

A convolutional encoder turns a frame into a latent map, a residual convolutional predictor, modulated by the action and
the arm's state, turns it into the next one, and a decoder turns it back into a frame. All three are trained together on
the L1 distance of pixels: of the frame itself, of the next one, and of the one after it from the model's own latent.
It is deterministic (no diffusion), small, and of the size of the latent model that it is compared with.

For planners "features" are the pixels: [B, T, N, D] with N patches of 16 x 16 and D = 768 colour values, in units of
`PIXEL_UNIT`, so that the planners' L1 energy is the mean absolute difference of pixels.

Legend: B episodes, S candidates, H imagined steps, C latent channels, h x w = H/8 x W/8 latent map.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armworld.baselines.policy import STATE_FEATURES, state_features
from armworld.pose import apply_action
from armworld.types import check_numbers
from armworld.worldmodel.checkpoint import config_from_json, load_strictly, read_parts, resolve
from armworld.worldmodel.model import Rollout, WorldModelConfig
from armworld.worldmodel.sizes import PATCH

PIXEL_UNIT = 64.0  # grey levels that count as 1 in features: about the deviation of our frames
CHUNK = 64  # candidates per pass
GROUPS = 4  # of channels that are normalised together


@dataclass(frozen=True)
class PixelModelConfig:
    """A pixel-space world model.

    Attributes:
        channels: C, of the latent map.
        blocks: Residual blocks of the predictor.
        stem: Channels of the encoder's first two convolutions, and of the decoder's last two in reverse.
        action_scale: Actions [7] are multiplied by this before the network sees them.
        state_mean, state_std: z-score of positions [3] (m).
    """

    channels: int = 64
    blocks: int = 6
    stem: tuple[int, int] = (24, 48)
    action_scale: tuple[float, ...] = (20.0, 20.0, 20.0, 5.0, 5.0, 5.0, 2.0)
    state_mean: tuple[float, ...] = (0.5, 0.0, 0.35)
    state_std: tuple[float, ...] = (0.1, 0.15, 0.1)

    def __post_init__(self) -> None:
        check_numbers(self, "channels", "blocks", least=1)
        if self.channels % GROUPS:
            raise ValueError(f"channels must be a multiple of {GROUPS}, got {self.channels}")
        if min(self.stem) < 1 or len(self.action_scale) != 7:
            raise ValueError(f"need positive stem channels and 7 action scales, got {self.stem}, {self.action_scale}")


class ModulatedBlock(nn.Module):
    """A residual block whose normalised map is scaled and shifted per channel by the condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition)[..., None, None].chunk(2, 1)
        return x + self.conv2(F.silu(self.conv1(self.norm(x) * (1 + scale) + shift)))


class PixelNetwork(nn.Module):
    """Encoder, predictor and decoder; frames are [B, 3, H, W] in [-1, 1]."""

    state_mean: Tensor
    state_std: Tensor
    action_scale: Tensor

    def __init__(self, config: PixelModelConfig) -> None:
        super().__init__()
        self.config = config
        (a, b), c = config.stem, config.channels
        self.encode = nn.Sequential(
            nn.Conv2d(3, a, 4, 2, 1), nn.SiLU(), nn.Conv2d(a, b, 4, 2, 1), nn.SiLU(), nn.Conv2d(b, c, 4, 2, 1)
        )
        self.decode = nn.Sequential(
            nn.Conv2d(c, 4 * b, 3, padding=1), nn.PixelShuffle(2), nn.SiLU(),
            nn.Conv2d(b, 4 * a, 3, padding=1), nn.PixelShuffle(2), nn.SiLU(),
            nn.Conv2d(a, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip
        condition = 2 * c
        self.condition = nn.Sequential(nn.Linear(7 + STATE_FEATURES, condition), nn.SiLU())
        # Where the arm is in the picture follows from its state only if a place knows where it is.
        self.place = nn.Conv2d(2, c, 1)
        self.blocks = nn.ModuleList(ModulatedBlock(c, condition) for _ in range(config.blocks))
        self.leave = nn.Conv2d(c, c, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        for name in ("action_scale", "state_mean", "state_std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)), persistent=False)

    def step(self, latent: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """The next latent map [B, C, h, w], from the present one, the arm's state [B, 7] and an action [B, 7]."""
        described = state_features(state, self.state_mean, self.state_std)
        condition = self.condition(torch.cat([action * self.action_scale, described], -1))
        rows, columns = (torch.linspace(-1, 1, n, device=latent.device) for n in latent.shape[-2:])
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
        x = latent + self.place(grid)
        for block in self.blocks:
            x = block(x, condition)
        return latent + self.leave(F.silu(x))

    def forward(self, frames: Tensor, states: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Losses in grey levels over 127.5, for clips [B, T, 3, H, W], states [B, T, 7] and actions [B, T-1, 7].

        `copied`: of the frames themselves; `forced`: one step ahead; `rollout`: T - 1 steps on own latents.
        """
        steps = frames.shape[1] - 1
        latents = self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        copied = F.l1_loss(self.decode(latents.flatten(0, 1)).unflatten(0, frames.shape[:2]), frames)
        ahead = self.step(latents[:, :-1].flatten(0, 1), states[:, :-1].flatten(0, 1), actions.flatten(0, 1))
        forced = F.l1_loss(self.decode(ahead).unflatten(0, (-1, steps)), frames[:, 1:])
        parts = {"copied": copied, "forced": forced}
        latent = ahead.unflatten(0, (-1, steps))[:, 0]
        for step in range(1, steps):
            latent = self.step(latent, states[:, step], actions[:, step])
        if steps > 1:
            parts["rollout"] = F.l1_loss(self.decode(latent), frames[:, -1])
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).movedim(-1, -3)


def to_patches(frames: Tensor) -> Tensor:
    """Frames [..., 3, H, W] in [-1, 1] -> features [..., N, 768] in units of `PIXEL_UNIT`."""
    x = frames.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # [..., 3, rows, 16, columns, 16]
    return x.movedim(-5, -1).movedim(-4, -3).flatten(-3).flatten(-3, -2) * (127.5 / PIXEL_UNIT)


def to_frames(features: Tensor, height: int, width: int) -> Tensor:
    """Features [..., N, 768] -> frames uint8 [..., H, W, 3]: what the model imagined."""
    rows, columns = height // PATCH, width // PATCH
    x = (features * PIXEL_UNIT + 127.5).round().clamp(0, 255).to(torch.uint8)
    x = x.unflatten(-1, (PATCH, PATCH, 3)).unflatten(-4, (rows, columns))
    return x.movedim(-4, -3).flatten(-5, -4).flatten(-3, -2)


class PixelWorldModel:
    """A trained pixel network as a `WorldModel` (see `worldmodel.model`)."""

    def __init__(self, network: PixelNetwork, config: WorldModelConfig) -> None:
        self.network, self.config = network.eval(), config
        self.step_seconds, self.image_size, self.camera = config.step_seconds, config.image_size, config.camera

    @torch.no_grad()
    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] of the configured size -> pixels as features [B, T, N, 768]."""
        frames = torch.as_tensor(images)
        if frames.ndim != 5 or frames.dtype != torch.uint8 or tuple(frames.shape[2:]) != (*self.image_size, 3):
            raise ValueError(
                f"images must be uint8 [B, T, {self.image_size[0]}, {self.image_size[1]}, 3], "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        return to_patches(to_unit(frames.to(self.network.action_scale.device)))

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        """Imagined pixels [B, S, H, N, 768] and states; only the latest frame of the context is used.

        Differentiable with respect to the actions.
        """
        if actions.ndim != 4 or actions.shape[0] != len(z) or actions.shape[3] != 7 or 0 in actions.shape:
            raise ValueError(f"actions must be [{len(z)}, S, H, 7] with S, H >= 1, got {list(actions.shape)}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and actions.requires_grad):
            height, width = self.image_size
            seen = to_frames(z[:, -1], height, width)  # exact: features are pixels
            latent = self.network.encode(to_unit(seen))
            pieces = [self._imagine(latent, state[:, -1], part) for part in actions.split(CHUNK, 1)]
            return Rollout(*(torch.cat(parts, 1) for parts in zip(*pieces, strict=True)))

    def _imagine(self, latent: Tensor, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        batch, count, horizon = actions.shape[:3]
        latent = latent.repeat_interleave(count, 0)
        state = state.repeat_interleave(count, 0)
        frames, states = [], []
        for step in range(horizon):
            action = actions[:, :, step].flatten(0, 1).to(latent)
            latent = self.network.step(latent, state, action)
            state = apply_action(state, action)
            frames.append(to_patches(self.network.decode(latent).clamp(-1, 1)))
            states.append(state)
        return _stack(frames, batch), _stack(states, batch)


def _stack(steps: list[Tensor], batch: int) -> Tensor:
    """Steps of [B * S, ...] as [B, S, H, ...]."""
    return torch.stack(steps, 1).unflatten(0, (batch, -1))


def load_pixel_model(name_or_path: str | Path) -> PixelWorldModel:
    """Read a pixel-space world model's checkpoint folder.

    Raises:
        ValueError: No such checkpoint, one of another kind, or weights that do not fit.
    """
    folder = resolve(name_or_path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a checkpoint folder")
    document, weights = read_parts(folder)
    if "pixels" not in document:
        raise ValueError(f"{folder} holds no pixel-space world model; train one with: armworld pixels")
    network = PixelNetwork(config_from_json(PixelModelConfig, document["pixels"], f"{folder}: pixels"))
    own: dict[str, Any] = {key.removeprefix("pixels."): value for key, value in weights.items()}
    load_strictly(network, own, f"{folder}: pixels").requires_grad_(False)
    return PixelWorldModel(network, config_from_json(WorldModelConfig, document["world_model"], str(folder)))
