"""The gripper holds objects: a scripted top grasp, a 15 cm lift and a hold, without slip."""

import mujoco
import numpy as np
import pytest

from armworld.sim_assets import catalog
from armworld.sim_assets.catalog import ARM_JOINTS, HOME_QPOS

DOWN = np.diag([1.0, -1.0, -1.0])  # gripper straight down, fingers opening along the base's y axis


class Script:
    """A scene with one object at (0.5, 0.1), and an arm led by its fingertip."""

    def __init__(self, name: str, gripper: str, yaw: float = 0.0, size: float = 1.0):
        spec = catalog.lab_spec("lab1")
        spec.attach(catalog.robot_spec(gripper), prefix="", frame=spec.worldbody.add_frame())
        place = spec.worldbody.add_frame(pos=[0.5, 0.1, 0.001], euler=[0, 0, yaw])
        spec.attach(catalog.object_spec(name, size), prefix="", frame=place)
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.arm = [self.model.joint(joint).qposadr[0] for joint in ARM_JOINTS]
        self.data.qpos[self.arm] = HOME_QPOS
        self.data.ctrl[:7] = HOME_QPOS
        self.name, self.tip = name, self.model.site("tip").id
        mujoco.mj_forward(self.model, self.data)

    def inverse(self, target: np.ndarray) -> np.ndarray:
        """Arm joints [7] that bring the tip to a base-frame position, by damped least squares from the present."""
        scratch = mujoco.MjData(self.model)
        scratch.qpos[:] = self.data.qpos
        scratch.qpos[self.arm] = self.data.ctrl[:7]
        jacobian = np.zeros((6, self.model.nv))
        dofs = [self.model.joint(joint).dofadr[0] for joint in ARM_JOINTS]
        turn, spin, error = np.empty(4), np.empty(3), np.full(6, np.inf)
        for _ in range(100):
            mujoco.mj_kinematics(self.model, scratch)
            mujoco.mj_comPos(self.model, scratch)
            current = scratch.site_xmat[self.tip].reshape(3, 3)
            mujoco.mju_mat2Quat(turn, (DOWN @ current.T).ravel())
            mujoco.mju_quat2Vel(spin, turn, 1.0)
            error = np.concatenate([target - scratch.site_xpos[self.tip], spin])
            if np.abs(error).max() < 1e-5:
                break
            mujoco.mj_jacSite(self.model, scratch, jacobian[:3], jacobian[3:], self.tip)
            j = jacobian[:, dofs]
            scratch.qpos[self.arm] += j.T @ np.linalg.solve(j @ j.T + 1e-4 * np.eye(6), error)
        assert np.abs(error).max() < 1e-4
        return scratch.qpos[self.arm].copy()

    def move(self, target: np.ndarray, seconds: float) -> None:
        """Bring the tip to `target` [3] (m) along a smooth joint path, its orientation kept."""
        start, steps = self.data.ctrl[:7].copy(), round(seconds / self.model.opt.timestep)
        end = self.inverse(target)
        for i in range(steps):
            s = (i + 1) / steps
            self.data.ctrl[:7] = start + (end - start) * s * s * (3 - 2 * s)
            mujoco.mj_step(self.model, self.data)

    def grip(self, ctrl: float, seconds: float) -> None:
        self.data.actuator("gripper").ctrl[0] = ctrl
        mujoco.mj_step(self.model, self.data, round(seconds / self.model.opt.timestep))

    def relative(self) -> tuple[np.ndarray, np.ndarray]:
        """Object's position and rotation in the tip's frame."""
        rotation = self.data.site_xmat[self.tip].reshape(3, 3)
        body = self.data.body(self.name)
        return rotation.T @ (body.xpos - self.data.site_xpos[self.tip]), rotation.T @ body.xmat.reshape(3, 3)


def lift(script: Script, grasp: np.ndarray, height: float = 0.15) -> tuple[float, float, float]:
    """Approach from above, close, lift, hold. Returns (rise of the object m, slip m, turn rad in the hand)."""
    script.move(grasp + np.array([0, 0, 0.12]), 1.0)
    script.move(grasp, 1.0)
    script.grip(0.0, 0.6)  # the servos lag by 0.1 s: let them arrive
    before = script.data.body(script.name).xpos[2]
    script.grip(1.0, 0.6)
    position, rotation = script.relative()
    script.move(grasp + np.array([0, 0, height]), 1.0)
    script.grip(1.0, 2.0)
    after, turned = script.relative()
    cosine = (np.trace(rotation.T @ turned) - 1) / 2
    rise = script.data.body(script.name).xpos[2] - before
    return rise, float(np.linalg.norm(after - position)), float(np.arccos(np.clip(cosine, -1, 1)))


def assert_held(result: tuple[float, float, float]) -> None:
    rise, slip, turn = result
    assert rise == pytest.approx(0.15, abs=0.005) and slip < 0.002 and turn < 0.03, result


@pytest.mark.parametrize("gripper", catalog.ROBOTS)
@pytest.mark.parametrize(
    ("name", "yaw", "size"), [("box", 0.0, 1.0), ("box", 0.3, 1.2), ("cup", 0.1, 1.0), ("bottle", 0.0, 1.0)]
)
def test_top_grasp_lifts_without_slip(name, gripper, yaw, size):
    script = Script(name, gripper, yaw, size)
    assert_held(lift(script, np.array([0.5, 0.1, catalog.GRASP_HEIGHT[name] * size])))


def test_cup_is_lifted_by_its_rim():
    script = Script("cup", "robotiq_2f85", yaw=0.1)
    assert_held(lift(script, np.array([0.5, 0.133, 0.075])))


def test_a_grasp_repeats_bit_for_bit():
    results = [lift(Script("cup", "robotiq_2f85"), np.array([0.5, 0.1, 0.06])) for _ in range(2)]
    assert results[0] == results[1]


def test_nothing_is_lifted_with_an_open_hand():
    script = Script("box", "robotiq_2f85")
    script.move(np.array([0.5, 0.1, 0.03]), 1.5)
    script.move(np.array([0.5, 0.1, 0.18]), 1.0)
    assert abs(script.data.body("box").xpos[2]) < 2e-3
