"""One Franka scene under 4 Hz end-effector control, without any task: physics, cameras, contacts, saved states.

`armworld.envs.base.ArmEnv` gives it tasks and Gymnasium's interface; planners use it as oracle dynamics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import mujoco
import numpy as np

from armworld.envs import cameras
from armworld.envs.controller import Command, Controller, Workspace
from armworld.envs.rendering import Renderer
from armworld.envs.scene import SceneConfig, build_model, object_extent, subtree_geoms
from armworld.pose import euler_to_matrix
from armworld.sim_assets.catalog import HOME_QPOS
from armworld.types import check_name

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
OPENING_SECONDS = 1.0
FINGERS = ("left", "right")


@dataclass(frozen=True)
class SavedState:
    """Everything that later physics and images depend on, for the same compiled and randomised scene."""

    physics: np.ndarray
    command: Command


class Simulator:
    """A compiled scene that is stepped by actions.

    Args:
        config: What stands in the scene.
        step_seconds: Length of a control step, s; a multiple of the physics step.
        workspace: Limits of the flange's target pose.
        shadows: Render shadows (slow on a CPU).
        max_image_size: (height, width) of the largest frame that will be rendered.
    """

    def __init__(
        self,
        config: SceneConfig,
        step_seconds: float = 0.25,
        workspace: Workspace | None = None,
        shadows: bool = False,
        max_image_size: tuple[int, int] = (256, 256),
    ):
        self.config = config
        self.model = build_model(config)
        self.data = mujoco.MjData(self.model)
        self.workspace = workspace or Workspace.for_robot(config.robot)
        self.step_seconds = step_seconds
        self.controller = Controller(self.model, step_seconds, self.workspace)
        self.kinematics = self.controller.kinematics
        self._shadows, self._max_image_size = shadows, max_image_size
        self._renderer: Renderer | None = None
        self._flange = self.model.site("flange").id
        self._tip = self.model.site("tip").id
        self._pads = {side: self._geoms_named(f"{side}_pad") for side in FINGERS}
        self._object_geoms = {name: subtree_geoms(self.model, name) for name in config.objects}
        self._object_body = {name: self.model.body(name).id for name in config.objects}
        self._object_dof = {name: self.model.joint(name).dofadr[0] for name in config.objects}
        self.rigs = cameras.RIGS[config.lab]
        self.present: tuple[str, ...] = ()
        self.set_present(config.objects)
        self._compiled_heights = {name: extent[1, 2] for name, extent in self._extents.items()}
        self._robot_geoms = subtree_geoms(self.model, "link0")
        groups = {**self._object_geoms, **self._pads, "robot": self._robot_geoms}
        self._is_in = {group: np.isin(np.arange(self.model.ngeom), geoms) for group, geoms in groups.items()}
        self._initial_qpos = self._open_qpos()

    def _geoms_named(self, prefix: str) -> np.ndarray:
        names = [self.model.geom(i).name for i in range(self.model.ngeom)]
        return np.array([i for i, name in enumerate(names) if name.startswith(prefix)])

    # Configuration -----------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The arm at home with the gripper open, objects out of reach; the model's arrays stay as they are."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self._initial_qpos
        self.set_arm(HOME_QPOS)

    def _open_qpos(self) -> np.ndarray:
        """Initial qpos with the gripper's linkage settled open, which not every robot's reference posture is."""
        data = mujoco.MjData(self.model)
        data.qpos[self.kinematics.qpos_index] = data.ctrl[: len(HOME_QPOS)] = HOME_QPOS
        mujoco.mj_step(self.model, data, nstep=round(OPENING_SECONDS / self.model.opt.timestep))
        qpos = self.model.qpos0.copy()
        bodies = set(self.model.geom_bodyid[self._robot_geoms])
        for joint in range(self.model.njnt):
            if self.model.jnt_bodyid[joint] in bodies:
                address = self.model.jnt_qposadr[joint]
                qpos[address] = data.qpos[address]
        return qpos

    def set_arm(self, q: np.ndarray) -> None:
        """Put the arm, at rest, at joint angles [7] (rad), with the gripper as it is; the command follows it."""
        self.data.qpos[self.kinematics.qpos_index] = q
        self.data.qvel[self.kinematics.dof_index] = 0
        mujoco.mj_fwdPosition(self.model, self.data)
        self.controller.settle_command(self.data)

    def solve_pose(self, state: np.ndarray, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Joint angles [7] for a flange pose [6 or 7] and the remaining error; from home unless `start` is given."""
        start = HOME_QPOS if start is None else start
        return self.kinematics.solve(state[:3], euler_to_matrix(np.asarray(state[3:6])), start, iterations=100)

    @property
    def arm_qpos(self) -> np.ndarray:
        """Arm joint angles [7], rad."""
        return self.data.qpos[self.kinematics.qpos_index].copy()

    def place_object(self, name: str, position: np.ndarray, yaw: float = 0.0) -> None:
        """Put an upright object at rest: `position` [3] (m) of its origin (centre of the underside), yaw (rad)."""
        quat = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
        joint = self.data.joint(self._object(name))
        joint.qpos[:] = np.concatenate([position, quat])
        joint.qvel[:] = 0
        mujoco.mj_fwdPosition(self.model, self.data)

    def set_present(self, names: tuple[str, ...]) -> None:
        """Say which objects take part in the episode, and measure them again after their sizes were changed."""
        self.present = names
        self._extents = {name: object_extent(self.model, name) for name in self.config.objects}

    def object_geoms(self, name: str) -> np.ndarray:
        """Ids [n] of an object's geoms."""
        return self._object_geoms[self._object(name)]

    # Measurements ------------------------------------------------------------------------------------------

    def _object(self, name: str) -> str:
        return check_name("object", name, self.config.objects)

    @property
    def state(self) -> np.ndarray:
        """Measured arm state float64 [7]: flange position (m), Euler angles (rad), closedness; base frame."""
        return self.controller.measure(self.data)

    @property
    def flange(self) -> np.ndarray:
        """Flange position [3] (m), base frame: the first part of `state`."""
        return self.data.site_xpos[self._flange].copy()

    @property
    def tip(self) -> np.ndarray:
        """Point [3] (m) between the fingertip pads, base frame."""
        return self.data.site_xpos[self._tip].copy()

    @property
    def finger_heading(self) -> float:
        """Direction (rad, about the base frame's z) from the left finger to the right one."""
        left, right = (self.data.geom_xpos[self._pads[side]].mean(0) for side in FINGERS)
        return float(np.arctan2(*(right - left)[1::-1]))

    @property
    def tip_velocity(self) -> np.ndarray:
        """Velocity [3] (m/s) of the tip, base frame."""
        jacobian = np.empty((3, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, jacobian, None, self._tip)
        return jacobian @ self.data.qvel

    def underside(self, name: str) -> float:
        """Height (m) of an object's lowest point over its collision geoms' bounding box, base frame."""
        position, rotation = self.object_pose(name)
        corners = np.stack(np.meshgrid(*self.object_extent(name).T), -1).reshape(-1, 3)
        return float((position + corners @ rotation.T)[:, 2].min())

    @property
    def table_height(self) -> float:
        """Height of the table top in the base frame, m."""
        return 0.0

    def object_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) of an object's origin and its rotation [3, 3], base frame."""
        body = self._object_body[self._object(name)]
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def object_velocity(self, name: str) -> np.ndarray:
        """Linear (m/s) and angular (rad/s) velocity [6] of an object."""
        dof = self._object_dof[self._object(name)]
        return self.data.qvel[dof : dof + 6].copy()

    def object_extent(self, name: str) -> np.ndarray:
        """Bounding box [2, 3] (low, high; m) of an upright object in its own frame."""
        return self._extents[self._object(name)]

    def object_scale(self, name: str) -> float:
        """Size of an object relative to how it was compiled."""
        return float(self._extents[self._object(name)][1, 2] / self._compiled_heights[name])

    def contact_report(self) -> dict[str, dict]:
        """Which fingers touch each object, and whether it moves.

        Returns:
            For each present object: {"left": bool, "right": bool, "robot": bool, "other": bool,
            "speed": m/s, "moving": speed > 1 cm/s},
            where "left" and "right" are the finger pads, "robot" any part of the arm or gripper, and "other"
            anything but the robot (table, another object).
        """
        pairs = self.data.contact.geom[: self.data.ncon]
        report = {}
        for name in self.present:
            own = self._is_in[name][pairs]
            touching = own[:, 0] != own[:, 1]
            partners = pairs[touching][~own[touching]]
            speed = mujoco.mju_norm3(self.object_velocity(name)[:3])
            by_robot = self._is_in["robot"][partners]
            report[name] = {
                **{side: bool(self._is_in[side][partners].any()) for side in FINGERS},
                "robot": bool(by_robot.any()),
                "other": bool((~by_robot).any()),
                "speed": speed,
                "moving": speed > 0.01,
            }
        return report

    def robot_touches(self) -> bool:
        """Whether any part of the robot touches something that is not the robot."""
        pairs = self._is_in["robot"][self.data.contact.geom[: self.data.ncon]]
        return bool((pairs[:, 0] ^ pairs[:, 1]).any())

    # Time --------------------------------------------------------------------------------------------------

    def step(self, action: np.ndarray) -> np.ndarray:
        """One control step; returns the action [7] applied after clipping. ValueError for a malformed action."""
        applied = self.controller.step(self.data, action)
        mujoco.mj_fwdPosition(self.model, self.data)  # kinematics and contacts of the state just reached
        return applied

    def save(self) -> SavedState:
        """The present state; exact: restoring it and repeating the actions repeats every bit."""
        physics = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, physics, _STATE)
        return SavedState(physics, self.controller.command.copy())

    def restore(self, saved: SavedState) -> None:
        """Return to a saved state of this scene."""
        expected = mujoco.mj_stateSize(self.model, _STATE)
        if saved.physics.shape != (expected,):
            raise ValueError(f"the saved state has {saved.physics.size} numbers, this scene's have {expected}")
        mujoco.mj_setState(self.model, self.data, saved.physics, _STATE)
        mujoco.mj_fwdPosition(self.model, self.data)
        self.controller.command = saved.command.copy()

    # Images ------------------------------------------------------------------------------------------------

    @property
    def renderer(self) -> Renderer:
        """The scene's only renderer, made at first use."""
        if self._renderer is None:
            self._renderer = Renderer(self.model, self._max_image_size, self._shadows)
        return self._renderer

    def observe(
        self, camera_names: Iterable[str], height: int, width: int, state: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Observation dict: "state" float32 [7] and one uint8 [height, width, 3] frame per camera.

        `state` is the present `self.state`, from a caller that has measured it already.
        """
        state = self.state if state is None else state
        frames = {name: self.renderer.render(self.data, name, height, width) for name in camera_names}
        return {"state": state.astype(np.float32), **frames}

    def upload(self, textures: Iterable[int] = (), meshes: Iterable[int] = ()) -> None:
        """Let the renderer, if there is one yet, see changed textures and meshes (ids)."""
        textures, meshes = list(textures), list(meshes)
        if self._renderer is not None and (textures or meshes):
            self._renderer.upload(textures, meshes)

    def extrinsics(self, camera: str) -> np.ndarray:
        """Camera pose [6] in the base frame, OpenCV camera frame (see `cameras`)."""
        return cameras.extrinsics(self.data, camera)

    def place_camera(self, name: str, placement: cameras.Placement) -> None:
        """Move an exterior camera; later frames show it."""
        cameras.place_camera(self.model, name, placement)
        mujoco.mj_fwdPosition(self.model, self.data)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
