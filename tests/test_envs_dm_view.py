"""The dm_env view: same numbers as the Gymnasium environment, dm_env's own protocol."""

import numpy as np
import pytest

from armworld.envs.base import ArmEnv

dm_env = pytest.importorskip("dm_env")


def test_view_follows_the_protocol_and_the_environment() -> None:
    from armworld.envs.dm_view import as_dm_env

    view, env = as_dm_env(ArmEnv(image_size=32, max_steps=2), seed=3), ArmEnv(image_size=32, max_steps=2)
    action = np.array([0.05, 0, 0, 0, 0, 0, 0])
    assert view.action_spec().shape == (7,)
    first, (expected, _) = view.reset(), env.reset(seed=3)
    assert first.first()
    for name, spec in view.observation_spec().items():
        np.testing.assert_array_equal(first.observation[name], expected[name])
        spec.validate(first.observation[name])
    middle, last = view.step(action), view.step(action)
    observation, reward, *_ = env.step(action)
    np.testing.assert_array_equal(middle.observation["left"], observation["left"])
    assert middle.mid() and middle.reward == reward
    assert last.last() and last.discount == 1.0
    assert view.step(action).first()
    view.close()
    env.close()


def test_physics_is_the_very_same_simulation() -> None:
    pytest.importorskip("dm_control")
    from armworld.envs.dm_view import as_dm_env

    env, other = ArmEnv(cameras=(), max_steps=4), ArmEnv(cameras=(), max_steps=4)
    view, action = as_dm_env(env, seed=3), np.array([0.05, 0, 0, 0, 0, 0, -0.5])
    view.reset()
    other.reset(seed=3)
    physics = view.physics
    for _ in range(2):
        view.step(action)
        other.step(action)
        np.testing.assert_array_equal(physics.named.data.site_xpos["tip"], env.simulator.tip)
        np.testing.assert_array_equal(physics.data.qpos, other.simulator.data.qpos)
    view.reset()
    assert view.physics is physics and physics.data.ptr is env.simulator.data
    view.close()
    other.close()
