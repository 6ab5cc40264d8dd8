"""Multiblock 3D masks of V-JEPA 2's pretraining: rectangles of patches hidden over the clip's full duration.

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
    """`blocks` rectangles, each `scale` of the frame's area, with height/width between the two `aspect` bounds."""

    blocks: int
    scale: float
    aspect: tuple[float, float] = (0.75, 1.5)

    def __post_init__(self) -> None:
        low, high = self.aspect
        if self.blocks < 1 or not 0 < self.scale < 1 or not 0 < low <= high:
            raise ValueError(f"need blocks >= 1, 0 < scale < 1 and 0 < aspect low <= high, got {self}")


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
    tokens, so surplus cells (columns of the grid over time) are dropped at random from context and from target;
    for a batch of one, context and target are complements.
    """
    return [_sample_family(grid, batch, family, generator) for family in families]


def _sample_family(grid: tuple[int, int, int], batch: int, family: MaskFamily, generator: torch.Generator) -> Mask:
    steps, rows, columns = grid
    block = _block_size(rows, columns, family, generator)
    hidden = torch.stack([_hidden_cells(rows, columns, block, family, generator) for _ in range(batch)])
    return Mask(_equal_counts(~hidden, steps, generator), _equal_counts(hidden, steps, generator))


def _block_size(rows: int, columns: int, family: MaskFamily, generator: torch.Generator) -> tuple[int, int]:
    """Height and width in patches: area = scale * frame, log-free uniform aspect, at most the frame."""
    low, high = family.aspect
    aspect = low + (high - low) * float(torch.rand((), generator=generator))
    area = int(rows * columns * family.scale)
    height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    return min(max(height, 1), rows), min(max(width, 1), columns)


def _hidden_cells(
    rows: int, columns: int, block: tuple[int, int], family: MaskFamily, generator: torch.Generator
) -> Tensor:
    """bool [rows * columns]: the union of the family's blocks at random places; at least one cell stays visible."""
    height, width = block
    for _ in range(_TRIES):
        hidden = torch.zeros(rows, columns, dtype=torch.bool)
        for _ in range(family.blocks):
            top = int(torch.randint(rows - height + 1, (), generator=generator))
            left = int(torch.randint(columns - width + 1, (), generator=generator))
            hidden[top : top + height, left : left + width] = True
        if not hidden.all():
            return hidden.flatten()
    raise ValueError(
        f"{family} hides all of a {rows} x {columns} patch grid in {_TRIES} tries; use larger images or a smaller scale"
    )


def _equal_counts(cells: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Token indices [B, steps * n] of the marked cells [B, rows * columns], n = the smallest count in the batch."""
    count = int(cells.sum(1).min())
    order = torch.rand(cells.shape, generator=generator).masked_fill(~cells, 2.0).argsort(1)
    kept = order[:, :count].sort(1).values
    offsets = torch.arange(steps) * cells.shape[1]
    return (offsets[:, None] + kept[:, None]).flatten(1)
