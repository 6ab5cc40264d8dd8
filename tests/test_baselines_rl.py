"""The reinforcement-learning reference: goal environment, exported actor, agent."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from armworld.baselines.rl import ORDER, GoalEnv, SACConfig, describe, load_actor, train_sac
from armworld.baselines.table import method_row
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
    seen = describe(np.array([0.1, 0, 0.2]), np.array([0.3, 0.1, 0.2]), np.array([0, 0, 0.1]))
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


class ObjectEnv(fake.PointEnv):
    """The point environment with an object that follows the hand once the fingers are closed."""

    def __init__(self) -> None:
        super().__init__(cameras=())
        self.task = SimpleNamespace(name="grasp", object="cup", targets={})
        self.place = np.array([0.3, 0.1, 0.0])
        self.simulator = SimpleNamespace(step_seconds=0.25, object_pose=lambda name: (self.place.copy(), np.eye(3)))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        answer = super().reset(seed=seed, options=options)
        self.simulator.tip, self.task.targets = self.state[:3].copy(), {"object": self.place + np.array([0, 0, 0.1])}
        return answer

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        before = self.state[:3].copy()
        answer = super().step(action)
        self.simulator.tip = self.state[:3].copy()
        self.place += (self.state[:3] - before) * (self.state[6] > 0.5)
        return answer


def test_grasp_moves_the_object_and_sees_it_from_between_the_fingers():
    env = GoalEnv(ObjectEnv(), "grasp")
    assert env.action_space.shape == (4,)
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen) and tuple(seen) == ORDER
    np.testing.assert_allclose(seen["desired_goal"] - seen["achieved_goal"], [0, 0, 1], atol=1e-5)  # 10 cm up
    np.testing.assert_allclose(seen["observation"], [0, 0, 0, 3, 1, 0, 0], atol=1e-5)
    moved, reward, *_ = env.step(np.array([0.1, 0, 0, 0]))
    np.testing.assert_allclose(moved["observation"], [1, 0, 0, 2, 1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(moved["achieved_goal"], seen["achieved_goal"], atol=1e-5)
    assert reward == -1
    _, reward, *_ = env.step(np.array([0, 0, 0.08, 1.0]))
    assert reward == 0  # 8 of 10 cm, within the tolerance


def test_an_actor_for_grasp_keeps_to_its_task(tmp_path):
    pytest.importorskip("stable_baselines3")
    torch.set_num_threads(1)
    config = SACConfig(tmp_path, task="grasp", steps=40, hidden=16, batch=16)
    actor = load_actor(train_sac(config, ObjectEnv()))
    assert actor.reads_simulator and actor.network.config.bound == (1, 1, 1, 1)
    env = ObjectEnv()
    _, info = env.reset(seed=1)
    agent = make_agent("sac", env, actor, 0)
    agent.reset(info["goal"])
    action = agent.act({"state": np.zeros(7, np.float32)})
    assert action.shape == (7,) and not action[3:6].any() and action[[0, 1, 2, 6]].all()
    with pytest.raises(ValueError, match="trained on grasp; the environment's task is None"):
        make_agent("sac", fake.PointEnv(), actor, 0)
    assert method_row("sac", str(tmp_path / "model"), 1).seconds_per_action is None
    with pytest.raises(ValueError, match="valid: reach, grasp"):
        train_sac(SACConfig(tmp_path, task="pour"), fake.PointEnv())


def test_training_ends_when_its_time_is_spent(tmp_path):
    pytest.importorskip("stable_baselines3")
    torch.set_num_threads(1)
    actor = load_actor(train_sac(SACConfig(tmp_path, steps=10_000, minutes=1e-6, hidden=16), fake.PointEnv()))
    assert actor.about["steps"] < 10


def test_reported_seeds_are_not_trained_on(tmp_path):
    pytest.importorskip("stable_baselines3")
    with pytest.raises(ValueError, match=r"0 \.\.\. 999999, got 2000000"):
        train_sac(SACConfig(tmp_path, seed=2_000_000), fake.PointEnv())
