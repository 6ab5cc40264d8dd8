"""End-effector delta control: one 7-D action becomes one step of joint position servos.

The target pose is the reference pose moved by the action (`armworld.pose.apply_action`), kept inside `Workspace`.
The reference is the **last commanded** pose, so that a zero action never drifts; where the arm is blocked and the
measured pose is off by more than `POSE_SLIP`, the measured pose takes over, so that commands do not pile up.
Closedness likewise, within `GRIPPER_SQUEEZE` of the measured one: fingers closed on an object keep squeezing it.

The joints follow a minimum-jerk path from target to target, with the servo's lag and the arm's inertia fed forward:
ctrl = q + (kd q' + M q'') / kp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from armworld.envs.kinematics import ArmKinematics, ArmNames
from armworld.pose import apply_action, euler_to_matrix, matrix_to_euler

ACTION_BOUND = np.array([0.075] * 3 + [0.2] * 3 + [1.0])  # m, rad, closedness; per step, whatever its length
POSE_SLIP = (0.01, 0.10)  # m, rad: a commanded pose further than this from the measured one is given up
GRIPPER_SQUEEZE = 0.25  # closedness that a command may run ahead of the fingers; 0.06 already gives full force
DOWN_EULER = np.array([np.pi, 0.0, 0.0])  # tool straight down, fingers opening along the base frame's y
TIP_LENGTH = {"robotiq_2f85": 0.1734, "franka_hand": 0.1119}  # m from the flange to the closed fingers' end


@dataclass(frozen=True)
class Workspace:
    """Where the flange may be sent: a box (m, base frame) and a cone around straight down (rad)."""

    low: tuple[float, float, float] = (0.30, -0.35, 0.165)
    high: tuple[float, float, float] = (0.66, 0.35, 0.50)
    max_tilt: float = 0.5

    @classmethod
    def for_robot(cls, robot: str) -> Workspace:
        """The workspace that keeps this robot's fingertips at least 5 mm above the table when it points down."""
        return cls(low=(*cls.low[:2], TIP_LENGTH[robot] + 0.005))

    def clip(self, state: np.ndarray) -> np.ndarray:
        """The nearest allowed state [7]: position into the box, tool axis back into the cone."""
        clipped = state.copy()
        clipped[:3] = np.clip(state[:3], self.low, self.high)
        rotation = euler_to_matrix(state[3:6])
        axis = rotation[:, 2]
        tilt = np.arccos(min(max(-axis[2], -1.0), 1.0))
        if tilt > self.max_tilt:
            turn = np.cross(axis, [0.0, 0.0, -1.0])
            turn *= (tilt - self.max_tilt) / max(np.linalg.norm(turn), 1e-9)
            quat, back = np.empty(4), np.empty(9)
            mujoco.mju_axisAngle2Quat(quat, turn / np.linalg.norm(turn), np.linalg.norm(turn))
            mujoco.mju_quat2Mat(back, quat)
            clipped[3:6] = matrix_to_euler(back.reshape(3, 3) @ rotation)
        return clipped


@dataclass
class Command:
    """What the controller last asked for: the flange state [7] and the joint angles [7] that realise it."""

    state: np.ndarray
    q: np.ndarray

    def copy(self) -> Command:
        return Command(self.state.copy(), self.q.copy())


