"""The robot model: names, kinematics against Denavit-Hartenberg, servos, gripper, geometry budget."""

import mujoco
import numpy as np
import pytest

from armworld.sim_assets import catalog
from armworld.sim_assets.catalog import ARM_JOINTS, HOME_QPOS, ROBOTS
from armworld.sim_assets.compare import visible_faces

# Modified (Craig) Denavit-Hartenberg parameters of the Panda as Franka publishes them: a (m), d (m), alpha (rad);
# the last row is the flange.
DH = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
    (0.0, 0.107, 0.0),
)
FACE_BUDGET = 15_000
CLOSE_SECONDS = 1.0


def forward_kinematics(q: np.ndarray) -> np.ndarray:
    """Flange pose [4, 4] in the base frame from joint angles [7], by Denavit and Hartenberg."""
    pose = np.eye(4)
    for (a, d, alpha), theta in zip(DH, [*q, 0.0], strict=True):
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(theta), np.sin(theta)
        pose = pose @ np.array(
            [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
        )
    return pose


def at_home(gripper: str, spec: mujoco.MjSpec | None = None) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = (spec or catalog.robot_spec(gripper)).compile()
    data = mujoco.MjData(model)
    for joint, angle in zip(ARM_JOINTS, HOME_QPOS, strict=True):
        data.joint(joint).qpos[0] = angle
        data.actuator(joint).ctrl[0] = angle
    mujoco.mj_forward(model, data)
    return model, data


def seconds(model: mujoco.MjModel, duration: float) -> int:
    return round(duration / model.opt.timestep)


@pytest.mark.parametrize("gripper", ROBOTS)
def test_seam_names(gripper):
    model, data = at_home(gripper)
    assert [model.actuator(i).name for i in range(model.nu)] == [*ARM_JOINTS, "gripper"]
    assert [model.joint(i).name for i in range(7)] == list(ARM_JOINTS)
    for site in ("flange", "tip"):
        assert data.site(site) is not None
    assert model.camera("wrist") is not None
    names = [model.geom(i).name for i in range(model.ngeom)]
    assert any(n.startswith("left_pad") for n in names) and any(n.startswith("right_pad") for n in names)
    np.testing.assert_array_equal(model.actuator("gripper").ctrlrange, [0, 1])
    assert model.opt.timestep == 0.002 and model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST


def test_unknown_gripper_lists_the_valid_ones():
    with pytest.raises(ValueError, match="robotiq_2f85, franka_hand"):
        catalog.robot_spec("suction")


@pytest.mark.parametrize("gripper", ROBOTS)
def test_flange_follows_denavit_hartenberg(gripper):
    model, data = at_home(gripper)
    rng = np.random.default_rng(0)
    limits = model.jnt_range[:7]
    for q in [np.zeros(7), HOME_QPOS, *rng.uniform(limits[:, 0], limits[:, 1], (20, 7))]:
        for joint, angle in zip(ARM_JOINTS, q, strict=True):
            data.joint(joint).qpos[0] = angle
        mujoco.mj_kinematics(model, data)
        expected = forward_kinematics(q)
        np.testing.assert_allclose(data.site("flange").xpos, expected[:3, 3], atol=1e-9)
        np.testing.assert_allclose(data.site("flange").xmat.reshape(3, 3), expected[:3, :3], atol=1e-9)


@pytest.mark.parametrize("gripper", ROBOTS)
def test_home_points_straight_down_without_contact(gripper):
    scene = catalog.scene_spec("lab1", gripper)
    _, data = at_home(gripper, scene)
    np.testing.assert_allclose(data.site("flange").xmat.reshape(3, 3), np.diag([1, -1, -1]), atol=1e-9)
    below = data.site("flange").xpos - data.site("tip").xpos
    np.testing.assert_allclose(below[:2], 0, atol=1e-9)
    assert below[2] > 0.1
    assert data.ncon == 0


@pytest.mark.parametrize("gripper", ROBOTS)
def test_gravity_compensated_arm_holds_still(gripper):
    model, data = at_home(gripper)
    start = data.site("flange").xpos.copy()
    mujoco.mj_step(model, data, seconds(model, 2.0))
    assert np.abs(data.site("flange").xpos - start).max() < 1e-5
    assert np.abs(data.qpos[:7] - HOME_QPOS).max() < 1e-5


def test_arm_force_limits_are_the_pandas():
    model, _ = at_home("robotiq_2f85")
    np.testing.assert_array_equal(model.actuator_forcerange[:7, 1], [87, 87, 87, 87, 12, 12, 12])
    np.testing.assert_array_equal(model.actuator_forcerange[:7, 0], -model.actuator_forcerange[:7, 1])


@pytest.mark.parametrize("gripper", ROBOTS)
def test_gripper_closes_and_opens_monotonically(gripper):
    model, data = at_home(gripper)
    driver = data.joint(catalog.DRIVER_JOINT[gripper])

    def settle(ctrl: float) -> tuple[float, float]:
        data.actuator("gripper").ctrl[0] = ctrl
        mujoco.mj_step(model, data, seconds(model, CLOSE_SECONDS))
        apart = data.geom("left_pad1").xpos - data.geom("right_pad1").xpos
        return catalog.closedness(driver.qpos[0], gripper), float(np.linalg.norm(apart))

    closed, gaps = zip(*[settle(ctrl) for ctrl in np.linspace(0, 1, 6)], strict=True)
    assert np.all(np.diff(closed) > 0.1) and np.all(np.diff(gaps) < -0.005)
    np.testing.assert_allclose(closed, np.linspace(0, 1, 6), atol=0.02)
    assert closed[0] < 1e-3 and closed[-1] > 0.999
    assert gaps[-1] == pytest.approx(0.008, abs=5e-4), "the pads (8 mm between their centres) should touch"
    reopened, gap = settle(0.0)
    assert reopened < 1e-3 and gap == pytest.approx(gaps[0], abs=1e-3)


def test_2f85_stroke_and_four_bar():
    model, data = at_home("robotiq_2f85")
    data.actuator("gripper").ctrl[0] = 0.5
    mujoco.mj_step(model, data, seconds(model, CLOSE_SECONDS))
    for side in ("left", "right"):
        # The loop is closed: follower and coupler meet at the follower's origin.
        anchor = data.body(f"{side}_follower").xpos
        hinge = model.eq_data[model.equality(f"{side}_four_bar").id, 3:6]
        coupler = data.body(f"{side}_coupler")
        np.testing.assert_allclose(coupler.xpos + coupler.xmat.reshape(3, 3) @ hinge, anchor, atol=2e-4)
        # The pads stay parallel to the gripper's axis (within the spring's play).
        assert data.geom(f"{side}_pad1").xmat.reshape(3, 3)[:, 2] @ data.site("tip").xmat.reshape(3, 3)[:, 2] > 0.999
    data.actuator("gripper").ctrl[0] = 0.0
    mujoco.mj_step(model, data, seconds(model, CLOSE_SECONDS))
    opening = np.linalg.norm(data.geom("left_pad1").xpos - data.geom("right_pad1").xpos) - 0.008
    assert opening == pytest.approx(0.085, abs=0.001)


def test_closedness_clips_and_rejects_unknown_grippers():
    assert catalog.closedness(-0.1) == 0.0 and catalog.closedness(0.9) == 1.0
    assert catalog.closedness(0.04, "franka_hand") == 1.0 and catalog.closedness(0.02, "franka_hand") == 0.5
    with pytest.raises(ValueError, match="valid"):
        catalog.closedness(0.0, "hand")


@pytest.mark.parametrize("gripper", ROBOTS)
def test_visible_faces_stay_within_budget(gripper):
    model = catalog.robot_spec(gripper).compile()
    assert 5_000 < visible_faces(model) <= FACE_BUDGET


@pytest.mark.parametrize("gripper", ROBOTS)
def test_only_primitives_collide(gripper):
    model = catalog.robot_spec(gripper).compile()
    meshes = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    assert not model.geom_contype[meshes].any() and not model.geom_conaffinity[meshes].any()
    assert set(model.geom_group[meshes]) == {2}


def test_gripper_cannot_pass_through_the_arm():
    model, data = at_home("robotiq_2f85")
    folded = np.array([0.79, -0.81, -2.66, -3.02, 1.82, 3.42, 0.62])  # the hand pushed into the base
    for joint, angle in zip(ARM_JOINTS, folded, strict=True):
        data.joint(joint).qpos[0] = angle
    mujoco.mj_forward(model, data)
    bodies = {frozenset(model.body(model.geom_bodyid[g]).name for g in contact.geom) for contact in data.contact}
    assert frozenset(("gripper_base", "link0")) in bodies, bodies
