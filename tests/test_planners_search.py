"""What a search draws, and what becomes of episodes of a batch for which it finds nothing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from armworld.planners.objectives import LatentGoal
from armworld.planners.plans import WarmStart, shift
from armworld.planners.registry import make_planner
from armworld.worldmodel.model import Rollout

sys.path.insert(0, str(Path(__file__).parent))

from planners_fake import LIMITS, NAMES, SMALL, PointWorld, Quadratic, run


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_episode_holds_and_the_others_get_their_plans(name: str) -> None:
    """The model has NaN for the second of three episodes; the noise of the others is what it is without that."""

    class Losing(PointWorld):
        def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
            rollout = super().rollout(z, state, actions)
            spoilt = torch.tensor([1.0, torch.nan, 1.0]).view(3, 1, 1, 1, 1)
            return replace(rollout, z=rollout.z * spoilt)

    target = [0.5, -0.2, 0.1, 0.3]
    plan, whole = run(name, target, batch=3, model=Losing()), run(name, target, batch=3)
    assert plan.lost.tolist() == [False, True, False] and not whole.lost.any()
    torch.testing.assert_close(plan.actions[[0, 2]], whole.actions[[0, 2]])
    torch.testing.assert_close(plan.cost[[0, 2]], whole.cost[[0, 2]])
    assert (plan.actions[1] == 0).all() and bool(plan.hold[1]) and float(plan.cost[1]) == float("inf")
    assert all(i.best < float("inf") for i in plan.statistics.iterations)
    if plan.elites is not None:  # the next call goes on from there
        again = run(name, target, batch=3, model=Losing(), warm_start_from=shift(plan, 1))
        assert again.lost.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "settings", "samples"),
    [
        ("cem", {"samples": 8, "iterations": 3}, [1, 8, 9, 9]),  # holding first; later the mean, too
        ("cem", {"samples": 32, "iterations": 4, "decay": 0.5}, [1, 32, 17, 13, 13]),
        ("cem_published", {"samples": 12, "iterations": 3}, [12, 12, 12, 1]),  # its mean at the end
        ("icem", {"samples": 8, "iterations": 3}, [1, 8, 8, 9]),
        ("icem", {"samples": 20, "iterations": 3}, [1, 20, 16, 14]),
    ],
)
def test_no_iteration_draws_more_samples_than_asked(name: str, settings: dict, samples: list[int]) -> None:
    plan = run(name, [0.5, -0.2, 0.1, 0.3], **settings)
    assert [iteration.samples for iteration in plan.statistics.iterations] == samples


def test_nothing_to_anchor_at_is_no_error() -> None:
    """Neither holding nor a warm start that moves, and of the old elites none is kept."""
    warm = WarmStart(torch.zeros(2, 1, 7), torch.full((2, 3, 1, 7), 0.01))
    for name, share in (("cem", "keep_elites"), ("icem", "keep_fraction")):
        none: dict[str, Any] = {share: 0}
        plan = run(name, [0.5, 0, 0, 0], warm_start_from=warm, hold_candidate=False, **none)
        assert plan.cost.isfinite().all()


@pytest.mark.parametrize("name", ["cem", "icem"])
def test_a_neighbours_warm_start_gives_no_candidate_to_an_episode_without(name: str) -> None:
    """Holding is best here, and not among the candidates; it must not come in as the empty place of a warm start."""
    actions = torch.zeros(2, 1, 7)
    actions[0, 0, 0] = 0.05
    plan = run(name, [0.0, 0, 0, 0], warm_start_from=WarmStart(actions), hold_candidate=False)
    assert (plan.actions[1] != 0).any() and plan.statistics.nonfinite == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_start_beyond_the_bounds_is_brought_inside(name: str) -> None:
    """As after bounds were made tighter: what the last call found would come nearer to the goal than is allowed now."""
    wide = torch.zeros(2, 3, 1, 7)
    wide[..., 0], wide[..., 6] = 0.4, 1.0
    for elites in (None, wide):
        warm = WarmStart(wide[:, 0], elites)
        plan = run(name, [4.0, 0.0, 0.0, 3.0], warm_start_from=warm)
        assert float(plan.actions[..., 0].max()) <= 0.1 + 1e-6 and float(plan.actions[..., 6].max()) <= 0.75 + 1e-6
        assert float(plan.actions[..., 0].min()) > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_no_planner_moves_the_gripper_by_less_than_the_deadband(name: str) -> None:
    """Nor one that executes the mean of its samples, of which none did."""
    mean: dict[str, Any] = {"execute": "mean"} if name == "mppi" else {}
    space = {"max_position": 0.1, "gripper_deadband": 0.2}
    for wanted in (0.1, 0.25, 0.4, 0.6):
        grip = run(name, [0.3, 0.0, 0.0, wanted], batch=4, space=space, **mean).actions[..., 6].abs()
        assert ((grip == 0) | (grip >= 0.2 - 1e-6)).all(), grip


def energy_of(actions: Tensor, target: list[float]) -> Tensor:
    """What `run` makes of actions [B, H, 7]: the energy of where they lead from the origin, [B]."""
    gap = (actions[..., [0, 1, 2, 6]] / LIMITS).sum(1) - torch.tensor(target)
    return (gap**2 * torch.tensor([3.0, 1.0, 1.0, 1 / 3])).sum(-1)


@pytest.mark.parametrize("margin", [0.0, 0.9999])
@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_that_of_the_actions_also_where_they_hold_still(name: str, margin: float) -> None:
    """With the margin holding is chosen though something else is cheaper; its own energy is told."""
    target = [0.05, 0.0, 0.0, 0.0]
    plan = run(name, target, hold_candidate=True, hold_margin=margin)
    assert bool(plan.hold.all()) or margin == 0
    torch.testing.assert_close(plan.cost, energy_of(plan.actions, target), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_better_than_holding_is_not_done(name: str) -> None:
    class Flat(Quadratic):
        def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
            return super().__call__(rollout, goal) * 0 + 1

    settings: dict[str, Any] = {"hold_candidate": True}
    if name in ("mppi", "cem_published"):  # a mean of samples is not holding still
        settings["execute"] = "mean"
    plan = run(name, [0.5, 0, 0, 0], objective=Flat(), **settings)
    assert plan.hold.all() and not plan.actions.any()


def test_the_present_is_the_last_of_the_context() -> None:
    """The fingers' stroke and what has to change are counted from it."""
    asked: list[Tensor] = []

    class Watching(Quadratic):
        def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
            assert goal.start is not None
            asked.append(goal.start)
            return super().__call__(rollout, goal)

    space = {"max_position": 0.1, "max_gripper": 0.75, "stroke": True}
    planner = make_planner("cem", **{**SMALL["cem"], "space": space})
    z, state = torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 7)
    z[:, 1], state[:, 1, 6] = 0.3, 0.9
    goal = LatentGoal(torch.tensor([[[0.0, 0.0, 0.0, 3.0]]]))
    model: Any = PointWorld()
    plan = planner.plan(model, Watching(), z, state, goal, generator=torch.Generator().manual_seed(0))
    assert float(plan.actions[0, 0, 6]) == pytest.approx(0.1, abs=1e-6)  # 0.75 from where they stood before
    assert all(torch.equal(start, z[:, 1]) for start in asked)


