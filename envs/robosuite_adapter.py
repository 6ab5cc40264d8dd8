"""robosuite's single-arm Panda tasks under this project's observation, action and goal interface.

robosuite builds the scene, draws its placements and decides success; physics, control and cameras are ours. Its
torque motors become the position servos of `sim_assets/mjcf/panda.xml` (same gains), gravity on the robot is
compensated as the real arm does, and `armworld.envs.controller` drives them, because robosuite's own controller does
not arrive within a step. The gripper is robosuite's Franka Hand with its two servos driven together.

Poses are in the robot's base frame, which in robosuite stands somewhere above the world's origin.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import gymnasium
import mujoco
import numpy as np

from armworld.envs.cameras import OPENCV_FROM_MUJOCO, Placement, placement_quat
from armworld.envs.controller import ACTION_BOUND, Controller, Workspace
from armworld.envs.kinematics import ArmNames
from armworld.envs.rendering import Renderer
from armworld.envs.tasks import DWELL
from armworld.pose import euler_to_matrix, matrix_to_euler
from armworld.types import Goal, Observation, check_name, require

KP = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)  # Nm/rad; damping is a tenth, as in panda.xml
FLANGE = "0 0 0.107"  # m along link7's axis: panda_link8
NAMES = ArmNames(
    joints=tuple(f"robot0_joint{i}" for i in range(1, 8)),
    actuators=tuple(f"robot0_torq_j{i}" for i in range(1, 8)),
    grippers=("gripper0_right_gripper_finger_joint1", "gripper0_right_gripper_finger_joint2"),
    base="robot0_base",
)
OPENING = 0.04  # m that each finger travels
OPENING_STEPS = 4
# Below the arm's base stand table and bins; the lower limit leaves the fingertips above the lowest of them.
WORKSPACE = Workspace(low=(0.25, -0.45, 0.0), high=(0.75, 0.45, 0.60))
CAMERAS = {
    "left": Placement(azimuth=50.0, elevation=31.0, distance=1.1, look_at=(0.55, 0.0, 0.05), fovy=43.0),
    "right": Placement(azimuth=-50.0, elevation=31.0, distance=1.1, look_at=(0.55, 0.0, 0.05), fovy=43.0),
}
WRIST = "robot0_eye_in_hand"  # robosuite's own
REACH_LOW, REACH_HIGH = np.array([0.40, -0.20, 0.22]), np.array([0.60, 0.20, 0.40])  # m: drawn goals
TOLERANCE = 0.04  # m, of a drawn goal


def with_servos(xml: str) -> str:
    """robosuite's MJCF with position servos, gravity compensation, our flange site and our cameras."""
    root = ElementTree.fromstring(xml)
    actuators = {element.get("name"): element for element in root.iter() if element.tag in ("motor", "position")}
    if missing := {*NAMES.actuators, *NAMES.grippers} - set(actuators):
        raise ValueError(f"the task's robot is no Panda with a two-finger hand: it has no {', '.join(sorted(missing))}")
    for name, kp in zip(NAMES.actuators, KP, strict=True):
        motor = actuators[name]
        low, high = motor.attrib.pop("ctrlrange").split()
        motor.tag = "position"
        motor.attrib.update(kp=str(kp), kv=str(kp / 10), forcelimited="true", forcerange=f"{low} {high}")
        motor.set("ctrllimited", "false")
    for name, side in zip(NAMES.grippers, (1, -1), strict=True):
        servo = actuators[name]
        kp = float(servo.get("kp", "1000"))
        servo.tag = "general"
        servo.attrib.pop("kp", None)
        gain, bias = -side * kp * OPENING, side * kp * OPENING  # force = kp (side OPENING (1 - ctrl) - length)
        servo.attrib.update(
            ctrlrange="0 1", biastype="affine", gainprm=f"{gain} 0 0", biasprm=f"{bias} {-kp} 0"
        )  # fmt: skip
    bodies = {element.get("name"): element for element in root.iter("body")}
    for body in bodies[NAMES.base].iter("body"):
        body.set("gravcomp", "1")
    ElementTree.SubElement(
        bodies["robot0_link7"], "site", {"name": NAMES.flange, "pos": FLANGE, "size": "0.001", "group": "4"}
    )
    for name, placement in CAMERAS.items():
        position, rotation = placement.pose()
        attributes = {"pos": position, "quat": placement_quat(rotation), "fovy": [placement.fovy]}
        text = {key: " ".join(f"{v:.9g}" for v in value) for key, value in attributes.items()}
        ElementTree.SubElement(bodies[NAMES.base], "camera", {"name": name, **text})
    return ElementTree.tostring(root, encoding="unicode")


@dataclass(frozen=True)
class SavedState:
    """Physics and command of a moment; exact within one environment."""

    physics: np.ndarray
    command: Any


