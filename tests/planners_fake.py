"""Worlds and energies whose optimum is known, and small searches in them, for the planners' tests.

The latent is a point [1, 4] in units of the bounds (0.1 m per axis, 0.75 closedness); actions move it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from armworld.planners.objectives import LatentGoal
from armworld.planners.plans import Plan
from armworld.planners.registry import make_planner
from armworld.types import Goal, Observation
from armworld.worldmodel.model import Rollout

LIMITS = torch.tensor([0.1, 0.1, 0.1, 0.75])


class PointWorld:
    """z_H = z + the sum of the actions, in units of the bounds."""

    step_seconds = 0.25

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(images, dtype=torch.float32)[:, :, None]

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        moved = (actions[..., [0, 1, 2, 6]] / LIMITS).cumsum(2)
        return Rollout(z=z[:, -1:, None] + moved[..., None, :], state=state[:, -1:, None] + actions.cumsum(2))


@dataclass(frozen=True)
class Quadratic:
    """|A (x - x_goal)|^2 with condition number 9 over x = z_H."""

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        gap = rollout.z[:, :, -1, 0] - goal.z[:, None, 0]
        return (gap**2 * gap.new_tensor([3.0, 1.0, 1.0, 1 / 3])).sum(-1)


@dataclass(frozen=True)
class Wells:
    """A well of depth 1 at the goal and one of depth 0.6 at its mirror image, Gaussian, 0.6 bounds wide."""

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        x, target = rollout.z[:, :, -1, 0], goal.z[:, None, 0]
        deep = torch.exp(-((x - target) ** 2).sum(-1) / (2 * 0.6**2))
        shallow = torch.exp(-((x + target) ** 2).sum(-1) / (2 * 0.6**2))
        return 2 - 1.0 * deep - 0.6 * shallow


def observation(point: np.ndarray, camera: str = "left") -> Observation:
    """An observation whose "image" is the point itself; `PointWorld.encode` takes it as it is."""
    return {"state": np.zeros(7, np.float32), camera: np.asarray(point, np.float32)}


def goal_at(*points: list[float], budgets: tuple[int, ...] | None = None) -> Goal:
    """A goal of one sub-goal per point, in units of the bounds."""
    return Goal(tuple(observation(np.array(p)) for p in points), budgets or (5,) * len(points))


SMALL = {
    "cem": {"samples": 24, "iterations": 3},
    "cem_published": {"samples": 24, "iterations": 3},
    "cem_adam": {"samples": 24, "refine": {"steps": 4}},
    "icem": {"samples": 24, "iterations": 3},
    "mppi": {"samples": 24, "iterations": 3},
    "gradient": {"samples": 6, "adam": {"steps": 4}},
    "random_shooting": {"samples": 24},
}
NAMES = list(SMALL)


def run(
    name: str, target: list[float], *, seed: int = 0, batch: int = 2, model=None, objective=None, **changes
) -> Plan:
    """Plan towards a point given in units of the bounds."""
    warm_start = changes.pop("warm_start_from", None)
    should_stop = changes.pop("should_stop", None)
    planner = make_planner(name, **{"space": {"max_position": 0.1}, **SMALL[name], **changes})
    return planner.plan(
        model or PointWorld(),
        objective or Quadratic(),
        torch.zeros(batch, 1, 1, 4),
        torch.zeros(batch, 1, 7),
        LatentGoal(torch.tensor(target).expand(batch, 1, 4)),
        generator=torch.Generator().manual_seed(seed),
        warm_start=warm_start,
        should_stop=should_stop,
    )