@pytest.mark.parametrize("name", NAMES)
def test_however_few_candidates_go_through_the_model_at_a_time(name: str) -> None:
    target = [0.5, -0.2, 0.1, 0.3]
    whole, single = run(name, target, batch=3), run(name, target, batch=3, chunk=1)  # fewer than episodes
    torch.testing.assert_close(single.actions, whole.actions)


@pytest.mark.parametrize("name", ["cem", "icem"])
def test_elites_of_repeated_actions_come_back_as_they_were(name: str) -> None:
    """Two actions of two steps each, which together lead exactly to the goal."""
    legs = torch.tensor([[0.06, 0, 0, 0, 0, 0, 0], [-0.01, 0.04, 0, 0, 0, 0, 0.2]])
    steps = legs.repeat_interleave(2, 0)
    target = (steps[:, [0, 1, 2, 6]] / LIMITS).sum(0).tolist()
    warm = WarmStart(torch.zeros(2, 4, 7), steps.expand(2, 2, 4, 7))
    plan = run(name, target, horizon=2, repeat=2, iterations=1, warm_start_from=warm)
    assert float(plan.cost.max()) < 1e-9
    torch.testing.assert_close(plan.actions, steps.expand(2, 4, 7))


@pytest.mark.parametrize(("name", "floor"), [("cem", 0.3), ("icem", 0.3), ("mppi", 0.3), ("cem", 0.05), ("icem", 0.05)])
def test_the_spread_of_samples_never_falls_below_its_floor(name: str, floor: float) -> None:
    """Where all elites agree a search would stand still; the floor is in units of each dimension's bound."""
    settings: dict[str, Any] = {"samples": 64, "iterations": 15, "min_std": floor, "record": True}
    settings |= {"decay": 1.0} if name == "icem" else {}  # as many samples in every iteration
    drawn = run(name, [0.2, -0.1, 0.0, 0.1], **settings).statistics.iterations[15].actions
    assert drawn is not None
    spread = (drawn[:, :64, 0][..., [0, 1, 2, 6]] / LIMITS).std(1)
    torch.testing.assert_close(spread, torch.full_like(spread, floor), atol=0.25 * floor, rtol=0)


def test_elites_are_shifted_while_something_is_left_of_them() -> None:
    plan = run("cem", [1.5, 0, 0, 0], horizon=3)
    assert plan.elites is not None
    left = shift(plan, 2).elites
    assert left is not None
    torch.testing.assert_close(left[:, :, 0], plan.elites[:, :, 2])
    assert not left[:, :, 1:].any() and shift(plan, 3).elites is None and shift(plan, 4).elites is None
    kept = shift(plan, 3, repeat_last=True).elites
    assert kept is not None
    torch.testing.assert_close(kept, plan.elites[:, :, 2:].expand_as(kept))
