"""robosuite's tasks under our interface; skipped where robosuite is not installed."""

import numpy as np
import pytest

pytest.importorskip("robosuite")

from gymnasium.utils.env_checker import check_env

from armworld.envs.robosuite_adapter import RobosuiteEnv
from armworld.evaluation.episodes import run_episode


class Straight:
    """Goes straight to the goal's flange position; the gripper stays as it is."""

    def reset(self, goal):
        self._target = goal.observations[-1]["state"]

    def act(self, observation):
        return np.concatenate([np.clip(self._target[:3] - observation["state"][:3], -0.075, 0.075), np.zeros(4)])


@pytest.fixture(scope="module")
def env():
    made = RobosuiteEnv("Lift", image_size=48, cameras=("left", "wrist"), max_steps=8)
    yield made
    made.close()


def test_it_passes_gymnasiums_checker(env) -> None:
    check_env(env, skip_render_check=True)


def test_a_seed_repeats_and_a_step_moves_as_asked(env) -> None:
    first, _ = env.reset(seed=4)
    other, _ = env.reset(seed=5)
    again, info = env.reset(seed=4)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    assert not np.array_equal(first["left"], other["left"])
    assert first["state"][6] < 0.05
    action = np.array([0.05, -0.03, 0, 0, 0, 0, 0.5])
    _, _, _, _, after = env.step(action)
    moved = after["reached_state"] - info["reached_state"]
    np.testing.assert_allclose(moved[:3], action[:3], atol=2e-3)
    assert moved[6] > 0.1


def test_saved_states_repeat_and_the_runner_scores_reaching(env) -> None:
    env.reset(seed=1)
    saved = env.save_state()
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, (3, 7))
    runs = []
    for _ in range(2):
        env.restore_state(saved)
        runs.append([env.step(action)[0] for action in actions][-1])
    for name in runs[0]:
        np.testing.assert_array_equal(runs[0][name], runs[1][name])
    result = run_episode(env, Straight(), seed=2)
    assert result.success and result.final_distance_m is not None and result.final_distance_m < 0.005


def test_the_servos_grasp_and_robosuite_says_lifted() -> None:
    env = RobosuiteEnv("Lift", goal="task", cameras=(), max_steps=22)
    env.reset(seed=0)
    assert not env.solved() and np.isnan(env._info()["distance_m"])
    cube = env.body_position("cube_main")

    def go(target: np.ndarray, grip: float, steps: int) -> None:
        for _ in range(steps):
            tip = env.data.site("gripper0_right_grip_site").xpos - env.controller.kinematics.base
            yaw = cube_yaw(env)
            env.step(np.concatenate([np.clip(target - tip, -0.075, 0.075), [0, 0, np.clip(yaw, -0.2, 0.2)], [grip]]))

    go(cube + np.array([0, 0, 0.08]), -1, 5)
    go(cube, -1, 3)
    go(cube, 1, 3)
    go(cube + np.array([0, 0, 0.12]), 1, 4)
    assert env.solved() and env._info()["success"]
    env.close()


def cube_yaw(env: RobosuiteEnv) -> float:
    """How far the fingers must turn about z to be square with the cube, rad."""
    finger = env.data.body("gripper0_right_leftfinger").xpos - env.data.body("gripper0_right_rightfinger").xpos
    side = env.data.body("cube_main").xmat.reshape(3, 3)[:, 0]
    turn = np.arctan2(side[1], side[0]) - np.arctan2(finger[1], finger[0])
    return float((turn + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="Lift"):
        RobosuiteEnv("Lifft")
    with pytest.raises(ValueError, match="TwoArmLift"):
        RobosuiteEnv("TwoArmLift")
    with pytest.raises(ValueError, match="no Panda with a two-finger hand"):
        RobosuiteEnv("Wipe")


@pytest.mark.parametrize("task", ["PickPlaceCan", "Stack"])
def test_other_tasks_of_one_arm_are_reached_in_too(task: str) -> None:
    env = RobosuiteEnv(task, cameras=(), max_steps=8)
    result = run_episode(env, Straight(), seed=1)
    assert result.success and result.final_distance_m is not None and result.final_distance_m < 0.005
    env.close()
