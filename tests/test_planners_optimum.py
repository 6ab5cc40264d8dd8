"""Every planner finds the optimum of energies whose optimum is known, within a stated error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from armworld.planners.cem import CEM, CEMConfig
from armworld.planners.objectives import FinalL1, LatentGoal, Objective
from armworld.planners.plans import ActionSpace, Plan
from armworld.planners.registry import make_planner

sys.path.insert(0, str(Path(__file__).parent))

from planners_fake import LIMITS, PointWorld, Quadratic, Wells

BUDGETS = {
    "cem": {"samples": 128, "iterations": 10, "min_std": 0.01},
    "cem_published": {"samples": 400, "iterations": 10},
    "cem_adam": {"samples": 128, "iterations": 2, "refine": {"steps": 40}},
    "icem": {"samples": 160, "iterations": 10},
    "mppi": {"samples": 160, "iterations": 10, "min_std": 0.01, "temperature": 0.1},
    "gradient": {"samples": 32, "adam": {"steps": 60, "starts": 4}},
    "random_shooting": {"samples": 8192},
}
# Distance to the optimum in units of the bounds (of 0.1 m and 0.75), Euclidean over the four dimensions.
ERROR = {
    "cem": 0.05,
    "cem_published": 0.05,
    "cem_adam": 0.05,
    "icem": 0.05,
    "mppi": 0.15,
    "gradient": 0.05,
    "random_shooting": 0.3,
}
SPACE = {"max_position": 0.1}
GOALS = {
    "quadratic": torch.tensor([0.0, 0.0, 0.0, 0.0]),
    "shifted": torch.tensor([0.55, -0.4, 0.2, 0.6]),
    "shifted_l1": torch.tensor([-0.7, 0.3, 0.1, -0.5]),
    "wells": torch.tensor([0.5, 0.5, -0.4, 0.5]),
}
OBJECTIVES: dict[str, Objective] = {
    "quadratic": Quadratic(),
    "shifted": Quadratic(),
    "shifted_l1": FinalL1(),
    "wells": Wells(),
}


def plan_for(name: str, energy: str, batch: int = 3, **settings: object) -> Plan:
    planner = make_planner(name, **{"space": SPACE, **BUDGETS[name], **settings})
    z = torch.zeros(batch, 1, 1, 4)
    goal = LatentGoal(GOALS[energy].expand(batch, 1, 4))
    return planner.plan(
        PointWorld(),
        OBJECTIVES[energy],
        z,
        torch.zeros(batch, 1, 7),
        goal,
        generator=torch.Generator().manual_seed(5),
    )


@pytest.mark.parametrize("energy", GOALS)
@pytest.mark.parametrize("name", BUDGETS)
def test_finds_the_optimum(name: str, energy: str) -> None:
    plan = plan_for(name, energy)
    found = plan.actions[:, 0, [0, 1, 2, 6]] / LIMITS
    error = torch.linalg.vector_norm(found - GOALS[energy], dim=-1)
    assert error.max() <= ERROR[name], error


@pytest.mark.parametrize("name", ["cem", "cem_published", "cem_adam", "icem", "mppi", "gradient"])
def test_finds_the_optimum_beyond_one_step(name: str) -> None:
    """A goal 1.5 bounds away takes two steps; where the three steps' sum ends is what counts."""
    planner = make_planner(name, **{"space": SPACE, **BUDGETS[name], "horizon": 3})
    target = torch.tensor([[[1.5, -1.2, 0.9, 0.0]]])
    plan = planner.plan(
        PointWorld(),
        Quadratic(),
        torch.zeros(1, 1, 1, 4),
        torch.zeros(1, 1, 7),
        LatentGoal(target),
        generator=torch.Generator().manual_seed(1),
    )
    end = plan.actions[0, :, [0, 1, 2, 6]].sum(0) / LIMITS
    assert torch.linalg.vector_norm(end - target[0, 0]) < 0.12


GOALS_OF_A_BATCH = torch.tensor([[0.55, -0.4, 0.2, 0.6], [-0.7, 0.3, 0.1, -0.5], [0.0, 0.8, -0.6, 0.4]])


@pytest.mark.parametrize("name", BUDGETS)
def test_every_episode_of_a_batch_is_planned_to_its_own_goal(name: str) -> None:
    """From starts of their own: what each has to move by is the difference."""
    planner = make_planner(name, **{"space": SPACE, **BUDGETS[name]})
    starts = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 1.0, -2.0, 0.3], [-0.4, 0.1, 7.0, -1.0]])
    plan = planner.plan(
        PointWorld(),
        Quadratic(),
        starts[:, None, None],
        torch.zeros(3, 1, 7),
        LatentGoal((starts + GOALS_OF_A_BATCH)[:, None]),
        generator=torch.Generator().manual_seed(3),
    )
    found = plan.actions[:, 0, [0, 1, 2, 6]] / LIMITS
    error = torch.linalg.vector_norm(found - GOALS_OF_A_BATCH, dim=-1)
    assert error.max() <= ERROR[name], error


def test_with_the_same_noise_a_batch_is_planned_as_its_episodes_alone() -> None:
    noise = torch.randn(4, 64, 1, 4, generator=torch.Generator().manual_seed(0))

    def plan(goals: torch.Tensor) -> Plan:
        planner = CEM(
            CEMConfig(iterations=4, space=ActionSpace(max_position=0.1)),
            noise=lambda iteration, shape, _: noise[iteration].expand(shape),
        )
        z, state = torch.zeros(len(goals), 1, 1, 4), torch.zeros(len(goals), 1, 7)
        return planner.plan(
            PointWorld(), Quadratic(), z, state, LatentGoal(goals[:, None]), generator=torch.Generator()
        )

    together = plan(GOALS_OF_A_BATCH)
    for index in range(3):
        alone = plan(GOALS_OF_A_BATCH[index : index + 1])
        torch.testing.assert_close(together.actions[index], alone.actions[0])
        torch.testing.assert_close(together.cost[index], alone.cost[0])


def test_adam_reaches_the_closed_form() -> None:
    """On a quadratic inside the bounds the minimum is the goal itself; outside, its projection onto the box."""
    settings = {"samples": 8, "adam": {"steps": 120, "final_rate": 0.0}}
    inside = plan_for("gradient", "shifted", **settings).actions[:, 0, [0, 1, 2, 6]] / LIMITS
    assert (inside - GOALS["shifted"]).abs().max() < 5e-3
    planner = make_planner("gradient", space=SPACE, **settings)
    far = torch.tensor([2.0, -0.3, -3.0, 0.4])
    plan = planner.plan(
        PointWorld(),
        Quadratic(),
        torch.zeros(1, 1, 1, 4),
        torch.zeros(1, 1, 7),
        LatentGoal(far.view(1, 1, 4)),
        generator=torch.Generator().manual_seed(0),
    )
    assert (plan.actions[0, 0, [0, 1, 2, 6]] / LIMITS - far.clamp(-1, 1)).abs().max() < 5e-3


def test_more_samples_do_not_hurt_random_shooting() -> None:
    """The expected best of nested sample sets falls; with one seed per size the trend over 64-fold must show."""
    few = plan_for("random_shooting", "shifted", batch=16, samples=64).cost.mean()
    many = plan_for("random_shooting", "shifted", batch=16, samples=4096).cost.mean()
    assert many < few
