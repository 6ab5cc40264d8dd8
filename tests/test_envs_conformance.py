"""Every id conforms to Gymnasium, is deterministic under a seed, and says clearly what is wrong with bad input."""

import itertools
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import armworld.envs
from armworld.envs.agents import HoldAgent, RandomAgent
from armworld.envs.base import ArmEnv
from armworld.envs.cameras import CAMERAS
from armworld.envs.controller import ACTION_BOUND
from armworld.envs.experts import make_expert
from armworld.envs.randomization import LEVELS
from armworld.sim_assets import catalog
from armworld.types import Goal

IDS = sorted(armworld.envs.IDS)


def make(env_id: str = "armworld/Reach-v0", **options) -> gymnasium.Env:
    return gymnasium.make(env_id, **{"image_size": 32, **options})


def bare(**options) -> ArmEnv:
    """The environment without Gymnasium's wrappers."""
    env = make(**options).unwrapped
    assert isinstance(env, ArmEnv)
    return env


PRODUCT = list(itertools.product(IDS, CAMERAS, catalog.ROBOTS, LEVELS))
COVERING = [  # every id, camera, robot and level, and every pair of camera and robot
    (IDS[i % 4], tuple(CAMERAS)[i % 3], tuple(catalog.ROBOTS)[i % 2], tuple(LEVELS)[(i + i // 3) % 3]) for i in range(6)
]


@pytest.mark.parametrize(
    ("env_id", "camera", "robot", "level"),
    [*COVERING, *(pytest.param(*case, marks=pytest.mark.slow) for case in PRODUCT if case not in COVERING)],
)
@pytest.mark.filterwarnings("ignore:.*not within the observation space.*:UserWarning")
def test_checkers(env_id: str, camera: str, robot: str, level: str) -> None:
    env = make(env_id, cameras=(camera,), robot=robot, level=level)
    check_env(env.unwrapped)
    if find_spec("stable_baselines3"):
        from stable_baselines3.common import env_checker

        env_checker.check_env(env.unwrapped, warn=False)
    env.close()


def test_the_covering_cases_cover() -> None:
    for column, names in enumerate((IDS, CAMERAS, catalog.ROBOTS, LEVELS)):
        assert {case[column] for case in COVERING} == set(names)
    assert len({case[1:3] for case in COVERING}) == len(CAMERAS) * len(catalog.ROBOTS)


def rollout(env: gymnasium.Env, seed: int, steps: int = 4) -> list[bytes]:
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    seen = [observation, *info["goal"].observations]
    for _ in range(steps):
        observation, reward, _, _, info = env.step(rng.uniform(-ACTION_BOUND, ACTION_BOUND))
        seen += [observation, {"info": np.array([reward, *info["reached_state"]])}]
    return [value.tobytes() for entry in seen for _, value in sorted(entry.items())]


@pytest.mark.parametrize("env_id", IDS)
def test_two_seeded_copies_agree_byte_for_byte(env_id: str) -> None:
    first, second = make(env_id), make(env_id)
    second.reset(seed=99)  # what came before must not matter
    assert rollout(first, 7) == rollout(second, 7)
    assert rollout(first, 8) != rollout(second, 7)
    first.close()
    second.close()


@pytest.mark.parametrize("env_id", IDS)
def test_expert_succeeds_and_hold_fails(env_id: str) -> None:
    env = make(env_id, cameras=())
    for agent, expected in ((make_expert(env), True), (HoldAgent(), False)):
        observation, info = env.reset(seed=3)
        assert not info["solved"] and not info["success"]
        agent.reset(info["goal"])
        truncated = False
        while not truncated:
            observation, _, terminated, truncated, info = env.step(agent.act(observation))
            assert not terminated
        assert info["success"] is expected
    env.close()


def test_goal_and_info() -> None:
    env = make("armworld/PickPlace-v0", cameras=("left", "wrist"))
    _, info = env.reset(seed=1)
    goal = info["goal"]
    assert isinstance(env.unwrapped, ArmEnv)
    assert isinstance(goal, Goal) and goal is env.unwrapped.goal
    assert goal.budgets == (4, 10, 4)
    assert all(set(view) == {"state", "left", "wrist"} for view in goal.observations)
    *_, info = env.step(np.zeros(7))
    assert info["reached_state"].shape == (7,) and info["reached_state"].dtype == np.float64
    assert {"distance_m", "solved", "success", "draws", "applied_action"} <= set(info)
    env.close()


def test_success_needs_the_dwell() -> None:
    env = make(cameras=())
    observation, info = env.reset(seed=0)
    expert = make_expert(env)
    solved = []
    for _ in range(12):
        observation, _, _, _, info = env.step(expert_action(expert, info, observation))
        solved.append(info["solved"])
        assert info["success"] == (len(solved) >= 3 and all(solved[-3:]))
    assert info["success"]
    env.close()


def expert_action(expert, info: dict, observation: dict) -> np.ndarray:
    if "goal" in info:
        expert.reset(info["goal"])
    return expert.act(observation)


def test_episode_ends_by_truncation_only() -> None:
    env = make(cameras=(), max_steps=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(7))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object": "spoon"}, "unknown object 'spoon'; valid: cup, box, bottle"),
        ({"lab": "kitchen"}, "unknown lab 'kitchen'; valid: lab1, lab2"),
        ({"cameras": ("lefft",)}, "unknown camera 'lefft'; valid: left, right, wrist"),
        ({"level": "wild"}, "unknown level 'wild'; valid: none, jitter, full"),
        ({"robot": "ur5"}, "unknown robot 'ur5'; valid: robotiq_2f85, franka_hand"),
        ({"step_seconds": 0.2501}, r"\(0.2501 s\) must be a positive multiple of .*\(0.002 s\)"),
        ({"image_size": 4}, "image_size must be 16 ... 1280"),
        ({"max_steps": 0}, "max_steps at least 1"),
        ({"render_mode": "human"}, "unknown render_mode 'human'"),
    ],
)  # fmt: skip
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArmEnv(**options)


def test_bad_actions_are_refused_and_nothing_moves() -> None:
    env = bare(cameras=())
    env.reset(seed=0)
    before = env.simulator.data.qpos.copy()
    with pytest.raises(ValueError, match=r"shape \(7,\).*got shape \(6,\)"):
        env.step(np.zeros(6))
    with pytest.raises(ValueError, match="finite"):
        env.step(np.array([np.nan] + [0.0] * 6))
    np.testing.assert_array_equal(env.simulator.data.qpos, before)
    _, _, _, _, info = env.step(np.full(7, 5.0))
    np.testing.assert_array_equal(info["applied_action"], ACTION_BOUND)
    env.close()


def test_step_and_goal_need_a_reset() -> None:
    env = bare(cameras=())
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(7))
    with pytest.raises(RuntimeError, match="reset"):
        _ = env.goal
    env.close()


def test_random_agent_stays_in_bounds_and_repeats() -> None:
    actions = [RandomAgent(np.random.default_rng(5), ACTION_BOUND).act({}) for _ in range(2)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert (np.abs(actions[0]) <= ACTION_BOUND).all()
    with pytest.raises(ValueError, match="7 magnitudes"):
        RandomAgent(np.random.default_rng(0), np.ones(6))


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_vector_environment_equals_single_ones(mode: str) -> None:
    vector = gymnasium.make_vec("armworld/Reach-v0", num_envs=2, vectorization_mode=mode, image_size=32)
    observations, _ = vector.reset(seed=4)  # the copies get 4 and 5
    for index, seed in enumerate((4, 5)):
        env = make()
        single, _ = env.reset(seed=seed)
        for key, value in single.items():
            np.testing.assert_array_equal(observations[key][index], value)
        env.close()
    observations, rewards, _, truncated, infos = vector.step(np.zeros((2, 7), np.float32))
    assert observations["left"].shape == (2, 32, 32, 3) and rewards.shape == (2,) and not truncated.any()
    assert infos["reached_state"].shape == (2, 7) and (infos["distance_m"] == -rewards).all()
    vector.close()
