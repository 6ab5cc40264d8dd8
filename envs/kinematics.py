"""Inverse kinematics of the arm by damped least squares, with the redundancy drawn towards a resting posture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from armworld.sim_assets.catalog import ARM_JOINTS, HOME_QPOS

SOLVED = 3e-5  # m and rad, in quadrature: a tenth of what the servos leave


@dataclass(frozen=True)
class ArmNames:
    """What the parts of an arm are called in a compiled model.

    Attributes:
        joints, actuators: The seven joints and their position servos, in order.
        grippers: Actuators that get the closedness (ctrl 0 open ... 1 closed); the first one's length is measured.
        flange: Site at panda_link8.
        base: Body that poses are relative to, standing still and not rotated; None: the world's origin.
    """

    joints: tuple[str, ...] = ARM_JOINTS
    actuators: tuple[str, ...] = ARM_JOINTS
    grippers: tuple[str, ...] = ("gripper",)
    flange: str = "flange"
    base: str | None = None


class ArmKinematics:
    """Forward and inverse kinematics of the flange, on a scratch copy of the data that no physics touches.

    One Newton step solves min |J dq - e|^2 + damping |dq|^2; what J leaves free moves towards `HOME_QPOS`:
    dq = J^T (J J^T + damping I)^-1 e + gain (I - J^+ J)(home - q).

    Attributes:
        base: Where the base frame stands in the world, [3] m.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        damping: float = 1e-4,
        posture_gain: float = 0.05,
        names: ArmNames = ArmNames(),
    ):
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site(names.flange).id
        joints = [model.joint(name) for name in names.joints]
        self.qpos_index = np.array([joint.qposadr[0] for joint in joints])
        self.dof_index = np.array([joint.dofadr[0] for joint in joints])
        self._low, self._high = np.array([joint.range + np.array([0.02, -0.02]) for joint in joints]).T  # rad of margin
        self._damping, self._gain = damping * np.eye(6), posture_gain
        self._jacobian = np.empty((6, model.nv))
        self.base = self._base_position(names.base)

    def _base_position(self, body: str | None) -> np.ndarray:
        """Where the base stands, [3] m. ValueError for a rotated one."""
        if body is None:
            return np.zeros(3)
        mujoco.mj_kinematics(self._model, self._data)
        base = self._data.body(body)
        if np.abs(base.xmat - np.eye(3).ravel()).max() > 1e-6:
            raise ValueError(f"the arm's base {body!r} must not be rotated in the world, got {base.xmat.tolist()}")
        return base.xpos.copy()

    def _place(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Put the scratch arm at joint angles [7]; views of the flange's position [3] (world) and rotation [9]."""
        self._data.qpos[self.qpos_index] = q
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._site], self._data.site_xmat[self._site]

    def forward(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flange position [3] (m) and rotation [3, 3] at joint angles [7] (rad)."""
        position, rotation = self._place(q)
        return position - self.base, rotation.reshape(3, 3).copy()

    def _error(self, q: np.ndarray, position: np.ndarray, quat: np.ndarray) -> np.ndarray:
        """Twist [6] from the flange pose at `q` to the target: position (m) and rotation vector (rad)."""
        here, rotation = self._place(q)
        twist, turn = np.empty(6), np.empty(4)
        twist[:3] = position - (here - self.base)
        mujoco.mju_mat2Quat(turn, rotation)
        mujoco.mju_negQuat(turn, turn)
        mujoco.mju_mulQuat(turn, quat, turn)
        mujoco.mju_quat2Vel(twist[3:], turn, 1.0)
        return twist

    def solve(
        self, position: np.ndarray, rotation: np.ndarray, start: np.ndarray, iterations: int = 10
    ) -> tuple[np.ndarray, float]:
        """Joint angles [7] (rad, within limits) that bring the flange to a pose, and the remaining error.

        Args:
            position: Target [3], base frame, m.
            rotation: Target [3, 3].
            start: Joint angles [7] to start from; the answer is the nearby solution.
            iterations: Newton steps at most.

        Returns:
            The angles and |error|, metres and radians added in quadrature.
        """
        q, quat = np.array(start, float), np.empty(4)
        mujoco.mju_mat2Quat(quat, rotation.ravel())
        for _ in range(iterations):
            error = self._error(q, position, quat)
            squared = error @ error
            if squared < SOLVED**2:
                return q, math.sqrt(squared)
            q = np.clip(q + self._newton_step(q, error), self._low, self._high)
        return q, float(np.linalg.norm(self._error(q, position, quat)))

    def _newton_step(self, q: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Change [7] (rad) of the joint angles, at most 0.5 rad each, that takes the flange along a twist [6]."""
        mujoco.mj_comPos(self._model, self._data)  # which the Jacobian needs
        mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian = self._jacobian[:, self.dof_index]
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + self._damping)
        rest = self._gain * (HOME_QPOS - q)
        step = inverse @ error + rest - inverse @ (jacobian @ rest)
        return step * min(1.0, 0.5 / max(1e-9, *map(abs, step.tolist())))
