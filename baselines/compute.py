"""What a method costs: parameters, floating-point operations and core time of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

BACKWARD = 2  # a backward pass costs twice its forward pass


def parameters(module: nn.Module) -> int:
    """Numbers in the module, frozen ones included."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def forward_flop(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in `call` (a multiply-add is 2)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def training_flop(one_sample: Callable[[], object], samples: int) -> float:
    """Operations of training on `samples` samples, given a call that runs the forward pass of one."""
    return float((1 + BACKWARD) * forward_flop(one_sample) * samples)


def core_seconds(rows: Iterable[Mapping[str, Any]]) -> float:
    """Processor time of a run from its log, whose "core_seconds" begin anew wherever it was taken up again."""
    spent = [0.0, *(float(row["core_seconds"]) for row in rows if "core_seconds" in row)]
    return sum(b - a if b >= a else b for a, b in pairwise(spent))
