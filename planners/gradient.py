"""Gradient planning: Adam on the actions, through the predictor, from several starts; the best point seen wins.

Works in units of the action bounds, so that one learning rate serves metres and closedness; after each step the
plans are projected back into the bounds. Legend: B episodes, K starts, H steps, P planned dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from armworld.planners.noise import gaussian
from armworld.planners.plans import Plan
from armworld.planners.sampling import Planner, PlannerConfig, Search, lowest


@dataclass(frozen=True)
class AdamConfig:
    """Adam's settings; the learning rate (in units of the bounds) falls along a half cosine to `final_rate`."""

    steps: int = 10
    starts: int = 4
    rate: float = 0.15
    final_rate: float = 0.01
    beta1: float = 0.8
    beta2: float = 0.95

    def __post_init__(self) -> None:
        if self.steps < 1 or self.starts < 1 or not self.rate > 0 or not self.final_rate >= 0:
            raise ValueError(f"Adam needs steps >= 1, starts >= 1 and positive rates, got {self}")


def refine(search: Search, plans: Tensor, config: AdamConfig) -> None:
    """Adam from plans [B, K, H, P]; every point visited is booked in `search`, which remembers the best.

    Each start descends its own energy: the sum over starts is differentiated, and starts do not interact.
    A start whose gradient is not finite stays where it is for that step.
    """
    limits = plans.new_tensor(search.space.limits)
    unit = (plans.detach() / limits).clone()
    first, second = torch.zeros_like(unit), torch.zeros_like(unit)
    for step in range(config.steps):
        if search.out_of_time():
            return
        unit.requires_grad_(True)
        with torch.enable_grad():
            raw = unit * limits
            inside = search.space.clip(raw).detach() + (raw - raw.detach())  # clipping passes the gradient on
            cost = search.energy_with_gradient(inside)
            (slope,) = torch.autograd.grad(cost.sum(), unit)
        search.note(inside, cost)
        slope = torch.where(slope.isfinite(), slope, torch.zeros_like(slope))
        first = config.beta1 * first + (1 - config.beta1) * slope
        second = config.beta2 * second + (1 - config.beta2) * slope**2
        corrected = first / (1 - config.beta1 ** (step + 1))
        size = (second / (1 - config.beta2 ** (step + 1))).sqrt()
        unit = (unit.detach() - _rate(config, step) * corrected / (size + 1e-12)).clamp(-1, 1)
    search.evaluate(search.space.clip(unit * limits))


def _rate(config: AdamConfig, step: int) -> float:
    progress = torch.tensor(step / config.steps)
    return float(config.final_rate + (config.rate - config.final_rate) * (1 + torch.cos(torch.pi * progress)) / 2)


@dataclass(frozen=True)
class GradientConfig(PlannerConfig):
    """`samples` random plans, spread `std` (in units of the bounds), of which Adam refines the best `adam.starts`."""

    samples: int = 16
    std: float = 0.5
    adam: AdamConfig = AdamConfig(steps=30)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"the gradient planner needs samples >= 1, got {self.samples}")


class GradientPlanner(Planner[GradientConfig]):
    """Adam through the predictor."""

    def __init__(self, config: GradientConfig | None = None) -> None:
        self.config = config or GradientConfig()

    def optimise(self, search: Search, generator: torch.Generator, start: Tensor, elites: Tensor | None) -> Plan:
        """Score random starts, then descend from the best of them."""
        c = self.config
        noise = gaussian(search.shape(c.samples), generator).to(start)
        plans = search.space.clip(start[:, None] + c.std * noise * start.new_tensor(search.space.limits))
        fixed, fixed_cost = search.anchors(start, elites)
        pool = torch.cat([plans, fixed], 1), torch.cat([search.evaluate(plans), fixed_cost], 1)
        best, _ = lowest(*pool, c.adam.starts)
        refine(search, best, c.adam)
        return search.finish(search.best, search.best_cost, best)
