"""Random shooting: uniform plans inside the bounds, the best one wins. The floor under every other planner.

Legend: B episodes, S samples, H steps, P planned dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from armworld.planners.noise import NOISE, NoiseKind
from armworld.planners.plans import Plan
from armworld.planners.sampling import Planner, PlannerConfig, Search
from armworld.types import check_name


@dataclass(frozen=True)
class RandomShootingConfig(PlannerConfig):
    """`samples` candidates; `noise` says how they cover the box (planners/noise.py)."""

    samples: int = 256
    noise: NoiseKind = "sobol"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("noise", self.noise, NOISE)
        if self.samples < 1:
            raise ValueError(f"random shooting needs samples >= 1, got {self.samples}")


class RandomShooting(Planner[RandomShootingConfig]):
    """Best of many uniform plans."""

    def __init__(self, config: RandomShootingConfig | None = None) -> None:
        self.config = config or RandomShootingConfig()

    def optimise(self, search: Search, generator: torch.Generator, start: Tensor, elites: Tensor | None) -> Plan:
        """Evaluate once, take the best."""
        noise = NOISE[self.config.noise](search.shape(self.config.samples), generator).to(start)
        uniform = torch.erf(noise / math.sqrt(2))  # the normal distribution function maps normal draws to (-1, 1)
        plans = search.space.clip(uniform * start.new_tensor(search.space.limits))
        search.anchors(start, elites)
        search.evaluate(plans)
        return search.finish(search.best, search.best_cost)
