"""Chains of sub-goals on energies whose best chain is known, and the two-level agent where one level is lost."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from armworld.planners.mpc import AgentConfig
from armworld.planners.objectives import FinalL1, LatentGoal, Objective, PatchWeightedL1
from armworld.planners.plans import ActionSpace, PlanningError
from armworld.planners.registry import make_planner
from armworld.planners.subgoals import (
    Frames,
    cheapest_path,
    choose_chain,
    choose_recorded,
    hop_energies,
    imagined_frames,
)
from armworld.planners.twolevel import TwoLevelAgent, TwoLevelConfig
from armworld.worldmodel.model import Rollout

sys.path.insert(0, str(Path(__file__).parent))

from planners_fake import LIMITS, PointWorld, goal_at, observation

SPACE = ActionSpace(max_position=0.1)


@dataclass(frozen=True)
class Shortsighted:
    """1 - exp(-d²/2) of the distance d to the goal: beyond a few units it says nothing."""

    def __call__(self, rollout: Rollout, goal: LatentGoal) -> Tensor:
        gap = rollout.z[:, :, -1, 0] - goal.z[:, None, 0]
        return 1 - torch.exp(-(gap**2).sum(-1) / 2)


def frames(points: Tensor | np.ndarray) -> Frames:
    z = torch.as_tensor(points, dtype=torch.float32)[:, None]
    return Frames(z, torch.zeros(len(z), 7))


def on_a_line(count: int) -> Frames:
    points = np.zeros((count, 4))
    points[:, 0] = np.linspace(0, 6, count)
    return frames(points)


def choose(candidates: Frames, count: int, power: float = 2.0, objective: Objective | None = None) -> tuple[float, ...]:
    now, goal = frames(np.zeros((1, 4))), frames(np.array([[6.0, 0, 0, 0]]))
    chain, stops = choose_chain(objective or FinalL1(), now, goal, candidates, count, power, keep=100)
    assert chain.cost == pytest.approx(sum(hop**power for hop in chain.hops), rel=1e-5)
    assert len(chain.stops) == len(stops) == len(chain.hops) - 1
    np.testing.assert_array_equal(stops.z, candidates.z[list(chain.stops)])
    return tuple(stops.z[:, 0, 0].tolist())


def test_stops_divide_the_way_evenly() -> None:
    assert choose(on_a_line(13), 1) == (3.0,)
    assert choose(on_a_line(13), 2) == (2.0, 4.0)
    assert choose(on_a_line(13), 5) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert choose(on_a_line(4), 3) == (2.0, 4.0)  # fewer stops than allowed: there are only two places to stop at


def test_a_metric_needs_a_power_above_one() -> None:
    rng = np.random.default_rng(0)
    assert choose(frames(rng.normal(size=(50, 4))), 3, power=1.0) == ()
    assert choose(frames(rng.normal(size=(50, 4)) * 100), 3) == ()  # too far off the way


def test_the_path_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        first, last = torch.rand(6, generator=generator), torch.rand(6, generator=generator)
        between, direct = torch.rand(6, 6, generator=generator) * 0.5, 0.9

        def cost(path: tuple[int, ...], first=first, last=last, between=between, direct=direct) -> float:
            middle = sum(float(between[a, b]) for a, b in pairwise(path))
            return direct if not path else float(first[path[0]]) + middle + float(last[path[-1]])

        paths = [path for length in range(4) for path in permutations(range(6), length)]
        assert cost(tuple(cheapest_path(first, between, last, direct, 3))) <= min(map(cost, paths)) + 1e-6


def test_energies_of_hops() -> None:
    starts, ends = frames(torch.rand(5, 4)), frames(torch.rand(20, 4))
    energies = hop_energies(FinalL1(), starts, ends, starts.z[:1])
    expected = (starts.z[:, None] - ends.z[None]).abs().mean((-2, -1))
    torch.testing.assert_close(energies, expected)
    assert hop_energies(PatchWeightedL1(), starts, ends, starts.z[:1]).shape == (5, 20)
    broken = frames(torch.full((1, 4), torch.nan))
    assert torch.isinf(hop_energies(FinalL1(), starts, broken, starts.z[:1])).all()
    with pytest.raises(PlanningError, match="to the goal is not finite"):
        choose_chain(FinalL1(), frames(torch.zeros(1, 4)), broken, starts, 1, 2.0, 10)


def test_imagined_frames_are_what_two_legs_lead_to() -> None:
    here = frames(np.zeros((1, 4)))
    found = imagined_frames(PointWorld(), here, SPACE, torch.Generator().manual_seed(0), 50, 8, 2)
    assert len(found) == 50 * 4
    paths = found.z.view(50, 4, 4)
    torch.testing.assert_close(paths[:, 1, :3], 2 * paths[:, 0, :3])  # steps 2 and 4: one leg
    torch.testing.assert_close(paths[:, 3, :3] - paths[:, 2, :3], paths[:, 2, :3] - paths[:, 1, :3])
    assert (paths[:, :2, 3] == 0).all() and paths[:, 2, 3].abs().max() > 0.5  # the gripper moves at the turn
    assert found.z.abs().max() <= 8
    again = imagined_frames(PointWorld(), here, SPACE, torch.Generator().manual_seed(0), 50, 8, 2)
    torch.testing.assert_close(found.z, again.z)


def drive(
    bank: Frames | None, levels: TwoLevelConfig, objective: Objective, steps: int
) -> tuple[TwoLevelAgent, np.ndarray]:
    """The agent after some steps, and the point [4] it came to."""
    agent = TwoLevelAgent(
        PointWorld(),
        make_planner("cem", space={"max_position": 0.1}, hold_margin=0.01),
        objective,
        "left",
        torch.Generator().manual_seed(0),
        AgentConfig(schedule="energy", switch_energy=0.1),
        levels=levels,
        bank=bank,
    )
    agent.reset(goal_at([9.0, 9, 9, 9], [6.0, 0, 0, 0], budgets=(6, 8)))  # only the last is used
    point = np.zeros(4)
    for _ in range(steps):
        point = point + agent.act(observation(point))[[0, 1, 2, 6]] / LIMITS.numpy()
    return agent, point


def test_sub_goals_lead_where_the_energy_alone_says_nothing() -> None:
    """The goal is six units away, and the energy is flat from about three on."""
    _, lost = drive(None, TwoLevelConfig(count=0), Shortsighted(), 12)
    agent, found = drive(on_a_line(13), TwoLevelConfig(count=5), Shortsighted(), 14)
    assert np.abs(lost - [6, 0, 0, 0]).max() > 1
    assert np.abs(found - [6, 0, 0, 0]).max() < 0.3
    subgoals = [record.subgoal for record in agent.history]
    assert subgoals == sorted(subgoals) and max(subgoals) >= 3
    assert {record.image for record in agent.history} == {1}
    assert agent.last_chain is not None


def test_imagined_sub_goals_lie_on_the_way() -> None:
    agent, _ = drive(None, TwoLevelConfig(count=1, samples=500), FinalL1(), 1)
    assert agent.last_chain is not None and len(agent.last_chain.stops) == 1
    assert agent.last_chain.cost < 0.8 * agent.last_chain.direct_cost
    _, point = drive(None, TwoLevelConfig(count=2, samples=200), FinalL1(), 14)
    assert np.abs(point - [6, 0, 0, 0]).max() < 0.5


def two_ways() -> Frames:
    """An episode around a corner from the origin to the goal, and one that passes straight, but ends elsewhere."""
    corner = [[0, 0, 0, 0], [0, 3, 0, 0], [0, 6, 0, 0], [3, 6, 0, 0], [6, 6, 0, 0], [6, 3, 0, 0], [6, 0, 0, 0]]
    straight = [[0, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 3]]
    found = frames(np.array(corner + straight, float))
    return Frames(found.z, found.state, torch.tensor([7] * len(corner) + [9] * len(straight)))


def test_stops_along_an_episode_follow_it_wherever_it_goes() -> None:
    now, goal, bank = frames(np.zeros((1, 4))), frames(np.array([[6.0, 0, 0, 0]])), two_ways()
    chain, stops = choose_recorded(FinalL1(), now, goal, bank, 3, 2.0)
    assert chain.stops == (2, 4, 6) and chain.cost == 0 and len(chain.hops) == 4
    assert stops.z[:, 0, :2].tolist() == [[0, 6], [6, 6], [6, 0]]
    assert choose_recorded(FinalL1(), now, goal, bank, 1, 2.0)[0].stops == (6,)
    backwards = choose_recorded(FinalL1(), goal, now, bank, 3, 2.0)[0]
    assert all(a < b for a, b in pairwise(backwards.stops)) and backwards.cost > 0, "never against its order"
    assert choose_recorded(FinalL1(), now, goal, bank, 0, 2.0)[0].stops == ()
    with pytest.raises(ValueError, match="with their episodes' numbers"):
        choose_recorded(FinalL1(), now, goal, on_a_line(3), 2, 2.0)


def test_the_agent_goes_the_recorded_way() -> None:
    agent = TwoLevelAgent(
        PointWorld(), make_planner("cem", space={"max_position": 0.1}), FinalL1(), "left",
        torch.Generator().manual_seed(0), AgentConfig(schedule="energy", switch_energy=0.1),
        levels=TwoLevelConfig(count=3, along=True), bank=two_ways(),
    )  # fmt: skip
    agent.reset(goal_at([6.0, 0, 0, 0], budgets=(40,)))
    point, visited = np.zeros(4), []
    for _ in range(30):
        point = point + agent.act(observation(point))[[0, 1, 2, 6]] / LIMITS.numpy()
        visited.append(point)
    assert np.abs(point - [6, 0, 0, 0]).max() < 0.5
    assert np.abs(np.array(visited) - [0, 6, 0, 0]).max(1).min() < 0.7, "by way of the corner"
    with pytest.raises(ValueError, match="need a bank that tells them apart"):
        TwoLevelAgent(
            PointWorld(), agent.planner, FinalL1(), "left", agent.generator, levels=TwoLevelConfig(along=True)
        )


def test_budgets_are_shared_by_energy_and_chains_are_chosen_again() -> None:
    agent, _ = drive(on_a_line(13), TwoLevelConfig(count=1), FinalL1(), 1)
    assert agent._budgets == (7, 7)
    agent, _ = drive(on_a_line(13), TwoLevelConfig(count=2), FinalL1(), 9)
    assert {record.subgoal for record in agent.history} == {0, 1, 2}
    assert agent.last_chain is not None and agent.last_chain.stops == ()  # the last choice: straight to the goal


def test_same_seed_same_episode() -> None:
    first, again = (drive(None, TwoLevelConfig(), FinalL1(), 4)[1] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="count must be at least 0"):
        TwoLevelConfig(count=-1)
    with pytest.raises(ValueError, match="stride 9 exceeds the 8 steps"):
        TwoLevelConfig(stride=9)
    with pytest.raises(ValueError, match=r"frames need z \[C, N, D\] and state \[C, 7\], got \[2, 3\], \[2, 7\]"):
        Frames(torch.zeros(2, 3), torch.zeros(2, 7))