def check_action(action: np.ndarray) -> np.ndarray:
    """The action as float64 [7], clipped to +-ACTION_BOUND; ValueError for a wrong shape, NaN or infinity."""
    array = np.asarray(action, float)
    if array.shape != (7,):
        raise ValueError(f"an action has shape (7,): 3 m, 3 rad, 1 closedness; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"an action must be finite, got {array.tolist()}")
    return np.clip(array, -ACTION_BOUND, ACTION_BOUND)


def count_substeps(step_seconds: float, timestep: float) -> int:
    """Physics steps in a control step; ValueError where it is not a positive multiple of them."""
    count = round(step_seconds / timestep)
    if count < 1 or abs(count * timestep - step_seconds) > 1e-9:
        raise ValueError(
            f"the control step ({step_seconds} s) must be a positive multiple of the physics step ({timestep} s)"
        )
    return count


class Controller:
    """Runs the physics of one control step.

    Args:
        model: Scene with joints and position actuators joint1 ... joint7 and the actuator "gripper" (0 ... 1)
            (or as `names` calls them).
        step_seconds: Length of a control step; a multiple of the physics step.
        workspace: Limits of the target pose.
        names: What the arm's parts are called in the model.

    Raises:
        ValueError: `step_seconds` is not a positive multiple of the model's timestep.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        step_seconds: float,
        workspace: Workspace,
        names: ArmNames = ArmNames(),  # noqa: B008  frozen
    ):
        timestep = model.opt.timestep
        self.substeps = count_substeps(step_seconds, timestep)
        self._model = model
        self.workspace = workspace
        self.kinematics = ArmKinematics(model, names=names)
        self._flange = model.site(names.flange).id
        self._arm = np.array([model.actuator(name).id for name in names.actuators])
        self._gripper = model.actuator(names.grippers[0]).id
        self._grippers = np.array([model.actuator(name).id for name in names.grippers])
        dofs = self.kinematics.dof_index
        self._arm_block = np.ix_(dofs, dofs)  # of a matrix over all degrees of freedom
        self._stiffness = model.actuator_gainprm[self._arm, 0]
        self._damping = -model.actuator_biasprm[self._arm, 2] + model.dof_damping[dofs]
        gain, bias = model.actuator_gainprm[self._gripper, 0], model.actuator_biasprm[self._gripper]
        # Transmission length at which an unloaded gripper rests, open and closed.
        self._open_length, self._closed_length = -bias[0] / bias[1], -(gain + bias[0]) / bias[1]
        phase = np.arange(1, self.substeps + 1) / self.substeps
        duration = self.substeps * timestep
        self._path = np.stack([
            phase**3 * (10 - 15 * phase + 6 * phase**2),
            30 * phase**2 * (1 - phase) ** 2 / duration,
            60 * phase * (1 - phase) * (1 - 2 * phase) / duration**2,
        ])  # fmt: skip
        self.command = Command(np.zeros(7), np.zeros(7))

    def measure(self, data: mujoco.MjData) -> np.ndarray:
        """Measured state float64 [7] of the arm, as `data`'s kinematics stand."""
        state = np.empty(7)
        state[:3] = self._position(data)
        state[3:6] = matrix_to_euler(data.site_xmat[self._flange].reshape(3, 3))
        state[6] = self._closedness(data)
        return state

    def _position(self, data: mujoco.MjData) -> np.ndarray:
        return data.site_xpos[self._flange] - self.kinematics.base

    def _closedness(self, data: mujoco.MjData) -> float:
        span = self._closed_length - self._open_length
        return min(max((data.actuator_length[self._gripper] - self._open_length) / span, 0.0), 1.0)

    def settle_command(self, data: mujoco.MjData) -> None:
        """Take the present configuration as the command: at a reset, or after the arm was moved by hand."""
        q = data.qpos[self.kinematics.qpos_index].copy()
        self.command = Command(self.measure(data), q)
        data.ctrl[self._arm] = q
        data.ctrl[self._grippers] = self.command.state[6]

    def _reference(self, data: mujoco.MjData) -> np.ndarray:
        """The state [7] that an action moves: the commanded one, unless the arm did not follow it."""
        reference, closedness = self.command.state.copy(), self._closedness(data)
        away = self._position(data) - reference[:3]
        trace = data.site_xmat[self._flange] @ euler_to_matrix(reference[3:6]).ravel()  # of the turn between them
        if away @ away > POSE_SLIP[0] ** 2 or (trace - 1) / 2 < math.cos(POSE_SLIP[1]):
            reference[:6] = self.measure(data)[:6]
        reference[6] = min(max(reference[6], closedness - GRIPPER_SQUEEZE), closedness + GRIPPER_SQUEEZE)
        return reference

    def step(self, data: mujoco.MjData, action: np.ndarray) -> np.ndarray:
        """Advance `data` by one control step; returns the action [7] that was applied after clipping to bounds."""
        action = check_action(action)
        target = self.workspace.clip(apply_action(self._reference(data), action))
        start = self.command.q
        measured_q = data.qpos[self.kinematics.qpos_index]
        if max(map(abs, (measured_q - start).tolist())) > POSE_SLIP[1]:
            start = measured_q.copy()
        end, _ = self.kinematics.solve(target[:3], euler_to_matrix(target[3:6]), start)
        inertia = np.empty((self._model.nv, self._model.nv))
        mujoco.mj_fullM(self._model, inertia, data.qM)
        move = end - start
        position, velocity, acceleration = self._path[:, :, None] * move
        force = velocity * self._damping + acceleration @ inertia[self._arm_block]
        controls = start + position + force / self._stiffness
        data.ctrl[self._grippers] = target[6]
        model, ctrl, step, arm = self._model, data.ctrl, mujoco.mj_step, self._arm  # looked up once: a hot loop
        for control in controls:
            ctrl[arm] = control
            step(model, data)
        self.command = Command(target, end)
        return action
