"""iCEM: the cross-entropy method with noise coloured in time, fewer samples each round, and elites that live on.

After Pinneri et al. 2020 (sample-efficient cross-entropy method). The elites of the previous call, shifted by the
executed steps, come in through the warm start. Legend: B episodes, S samples, H steps, K elites, P dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from armworld.planners.noise import coloured
from armworld.planners.plans import Plan
from armworld.planners.sampling import Planner, PlannerConfig, Search, lowest


@dataclass(frozen=True)
class ICEMConfig(PlannerConfig):
    """iCEM's settings; spreads are in units of the action bounds.

    Attributes:
        samples: Candidates in the first iteration; holding, the warm start, kept elites and the last iteration's mean
            come on top.
        iterations: Iterations.
        elites: Best candidates to which mean and spread are fitted.
        decay: Divisor of the number of samples after each iteration, but not to fewer than 2 * elites.
        noise_exponent: Power spectrum f^-exponent of the noise along the horizon (0 white, 2 to 4 smooth).
        keep_fraction: Share of the elites that stay in the pool, within a call and between calls.
        momentum: Share of the old mean and spread kept at each update.
        std, min_std: Initial spread and its floor.
    """

    samples: int = 80
    iterations: int = 4
    elites: int = 6
    decay: float = 1.25
    noise_exponent: float = 2.0
    keep_fraction: float = 0.3
    momentum: float = 0.0
    std: float = 0.7
    min_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.elites <= self.samples or self.iterations < 1 or self.decay < 1:
            raise ValueError(
                "iCEM needs 2 <= elites <= samples, iterations >= 1 and decay >= 1, got "
                f"elites {self.elites}, samples {self.samples}, iterations {self.iterations}, decay {self.decay}"
            )
        if not 0 <= self.keep_fraction <= 1:
            raise ValueError(f"keep_fraction must lie in [0, 1], got {self.keep_fraction}")


class ICEM(Planner[ICEMConfig]):
    """Improved cross-entropy method; always returns the best candidate ever evaluated."""

    def __init__(self, config: ICEMConfig | None = None) -> None:
        self.config = config or ICEMConfig()

    def optimise(self, search: Search, generator: torch.Generator, start: Tensor, elites: Tensor | None) -> Plan:
        """Narrow a coloured distribution over plans; the last iteration also tries the mean itself."""
        c, space = self.config, search.space
        limits = start.new_tensor(space.limits)
        mean, std = start, (c.std * limits).expand_as(start)
        keep = round(c.keep_fraction * c.elites)
        kept, kept_cost = search.anchors(start, None if elites is None else elites[:, :keep])
        best = kept
        for iteration in range(c.iterations):
            if iteration and search.out_of_time():
                break
            samples = min(c.samples, max(2 * c.elites, round(c.samples / c.decay**iteration)))
            noise = coloured(search.shape(samples), c.noise_exponent, generator).to(start)
            plans = space.clip(mean[:, None] + noise * std[:, None])
            if iteration == c.iterations - 1:
                plans = torch.cat([plans, space.clip(mean)[:, None]], 1)
            pool = torch.cat([plans, kept], 1), torch.cat([search.evaluate(plans), kept_cost], 1)
            best, cost = lowest(*pool, c.elites)
            kept, kept_cost = best[:, :keep], cost[:, :keep]
            mean = best.mean(1) * (1 - c.momentum) + mean * c.momentum
            std = best.std(1) * (1 - c.momentum) + std * c.momentum
            std = torch.maximum(std, c.min_std * limits)
        return search.finish(search.best, search.best_cost, best)
