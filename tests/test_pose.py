"""Pose algebra: the reference values, group identities, and the same numbers in NumPy and torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from armworld.pose import action_between, apply_action, euler_to_matrix, matrix_to_euler

REFERENCE = sorted((Path(__file__).parent / "reference").glob("pose_*.npz"))
ANGLES = arrays(float, (3,), elements=st.floats(-3.1, 3.1))
POSES = arrays(float, (7,), elements=st.floats(-1.4, 1.4))


@pytest.mark.parametrize("path", REFERENCE, ids=lambda p: p.stem)
def test_reference_values(path):
    data = np.load(path)
    np.testing.assert_allclose(apply_action(data["pose"], data["action"]), data["next_pose"], atol=1e-12)
    np.testing.assert_allclose(action_between(data["pose"], data["next_pose"]), data["pose_diff"], atol=1e-12)


@given(ANGLES)
def test_euler_angles_are_extrinsic_xyz(euler):
    np.testing.assert_allclose(euler_to_matrix(euler), Rotation.from_euler("xyz", euler).as_matrix(), atol=1e-12)


@given(ANGLES)
def test_angles_come_back_as_the_same_rotation(euler):
    matrix = euler_to_matrix(euler)
    np.testing.assert_allclose(euler_to_matrix(matrix_to_euler(matrix)), matrix, atol=1e-7)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_gimbal_lock_keeps_the_rotation(pitch):
    matrix = Rotation.from_euler("xyz", [0.3, pitch, -0.8]).as_matrix()
    np.testing.assert_allclose(euler_to_matrix(matrix_to_euler(matrix)), matrix, atol=1e-7)


@given(POSES, POSES)
def test_the_action_between_two_states_leads_from_one_to_the_other(state, following):
    state[6], following[6] = abs(state[6]) / 1.4, abs(following[6]) / 1.4
    reached = apply_action(state, action_between(state, following))
    np.testing.assert_allclose(reached[[0, 1, 2, 6]], following[[0, 1, 2, 6]], atol=1e-12)
    np.testing.assert_allclose(euler_to_matrix(reached[3:6]), euler_to_matrix(following[3:6]), atol=1e-7)


@given(POSES)
def test_no_action_changes_nothing(state):
    state[6] = abs(state[6]) / 1.4
    np.testing.assert_allclose(apply_action(state, np.zeros(7)), state, atol=1e-7)


def test_closedness_stays_within_its_range():
    state, action = np.zeros((2, 7)), np.zeros((2, 7))
    action[:, 6] = [2.0, -2.0]
    assert apply_action(state, action)[:, 6].tolist() == [1.0, 0.0]


def test_torch_and_numpy_agree_over_leading_shapes():
    rng = np.random.default_rng(0)
    state, action = rng.uniform(-1, 1, (2, 3, 5, 7))
    for function in (apply_action, action_between):
        ours = function(torch.from_numpy(state), torch.from_numpy(action)).numpy()
        np.testing.assert_allclose(ours, function(state, action), atol=1e-12)


def test_autocast_leaves_poses_in_their_precision():
    generator = torch.Generator().manual_seed(0)
    state, change = torch.randn(50, 7, generator=generator), 0.1 * torch.randn(50, 7, generator=generator)
    wanted = apply_action(state, change), action_between(state, state + change)
    with torch.autocast("cpu", torch.bfloat16):
        found = apply_action(state, change), action_between(state, state + change)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
