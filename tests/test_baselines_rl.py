"""The reinforcement-learning reference: goal environment, exported actor, agent."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from armworld.baselines.rl import ORDER, GoalEnv, SACConfig, describe, load_actor, train_sac
from armworld.evaluation.agents import make_agent
from armworld.evaluation.cells import Cell, run_episodes
from armworld.evaluation.setup import Setup, resolve

sys.path.insert(0, str(Path(__file__).parent))
import evaluation_fake as fake


def test_goal_environment_keeps_its_contract():
    env = GoalEnv(fake.PointEnv())
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen) and tuple(seen) == ORDER
    nxt, reward, _, _, info = env.step(np.array([1.0, 0, 0]))
    assert nxt["achieved_goal"][0] - seen["achieved_goal"][0] == pytest.approx(10, abs=1e-4)  # 1 m in units of 10 cm
    np.testing.assert_allclose(nxt["observation"], [10, 0, 0], atol=1e-4)
    assert reward == -1 and info == {"is_success": False}
    goals = np.zeros((3, 3), np.float32)
    reached = np.array([[0, 0, 0], [0.39, 0, 0], [0.41, 0, 0]], np.float32)
    np.testing.assert_array_equal(env.compute_reward(reached, goals, [{}] * 3), [0, 0, -1])


def test_trained_actor_is_exported_and_plays_through_the_runner(tmp_path):
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    torch.set_num_threads(1)
    config = SACConfig(tmp_path, steps=60, hidden=16, batch=16)
    saved = []
    model_class = stable_baselines3.SAC
    learn = model_class.learn

    def spy(self, *arguments, **keywords):
        saved.append(self)
        return learn(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_class, "learn", spy)
        folder = train_sac(config, fake.PointEnv())
    actor = load_actor(folder)
    seen = describe(np.array([0.1, 0, 0.2]), np.array([0.1, 0, 0.1]), np.array([0.3, 0.1, 0.2]))
    action, _ = saved[0].predict(seen, deterministic=True)
    ours = actor.network(torch.from_numpy(np.concatenate([seen[name] for name in ORDER])))
    np.testing.assert_allclose(ours.numpy(), action, atol=1e-5)
    assert actor.about["data"] == {"environment_steps": 60}
    (result,) = run_episodes(Cell(fake.ID, {}, "sac", tmp_path / "cell", str(folder)), [0])
    assert result.steps == 8 and not result.reason.startswith("planning_failed")
    assert resolve(Setup(model=str(folder), image_size=48), ["sac"]).image_size == 48
    env = fake.PointEnv(step_seconds=1.0)
    with pytest.raises(ValueError, match=r"the model's step is 0.25 s, the environment's 1.0 s"):
        make_agent("sac", env, actor, 0)


def test_reported_seeds_are_not_trained_on(tmp_path):
    pytest.importorskip("stable_baselines3")
    with pytest.raises(ValueError, match=r"0 \.\.\. 999999, got 2000000"):
        train_sac(SACConfig(tmp_path, seed=2_000_000), fake.PointEnv())
