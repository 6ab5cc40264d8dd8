"""Image augmentation: one random crop and one change of colours per sample, the same for its frames and its goal.

Sharing the draw keeps frames and goal comparable, which a goal-conditioned policy lives on. Ranges are Octo's: crop
area 0.8 ... 1, brightness +-0.1, contrast and saturation 0.9 ... 1.1, hue +-0.05 of a turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
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


def augment(images: Tensor, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images [B, M, 3, H, W] (0 ... 255), changed alike over M -> `dtype` of the same shape and range.

    A crop's sides are parallel to the image's, so that bilinear sampling is a product with one matrix per axis: several
    times as fast as general sampling on a CPU, in bfloat16 above all (which rounds pixels to about half a grey level).
    """
    count, _, height, width = images.shape[1:]
    crops, colours, brightness = (part.to(images.device) for part in draws)
    across = sampling_matrix(crops[:, 0, 0], crops[:, 0, 2], width).to(dtype)
    down = sampling_matrix(crops[:, 1, 1], crops[:, 1, 2], height).to(dtype)
    flat = images.flatten(1, 2).to(dtype)  # one crop for all channels of a sample
    cropped = down[:, None] @ flat @ across[:, None].transpose(-1, -2)
    grey = 255 * (0.5 - 0.5 * colours.sum(-1) + brightness[:, None])  # colours turn about mid-grey
    pixels = cropped.unflatten(1, (count, 3)).flatten(3)
    coloured = colours.to(dtype)[:, None] @ pixels + grey.to(dtype)[:, None, :, None]
    return coloured.clamp_(0, 255).view(images.shape)


def sampling_matrix(scale: Tensor, shift: Tensor, size: int) -> Tensor:
    """Linear interpolation along one axis, [B, size, size]: output pixels from the image's, border pixels repeated.

    Args:
        scale, shift: [B]; output position u in -1 ... 1 reads the image at scale * u + shift.
        size: Pixels.
    """
    centres = (2 * torch.arange(size, device=scale.device) + 1) / size - 1
    read = ((scale[:, None] * centres + shift[:, None] + 1) * size - 1) / 2
    distance = read.clamp(0, size - 1)[..., None] - torch.arange(size, device=scale.device)
    return (1 - distance.abs()).clamp_min(0)


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
