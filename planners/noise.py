"""Standard-normal draws for sampling planners: independent, mirrored, low-discrepancy, orthogonal, coloured in time.

All return float32 [B, S, H, P] from a seeded `torch.Generator` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Shape = tuple[int, int, int, int]  # B episodes, S samples, H steps, P planned dimensions
NoiseSource = Callable[[int, Shape, torch.Generator], Tensor]  # (iteration, shape, generator) -> [B, S, H, P]
NoiseKind = Literal["gaussian", "antithetic", "sobol", "orthogonal"]


def gaussian(shape: Shape, generator: torch.Generator) -> Tensor:
    """Independent standard-normal draws."""
    return torch.randn(shape, generator=generator, device=generator.device)


def antithetic(shape: Shape, generator: torch.Generator) -> Tensor:
    """Half the samples and their mirror images: the sample mean is exactly 0 for even S."""
    batch, samples, *rest = shape
    half = torch.randn((batch, (samples + 1) // 2, *rest), generator=generator, device=generator.device)
    return torch.cat([half, -half], 1)[:, :samples]


def sobol(shape: Shape, generator: torch.Generator) -> Tensor:
    """Scrambled Sobol points through the normal quantile function: even coverage of H * P dimensions."""
    batch, samples, steps, planned = shape
    seeds = torch.randint(2**31 - 1, (batch,), generator=generator, device=generator.device).tolist()
    points = torch.stack(
        [torch.quasirandom.SobolEngine(steps * planned, scramble=True, seed=seed).draw(samples) for seed in seeds]
    )
    inside = points.clamp(1e-6, 1 - 1e-6).to(generator.device)  # 0 and 1 have infinite quantiles
    return (math.sqrt(2) * torch.erfinv(2 * inside - 1)).view(shape)


def orthogonal(shape: Shape, generator: torch.Generator) -> Tensor:
    """Blocks of mutually orthogonal directions in H * P dimensions, with the lengths of independent normal vectors."""
    batch, samples, steps, planned = shape
    size = steps * planned
    blocks = -(-samples // size)
    draw = torch.randn((2, batch, blocks, size, size), generator=generator, device=generator.device)
    q, r = torch.linalg.qr(draw[0])
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # makes q uniform over rotations
    lengths = torch.linalg.vector_norm(draw[1], dim=-1, keepdim=True)
    return (q * lengths).reshape(batch, blocks * size, steps, planned)[:, :samples]


def coloured(shape: Shape, exponent: float, generator: torch.Generator) -> Tensor:
    """Noise along H with power spectrum f^-exponent and unit variance: 0 white, 1 pink, 2 red.

    The spectrum's draws are scaled so that each step's variance is 1; the constant (zero-frequency) part takes the
    scale of the lowest frequency, so that a plan may also drift one way throughout.
    """
    batch, samples, steps, planned = shape
    if steps == 1 or exponent == 0:
        return gaussian(shape, generator)
    frequencies = torch.fft.rfftfreq(steps, device=generator.device)
    frequencies[0] = frequencies[1]
    scale = frequencies ** (-exponent / 2)
    parts = torch.randn((2, batch, samples, planned, len(scale)), generator=generator, device=generator.device)
    imaginary = parts[1].clone()
    # A real signal's constant part, and for even H its highest frequency, are real: they carry all their variance
    # in the real part (a factor sqrt 2, since other frequencies have two parts).
    real_only = [0] if steps % 2 else [0, -1]
    imaginary[..., real_only] = 0
    real = parts[0].clone()
    real[..., real_only] *= math.sqrt(2)
    signal = torch.fft.irfft(torch.complex(real, imaginary) * scale, n=steps, dim=-1)
    return (signal / _signal_std(scale, steps)).transpose(-1, -2).contiguous()


def _signal_std(scale: Tensor, steps: int) -> float:
    """Standard deviation of every step of `irfft(scale * draws)` for the draws made in `coloured`."""
    counts = torch.full_like(scale, 4.0)  # (2 cos)^2 + (2 sin)^2 = 4 over both parts of a two-sided frequency
    counts[0] = 2.0
    if steps % 2 == 0:
        counts[-1] = 2.0
    return float((counts * scale**2).sum().sqrt()) / steps


NOISE: dict[str, Callable[[Shape, torch.Generator], Tensor]] = {
    "gaussian": gaussian,
    "antithetic": antithetic,
    "sobol": sobol,
    "orthogonal": orthogonal,
}
