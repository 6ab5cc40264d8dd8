"""A point that moves as it is told, with armworld's interface: for testing the evaluation without a simulator.

Importing it registers `evaluation_fake:Point-v0` in Gymnasium, and those where points stay behind a wall (`Walled-v0`),
where seed 6 has no start (`NoStart-v0`) and where distances are not measured (`Unmeasured-v0`); and the agents `walk`,
`walk_slowly`, `broken`, `interrupt`, and `plans` and `plans_on_nan`, which plan with a world model of points.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from armworld.evaluation.agents import AGENTS, Entry
from armworld.planners.mpc import PlanningAgent
from armworld.planners.objectives import FinalL1
from armworld.planners.registry import make_planner
from armworld.pose import apply_action
from armworld.types import Goal, Observation
from armworld.worldmodel.model import Rollout

TOLERANCE, DWELL = 0.04, 2


class PointEnv(gymnasium.Env):
    """The flange moves exactly by the action; solved within 4 cm of a goal 20 to 40 cm away."""

    def __init__(
        self,
        object: str = "cup",
        lab: str = "lab1",
        level: str = "none",
        cameras: tuple[str, ...] = ("left",),
        image_size: int = 32,
        step_seconds: float = 0.25,
        max_steps: int = 8,
        robot: str = "point",
        placements: dict[str, Any] | None = None,
    ) -> None:
        if object not in ("cup", "box"):
            raise ValueError(f"unknown object {object!r}; valid: cup, box")
        self.cameras, self.size, self.step_seconds, self.max_steps = cameras, image_size, step_seconds, max_steps
        box = gymnasium.spaces.Box
        views = {name: box(0, 255, (image_size, image_size, 3), np.uint8) for name in cameras}
        self.observation_space = gymnasium.spaces.Dict({"state": box(-9, 9, (7,), np.float32), **views})
        self.action_space = box(-1, 1, (7,), np.float32)

    def _view(self, state: np.ndarray) -> Observation:
        rows, columns = np.mgrid[: self.size, : self.size] / self.size - 0.5
        spot = np.exp(-((rows - state[0]) ** 2 + (columns - state[1]) ** 2) / 0.01)
        image = np.stack([255 * spot, 255 * (0.5 + state[2]) * np.ones_like(spot), 120 * (1 - spot)], -1)
        views = {name: image.clip(0, 255).astype(np.uint8) for name in self.cameras}
        return {"state": state.astype(np.float32), **views}

    def _info(self) -> dict[str, Any]:
        distance = float(np.linalg.norm(self.state[:3] - self.target[:3]))
        self.held = self.held + 1 if distance < TOLERANCE else 0
        return {
            "reached_state": self.state.copy(),
            "distance_m": distance,
            "solved": self.held > 0,
            "success": self.held > DWELL,
            "draws": {"target": self.target.tolist()},
        }

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        super().reset(seed=seed)
        direction = self.np_random.normal(size=3)
        offset = direction / np.linalg.norm(direction) * self.np_random.uniform(0.2, 0.4)
        self.state = np.zeros(7)
        self.target = np.concatenate([offset, np.zeros(4)])
        self.steps = self.held = 0
        self.goal = Goal((self._view(self.target),), (self.max_steps,))
        return self._view(self.state), {**self._info(), "goal": self.goal}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        self.state = apply_action(self.state, np.asarray(action, dtype=np.float64))
        self.steps += 1
        info = self._info()
        return self._view(self.state), -info["distance_m"], False, self.steps >= self.max_steps, info


class Walled(PointEnv):
    """No point further than 10 cm from the start can be reached, and no goal is as near."""

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        there = (self.state[:3] + action[:3]) / 0.1
        held_up = there / max(1.0, float(np.linalg.norm(there))) * 0.1 - self.state[:3]
        return super().step(np.concatenate([held_up, action[3:]]))


class NoStart(PointEnv):
    """Seed 6 has no feasible start."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        if seed == 6:
            raise RuntimeError("no feasible start in 200 draws")
        return super().reset(seed=seed, options=options)


class Unmeasured(PointEnv):
    """How far it is to the goal is not known, as where a goal is an image alone."""

    def _info(self) -> dict[str, Any]:
        return {**super()._info(), "distance_m": float("nan"), "solved": False, "success": False}


