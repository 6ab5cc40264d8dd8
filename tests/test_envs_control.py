"""The controller: accuracy, drift, limits, inverse kinematics; and exact saved states."""

import mink
import mujoco
import numpy as np
import pytest

from armworld.envs.controller import ACTION_BOUND, DOWN_EULER, Workspace
from armworld.envs.layout import flange_state
from armworld.envs.scene import SceneConfig
from armworld.envs.scripts import up
from armworld.envs.simulator import Simulator
from armworld.pose import action_between, apply_action, euler_to_matrix

HIGH = np.array([0.45, 0.0, 0.38])


@pytest.fixture(scope="module", params=["robotiq_2f85", "franka_hand"])
def sim(request) -> Simulator:
    return Simulator(SceneConfig(robot=request.param, objects=("box",)))


@pytest.fixture
def ready(sim: Simulator) -> Simulator:
    """The arm at rest in free space."""
    sim.reset()
    sim.place_object("box", np.array([0.6, 0.3, 0.0]))
    sim.set_arm(sim.solve_pose(flange_state(HIGH))[0])
    return sim


def pose_error(state: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    rest = action_between(state, target)
    return float(np.linalg.norm(rest[:3])), float(np.linalg.norm(rest[3:6]))


def test_actions_are_followed(ready: Simulator) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        before = ready.state
        action = rng.uniform(-ACTION_BOUND, ACTION_BOUND) * [0.5, 0.5, 0.5, 0.3, 0.3, 1, 0.2]
        ready.step(action)
        target = ready.workspace.clip(apply_action(before, action))
        metres, radians = pose_error(ready.state, target)
        assert metres < 0.002 and radians < 0.01


def test_holding_still_never_drifts(ready: Simulator) -> None:
    ready.step(np.array([0.05, -0.03, 0.02, 0, 0, 0, 0]))
    before = ready.state
    for _ in range(20):
        ready.step(np.zeros(7))
    assert np.linalg.norm(ready.state[:3] - before[:3]) < 1e-3


def test_pushing_the_table_does_not_wind_up(ready: Simulator) -> None:
    """After ten steps into an obstacle, one step away moves away."""
    ready.set_arm(ready.solve_pose(flange_state(np.array([0.5, 0.0, 0.30])))[0])
    ready.place_object("box", ready.tip - [0, 0, 0.12])
    for _ in range(10):
        ready.step(np.array([0, 0, -0.02, 0, 0, 0, 1.0]))
    blocked = ready.state[2]
    ready.step(np.array([0, 0, 0.05, 0, 0, 0, 0]))
    assert ready.state[2] - blocked > 0.03


def test_workspace_clips_position_and_tilt(ready: Simulator) -> None:
    for _ in range(12):
        ready.step(np.array([0.075, 0.075, -0.075, 0, 0, 0, 0]))
    low, high = np.array(ready.workspace.low), np.array(ready.workspace.high)
    np.testing.assert_allclose(ready.state[:3], [high[0], high[1], low[2]], atol=3e-3)
    assert ready.tip[2] > 0
    workspace = Workspace()
    tilted = workspace.clip(np.array([0.5, 0, 0.3, np.pi - 1.0, 0, 0.3, 0]))
    axis = euler_to_matrix(tilted[3:6])[:, 2]
    assert np.arccos(-axis[2]) == pytest.approx(workspace.max_tilt, abs=1e-9)
    inside = np.array([0.5, 0, 0.3, np.pi - 0.3, 0.1, 1.0, 0.5])
    np.testing.assert_array_equal(workspace.clip(inside), inside)


def test_whole_workspace_is_reachable(sim: Simulator) -> None:
    low, high = np.array(sim.workspace.low), np.array(sim.workspace.high)
    for share in np.stack(np.meshgrid(*[np.linspace(0, 1, 4)] * 3), -1).reshape(-1, 3):
        for yaw in (-np.pi / 4, 0.0, np.pi / 4):
            _, error = sim.solve_pose(flange_state(low + share * (high - low), yaw))
            assert error < 3e-3, (low + share * (high - low), yaw)


def test_inverse_kinematics_agrees_with_mink(sim: Simulator) -> None:
    target = np.concatenate([[0.5, 0.1, 0.3], DOWN_EULER + np.array([0.1, -0.1, 0.4])])
    q, error = sim.solve_pose(target)
    assert error < 1e-3
    configuration = mink.Configuration(sim.model)
    qpos = sim.model.qpos0.copy()
    qpos[sim.kinematics.qpos_index] = q
    configuration.update(qpos)
    wanted = mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(euler_to_matrix(target[3:6])), target[:3])
    task = mink.FrameTask("flange", "site", position_cost=1.0, orientation_cost=1.0)
    task.set_target(wanted)
    assert np.linalg.norm(task.compute_error(configuration)) < 1e-3


def test_gripper_keeps_squeezing_while_holding_still(ready: Simulator) -> None:
    spot = np.array([0.5, 0.0, 0.0])
    ready.place_object("box", spot)
    height = float(np.linalg.norm(ready.tip - ready.state[:3]))
    ready.set_arm(ready.solve_pose(flange_state(spot + up(height + 0.02)))[0])
    for _ in range(3):
        ready.step(np.array([0, 0, 0, 0, 0, 0, 0.6]))
    contact = ready.contact_report()["box"]
    assert contact["left"] and contact["right"]
    for _ in range(4):
        ready.step(np.array([0, 0, 0.03, 0, 0, 0, 0]))
    assert ready.underside("box") > 0.08
    ready.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    ready.step(np.zeros(7))
    assert not ready.contact_report()["box"]["robot"]


def test_saved_state_repeats_every_bit(ready: Simulator) -> None:
    ready.place_object("box", np.array([0.5, 0.05, 0.0]))
    rng = np.random.default_rng(1)
    for _ in range(3):
        ready.step(rng.uniform(-ACTION_BOUND, ACTION_BOUND) * 0.5)
    saved = ready.save()
    actions = rng.uniform(-ACTION_BOUND, ACTION_BOUND, (5, 7)) * [1, 1, 1.5, 0.3, 0.3, 1, 1]

    def replay() -> tuple[np.ndarray, bytes]:
        ready.restore(saved)
        frames = []
        for action in actions:
            ready.step(action)
            frames.append(ready.observe(("left",), 32, 32)["left"].tobytes())
        return ready.data.qpos.copy(), b"".join(frames)

    (first, first_frames), (second, second_frames) = replay(), replay()
    np.testing.assert_array_equal(first, second)
    assert first_frames == second_frames


def test_saved_state_of_another_scene_is_refused(ready: Simulator) -> None:
    other = Simulator(SceneConfig(objects=()))
    with pytest.raises(ValueError, match="saved state has"):
        other.restore(ready.save())


def test_no_warnings_of_the_physics(ready: Simulator) -> None:
    for _ in range(5):
        ready.step(np.array([0.02, 0, -0.05, 0, 0, 0, 0.5]))
    assert not any(ready.data.warning[i].number for i in range(mujoco.mjtWarning.mjNWARNING))
