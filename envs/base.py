"""The Gymnasium environment: a task in a simulated scene, under the project's observation and action conventions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from armworld.envs import goals
from armworld.envs.cameras import CAMERAS, EXTERIOR, IMAGE_SIZES, Placement, placement_from
from armworld.envs.controller import ACTION_BOUND
from armworld.envs.layout import ExpertFailed, NoRoom
from armworld.envs.randomization import LEVELS, Randomizer
from armworld.envs.scene import SceneConfig
from armworld.envs.simulator import SavedState, Simulator
from armworld.envs.tasks import DWELL, TASKS
from armworld.sim_assets import catalog
from armworld.types import Goal, Observation, check_name

REDRAWS = 200  # starts that are infeasible or already solved are drawn again, at most this often


@dataclass(frozen=True)
class EnvState:
    """A moment of an episode, exact: physics, command, targets, goal, draws (the scene's look) and counters."""

    simulator: SavedState
    targets: dict[str, Any]
    goal: Goal
    draws: dict[str, Any]
    steps: int
    held: int


class ArmEnv(gymnasium.Env):
    """A Franka arm with a task.

    Observation (dict): "state" float32 [7]: flange position (m), extrinsic-xyz Euler angles (rad, in [-pi, pi]),
    gripper closedness 0 ... 1, base frame; and a uint8 [image_size, image_size, 3] frame per camera.
    Action float32 [7]: position delta (m, +-0.075), rotation delta (rad, +-0.2; Euler angles of R_next R^T),
    closedness delta (+-1). Larger actions are clipped, `info["applied_action"]` tells; NaN or another shape raises.
    Reward: minus the distance to the goal (m). An episode ends by truncation after `max_steps`, never early.

    Args:
        task: "reach", "grasp", "reach_with_object" or "pick_place".
        object: The task's object: "cup", "box" or "bottle".
        lab: "lab1" or "lab2".
        level: Variation between episodes: "none", "jitter" or "full".
        cameras: Cameras in the observation: any of "left", "right", "wrist".
        image_size: Height and width of the frames, pixels.
        robot: Gripper: "robotiq_2f85" or "franka_hand".
        step_seconds: Length of a control step; a multiple of the physics step (0.002 s). The action's bounds are per
            step whatever its length: shorter steps allow faster motion.
        max_steps: Episode length; None: the task's own.
        shadows: Render shadows (slow on a CPU).
        subgoals: Goal images of more of the way than the paper shows: grasp (above, grasped, lifted) and pick_place
            (above, grasped, near, placed, clear).
        placements: Where exterior cameras stand in place of the lab's rig: camera -> fields of a `Placement`, e.g.
            {"left": {"azimuth": 20, "elevation": 40, "distance": 1.1}}, or a name of `cameras.PRESETS`, e.g.
            {"left": "front"}. Variation is drawn around them.

    Raises:
        ValueError: A name or number is not valid; the message lists what is.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  Gymnasium's own spelling

    def __init__(
        self,
        task: str = "reach",
        object: str = "cup",
        lab: str = "lab1",
        level: str = "none",
        cameras: tuple[str, ...] = ("left",),
        image_size: int = 128,
        robot: str = "robotiq_2f85",
        step_seconds: float = 0.25,
        max_steps: int | None = None,
        shadows: bool = False,
        subgoals: bool = False,
        placements: Mapping[str, Mapping[str, Any] | str] | None = None,
        render_mode: str | None = "rgb_array",
    ):
        check_name("task", task, TASKS)
        check_name("object", object, catalog.OBJECTS)
        check_name("lab", lab, catalog.LABS)
        check_name("level", level, LEVELS)
        check_name("robot", robot, catalog.ROBOTS)
        self.cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
        for name in self.cameras:
            check_name("camera", name, CAMERAS)
        smallest, largest = IMAGE_SIZES
        if not smallest <= image_size <= largest or (max_steps is not None and max_steps < 1):
            told = f"got {image_size} and {max_steps}"
            raise ValueError(f"image_size must be {smallest} ... {largest} and max_steps at least 1, {told}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"unknown render_mode {render_mode!r}; valid: None, 'rgb_array'")
        others = tuple(name for name in catalog.OBJECTS if name != object)
        bystanders = others if level == "full" else others[:1]
        config = SceneConfig(robot, lab, (object, *bystanders))
        self.simulator = Simulator(config, step_seconds, None, shadows, (image_size, image_size))
        self.task = TASKS[task](object, subgoals)
        self.randomizer = Randomizer(self.simulator, level, bystanders)
        self.level, self.image_size, self.render_mode = level, image_size, render_mode
        self.max_steps = self.task.max_steps if max_steps is None else max_steps
        self.metadata = {**self.metadata, "render_fps": round(1 / step_seconds)}
        angle = np.float32(np.pi)
        low = np.array([-2, -2, -2, -angle, -angle, -angle, 0], np.float32)
        high = np.array([2, 2, 2, angle, angle, angle, 1], np.float32)
        frame = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict({"state": state, **dict.fromkeys(self.cameras, frame)})
        bound = ACTION_BOUND.astype(np.float32)
        self.action_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float32)
        self._goal: Goal | None = None
        self._draws_json = "{}"  # as text: read anew for every info, which is faster than a deep copy
        self._steps = self._held = 0
        for name, fields in (placements or {}).items():
            self.place_camera(check_name("camera to place", name, EXTERIOR), placement_from(fields))

    @property
    def goal(self) -> Goal:
        """The episode's goal. RuntimeError before the first reset."""
        if self._goal is None:
            raise RuntimeError("the environment has no goal before its first reset()")
        return self._goal

    @property
    def draws(self) -> dict[str, Any]:
        """Every random draw of the present episode, ready for JSON; empty before the first reset. A copy."""
        return json.loads(self._draws_json)

    def observe(self, state: np.ndarray | None = None) -> Observation:
        """The present observation; `state` is the simulator's present one, where it has been measured already."""
        return self.simulator.observe(self.cameras, self.image_size, self.image_size, state)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        """Start an episode; the same seed gives the same episode on every copy. `info["goal"]` holds the goal."""
        super().reset(seed=seed)
        failures = 0  # of the expert, among the redraws
        for redraws in range(REDRAWS):
            variation = self.randomizer.draw(self.np_random)
            self._vary(variation)
            self.simulator.reset()
            try:
                self._goal, placed = self.task.begin(self.simulator, self.np_random, self.observe)
            except NoRoom as reason:
                failures += isinstance(reason, ExpertFailed)
                continue
            if not self.task.solved(self.simulator):
                self._draws_json = json.dumps({
                    **placed, "variation": variation, "redraws": redraws, "expert_failures": failures,
                })  # fmt: skip
                break
        else:
            raise RuntimeError(f"no feasible start in {REDRAWS} draws of {self.task.name} with {self.task.object}")
        self._steps = self._held = 0
        state = self.simulator.state
        return self.observe(state), {**self._info(state, solved=False), "goal": self._goal}

    def _vary(self, variation: dict[str, Any]) -> None:
        self.randomizer.apply(variation)
        self.task.bystanders = tuple(name for name in variation["present"] if name != self.task.object)
        self.task.start_yaw = variation["start_yaw"]

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """One control step. ValueError for an action of wrong shape, NaN or infinity; nothing has moved then."""
        if self._goal is None:
            raise RuntimeError("call reset() before step()")
        applied = self.simulator.step(action)
        self._steps += 1
        solved = self.task.solved(self.simulator)
        self._held = self._held + 1 if solved else 0
        state = self.simulator.state
        info = {**self._info(state, solved), "applied_action": applied}
        return self.observe(state), -info["distance_m"], False, self._steps >= self.max_steps, info

    def _info(self, state: np.ndarray, solved: bool) -> dict[str, Any]:
        return {
            "reached_state": state,
            "distance_m": self.task.distance(self.simulator),
            "solved": solved,
            "success": self._held >= DWELL,
            "draws": self.draws,
        }

    def save_state(self) -> EnvState:
        """This moment of the episode; see `restore_state`."""
        return EnvState(
            self.simulator.save(), self.task.snapshot(), self.goal, self.draws,
            self._steps, self._held,
        )  # fmt: skip

    def restore_state(self, state: EnvState) -> Observation:
        """Return to a moment saved by this environment; repeating the actions repeats qpos and images exactly."""
        if state.draws["variation"] != self.draws.get("variation"):
            self._vary(state.draws["variation"])
        self.simulator.restore(state.simulator)
        self.task.targets = dict(state.targets)
        self._goal, self._steps, self._held = state.goal, state.steps, state.held
        self._draws_json = json.dumps(state.draws)
        return self.observe()

    def set_goal(self, *subgoals: Any, budgets: tuple[int, ...] | None = None) -> Goal:
        """Replace the episode's goal; the dwell starts again.

        Args:
            subgoals: In order, each an `EnvState` (its image is rendered now, and it is judged by physically), an
                observation dict (reach is judged by its "state"), or one camera's image uint8 [size, size, 3].
            budgets: Steps for each sub-goal; equal shares of `max_steps` unless given.

        Returns:
            The new goal. Where the last sub-goal cannot be judged (an image alone; an observation in a task with
            an object), `distance_m` is NaN and `solved` stays False.

        Raises:
            ValueError: A frame of another size, an unknown camera, a malformed state, no sub-goal.
        """
        goal, targets = goals.build(self, subgoals, budgets)
        self._goal, self.task.targets, self._held = goal, targets, 0
        return goal

    def place_camera(self, name: str, placement: Placement) -> None:
        """Move an exterior camera, now and at every later reset (variation is drawn around it).

        The present goal's images keep the old view. ValueError for an unknown camera or the wrist's.
        """
        self.simulator.place_camera(name, placement)
        self.randomizer.rigs[name] = placement
        if draws := self.draws:
            draws["variation"]["cameras"][name] = placement.as_dict()
            self._draws_json = json.dumps(draws)

    def extrinsics(self, camera: str) -> np.ndarray:
        """Pose [6] of a camera in the base frame: position (m), Euler angles (rad) of the OpenCV camera frame."""
        return self.simulator.extrinsics(camera)

    def render(self) -> np.ndarray | None:
        """The first camera's frame (or the left one's), uint8 [image_size, image_size, 3]."""
        if self.render_mode is None:
            return None
        camera = self.cameras[0] if self.cameras else "left"
        return self.simulator.observe((camera,), self.image_size, self.image_size)[camera]

    def close(self) -> None:
        """Free the renderer. Safe to call twice."""
        self.simulator.close()