class Spots:
    """A world model that sees `PointEnv`'s point, features [1, 3] in decimetres, and imagines it as told, or as NaN."""

    step_seconds, image_size, camera = 0.25, None, None

    def __init__(self, told: float = 1.0) -> None:
        self.told = told

    def encode(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        frames = torch.as_tensor(np.asarray(images), dtype=torch.float32) / 255
        spot = frames[..., 0] ** 8
        along = torch.arange(spot.shape[-1]) / spot.shape[-1] - 0.5
        x, y = ((spot.sum(side) * along).sum(-1) / spot.sum((-2, -1)).clamp_min(1e-9) for side in (-1, -2))
        z = frames[..., 1].mean((-2, -1)) - 0.5
        return 10 * torch.stack([x, y, z], -1)[:, :, None]

    def rollout(self, z: torch.Tensor, state: torch.Tensor, actions: torch.Tensor) -> Rollout:
        moved = 10 * self.told * actions[..., :3].cumsum(2)
        return Rollout(z[:, None, -1:] + moved[..., None, :], state[:, -1, None, None] + actions.cumsum(2))


def plans_with(model: Spots, seed: int) -> PlanningAgent:
    """Plans to the goal's image, at most 10 cm per axis and step."""
    planner = make_planner("cem", samples=32, iterations=3, space={"max_position": 0.1, "max_gripper": 0.0})
    return PlanningAgent(model, planner, FinalL1(), "left", torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


class Walk:
    """Goes to the goal's position, at most 10 cm per axis and step, with a little seeded noise."""

    def __init__(self, seed: int, noise: float = 0.005) -> None:
        self.rng, self.noise = np.random.default_rng(seed), noise

    def reset(self, goal: Goal) -> None:
        self.target = goal.observations[-1]["state"]

    def act(self, observation: Observation) -> np.ndarray:
        action = np.zeros(7)
        error = (self.target - observation["state"])[:3] + self.rng.normal(size=3) * self.noise
        action[:3] = error.clip(-0.1, 0.1)
        return action


class Broken(Walk):
    """Raises at its third action."""

    calls = 0

    def act(self, observation: Observation) -> np.ndarray:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("no plan\nhas a finite energy")
        return super().act(observation)


class WalkSlowly(Walk):
    """Takes 5 ms per action, so that a test can interrupt it."""

    def act(self, observation: Observation) -> np.ndarray:
        time.sleep(0.005)
        return super().act(observation)


class Interrupt(Walk):
    """The user presses Ctrl-C in the episode of seed 12."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seed = seed

    def act(self, observation: Observation) -> np.ndarray:
        if self.seed == 12:
            raise KeyboardInterrupt
        return super().act(observation)


for name, agent in {"walk": Walk, "walk_slowly": WalkSlowly, "broken": Broken, "interrupt": Interrupt}.items():
    AGENTS[name] = Entry(lambda env, model, seed, settings, agent=agent: agent(seed), False, "for tests")
for name, model in {"plans": Spots(), "plans_on_nan": Spots(float("nan"))}.items():
    AGENTS[name] = Entry(lambda env, _, seed, settings, model=model: plans_with(model, seed), False, "for tests")
for env in (PointEnv, Walled, NoStart, Unmeasured):
    gymnasium.register(f"{env.__name__.removesuffix('Env')}-v0", entry_point=f"evaluation_fake:{env.__name__}")
ID = "evaluation_fake:Point-v0"
WALLED, NO_START, UNMEASURED = (f"evaluation_fake:{name}-v0" for name in ("Walled", "NoStart", "Unmeasured"))


def save_debug_model(folder: Path) -> str:
    """The path of an untrained world model of the smallest size, made into `folder`."""
    from armworld.worldmodel.ac_predictor import ACPredictor
    from armworld.worldmodel.checkpoint import save_world_model
    from armworld.worldmodel.encoder import Encoder
    from armworld.worldmodel.model import WorldModelConfig
    from armworld.worldmodel.sizes import ACPredictorConfig, encoder_config

    torch.manual_seed(0)
    encoder = Encoder(encoder_config("debug", image_size=(64, 64)))
    sizes = ACPredictorConfig(features=encoder.config.width, width=48, depth=1, heads=2, image_size=(64, 64))
    return str(save_world_model(folder, encoder, ACPredictor(sizes), WorldModelConfig(image_size=(64, 64))))
