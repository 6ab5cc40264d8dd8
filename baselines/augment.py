"""Image augmentation: one random crop and one change of colours per sample, the same for its frames and its goal.

Sharing the draw keeps frames and goal comparable, which a goal-conditioned policy lives on. Ranges are Octo's: crop
area 0.8 ... 1, brightness +-0.1, contrast and saturation 0.9 ... 1.1, hue +-0.05 of a turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# RGB to luma and two chroma axes (the YIQ space of NTSC): hue is an angle, saturation a radius in the chroma plane.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the draws; `aspect` bounds the crop's width over height and its inverse."""

    area: float = 0.8
    aspect: float = 1.1
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.05


class Draws(NamedTuple):
    """Affine maps [B, 2, 3] from crop to image, colour maps [B, 3, 3], brightness offsets [B]."""

    crops: Tensor
    colours: Tensor
    brightness: Tensor


def draw_augmentation(batch: int, generator: torch.Generator, ranges: Augmentation | None = None) -> Draws:
    """Random changes for a batch, on the generator's device."""
    ranges = ranges or Augmentation()
    return Draws(random_crops(batch, generator, ranges), *random_colours(batch, generator, ranges))


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Images [B, M, 3, H, W] (0 ... 255), changed alike over M -> float32 of the same shape and range."""
    batch, count, _, height, width = images.shape
    crops, colours, brightness = (part.to(images.device) for part in draws)
    flat = images.flatten(1, 2).float()  # one crop for all channels of a sample
    grid = F.affine_grid(crops, [batch, 3 * count, height, width], align_corners=False)
    cropped = F.grid_sample(flat, grid, align_corners=False, padding_mode="border")
    grey = 0.5 - 0.5 * colours.sum(-1) + brightness[:, None]  # colours turn about mid-grey
    pixels = cropped.unflatten(1, (count, 3)).flatten(3)
    return (colours[:, None] @ pixels + 255 * grey[:, None, :, None]).clamp_(0, 255).view(images.shape)


def random_crops(batch: int, generator: torch.Generator, ranges: Augmentation) -> Tensor:
    """Affine maps [B, 2, 3] from the crop to the image, in units of half the image; the crop lies inside."""
    area = _uniform(batch, ranges.area, 1.0, generator)
    stretch = _uniform(batch, -math.log(ranges.aspect), math.log(ranges.aspect), generator).exp().sqrt()
    width, height = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)
    shift_x = (1 - width) * _uniform(batch, -1, 1, generator)
    shift_y = (1 - height) * _uniform(batch, -1, 1, generator)
    zero = torch.zeros(batch)
    return torch.stack([torch.stack([width, zero, shift_x], 1), torch.stack([zero, height, shift_y], 1)], 1)


def random_colours(batch: int, generator: torch.Generator, ranges: Augmentation) -> tuple[Tensor, Tensor]:
    """Colour maps [B, 3, 3] (hue, saturation and contrast, about mid-grey) and brightness offsets [B]."""
    angle = 2 * math.pi * _uniform(batch, -ranges.hue, ranges.hue, generator)
    radius = _uniform(batch, 1 - ranges.saturation, 1 + ranges.saturation, generator)
    contrast = _uniform(batch, 1 - ranges.contrast, 1 + ranges.contrast, generator)
    brightness = _uniform(batch, -ranges.brightness, ranges.brightness, generator)
    turn = torch.zeros(batch, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = radius * angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -radius * angle.sin(), radius * angle.sin()
    matrix = torch.linalg.inv(_YIQ) @ turn @ _YIQ
    return contrast[:, None, None] * matrix, brightness


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
