"""The turn of a model's axes: exact on a model with a known turn, found from random moves, taken out of planning."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from armworld.envs.cameras import OPENCV_FROM_MUJOCO, PRESETS, RIGS
from armworld.planners.calibrating import CalibratingAgent, RandomMoves, moves_from
from armworld.planners.mpc import PlanningAgent
from armworld.planners.objectives import FinalL1
from armworld.planners.registry import make_planner
from armworld.planners.turning import Moves, TurnedModel, camera_azimuth, fit_turn, turn_actions, turn_states
from armworld.pose import action_between, apply_action, euler_to_matrix, matrix_to_euler
from armworld.types import Goal, Observation
from armworld.worldmodel.model import Rollout

WAVES = torch.randn(3, 15, generator=torch.Generator().manual_seed(0)) * 4


class TurnedWorld:
    """Features [2, 9] of a position: itself and waves of it. It imagines Rz(turn) of every action, with noise."""

    step_seconds, camera = 0.25, "left"

    def __init__(self, turn_deg: float, noise: float = 0.0) -> None:
        self.turn, self.noise = math.radians(turn_deg), noise
        self.generator = torch.Generator().manual_seed(1)

    def features(self, position: Tensor) -> Tensor:
        return torch.cat([position, torch.sin(position @ WAVES)], -1).unflatten(-1, (2, 9))

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        return self.features(torch.as_tensor(images, dtype=torch.float32))

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        moved = turn_actions(actions, self.turn)[..., :3].cumsum(2)
        imagined = self.features(z[:, -1:, None, 0, :3] + moved)
        noise = torch.randn(imagined.shape, generator=self.generator) * self.noise
        return Rollout(z=imagined + noise, state=apply_action(state[:, -1:, None], actions))


def see(state: np.ndarray) -> Observation:
    return {"state": state.astype(np.float32), "left": state[:3].astype(np.float32)}


def walk(count: int, seed: int) -> np.ndarray:
    """States [count + 1, 7] of random moves that happen exactly as commanded."""
    moves, state = RandomMoves(np.random.default_rng(seed)), np.array([0.5, 0, 0.3, np.pi, 0, 0, 0.0])
    states = [state]
    for _ in range(count):
        states.append(apply_action(states[-1], moves.next(states[-1]).astype(np.float64)))
    return np.stack(states)


def recorded(model: TurnedWorld, count: int = 8, seed: int = 0) -> Moves:
    states = walk(count, seed)
    return moves_from(model.encode(states[:, None, :3])[:, 0], states)


@pytest.mark.parametrize("turn", [0.0, 17.3, -30.0, 62.5, 121.0, -178.0])
def test_a_known_turn_is_found_within_half_a_degree(turn: float) -> None:
    model = TurnedWorld(turn)
    found = fit_turn(model, recorded(model))
    assert abs((found.yaw_deg - turn + 180) % 360 - 180) <= 0.5
    assert found.contrast > 0.5 and found.energy <= found.plain_energy + 1e-5 and found.moves == 8


def test_noise_widens_the_error_that_is_told() -> None:
    exact, noisy = TurnedWorld(20.0), TurnedWorld(20.0, noise=0.2)
    sure, unsure = fit_turn(exact, recorded(exact)), fit_turn(noisy, recorded(noisy))
    assert sure.spread_deg < 1.5 and abs(unsure.yaw_deg - 20) < 10
    assert unsure.contrast < sure.contrast


def test_a_model_that_ignores_actions_has_no_contrast() -> None:
    class Deaf(TurnedWorld):
        def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
            return super().rollout(z, state, actions * 0)

    assert fit_turn(Deaf(0), recorded(Deaf(0))).contrast < 1e-6


def test_moves_that_tell_no_direction_are_refused() -> None:
    states = np.tile([0.5, 0, 0.3, np.pi, 0, 0, 0.0], (4, 1))
    with pytest.raises(ValueError, match="at least 2 horizontal moves"):
        fit_turn(TurnedWorld(0), moves_from(TurnedWorld(0).encode(states[:, None, :3])[:, 0], states))


def test_features_that_are_not_finite_are_refused() -> None:
    moves = recorded(TurnedWorld(20.0))
    moves.after[2] = torch.nan  # the frame after one move is the one before the next
    with pytest.raises(ValueError, match="no finite energy of 2 of 8 moves"):
        fit_turn(TurnedWorld(20.0), moves)


def test_actions_turn_as_vectors_and_rotations_do() -> None:
    generator = torch.Generator().manual_seed(2)
    actions = torch.randn(5, 3, 7, generator=generator, dtype=torch.float64) * 0.1
    turned = turn_actions(actions, 0.7)
    rotation = euler_to_matrix(torch.tensor([0, 0, 0.7], dtype=torch.float64))
    torch.testing.assert_close(turned[..., :3], actions[..., :3] @ rotation.T)
    torch.testing.assert_close(
        euler_to_matrix(turned[..., 3:6]), rotation @ euler_to_matrix(actions[..., 3:6]) @ rotation.T
    )
    torch.testing.assert_close(turn_actions(turned, -0.7), actions)
    torch.testing.assert_close(turned[..., 6], actions[..., 6])


def test_a_turned_model_imagines_as_an_upright_one_and_keeps_the_robots_state() -> None:
    upright, corrected = TurnedWorld(0), TurnedModel(TurnedWorld(40.0), 40.0)
    z, state = upright.encode(np.array([[[0.5, 0.1, 0.3]]])), torch.tensor([[[0.5, 0.1, 0.3, 3.1, 0, 0, 0]]])
    actions = torch.randn(1, 6, 2, 7, generator=torch.Generator().manual_seed(3)) * 0.05
    seen = corrected.rollout(z, state, actions)
    torch.testing.assert_close(seen.z, upright.rollout(z, state, actions).z, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.state[:, :, 0], apply_action(state[:, :1].expand(1, 6, 7), actions[:, :, 0]))
    assert corrected.camera == "left" and corrected.step_seconds == 0.25


def test_states_and_actions_turn_together() -> None:
    states = torch.from_numpy(walk(3, seed=5))
    states[:, 3:6] += 0.2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = turn_states(states, torch.tensor([0.9, 0.9, 0.9, 0.9], dtype=torch.float64))
    between = action_between(states[:-1], states[1:])
    torch.testing.assert_close(action_between(turned[:-1], turned[1:]), turn_actions(between, 0.9))
    torch.testing.assert_close(turn_states(turned, -0.9)[:, :3], states[:, :3])
    torch.testing.assert_close(turned[:, 2], states[:, 2])


def test_the_azimuth_of_a_camera_is_read_from_its_extrinsics() -> None:
    for placement in (*RIGS["lab1"].values(), *RIGS["lab2"].values(), *PRESETS.values()):
        position, rotation = placement.pose()
        pose = np.concatenate([position, matrix_to_euler(rotation @ OPENCV_FROM_MUJOCO)])
        assert math.degrees(float(camera_azimuth(torch.from_numpy(pose)))) == pytest.approx(placement.azimuth)


class FrameWorld(TurnedWorld):
    """A world model in its camera's frame: what it sees and is told are positions in a frame turned by `turn`."""

    turns_states = True

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        return self.features(_turned(torch.as_tensor(images, dtype=torch.float32), -self.turn))

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        place = state[:, -1:, None, :3] + actions[..., :3].cumsum(2)  # it believes the state that it is told
        return Rollout(z=self.features(place), state=apply_action(state[:, -1:, None], actions))