class RobosuiteEnv(gymnasium.Env):
    """A robosuite task as one of our environments; spaces, units and `info` as in `armworld.envs.base.ArmEnv`.

    The goal. `goal="reach"` draws a flange pose: the goal's image and state are taken there, `solved` means within
    4 cm of it. `goal="task"` judges by robosuite's own success; robosuite has no goal images, so the goal observation
    is the start until `set_goal` gives one (a photograph, or a saved state), and `distance_m` is NaN until then.

    Args:
        task: A robosuite environment for one arm: "Lift", "PickPlaceCan", "Stack" ...
        goal: "reach" or "task".
        cameras: Any of "left", "right" (placed as in lab1) and "wrist".
        image_size: Pixels per side.
        step_seconds: Length of a control step.
        max_steps: Episode length; truncation only.

    Raises:
        ImportError: robosuite is not installed; the message says how to install it.
        ValueError: The task is unknown or has not exactly one Panda arm on a fixed base.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  Gymnasium's own spelling

    def __init__(
        self,
        task: str = "Lift",
        goal: str = "reach",
        cameras: tuple[str, ...] = ("left",),
        image_size: int = 128,
        step_seconds: float = 0.25,
        max_steps: int = 22,
        render_mode: str | None = "rgb_array",
    ):
        check_name("goal", goal, ("reach", "task"))
        for name in cameras:
            check_name("camera", name, (*CAMERAS, "wrist"))
        if not 16 <= image_size <= 1280 or max_steps < 1:
            raise ValueError(f"image_size must be 16 ... 1280 and max_steps at least 1, got {image_size}, {max_steps}")
        self.task, self.goal_kind, self.cameras = task, goal, tuple(cameras)
        self.image_size, self.max_steps, self.render_mode = image_size, max_steps, render_mode
        self.suite = _make(task)
        self.model: mujoco.MjModel = self.suite.sim.model._model
        self.data: mujoco.MjData = self.suite.sim.data._data
        self.controller = Controller(self.model, step_seconds, WORKSPACE, NAMES)
        self._renderer: Renderer | None = None
        angle = np.pi
        low, high = [-2, -2, -2, -angle, -angle, -angle, 0], [2, 2, 2, angle, angle, angle, 1]
        frame = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = gymnasium.spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict({"state": state, **dict.fromkeys(self.cameras, frame)})
        bound = ACTION_BOUND.astype(np.float32)
        self.action_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float32)
        self._goal: Goal | None = None
        self._target: np.ndarray | None = None
        self._draws: dict[str, Any] = {}
        self._steps = self._held = 0

    @property
    def goal(self) -> Goal:
        """The episode's goal. RuntimeError before the first reset."""
        if self._goal is None:
            raise RuntimeError("the environment has no goal before its first reset()")
        return self._goal

    def observe(self) -> Observation:
        """The present observation."""
        if self._renderer is None:
            size = (self.image_size, self.image_size)
            self._renderer = Renderer(self.model, size, groups=(0, 1, 1, 0, 0, 0))  # robosuite's group 0: collision
        frames = {
            name: self._renderer.render(self.data, WRIST if name == "wrist" else name, self.image_size, self.image_size)
            for name in self.cameras
        }
        return {"state": self.controller.measure(self.data).astype(np.float32), **frames}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        """Start an episode: robosuite's placements and start pose, gripper open; the same seed, the same episode."""
        super().reset(seed=seed)
        suite_seed = int(self.np_random.integers(2**32))
        with _global_seed(suite_seed):
            self.suite.reset()
        self.controller.settle_command(self.data)
        for _ in range(OPENING_STEPS):  # objects come to rest, the fingers open
            self.controller.step(self.data, np.array([0, 0, 0, 0, 0, 0, -1.0]))
        mujoco.mj_fwdPosition(self.model, self.data)
        self._draws = {"suite_seed": suite_seed}
        self._steps = self._held = 0
        self._target = None
        self._goal = self._reach_goal() if self.goal_kind == "reach" else Goal((self.observe(),), (self.max_steps,))
        return self.observe(), {**self._info(), "goal": self._goal}

    def _reach_goal(self) -> Goal:
        """A random flange pose as the goal, its image taken with the arm there; the scene is left as it was."""
        saved, state = self.save_state(), self.controller.measure(self.data)
        target = self.np_random.uniform(REACH_LOW, REACH_HIGH)
        rotation = euler_to_matrix(state[3:6])
        kinematics = self.controller.kinematics
        q, _ = kinematics.solve(target, rotation, self.data.qpos[kinematics.qpos_index], iterations=100)
        self.data.qpos[kinematics.qpos_index] = q
        self.data.qvel[kinematics.dof_index] = 0
        mujoco.mj_fwdPosition(self.model, self.data)
        observation = self.observe()
        self.restore_state(saved)
        self._target = observation["state"][:3].astype(float)
        self._draws["goal_state"] = observation["state"].tolist()
        return Goal((observation,), (self.max_steps,))

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """One control step. ValueError for an action of wrong shape, NaN or infinity; nothing has moved then."""
        if self._goal is None:
            raise RuntimeError("call reset() before step()")
        applied = self.controller.step(self.data, action)
        mujoco.mj_fwdPosition(self.model, self.data)
        self._steps += 1
        self._held = self._held + 1 if self.solved() else 0
        info = {**self._info(), "applied_action": applied}
        reward = -info["distance_m"] if np.isfinite(info["distance_m"]) else float(info["solved"]) - 1
        return self.observe(), reward, False, self._steps >= self.max_steps, info

    def solved(self) -> bool:
        """Whether the predicate holds now: robosuite's for "task", within 4 cm of the target for "reach"."""
        if self.goal_kind == "task":
            return bool(self.suite._check_success())
        return self._distance() < TOLERANCE

    def _distance(self) -> float:
        """From the flange to the goal's, m; NaN for a goal that has none."""
        if self._target is None:
            return float("nan")
        return float(np.linalg.norm(self.controller.measure(self.data)[:3] - self._target))

    def _info(self) -> dict[str, Any]:
        return {
            "reached_state": self.controller.measure(self.data),
            "distance_m": self._distance(),
            "solved": self.solved(),
            "success": self._held >= DWELL,
            "draws": json.loads(json.dumps(self._draws)),
        }

    def set_goal(self, *observations: Observation, budgets: tuple[int, ...] | None = None) -> Goal:
        """Replace the goal by observations, in order; a "state" in the last one is what the distance is measured to.

        Raises:
            ValueError: No observation, or budgets that do not match (see `armworld.types.Goal`).
        """
        shares = budgets or (max(1, self.max_steps // max(1, len(observations))),) * len(observations)
        goal = Goal(tuple(observations), shares)
        state = goal.observations[-1].get("state")
        self._goal, self._held = goal, 0
        self._target = None if state is None else np.asarray(state[:3], float)
        return goal

    def save_state(self) -> SavedState:
        """Physics and command, exact."""
        physics = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return SavedState(physics, self.controller.command.copy())

    def restore_state(self, saved: SavedState) -> None:
        """Return to a saved moment of this environment."""
        mujoco.mj_setState(self.model, self.data, saved.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_fwdPosition(self.model, self.data)
        self.controller.command = saved.command.copy()

    def body_position(self, name: str) -> np.ndarray:
        """Position [3] (m) of one of robosuite's bodies in the robot's base frame; ValueError lists the bodies."""
        names = [self.model.body(i).name for i in range(self.model.nbody)]
        return self.data.body(check_name("body", name, names)).xpos - self.controller.kinematics.base

    def extrinsics(self, camera: str) -> np.ndarray:
        """Camera pose [6] in the robot's base frame, OpenCV camera frame."""
        check_name("camera", camera, (*CAMERAS, "wrist"))
        view = self.data.camera(WRIST if camera == "wrist" else camera)
        rotation = view.xmat.reshape(3, 3) @ OPENCV_FROM_MUJOCO
        return np.concatenate([view.xpos - self.controller.kinematics.base, matrix_to_euler(rotation)])

    def render(self) -> np.ndarray | None:
        """The first camera's frame, uint8 [image_size, image_size, 3]; None without cameras or render mode."""
        return self.observe()[self.cameras[0]] if self.cameras and self.render_mode else None

    def close(self) -> None:
        """Free the renderer and robosuite's simulation. Safe to call twice."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _make(task: str) -> Any:
    """robosuite's environment without cameras, its model rewritten by `with_servos`."""
    robosuite: Any = require("robosuite", "robosuite")
    check_name("robosuite task", task, robosuite.ALL_ENVIRONMENTS)
    try:
        suite = robosuite.make(
            task, robots="Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False,
            use_object_obs=False, hard_reset=False, ignore_done=True,
        )  # fmt: skip
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"robosuite's {task!r} is no task of one Panda arm: {error}") from error
    suite.set_xml_processor(with_servos)
    suite._load_model()
    suite._initialize_sim()
    suite._reset_internal()
    return suite


class _global_seed:
    """robosuite 1.5.1 draws from numpy's global generator: seed it for a while, then put it back."""

    def __init__(self, seed: int):
        self._seed = seed

    def __enter__(self) -> None:
        self._before = np.random.get_state()  # noqa: NPY002
        np.random.seed(self._seed)  # noqa: NPY002

    def __exit__(self, *_: object) -> None:
        np.random.set_state(self._before)  # noqa: NPY002
