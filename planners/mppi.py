"""Model-predictive path integral control: the mean moves to the average of all samples, weighted by exp(-cost / l).

weights_s = exp(-(cost_s - min cost) / (l * scale)) / sum over s; scale is 1, or the costs' standard deviation, which
makes the temperature l independent of the energy's unit. Legend: B episodes, S samples, H steps, P dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from armworld.planners.noise import NOISE, NoiseKind
from armworld.planners.plans import Plan
from armworld.planners.sampling import Planner, PlannerConfig, Search
from armworld.types import check_name


def mppi_weights(cost: Tensor, temperature: float, relative: bool = False) -> Tensor:
    """Weights [B, S], summing to 1 over S, of costs [B, S]; infinite costs weigh 0 (all the same where all are).

    With `relative` the temperature is in units of the finite costs' (population) standard deviation.
    """
    finite = cost.isfinite()
    excess = torch.where(finite, cost - cost.amin(1, keepdim=True), 0)
    if relative:
        count = finite.sum(1, keepdim=True).clamp_min(1)
        mean = excess.sum(1, keepdim=True) / count
        variance = torch.where(finite, (excess - mean) ** 2, 0).sum(1, keepdim=True) / count
        excess = excess / variance.sqrt().clamp_min(1e-12)
    weighed = finite | ~finite.any(1, keepdim=True)
    return torch.softmax(torch.where(weighed, -excess / temperature, -torch.inf), 1)


@dataclass(frozen=True)
class MPPIConfig(PlannerConfig):
    """MPPI's settings; spreads are in units of the action bounds.

    Attributes:
        samples, iterations: Candidates per iteration, and iterations.
        temperature: l; small follows the best sample, large averages all.
        relative: The temperature is in units of the costs' standard deviation.
        std, min_std: Initial spread, and its floor where it adapts.
        adapt_std: Fit the spread to the weighted samples (the original keeps it fixed).
        noise: How samples are drawn (planners/noise.py).
        execute: Return the weighted mean (the original) or the best candidate ever evaluated, the mean included.
    """

    samples: int = 64
    iterations: int = 4
    temperature: float = 0.2
    relative: bool = True
    std: float = 0.7
    min_std: float = 0.05
    adapt_std: bool = True
    noise: NoiseKind = "sobol"
    execute: Literal["mean", "best"] = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("noise", self.noise, NOISE)
        check_name("execute", self.execute, ("mean", "best"))
        if self.samples < 2 or self.iterations < 1 or not self.temperature > 0:
            raise ValueError(
                "MPPI needs samples >= 2, iterations >= 1 and temperature > 0, got "
                f"samples {self.samples}, iterations {self.iterations}, temperature {self.temperature}"
            )


class MPPI(Planner[MPPIConfig]):
    """Model-predictive path integral control."""

    def __init__(self, config: MPPIConfig | None = None) -> None:
        self.config = config or MPPIConfig()

    def optimise(self, search: Search, generator: torch.Generator, start: Tensor, elites: Tensor | None) -> Plan:
        """Move the mean by weighted averages; then compare it with the best sample, if asked to."""
        c, space = self.config, search.space
        limits = start.new_tensor(space.limits)
        mean, std = start, (c.std * limits).expand_as(start)
        search.anchors(start, elites)
        for iteration in range(c.iterations):
            if iteration and search.out_of_time():
                break
            noise = NOISE[c.noise](search.shape(c.samples), generator).to(start)
            plans = space.clip(mean[:, None] + noise * std[:, None])
            weights = mppi_weights(search.evaluate(plans), c.temperature, c.relative)[:, :, None, None]
            mean = (weights * plans).sum(1)
            if c.adapt_std:
                variance = (weights * (plans - mean[:, None]) ** 2).sum(1)
                std = torch.maximum(variance.sqrt(), c.min_std * limits)
        mean = space.clip(mean)
        cost = search.evaluate(mean[:, None])[:, 0]
        if c.execute == "mean":
            return search.finish(mean, cost)
        return search.finish(search.best, search.best_cost)
