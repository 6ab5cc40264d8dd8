"""A pretend arm with our environments' interface: no physics and no renderer, so that data tests take seconds.

`gymnasium.make("datasets_fake:fake/Arm-v0", ...)` finds it once `tests/` is on the path, in worker processes too.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np

from armworld.envs.controller import DOWN_EULER, Workspace
from armworld.pose import apply_action
from armworld.types import Goal

CUP = np.array([0.5, 0.1, 0.0])
CRASH_VARIABLE = "FAKE_ARM_CRASH_FILE"  # while that file exists, the first worker to see it removes it and dies


@dataclass
class FakeCommand:
    state: np.ndarray
    q: np.ndarray


class FakeSimulator:
    """Goes exactly where it is told, inside the workspace."""

    def __init__(self, cameras: tuple[str, ...], step_seconds: float) -> None:
        self.workspace = Workspace()
        self.config, self.present = SimpleNamespace(objects=("cup",)), ("cup",)
        self.kinematics = SimpleNamespace(dof_index=np.arange(7))
        self.data = SimpleNamespace(qvel=np.zeros(7))
        self.cameras, self.step_seconds = cameras, step_seconds
        self.state = np.zeros(7)

    @property
    def tip(self) -> np.ndarray:
        return self.state[:3] - [0, 0, 0.16]

    @property
    def arm_qpos(self) -> np.ndarray:
        return np.zeros(7)  # no joints: validation then has nothing to compare the pose with

    def object_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return CUP.copy(), np.eye(3)

    def object_extent(self, name: str) -> np.ndarray:
        return np.array([[-0.03, -0.03, 0], [0.03, 0.03, 0.08]])

    def contact_report(self) -> dict[str, dict[str, Any]]:
        near = bool(np.linalg.norm(self.tip - CUP) < 0.1)
        return {"cup": {"left": near, "right": False, "moving": False}}

    def extrinsics(self, camera: str) -> np.ndarray:
        return np.array([1.0, -0.5 if camera == "right" else 0.5, 0.6, 0.1, 0.2, 0.3])

    def save(self) -> SimpleNamespace:
        return SimpleNamespace(physics=self.state.copy(), command=FakeCommand(self.state.copy(), self.state.copy()))

    def restore(self, saved: Any) -> None:
        self.state = saved.physics.copy()

    def observe(self, cameras: tuple[str, ...], height: int, width: int) -> dict[str, np.ndarray]:
        """The state, and pictures in which a bright blob moves with the flange over a smooth ground."""
        y, x = np.mgrid[0:height, 0:width] / height
        row, column = 1 - self.state[2] / 0.7, 0.5 + self.state[1]
        blob = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 0.02)
        images = {}
        for camera in cameras:
            ground = 0.3 + 0.2 * x if camera == "left" else 0.3 + 0.2 * y
            image = np.stack([ground + 0.5 * blob, ground + 0.3 * self.state[0] * blob, ground], -1)
            images[camera] = (255 * image.clip(0, 1)).astype(np.uint8)
        return {"state": self.state.astype(np.float32), **images}


class FakeArm(gymnasium.Env):
    """The pretend environment; its arguments are those of `armworld/Reach-v0`."""

    def __init__(
        self,
        object: str = "cup",
        lab: str = "lab1",
        level: str = "none",
        cameras: tuple[str, ...] = ("left",),
        image_size: int = 64,
        robot: str = "robotiq_2f85",
        step_seconds: float = 0.25,
        max_steps: int = 10,
    ) -> None:
        images = {n: gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for n in cameras}
        state = gymnasium.spaces.Box(-10, 10, (7,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"state": state, **images})
        self.action_space = gymnasium.spaces.Box(-1, 1, (7,), np.float32)
        self.simulator = FakeSimulator(cameras, step_seconds)
        self.randomizer = SimpleNamespace(draw=lambda rng: {}, apply=lambda draws: None)  # nothing varies
        self.cameras, self.image_size = cameras, image_size
        self.max_steps = max_steps

    def _observe(self) -> dict[str, np.ndarray]:
        return self.simulator.observe(self.cameras, self.image_size, self.image_size)

    def _info(self) -> dict[str, Any]:
        return {"reached_state": self.simulator.state.copy(), "success": self.lucky, "draws": self.draws}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        crash = os.environ.get(CRASH_VARIABLE, "")
        with contextlib.suppress(FileNotFoundError):  # of two workers, one removes it
            if crash:
                os.unlink(crash)
                os._exit(9)
        box = self.simulator.workspace
        start = self.np_random.uniform(box.low, box.high)
        self.lucky = bool(self.np_random.random() < 0.5)
        self.draws = {"start": start.tolist()}
        self.simulator.state = np.concatenate([start, DOWN_EULER, [0.0]])
        self.count = 0
        observation = self._observe()
        return observation, self._info() | {"goal": Goal((observation,), (self.max_steps,))}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, Any]:
        self.simulator.state = self.simulator.workspace.clip(apply_action(self.simulator.state, action))
        self.count += 1
        return self._observe(), 0.0, False, self.count >= self.max_steps, self._info()


gymnasium.register("fake/Arm-v0", entry_point="datasets_fake:FakeArm")
