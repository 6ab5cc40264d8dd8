"""What holds for every planner: bounds, seeds, sample order, holding, NaN, chunks, warm starts, clear errors."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import armworld.planners.gradient
import armworld.planners.icem
from armworld.planners import noise
from armworld.planners.mppi import mppi_weights
from armworld.planners.objectives import FinalL1, LatentGoal
from armworld.planners.plans import ActionSpace, PlanningError, WarmStart, shift
from armworld.planners.registry import PLANNERS, make_planner
from armworld.planners.sampling import lowest
from armworld.worldmodel.model import Rollout

sys.path.insert(0, str(Path(__file__).parent))

from planners_fake import LIMITS, NAMES, SMALL, PointWorld, Quadratic, run


def test_every_planner_is_tested() -> None:
    assert set(SMALL) == set(PLANNERS) - {"servo"}  # which searches no energy: tests/test_planners_servo.py


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_plan_and_another_seed_another(name: str) -> None:
    first, again = run(name, [0.5, -0.2, 0.1, 0.3]), run(name, [0.5, -0.2, 0.1, 0.3])
    assert torch.equal(first.actions, again.actions)
    assert torch.equal(first.cost, again.cost)
    assert not torch.equal(first.actions, run(name, [0.5, -0.2, 0.1, 0.3], seed=1).actions)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(
    max_position=st.floats(0.005, 0.3),
    max_gripper=st.sampled_from([0.0, 0.5, 0.75]),
    max_yaw=st.sampled_from([0.0, 0.2]),
    max_norm=st.sampled_from([None, 0.02]),
    seed=st.integers(0, 1000),
)
def test_bounds_hold(
    name: str, max_position: float, max_gripper: float, max_yaw: float, max_norm: float | None, seed: int
) -> None:
    """Whatever the goal, even far outside: each action is inside the bounds, and what is not planned is 0."""
    space = {"max_position": max_position, "max_gripper": max_gripper, "max_yaw": max_yaw, "max_norm": max_norm}
    plan = run(name, [40.0, -40.0, 3.0, 9.0], seed=seed, space=space, horizon=2, record=True)
    for actions in [plan.actions, *(i.actions for i in plan.statistics.iterations if i.actions is not None)]:
        assert actions[..., :3].abs().max() <= max_position * (1 + 1e-6)
        assert actions[..., 6].abs().max() <= max_gripper
        assert actions[..., 5].abs().max() <= max_yaw * (1 + 1e-6)
        assert (actions[..., 3:5] == 0).all()
        if max_norm is not None:
            assert torch.linalg.vector_norm(actions[..., :3], dim=-1).max() <= max_norm * (1 + 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_samples_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(name, [0.5, -0.2, 0.1, 0.3])

    def shuffled(draw):
        def draws(shape, *rest) -> Tensor:
            order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(9))
            return draw(shape, *rest)[:, order]

        return draws

    for kind, draw in list(noise.NOISE.items()):
        monkeypatch.setitem(noise.NOISE, kind, shuffled(draw))
    monkeypatch.setattr(armworld.planners.icem, "coloured", shuffled(noise.coloured))
    monkeypatch.setattr(armworld.planners.gradient, "gaussian", shuffled(noise.gaussian))
    torch.testing.assert_close(run(name, [0.5, -0.2, 0.1, 0.3]).actions, plain.actions, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_do_not_matter(name: str) -> None:
    whole, pieces = run(name, [0.5, -0.2, 0.1, 0.3]), run(name, [0.5, -0.2, 0.1, 0.3], chunk=5)
    torch.testing.assert_close(pieces.actions, whole.actions)
    tiny = run(name, [0.5, -0.2, 0.1, 0.3], memory_mb=1e-6)
    torch.testing.assert_close(tiny.actions, whole.actions)


@pytest.mark.parametrize("name", NAMES)
def test_reported_cost_is_the_plans_cost(name: str) -> None:
    plan = run(name, [0.5, -0.2, 0.1, 0.3], horizon=2)
    rollout = PointWorld().rollout(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 7), plan.actions[:, None])
    goal = LatentGoal(torch.tensor([0.5, -0.2, 0.1, 0.3]).expand(2, 1, 4))
    torch.testing.assert_close(Quadratic()(rollout, goal)[:, 0], plan.cost)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cem_published"])
def test_holds_at_the_goal(name: str) -> None:
    """At the optimum nothing beats holding still, so the action is exactly 0."""
    plan = run(name, [0.0, 0.0, 0.0, 0.0])
    assert plan.hold.all()
    assert (plan.actions == 0).all()
    assert plan.statistics.hold_cost is not None
    torch.testing.assert_close(plan.cost, plan.statistics.hold_cost)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cem_published"])
def test_hold_margin_asks_for_a_real_gain(name: str) -> None:
    """Under L1 a goal 2 bounds away per axis can be brought at most half as near by one step."""
    goal = [2.0, 2.0, 2.0, 2.0]
    assert not run(name, goal, objective=FinalL1(), hold_margin=0.05).hold.any()
    assert run(name, goal, objective=FinalL1(), hold_margin=0.55).hold.all()


def test_without_the_hold_candidate_the_planner_jitters() -> None:
    assert not run("cem", [0.0, 0.0, 0.0, 0.0], hold_candidate=False).hold.any()


class Broken(PointWorld):
    """NaN wherever dx > 0 (half the candidates), or everywhere."""

    def __init__(self, everywhere: bool = False) -> None:
        self.everywhere = everywhere

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        rollout = super().rollout(z, state, actions)
        bad = (actions[..., 0] > 0).any(-1)[..., None, None, None] | self.everywhere
        return replace(rollout, z=torch.where(bad, torch.nan, rollout.z))


@pytest.mark.parametrize("name", NAMES)
def test_nan_energies_count_as_infinite(name: str) -> None:
    plan = run(name, [-0.5, 0.2, 0.1, 0.3], model=Broken())
    assert plan.statistics.nonfinite > 0
    assert plan.cost.isfinite().all()
    assert plan.actions.isfinite().all()
    assert (plan.actions[..., 0] <= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_nan_energies_is_an_error(name: str) -> None:
    with pytest.raises(PlanningError, match="no finite energy"):
        run(name, [0.5, 0.2, 0.1, 0.3], model=Broken(everywhere=True))


@pytest.mark.parametrize("name", NAMES)
def test_statistics(name: str) -> None:
    plan = run(name, [0.5, -0.2, 0.1, 0.3], record=True)
    statistics = plan.statistics
    assert statistics.evaluated == 2 * sum(i.samples for i in statistics.iterations)
    falling = [i.best_so_far for i in statistics.iterations]
    assert falling == sorted(falling, reverse=True)
    for iteration in statistics.iterations:
        assert iteration.actions is not None
        assert iteration.cost is not None
        assert iteration.actions.shape == (2, iteration.samples, 1, 7)
        assert iteration.best <= iteration.mean + 1e-6
        assert iteration.cost.min(1).values.mean() == pytest.approx(iteration.best)


@pytest.mark.parametrize("name", NAMES)
def test_a_spent_time_budget_ends_the_search_after_one_iteration(name: str) -> None:
    plan = run(name, [0.5, -0.2, 0.1, 0.3], should_stop=lambda: True)
    assert plan.statistics.evaluated >= 2 * SMALL[name]["samples"]
    assert plan.cost.isfinite().all()
    if name != "random_shooting":
        assert plan.statistics.stopped_early
        assert plan.statistics.evaluated < run(name, [0.5, -0.2, 0.1, 0.3]).statistics.evaluated


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cem_published"])
def test_a_good_warm_start_is_never_lost(name: str) -> None:
    target = torch.tensor([0.5, -0.2, 0.1, 0.3])
    actions = torch.zeros(2, 1, 7)
    actions[..., [0, 1, 2, 6]] = target * LIMITS
    plan = run(name, target.tolist(), warm_start_from=WarmStart(actions))
    torch.testing.assert_close(plan.actions, actions, atol=1e-4, rtol=0)
    ignoring = run(name, target.tolist(), warm_start_from=WarmStart(actions), warm_start=False)
    assert torch.equal(ignoring.actions, run(name, target.tolist()).actions)


def test_shift_moves_the_plan_and_its_elites() -> None:
    plan = run("icem", [2.0, -0.2, 0.1, 0.3], horizon=4)
    moved = shift(plan, 1)
    assert plan.elites is not None
    assert moved.elites is not None
    assert torch.equal(moved.actions[:, :3], plan.actions[:, 1:])
    assert (moved.actions[:, 3] == 0).all()
    assert torch.equal(moved.elites[..., :3, :], plan.elites[..., 1:, :])
    repeated = shift(plan, 2, repeat_last=True)
    assert torch.equal(repeated.actions[:, 2:], plan.actions[:, 3:].expand(-1, 2, -1))
    spent = shift(plan, 9)
    assert (spent.actions == 0).all()
    assert spent.elites is None


def test_elites_of_the_last_call_are_among_the_candidates() -> None:
    target = [0.5, -0.2, 0.1, 0.3]
    optimum = torch.zeros(2, 1, 1, 7)
    optimum[..., [0, 1, 2, 6]] = torch.tensor(target) * LIMITS
    warm = WarmStart(torch.zeros(2, 1, 7), optimum)
    for name in ("cem", "icem"):
        assert run(name, target, warm_start_from=warm).cost.max() < 1e-10


def test_near_cost_shrinks_the_search() -> None:
    """Near the goal the first samples spread less."""

    def spread(near_cost: float | None = None) -> float:
        plan = run("cem", [0.1, 0.0, 0.0, 0.0], record=True, near_cost=near_cost)
        actions = plan.statistics.iterations[1].actions
        assert actions is not None
        return float(actions[..., :3].std())

    assert spread(near_cost=1.0) < 0.4 * spread()


@pytest.mark.parametrize("name", sorted(set(PLANNERS) - {"cem_published", "servo"}))
def test_repeated_actions_look_further_ahead(name: str) -> None:
    """A goal four full steps away: one action kept up for four steps gets there, and every step of the plan is it."""
    planner = make_planner(name, repeat=4, space={"max_position": 0.1})
    z, state = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 7)
    goal = LatentGoal(torch.tensor([[[3.2, -2.4, 1.2, 0.0]]]))
    generator = torch.Generator().manual_seed(0)
    plan = planner.plan(PointWorld(), FinalL1(), z, state, goal, generator=generator)
    assert plan.actions.shape == (1, 4, 7)
    assert torch.equal(plan.actions, plan.actions[:, :1].expand(-1, 4, -1))
    assert float(plan.cost) < 0.5 * float((goal.z).abs().mean())  # one step alone leaves 0.6 of it or more
    warm = shift(plan, 1)
    again = planner.plan(PointWorld(), FinalL1(), z, state, goal, generator=generator, warm_start=warm)
    assert float(again.cost) <= float(plan.cost) + 0.1


def test_a_simulator_without_gradients_is_named() -> None:
    class Detached(PointWorld):
        def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
            return super().rollout(z, state, actions.detach())

    with pytest.raises(ValueError, match=r"Detached.*no gradient.*cem, icem, mppi, random"):
        run("gradient", [0.5, 0.0, 0.0, 0.0], model=Detached())


@settings(max_examples=30, deadline=None)
@given(
    costs=st.lists(st.one_of(st.floats(-5, 5, width=32), st.just(float("inf"))), min_size=2, max_size=12),
    temperature=st.floats(0.05, 10),
    offset=st.floats(-3, 3),
)
def test_mppi_weights_match_their_formula(costs: list[float], temperature: float, offset: float) -> None:
    """w_s = exp(-(c_s - min c) / l) / sum; infinite costs weigh nothing; a constant added to all changes nothing."""
    if all(c == float("inf") for c in costs):
        costs[0] = 0.0
    cost = torch.tensor([costs], dtype=torch.float64)
    raw = torch.exp(-(cost - cost.min()) / temperature)
    expected = raw / raw.sum()
    torch.testing.assert_close(mppi_weights(cost, temperature), expected)
    torch.testing.assert_close(mppi_weights(cost + offset, temperature), expected, atol=1e-9, rtol=1e-6)


def test_relative_mppi_weights_ignore_the_energys_unit() -> None:
    cost = torch.tensor([[0.3, 0.1, 0.7, float("inf")]], dtype=torch.float64)
    finite = cost[:, :3]
    expected = torch.softmax(-finite / (0.4 * finite.std(correction=0)), 1)
    torch.testing.assert_close(mppi_weights(cost, 0.4, relative=True)[:, :3], expected)
    torch.testing.assert_close(mppi_weights(1000 * cost, 0.4, True), mppi_weights(cost, 0.4, True))
    for same in (2.0, float("inf")):
        assert mppi_weights(torch.full((1, 4), same), 0.4, True).tolist() == [[0.25] * 4]


def test_lowest_replaces_infinite_candidates_by_the_best() -> None:
    plans = torch.arange(4.0).view(1, 4, 1, 1)
    inf = float("inf")
    chosen, cost = lowest(plans, torch.tensor([[inf, 2.0, inf, 1.0]]), 3)
    assert chosen.flatten().tolist() == [3, 1, 3]
    assert cost.flatten().tolist() == [1, 2, 1]


@pytest.mark.parametrize("kind", noise.NOISE)
def test_noise_is_standard_normal(kind: str) -> None:
    draws = noise.NOISE[kind]((3, 2000, 2, 4), torch.Generator().manual_seed(0))
    assert draws.shape == (3, 2000, 2, 4)
    assert draws.isfinite().all()
    torch.testing.assert_close(draws.mean((0, 1)), torch.zeros(2, 4), atol=0.06, rtol=0)
    torch.testing.assert_close(draws.std((0, 1)), torch.ones(2, 4), atol=0.06, rtol=0)


def test_structured_noise_has_its_structure() -> None:
    generator = torch.Generator().manual_seed(0)
    mirrored = noise.antithetic((1, 10, 1, 4), generator)
    torch.testing.assert_close(mirrored.mean(1), torch.zeros(1, 1, 4), atol=1e-6, rtol=0)
    directions = noise.orthogonal((1, 8, 2, 4), generator)[0].flatten(1)
    gram = directions @ directions.T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [2, 5, 8])
def test_coloured_noise_is_smooth_and_of_unit_variance(steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    red = noise.coloured((1, 20000, steps, 2), 3.0, generator)
    torch.testing.assert_close(red.std((0, 1)), torch.ones(steps, 2), atol=0.03, rtol=0)
    white = noise.coloured((1, 20000, steps, 2), 0.0, generator)
    if steps > 2:
        assert (red[:, :, 1:] - red[:, :, :-1]).abs().mean() < (white[:, :, 1:] - white[:, :, :-1]).abs().mean()


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        ActionSpace,
        max_position=st.floats(0.01, 0.2),
        max_yaw=st.sampled_from([0.0, 0.1]),
        max_gripper=st.sampled_from([0.0, 0.75]),
        max_norm=st.sampled_from([None, 0.05]),
        gripper_deadband=st.sampled_from([0.0, 0.25]),
    ),
    st.integers(0, 100),
)
def test_action_space_round_trip_and_projection(space: ActionSpace, seed: int) -> None:
    plans = torch.randn(5, 2, len(space.columns), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(space.compress(space.expand(plans)), plans)
    clipped = space.clip(plans)
    torch.testing.assert_close(space.clip(clipped), clipped)  # a projection does nothing twice
    if space.max_gripper:
        grip = space.expand(clipped)[..., 6]
        assert ((grip == 0) | (grip.abs() >= space.gripper_deadband)).all()


def test_a_mean_of_elites_keeps_to_the_grippers_deadband() -> None:
    """The least energy lies at a gripper delta inside of the deadband, where no sample is: no mean may go there."""

    class Slight:
        def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
            return (rollout.state[..., -1, 6] - 0.02).abs() + rollout.state[..., -1, :3].abs().sum(-1)

    space = {"max_position": 0.1, "gripper_deadband": 0.1}
    for name in ("cem", "icem", "mppi"):
        plan = run(name, [0.0, 0.0, 0.0, 0.0], objective=Slight(), space=space, hold_candidate=False)
        grip = plan.actions[..., 6].abs()
        assert bool(((grip == 0) | (grip >= 0.1)).all()), name


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown planner 'cme'.*cem, .*mppi"):
        make_planner("cme")
    with pytest.raises(ValueError, match=r"setting of planner cem 'smaples'.*samples"):
        make_planner("cem", smaples=3)
    with pytest.raises(ValueError, match=r"space 'max_positon'.*max_position"):
        make_planner("cem", space={"max_positon": 3})
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        make_planner("mppi", horizon=0)
    with pytest.raises(ValueError, match="2 <= elites <= samples"):
        make_planner("cem", samples=4, elites=9)
    with pytest.raises(ValueError, match="unknown noise 'pink'; valid: gaussian"):
        make_planner("cem", noise="pink")
    with pytest.raises(ValueError, match="repeat must be at least 1, got 0"):
        make_planner("cem", repeat=0)
    with pytest.raises(ValueError, match=r"max_position must be above 0, got -1\.0"):
        make_planner("cem", space={"max_position": -1.0})
    planner = make_planner("cem")
    generator = torch.Generator()
    z, state, goal = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 7), LatentGoal(torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match=r"state \[B,T,7\].*\(1, 1, 6\)"):
        planner.plan(PointWorld(), FinalL1(), z, state[..., :6], goal, generator=generator)
    with pytest.raises(ValueError, match=r"warm start must be \[B, H \* repeat, 7\]"):
        planner.plan(
            PointWorld(), FinalL1(), z, state, goal, warm_start=WarmStart(torch.zeros(1, 2, 7)), generator=generator
        )
    with pytest.raises(ValueError, match=r"objective must return \[B, S\]"):
        planner.plan(PointWorld(), lambda rollout, goal: rollout.z.sum(), z, state, goal, generator=generator)