def _turned(positions: Tensor, yaw: float) -> Tensor:
    return positions @ euler_to_matrix(torch.tensor([0.0, 0.0, yaw])).T


@pytest.mark.parametrize("turn", [0.0, 30.0, -75.0])
def test_a_model_in_its_cameras_frame_has_its_states_turned_too(turn: float) -> None:
    model = FrameWorld(turn)
    assert abs(fit_turn(model, recorded(model)).yaw_deg - turn) <= 0.5
    z, state = model.encode(np.array([[[0.5, 0.1, 0.3]]])), torch.tensor([[[0.5, 0.1, 0.3, 3.1, 0, 0, 0]]])
    actions = torch.randn(1, 6, 1, 7, generator=torch.Generator().manual_seed(3)) * 0.05
    seen = TurnedModel(model, turn).rollout(z, state, actions)
    truly = apply_action(state[:, -1:, None], actions)
    torch.testing.assert_close(seen.z, model.features(_turned(truly[..., :3], -model.turn)), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.state, truly)


def test_random_moves_stay_near_their_start() -> None:
    states = walk(200, seed=4)
    assert np.linalg.norm((states - states[0])[:, :2], axis=1).max() <= 0.12 + 1e-6
    assert np.abs((states - states[0])[:, 2]).max() <= 0.06
    assert np.linalg.norm(np.diff(states[:, :2], axis=0), axis=1).max() <= 0.06 + 1e-6


def test_calibration_that_an_episodes_end_cut_short_begins_anew_where_the_next_one_does() -> None:
    planner = make_planner("cem", samples=8, iterations=1, horizon=1)
    planning = PlanningAgent(TurnedWorld(0.0), planner, FinalL1(), "left", torch.Generator().manual_seed(0))
    agent, goal = CalibratingAgent(planning, 6, np.random.default_rng(0)), np.array([0.5, 0, 0.3, np.pi, 0, 0, 0])
    for start in (0.3, 0.7):
        agent.reset(Goal((see(goal),), (16,)))
        state = np.array([start, 0, 0.3, np.pi, 0, 0, 0.0])
        for _ in range(4):
            action = agent.act(see(state))
            assert np.linalg.norm(action[:2]) <= 0.06 + 1e-6
            state = apply_action(state, action.astype(np.float64))
        assert np.linalg.norm(state[:2] - [start, 0]) <= 0.12 + 1e-6


@pytest.mark.parametrize("calibrate", [False, True])
def test_calibration_lets_a_turned_model_arrive(calibrate: bool) -> None:
    model = TurnedWorld(100.0)
    planner = make_planner("cem", samples=64, iterations=4, horizon=1, space={"max_gripper": 0.0})
    planning = PlanningAgent(model, planner, FinalL1(), "left", torch.Generator().manual_seed(0))
    agent = CalibratingAgent(planning, 6, np.random.default_rng(0)) if calibrate else planning
    state, target = np.array([0.5, 0, 0.3, np.pi, 0, 0, 0.0]), np.array([0.6, 0.15, 0.25, np.pi, 0, 0, 0.0])
    agent.reset(Goal((see(target),), (16,)))
    for _ in range(16):
        state = apply_action(state, agent.act(see(state)).astype(np.float64))
    distance = float(np.linalg.norm(state[:3] - target[:3]))
    if not calibrate:
        assert distance > 0.05
        return
    assert distance < 0.03
    assert isinstance(agent, CalibratingAgent) and agent.turn is not None and abs(agent.turn.yaw_deg - 100) < 0.5
