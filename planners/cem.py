"""The cross-entropy method: sample plans around a mean, keep the best few, fit mean and spread to them, repeat.

With `published_config()` (planners/published.py) it is V-JEPA 2-AC's planner number for number; the defaults here
add what made it better elsewhere. Legend: B episodes, S samples, H steps, K elites, P planned dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from armworld.planners.gradient import AdamConfig, refine
from armworld.planners.noise import NOISE, NoiseKind, NoiseSource
from armworld.planners.plans import Plan
from armworld.planners.sampling import Planner, PlannerConfig, Search, lowest
from armworld.types import check_name


@dataclass(frozen=True)
class CEMConfig(PlannerConfig):
    """The cross-entropy method's settings; spreads are in units of the action bounds.

    Attributes:
        samples: Candidates S per iteration; holding, the warm start, kept elites and the mean come on top.
        iterations: Iterations.
        elites: Best candidates K to which mean and spread are fitted.
        decay: Each iteration has this factor fewer samples (1: all the same), but not fewer than 2 * elites.
        position_std, gripper_std: Initial spread of positions (and yaw) and of the gripper.
        min_std: Floor of the spread.
        momentum_*: Share of the old mean and spread kept at each update, positions and gripper separately.
        keep_elites: This many elites stay in the next iteration's pool (at no cost: their energy is known).
        noise: How samples are drawn (planners/noise.py).
        execute: Return the best candidate ever evaluated, or the distribution's mean.
        round_gripper: Gripper deltas of the returned mean below this are 0 (`execute="mean"` only).
        refine: Adam steps through the predictor on the best candidates at the end; None: none.
        near_cost: Energy of holding still below which the initial spread shrinks in proportion; None: never.
        near_scale: The least factor by which it shrinks.
    """

    samples: int = 64
    iterations: int = 4
    elites: int = 6
    decay: float = 1.0
    position_std: float = 0.8
    gripper_std: float = 0.8
    min_std: float = 0.05
    momentum_mean: float = 0.0
    momentum_std: float = 0.0
    momentum_mean_gripper: float = 0.0
    momentum_std_gripper: float = 0.0
    keep_elites: int = 2
    noise: NoiseKind = "sobol"
    execute: Literal["best", "mean"] = "best"
    round_gripper: float = 0.0
    refine: AdamConfig | None = None
    near_cost: float | None = None
    near_scale: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("noise", self.noise, NOISE)
        check_name("execute", self.execute, ("best", "mean"))
        if self.near_cost is not None and not (self.near_cost > 0 and self.hold_candidate):
            raise ValueError(f"near_cost must be positive and needs hold_candidate, got {self.near_cost}")
        if not 2 <= self.elites <= self.samples or self.iterations < 1:
            raise ValueError(
                f"CEM needs 2 <= elites <= samples and iterations >= 1, got elites {self.elites}, "
                f"samples {self.samples}, iterations {self.iterations}"
            )


class CEM(Planner[CEMConfig]):
    """The cross-entropy method. `noise` replaces the configured draws (for replaying recorded ones)."""

    def __init__(self, config: CEMConfig | None = None, noise: NoiseSource | None = None) -> None:
        self.config = config or CEMConfig()
        self.noise = noise or (lambda _, shape, generator: NOISE[self.config.noise](shape, generator))

    def optimise(self, search: Search, generator: torch.Generator, start: Tensor, elites: Tensor | None) -> Plan:
        """Narrow a normal distribution over plans down to where the energy is low."""
        c, space = self.config, search.space
        limits = start.new_tensor(space.limits)
        mean = start
        std = (limits * space.per_dimension(c.position_std, c.gripper_std, start)).expand_as(start)
        keep_mean = space.per_dimension(c.momentum_mean, c.momentum_mean_gripper, start)
        keep_std = space.per_dimension(c.momentum_std, c.momentum_std_gripper, start)
        old = None if elites is None else elites[:, : c.keep_elites]
        kept, kept_cost = search.anchors(start, old)
        if c.near_cost is not None and search.hold_cost is not None:
            std = std * (search.hold_cost / c.near_cost).clamp(c.near_scale, 1)[:, None, None]
        samples, best = c.samples, kept
        for iteration in range(c.iterations):
            if iteration and search.out_of_time():
                break
            noise = self.noise(iteration, search.shape(samples), generator).to(start)
            plans = space.clip(noise * std[:, None] + mean[:, None])
            if iteration and c.execute == "best":
                plans = torch.cat([plans, space.clip(mean)[:, None]], 1)  # a mean of elites knows no deadband
            pool = torch.cat([plans, kept], 1), torch.cat([search.evaluate(plans), kept_cost], 1)
            best, cost = lowest(*pool, c.elites)
            kept, kept_cost = best[:, : c.keep_elites], cost[:, : c.keep_elites]
            mean = best.mean(1) * (1 - keep_mean) + mean * keep_mean
            std = torch.maximum(best.std(1) * (1 - keep_std) + std * keep_std, c.min_std * limits)
            samples = min(samples, max(2 * c.elites, int(samples * c.decay)))
        if c.execute == "mean":
            mean = space.round_gripper(mean, c.round_gripper)
            return search.finish(mean, search.evaluate(mean[:, None])[:, 0], best)
        if c.refine is not None:
            refine(search, best[:, : c.refine.starts], c.refine)
        return search.finish(search.best, search.best_cost, best)
