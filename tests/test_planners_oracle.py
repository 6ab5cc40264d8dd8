"""Oracle dynamics: exact, without side effects, and good enough to plan with."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

import armworld.envs  # noqa: F401  registers the environments
from armworld.envs.base import ArmEnv
from armworld.envs.oracle import OracleDynamics
from armworld.planners.mpc import PlanningAgent
from armworld.planners.objectives import RobotState
from armworld.planners.registry import make_planner

SIZE = 48


class Pixels:
    """4 x 4 pixel blocks, averaged, as features [B, T, (H / 4) (W / 4), 3]."""

    step_seconds = 0.25

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        pixels = torch.as_tensor(np.asarray(images)).float().movedim(-1, 2) / 255
        blocks = torch.nn.functional.avg_pool2d(pixels.flatten(0, 1), 4)
        return blocks.unflatten(0, tuple(pixels.shape[:2])).flatten(3).transpose(2, 3)

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor):
        raise AssertionError("the oracle must not ask the encoder's model for dynamics")


@pytest.fixture
def env():
    env = gymnasium.make("armworld/Reach-v0", image_size=SIZE, max_steps=20)
    env.reset(seed=2_000_000)
    yield env
    env.close()


def arm(env: gymnasium.Env) -> ArmEnv:
    assert isinstance(env.unwrapped, ArmEnv)
    return env.unwrapped


def test_rollout_is_what_then_happens(env: gymnasium.Env) -> None:
    oracle = OracleDynamics(env, Pixels())
    actions = torch.zeros(1, 3, 2, 7)
    actions[0, :, :, :3] = torch.tensor([[0.05, 0, 0], [0, -0.05, 0.03], [0, 0, 0]])[:, None]
    actions[0, 1, :, 6] = 0.4
    z = oracle.encode(arm(env).observe()["left"][None, None])
    rollout = oracle.rollout(z, torch.zeros(1, 1, 7), actions)
    assert rollout.z.shape == (1, 3, 2, *z.shape[2:])
    assert rollout.state.shape == (1, 3, 2, 7)
    for step in range(2):
        observation, *_ = env.step(actions[0, 1, step].numpy())
        np.testing.assert_allclose(rollout.state[0, 1, step].numpy(), observation["state"], atol=1e-6)
        torch.testing.assert_close(rollout.z[:, 1, step : step + 1], oracle.encode(observation["left"][None, None]))


def test_rollout_leaves_no_trace(env: gymnasium.Env) -> None:
    oracle, simulator = OracleDynamics(env, Pixels()), arm(env).simulator
    before = simulator.save()
    image = arm(env).observe()["left"]
    oracle.rollout(oracle.encode(image[None, None]), torch.zeros(1, 1, 7), 0.05 * torch.ones(1, 4, 1, 7))
    np.testing.assert_array_equal(simulator.save().physics, before.physics)
    np.testing.assert_array_equal(arm(env).observe()["left"], image)


def test_bad_input(env: gymnasium.Env) -> None:
    oracle = OracleDynamics(env, Pixels())
    with pytest.raises(ValueError, match="one episode at a time, got a batch of 2"):
        oracle.rollout(torch.zeros(2, 1, 9, 3), torch.zeros(2, 1, 7), torch.zeros(2, 1, 1, 7))
    with pytest.raises(ValueError, match="unknown camera 'top'; valid: left"):
        OracleDynamics(env, Pixels(), camera="top")
    slow = Pixels()
    slow.step_seconds = 1.0
    with pytest.raises(ValueError, match=r"steps 0\.25 s and the model 1\.0 s"):
        OracleDynamics(env, slow)


@pytest.mark.slow
def test_planning_in_the_simulator_reaches_the_goal(env: gymnasium.Env) -> None:
    """True dynamics and the robot's own distance to the goal: only the search could fail, and does not."""
    planner = make_planner("cem", samples=24, iterations=3, hold_margin=0.1, space={"max_gripper": 0.0})
    oracle = OracleDynamics(env, Pixels())
    agent = PlanningAgent(oracle, planner, RobotState(), "left", torch.Generator().manual_seed(0))
    observation, info = env.reset(seed=2_000_000)
    agent.reset(info["goal"])
    for _ in range(10):
        observation, _, _, _, info = env.step(agent.act(observation))
    assert info["distance_m"] < 0.01
