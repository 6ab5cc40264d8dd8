"""Energies against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from armworld import pose
from armworld.planners.objectives import (
    OBJECTIVES,
    ClosestL1,
    FinalL1,
    LatentGoal,
    PatchWeightedL1,
    RobotState,
    SummedL1,
    WeightedSum,
    make_objective,
    needs_goal_state,
)
from armworld.worldmodel.model import Rollout

B, S, H, N, D = 2, 3, 4, 5, 6


@pytest.fixture
def rollout() -> Rollout:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(B, S, H, 7, generator=generator) * 0.3
    return Rollout(z=torch.randn(B, S, H, N, D, generator=generator), state=state)


@pytest.fixture
def goal() -> LatentGoal:
    generator = torch.Generator().manual_seed(1)
    z, start = torch.randn(2, B, N, D, generator=generator)
    return LatentGoal(z, torch.randn(B, 7, generator=generator) * 0.3, start)


def test_final_l1(rollout: Rollout, goal: LatentGoal) -> None:
    cost = FinalL1()(rollout, goal)
    for b, s in np.ndindex(B, S):
        assert cost[b, s] == pytest.approx(float((rollout.z[b, s, -1] - goal.z[b]).abs().mean()))


def test_summed_l1(rollout: Rollout, goal: LatentGoal) -> None:
    cost = SummedL1(discount=0.5)(rollout, goal)
    steps = [(rollout.z[1, 2, h] - goal.z[1]).abs().mean() for h in range(H)]
    assert cost[1, 2] == pytest.approx(float(sum(0.5 ** (H - 1 - h) * steps[h] for h in range(H))))
    single = Rollout(rollout.z[:, :, :1], rollout.state[:, :, :1])
    torch.testing.assert_close(SummedL1()(single, goal), FinalL1()(single, goal))


def test_closest_l1(rollout: Rollout, goal: LatentGoal) -> None:
    steps = [float((rollout.z[1, 2, h] - goal.z[1]).abs().mean()) for h in range(H)]
    assert ClosestL1(haste=0.0)(rollout, goal)[1, 2] == pytest.approx(min(steps))
    assert ClosestL1(haste=0.5)(rollout, goal)[1, 2] == pytest.approx(
        min(c * (1 + 0.5 * h) for h, c in enumerate(steps))
    )
    steps_nan = rollout.z.clone()
    steps_nan[0, 0, 1] = torch.nan
    assert ClosestL1()(Rollout(steps_nan, rollout.state), goal)[0, 0].isnan(), "a broken step must not be overlooked"


def test_patch_weights(rollout: Rollout, goal: LatentGoal) -> None:
    objective = PatchWeightedL1(power=2.0, floor=0.0)
    weights = objective.weights(goal)
    torch.testing.assert_close(weights.mean(1), torch.ones(B))
    assert goal.start is not None
    change = (goal.z - goal.start).abs().mean(-1) ** 2
    torch.testing.assert_close(weights / weights[:, :1], change / change[:, :1])
    distance = (rollout.z[0, 1, -1] - goal.z[0]).abs().mean(-1)
    assert objective(rollout, goal)[0, 1] == pytest.approx(float((weights[0] * distance).mean()))
    torch.testing.assert_close(PatchWeightedL1(power=0.0)(rollout, goal), FinalL1()(rollout, goal))


def test_robot_state(rollout: Rollout, goal: LatentGoal) -> None:
    cost = RobotState(position=2.0, rotation=0.5, gripper=0.1)(rollout, goal)
    assert goal.state is not None
    state, target = rollout.state[1, 0, -1].numpy(), goal.state[1].numpy()
    turn = pose.action_between(state, target)[3:6]
    expected = 2 * np.linalg.norm(state[:3] - target[:3]) + 0.5 * np.linalg.norm(turn) + 0.1 * abs(state[6] - target[6])
    assert cost[1, 0] == pytest.approx(expected, rel=1e-5)


def test_robot_state_has_a_finite_gradient_at_the_goal(goal: LatentGoal) -> None:
    assert goal.state is not None
    state = goal.state[:, None, None].clone().requires_grad_(True)
    RobotState(rotation=1.0)(Rollout(torch.zeros(B, 1, 1, N, D), state), goal).sum().backward()
    assert state.grad is not None
    assert state.grad.isfinite().all()


def test_weighted_sum(rollout: Rollout, goal: LatentGoal) -> None:
    both = WeightedSum(((1.0, FinalL1()), (0.1, RobotState())))(rollout, goal)
    torch.testing.assert_close(both, FinalL1()(rollout, goal) + 0.1 * RobotState()(rollout, goal))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_registry_and_gradients(name: str, rollout: Rollout, goal: LatentGoal) -> None:
    objective = make_objective(name)
    assert objective(rollout, goal).shape == (B, S)
    assert needs_goal_state(objective) == ("state" in name)
    image_only = LatentGoal(goal.z, None, goal.start)
    if needs_goal_state(objective):
        with pytest.raises(ValueError, match=r"goal\.state"):
            objective(rollout, image_only)
    else:
        torch.testing.assert_close(objective(rollout, image_only), objective(rollout, goal))


def test_errors(rollout: Rollout, goal: LatentGoal) -> None:
    with pytest.raises(ValueError, match="unknown objective 'l2'; valid: final, summed"):
        make_objective("l2")
    with pytest.raises(ValueError, match=r"goal\.start"):
        PatchWeightedL1()(rollout, LatentGoal(goal.z))
    with pytest.raises(ValueError, match="at least one"):
        WeightedSum(())(rollout, goal)
