"""Optimisers of the trainers: AdamW as published, or Muon over the transformer blocks' matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from armworld.types import check_name
from armworld.worldmodel.processes import spread_like


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay; biases, norms and mask tokens do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2 and p.shape[0] != 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2 or p.shape[0] == 1], "weight_decay": 0.0},
    ]


class Optimizers:
    """Several optimisers that step together. A group's `rate_scale` multiplies the schedule's learning rate."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def set_rate(self, rate: float) -> None:
        """Give every group the schedule's learning rate times its own scale."""
        for group in self.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore whole tensors (see `processes.gather`), sharded like their parameters."""
        for part, state in zip(self.parts, states, strict=True):
            parameters = [p for group in part.param_groups for p in group["params"]]
            kept = {
                index: {key: spread_like(value, parameters[index]) for key, value in values.items()}
                for index, values in state["state"].items()
            }
            part.load_state_dict({**state, "state": kept})


def check_optimizer(name: str) -> str:
    """Return `name` if this torch has that optimiser; Muon came with 2.9."""
    check_name("optimizer", name, ("adamw", "muon"))
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer 'muon' needs torch 2.9 or newer, this is {torch.__version__}; valid here: adamw")
    return name


def make_optimizer(
    name: str, module: nn.Module, blocks: Iterable[nn.Module], rate: float, weight_decay: float
) -> Optimizers:
    """AdamW over everything, or Muon over the transformer blocks' matrices and AdamW over the rest.

    Muon orthogonalises each matrix's momentum (Jordan et al., 2024); updates are scaled to AdamW's size (Liu et al.,
    arXiv 2502.16982, section 2.2), and what AdamW keeps learns at half the rate.

    Args:
        name: "adamw" (as published) or "muon".
        module: Whose trainable parameters are optimised.
        blocks: Its transformer blocks.
        rate: Peak learning rate.
        weight_decay: Decay of matrices.

    Raises:
        ValueError: Unknown name, or a torch without Muon (before 2.9).
    """
    groups = parameter_groups(module, weight_decay)
    if check_optimizer(name) == "adamw":
        return Optimizers(torch.optim.AdamW(groups, lr=rate))
    hidden = [p for block in blocks for p in block.parameters() if p.ndim == 2 and p.requires_grad]
    taken = {id(p) for p in hidden}
    rest = [{**g, "params": [p for p in g["params"] if id(p) not in taken], "rate_scale": 0.5} for g in groups]
    muon = torch.optim.Muon(hidden, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Optimizers(muon, torch.optim.AdamW(rest, lr=rate))
