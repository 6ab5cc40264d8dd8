"""Multiblock 3D masks of V-JEPA 2's pretraining: rectangles of patches hidden over the clip's full duration, or part.

Shapes: B clips, T x H x W token grid, K visible and M hidden tokens. Indices refer to the flattened grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_TRIES = 100


@dataclass(frozen=True)
class MaskFamily:
    """`blocks` rectangles, each `scale` of the frame's area, with height/width between the two `aspect` bounds.

    Each is hidden for `duration` of the clip (1 in the paper), from a time of its own on.
    """

    blocks: int
    scale: float
    aspect: tuple[float, float] = (0.75, 1.5)
    duration: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.aspect
        if self.blocks < 1 or not 0 < self.scale < 1 or not 0 < low <= high or not 0 < self.duration <= 1:
            bounds = "blocks >= 1, 0 < scale < 1, 0 < aspect low <= high and 0 < duration <= 1"
            raise ValueError(f"need {bounds}, got {self}")


SMALL_BLOCKS = MaskFamily(blocks=8, scale=0.15)
LARGE_BLOCKS = MaskFamily(blocks=2, scale=0.7)
PUBLISHED_FAMILIES = (SMALL_BLOCKS, LARGE_BLOCKS)


class Mask(NamedTuple):
    """Visible tokens `context` [B, K] and hidden ones `target` [B, M], ascending; disjoint in every clip."""

    context: Tensor
    target: Tensor

    def to(self, device: torch.device | str) -> Mask:
        """The same mask on another device."""
        return Mask(self.context.to(device), self.target.to(device))


def sample_masks(
    grid: tuple[int, int, int],
    batch: int,
    generator: torch.Generator,
    families: Sequence[MaskFamily] = PUBLISHED_FAMILIES,
) -> list[Mask]:
    """One mask per family for a batch of clips with token grid (time, rows, columns).

    A family's block size is drawn once per call, its blocks' places per clip. Clips of a batch need equally many
    tokens, so surplus cells (columns of the grid over time; single tokens where blocks do not last the whole clip) are
    dropped at random from context and from target; for a batch of one, context and target are complements.
    """
    return [_sample_family(grid, batch, family, generator) for family in families]


def check_masks(grid: tuple[int, int], families: Sequence[MaskFamily]) -> None:
    """A ValueError where blocks of a family hide all of frames of that grid (rows, columns), as they do small ones."""
    sample_masks((1, *grid), 1, torch.Generator(), families)


def _sample_family(grid: tuple[int, int, int], batch: int, family: MaskFamily, generator: torch.Generator) -> Mask:
    steps, rows, columns = grid
    height, width = _block_size(rows, columns, family, generator)
    lasting = max(1, round(family.duration * steps))
    times = 1 if lasting == steps else steps  # blocks of the full duration hide columns of cells, all times alike
    cells, block = (times, rows, columns), (min(lasting, times), height, width)
    hidden = torch.stack([_hidden_cells(cells, block, family, generator) for _ in range(batch)])
    repeats = steps // times
    return Mask(_equal_counts(~hidden, repeats, generator), _equal_counts(hidden, repeats, generator))


def _block_size(rows: int, columns: int, family: MaskFamily, generator: torch.Generator) -> tuple[int, int]:
    """Height and width in patches: area = scale * frame, log-free uniform aspect, at most the frame."""
    low, high = family.aspect
    aspect = low + (high - low) * float(torch.rand((), generator=generator))
    area = int(rows * columns * family.scale)
    height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    return min(max(height, 1), rows), min(max(width, 1), columns)


def _hidden_cells(
    cells: tuple[int, int, int], block: tuple[int, int, int], family: MaskFamily, generator: torch.Generator
) -> Tensor:
    """bool [times * rows * columns]: the union of the family's blocks at random places; one cell or more stays visible.

    Args:
        cells: Times, rows and columns.
        block: What a block spans of each.
    """
    for _ in range(_TRIES):
        hidden = torch.zeros(cells, dtype=torch.bool)
        for _ in range(family.blocks):
            room = [whole - part + 1 for whole, part in zip(cells, block, strict=True)]
            start, top, left = (int(torch.randint(n, (), generator=generator)) if n > 1 else 0 for n in room)
            hidden[start : start + block[0], top : top + block[1], left : left + block[2]] = True
        if not hidden.all():
            return hidden.flatten()
    grid, advice = f"{cells[1]} x {cells[2]} patch grid", "use larger images or a smaller scale"
    raise ValueError(f"{family} hides all of a {grid} in {_TRIES} tries; {advice}")


def _equal_counts(cells: Tensor, repeats: int, generator: torch.Generator) -> Tensor:
    """Token indices [B, repeats * n] of the marked cells [B, C], every C tokens again; n = the smallest count."""
    count = int(cells.sum(1).min())
    order = torch.rand(cells.shape, generator=generator).masked_fill(~cells, 2.0).argsort(1)
    kept = order[:, :count].sort(1).values
    offsets = torch.arange(repeats) * cells.shape[1]
    return (offsets[:, None] + kept[:, None]).flatten(1)
