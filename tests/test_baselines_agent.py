"""Action chunks, temporal ensembling, and the policy as an agent."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from armworld.baselines.agent import ChunkExecution, LoadedPolicy, PlayConfig, PolicyAgent, hand_gap, load_policy
from armworld.baselines.policy import Policy, policy_config
from armworld.types import Goal
from armworld.worldmodel.checkpoint import save_parts
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.sizes import encoder_config

sys.path.insert(0, str(Path(__file__).parent))
from baselines_helpers import SIZE, START, picture


def chunks(*firsts: float) -> list[np.ndarray]:
    """Chunks [3, 7] whose rows count on from a number."""
    return [np.repeat(np.arange(3.0)[:, None] + first, 7, 1) for first in firsts]


def play(execution: ChunkExecution, predictions: list[np.ndarray], steps: int) -> tuple[list[float], int]:
    """The first coordinate of each action, and how many predictions were asked for."""
    waiting = iter(predictions)
    left = len(predictions)
    actions = []

    def predict() -> np.ndarray:
        nonlocal left
        left -= 1
        return next(waiting)

    for _ in range(steps):
        actions.append(float(execution.next(predict)[0]))
    return actions, len(predictions) - left


def test_execution_horizon_uses_that_many_actions_of_each_chunk():
    predictions = chunks(0, 10, 20, 30)
    assert play(ChunkExecution(3, 1), predictions, 4) == ([0, 10, 20, 30], 4)
    assert play(ChunkExecution(3, 2), predictions, 4) == ([0, 1, 10, 11], 2)
    assert play(ChunkExecution(3, 3), predictions, 4) == ([0, 1, 2, 10], 2)


def test_temporal_ensembling_averages_what_was_said_about_this_step():
    predictions = chunks(0, 10, 20, 30)
    actions, asked = play(ChunkExecution(3, 1, ensemble=0.0), predictions, 4)
    assert asked == 4
    np.testing.assert_allclose(actions, [0, (10 + 1) / 2, (20 + 11 + 2) / 3, (30 + 21 + 12) / 3])
    newest = np.exp(-0.5 * np.arange(3))
    actions, _ = play(ChunkExecution(3, 1, ensemble=0.5), predictions, 3)
    np.testing.assert_allclose(actions[2], (newest * [20, 11, 2]).sum() / newest.sum())


def test_consistent_chunks_are_ensembled_to_themselves():
    """Chunks that agree with one another give the same actions under every way of execution."""
    predictions = chunks(0, 1, 2, 3, 4)
    for ensemble in (0.0, 1.0, -1.0):
        actions, _ = play(ChunkExecution(3, 1, ensemble), predictions, 5)
        np.testing.assert_allclose(actions, range(5))


def test_a_new_subgoal_forgets_earlier_chunks():
    execution = ChunkExecution(3, 2)
    assert play(execution, chunks(0), 1)[0] == [0]
    execution.reset()
    assert play(execution, chunks(50), 2)[0] == [50, 51]


def test_more_actions_than_a_chunk_holds_are_refused():
    with pytest.raises(ValueError, match=r"execute must lie in 1 ... 4 \(the policy's chunk\), got 5"):
        ChunkExecution(4, 5)


def network(**changes) -> Policy:
    torch.manual_seed(0)
    return Policy(replace(policy_config("debug", (SIZE // 16) ** 2), **changes)).eval()


USAGE = WorldModelConfig(0.25, (SIZE, SIZE), "left")


def observation(x: float = 0.0):
    state = START + np.array([0, x, 0, 0, 0, 0, 0])
    return {"state": state.astype(np.float32), "left": picture(state)}


class Spy(PolicyAgent):
    """Answers the sub-goal, and how many observations of the window are real."""

    def _predict(self) -> np.ndarray:
        return np.full((4, 7), 10.0 * self._subgoal + len(self._seen))


def test_agent_fills_its_window_and_follows_the_budgets():
    agent = Spy(LoadedPolicy(network(), None, USAGE, {}), "left", torch.Generator())
    agent.reset(Goal((observation(0.1), observation(0.2)), (3, 2)))
    assert [agent.act(observation())[0] for _ in range(6)] == [1, 2, 2, 12, 12, 12]
    agent.reset(Goal((observation(0.1),), (3,)))
    assert agent.act(observation())[0] == 1


def spy(**choices) -> Spy:
    return Spy(LoadedPolicy(network(), None, USAGE, {}), "left", torch.Generator(), PlayConfig(**choices))


def subgoals(agent: Spy, xs: list[float]) -> list[int]:
    """The sub-goal that each of these positions is answered with (tens of the action)."""
    return [int(agent.act(observation(x))[0] // 10) for x in xs]


def test_arrival_shows_the_next_subgoal_at_the_hands_distance_or_when_patience_ends():
    goal = Goal((observation(0.1), observation(0.2)), (3, 2))
    agent = spy(schedule="arrival", arrive_within=0.02, patience=2.0)
    agent.reset(goal)
    assert subgoals(agent, [0.0, 0.07, 0.09, 0.09]) == [0, 0, 1, 1]
    agent.reset(goal)
    assert subgoals(agent, [0.0] * 7) == [0] * 6 + [1]
    passed = Goal((observation(0.0), observation(0.01), observation(0.2)), (3, 3, 2))
    agent.reset(passed)
    assert subgoals(agent, [0.0]) == [2]  # what is reached already is not shown


def test_arrival_asks_for_the_gripper_and_the_turn_too():
    there, away = observation(0.1)["state"], observation(0.1)["state"].copy()
    away[5] += 0.5
    assert hand_gap(there, there) == (0, 0)
    assert hand_gap(away, there) == (pytest.approx(0.1 * 2 * np.sin(0.25), abs=1e-6), 0)
    closed = observation(0.1)
    closed["state"][6] += 0.3
    agent = spy(schedule="arrival", patience=2.0)
    agent.reset(Goal((closed, observation(0.2)), (4, 2)))
    assert subgoals(agent, [0.1] * 3) == [0] * 3


def test_rest_holds_still_at_the_last_subgoal_until_twice_as_far():
    agent = spy(rest=True, arrive_within=0.02)
    agent.reset(Goal((observation(0.1),), (9,)))
    moves = [bool(agent.act(observation(x)).any()) for x in (0.0, 0.07, 0.09, 0.07, 0.05, 0.07)]
    assert moves == [True, True, False, False, True, True]


@pytest.mark.parametrize(
    ("said", "choices", "played"),
    [
        (0.2, {}, 0.2),
        (0.2, {"full_grip": True}, 1.0),
        (-0.2, {"full_grip": True, "gripper_deadband": 0.1}, -1.0),
        (0.05, {"full_grip": True, "gripper_deadband": 0.1}, 0.0),
        (0.2, {"max_gripper": 0.0}, 0.0),
        (-0.9, {"max_gripper": 0.5}, -0.5),
    ],
)
def test_gripper_is_played_as_planners_play_it(said, choices, played):
    class Says(PolicyAgent):
        def _predict(self) -> np.ndarray:
            return np.full((4, 7), said)

    agent = Says(LoadedPolicy(network(), None, USAGE, {}), "left", torch.Generator(), PlayConfig(**choices))
    agent.reset(Goal((observation(0.1),), (3,)))
    action = agent.act(observation())
    np.testing.assert_allclose(action, [said] * 6 + [played], rtol=1e-6)


def test_bad_ways_to_play_are_named():
    with pytest.raises(ValueError, match="unknown sub-goal schedule of a policy 'energy'; valid: budget, arrival"):
        PlayConfig(schedule="energy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patience must be above 0, got 0"):
        PlayConfig(patience=0)


def test_agents_actions_depend_on_the_generator_alone():
    def run(seed: int) -> np.ndarray:
        agent = PolicyAgent(LoadedPolicy(network(), None, USAGE, {}), "left", torch.Generator().manual_seed(seed))
        agent.reset(Goal((observation(0.1),), (3,)))
        return np.stack([agent.act(observation(0.01 * i)) for i in range(3)])

    first = run(0)
    assert first.shape == (3, 7) and first.dtype == np.float32 and np.isfinite(first).all()
    np.testing.assert_array_equal(first, run(0))
    assert np.abs(first - run(1)).max() > 1e-3


def test_agent_names_what_is_wrong_with_an_observation():
    agent = PolicyAgent(LoadedPolicy(network(), None, USAGE, {}), "left", torch.Generator())
    with pytest.raises(RuntimeError, match="reset"):
        agent.act(observation())
    with pytest.raises(ValueError, match="no camera 'left' in the observation; it has wrist"):
        agent.reset(Goal(({"state": observation()["state"], "wrist": picture(START)},), (1,)))
    with pytest.raises(ValueError, match=r"images must be uint8 \[32, 32, 3\]"):
        agent.reset(Goal(({"state": observation()["state"], "left": picture(START, 48)},), (1,)))
    with pytest.raises(ValueError, match="7 finite numbers"):
        agent.reset(Goal(({"state": np.full(7, np.nan), "left": picture(START)},), (1,)))


def test_checkpoints_keep_policies_of_both_kinds(tmp_path):
    scales = {"action_mean": (0.01,) * 7, "action_std": (0.02,) * 7}
    save_parts(tmp_path / "octo", {"policy": network(**scales)}, USAGE, {"method": "x"})
    loaded = load_policy(tmp_path / "octo")
    assert loaded.encoder is None and loaded.about == {"method": "x"} and loaded.camera == "left"
    assert loaded.network.config == network(**scales).config
    encoder = Encoder(encoder_config("debug", image_size=(SIZE, SIZE)))
    on_features = network(stem=(), features=encoder.config.width)
    save_parts(tmp_path / "features", {"encoder": encoder, "policy": on_features}, USAGE, {})
    for folder in ("octo", "features"):
        agent = PolicyAgent(load_policy(tmp_path / folder), "left", torch.Generator().manual_seed(0), PlayConfig(4))
        agent.reset(Goal((observation(0.1),), (3,)))
        assert agent.act(observation()).shape == (7,)
    save_parts(tmp_path / "encoder", {"encoder": encoder}, None, {})
    with pytest.raises(ValueError, match="holds no policy; train one with: armworld bc"):
        load_policy(tmp_path / "encoder")
