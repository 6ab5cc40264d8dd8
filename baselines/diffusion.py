"""A diffusion head for actions: noise prediction with 20 steps in the shape of Octo's head (arXiv 2405.12213).

Shapes: B samples (any leading shape), E width of the condition, A flattened action (chunk * 7), S diffusion steps.
The forward process is x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps; a network predicts eps from (x_s, s, condition),
trained by the mean square; sampling runs the ancestral (DDPM) recursion from x_S ~ N(0, 1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIMIT = 5.0  # actions in units of their deviation are clipped here, in training and in sampling
TIME_FEATURES = 32


def cosine_betas(steps: int, offset: float = 0.008) -> Tensor:
    """Noise variances beta_s [S] of the cosine schedule (Nichol and Dhariwal, arXiv 2102.09672), at most 0.999."""
    if steps < 1:
        raise ValueError(f"diffusion needs at least 1 step, got {steps}")
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999).float()


class FourierTime(nn.Module):
    """Learned Fourier features [..., 32] of the diffusion step [..., 1]: cos and sin of 2 pi w s."""

    def __init__(self, size: int = TIME_FEATURES) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(size // 2, 1))

    def forward(self, step: Tensor) -> Tensor:
        angle = 2 * math.pi * F.linear(step, self.weight)
        return torch.cat([angle.cos(), angle.sin()], -1)


class ResidualMLP(nn.Module):
    """x + Linear(swish(Linear(LayerNorm(x)))), four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.silu(self.fc1(self.norm(x))))


class DiffusionHead(nn.Module):
    """p(action | condition) as a denoising diffusion.

    Args:
        condition: E.
        actions: A.
        steps: S.
        width, blocks: Of the residual MLP (3 blocks of 256 in Octo).
    """

    alphas_kept: Tensor
    betas: Tensor

    def __init__(self, condition: int, actions: int, steps: int = 20, width: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.actions, self.steps = actions, steps
        self.time = FourierTime()
        self.time_mlp = nn.Sequential(
            nn.Linear(TIME_FEATURES, 2 * TIME_FEATURES), nn.SiLU(), nn.Linear(2 * TIME_FEATURES, TIME_FEATURES)
        )
        self.enter = nn.Linear(TIME_FEATURES + condition + actions, width)
        self.blocks = nn.Sequential(*(ResidualMLP(width) for _ in range(blocks)))
        self.leave = nn.Linear(width, actions)
        betas = cosine_betas(steps)
        self.register_buffer("betas", betas, persistent=False)
        self.register_buffer("alphas_kept", torch.cumprod(1 - betas, 0), persistent=False)

    def forward(self, noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """The noise [..., A] in `noisy` [..., A] at diffusion steps [...] (0 ... S - 1), given [..., E]."""
        time = self.time_mlp(self.time(step[..., None].to(noisy.dtype)))
        x = self.enter(torch.cat([time, condition, noisy], -1))
        return self.leave(F.silu(self.blocks(x)))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random diffusion steps int64 [*shape] and noise [*shape, A] for `errors`, on the generator's device."""
        step = torch.randint(self.steps, shape, generator=generator)
        return step, torch.randn((*shape, self.actions), generator=generator)

    def errors(self, condition: Tensor, actions: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Squared errors [..., A] of the predicted noise, for clean actions [..., A] noised by `draw`'s values."""
        kept = self.alphas_kept[step][..., None]
        noisy = kept.sqrt() * actions.clamp(-LIMIT, LIMIT) + (1 - kept).sqrt() * noise
        return (self(noisy, step, condition).float() - noise) ** 2

    @torch.no_grad()
    def sample(self, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions [..., A] drawn given [..., E].

        Each step goes by way of the clean actions x_0 = (x_s - sqrt(1 - abar_s) eps) / sqrt(abar_s), clipped to +-5, to
        the mean of p(x_(s-1) | x_s, x_0). With an exact eps that is the usual recursion. Clipping x_s instead, as Octo
        does, lets the first step (beta = 0.999) blow an error of eps up by 1 / sqrt(1 - beta) = 32 and leaves noise
        levels that training never showed: a policy trained for minutes then draws far worse than it predicts.
        """
        shape, device = (*condition.shape[:-1], self.actions), condition.device
        x = torch.randn(shape, generator=generator).to(device)
        for s in reversed(range(self.steps)):
            step = torch.full(shape[:-1], s, device=device)
            noise = self(x, step, condition).float()
            beta, kept = self.betas[s], self.alphas_kept[s]
            clean = ((x - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-LIMIT, LIMIT)
            if s == 0:
                return clean
            before = self.alphas_kept[s - 1]
            mean = (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * x) / (1 - kept)
            x = mean + beta.sqrt() * torch.randn(shape, generator=generator).to(device)
        raise AssertionError("the loop ends at step 0")
