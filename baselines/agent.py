"""Policies as agents: loading a checkpoint, keeping the window, executing action chunks.

Chunks are executed open loop (`execute` actions of each before looking again; 1 is a closed loop) or ensembled in
time: every step predicts a chunk, and the action is the mean of what all chunks that reach this far say about it.

Sub-goals, rest and gripper follow the rules of `planners.mpc.PlanningAgent`. Where the planner reads the hand from the
image, arrival is measured here by the arm's recorded states, which is at least as exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from armworld.baselines.policy import Batch, Policy, PolicyConfig
from armworld.types import Goal, Observation, check_name, check_numbers
from armworld.worldmodel.checkpoint import config_from_json, load_strictly, read_parts, resolve
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.readout import YAW_METRES, hand_distance, hand_targets
from armworld.worldmodel.sizes import EncoderConfig

_Config = TypeVar("_Config")


@dataclass(frozen=True)
class LoadedPolicy:
    """A trained policy and how it is to be used.

    Attributes:
        network: The policy, in evaluation mode.
        encoder: The frozen encoder whose features it reads; None for one that reads pixels.
        config: Step, image size, camera, encoder blocks.
        about: How it was made.
    """

    network: Policy
    encoder: Encoder | None
    config: WorldModelConfig
    about: dict

    @property
    def step_seconds(self) -> float:
        return self.config.step_seconds

    @property
    def image_size(self) -> tuple[int, int]:
        return self.config.image_size

    @property
    def camera(self) -> str:
        return self.config.camera

    @torch.no_grad()
    def look(self, image: np.ndarray) -> Tensor:
        """What the network is shown of an image uint8 [H, W, 3]: pixels [3, H, W] or features [N, D]."""
        if tuple(image.shape) != (*self.image_size, 3) or image.dtype != np.uint8:
            raise ValueError(f"images must be uint8 {[*self.image_size, 3]}, got {image.dtype} {list(image.shape)}")
        if self.encoder is None:
            return torch.from_numpy(image.transpose(2, 0, 1).copy())
        return self.encoder.encode_frames(image[None, None], self.config.layers)[0, 0]


def load_policy(name_or_path: str | Path) -> LoadedPolicy:
    """Read a policy's checkpoint folder, as float32.

    Raises:
        ValueError: No such checkpoint, one without a policy, or weights that do not fit.
    """
    folder = resolve(name_or_path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a checkpoint folder")
    document, weights = read_parts(folder)
    if "policy" not in document:
        raise ValueError(f"{folder} holds no policy; train one with: armworld bc")
    network, encoder = Policy(_config(PolicyConfig, document, "policy", folder)), None
    load_strictly(network, _own(weights, "policy"), f"{folder}: policy")
    if "encoder" in document:
        encoder = Encoder(_config(EncoderConfig, document, "encoder", folder))
        load_strictly(encoder, _own(weights, "encoder"), f"{folder}: encoder").requires_grad_(False)
    usage = _config(WorldModelConfig, document, "world_model", folder)
    network.requires_grad_(False)
    return LoadedPolicy(network, encoder, usage, document.get("about", {}))


def _own(weights: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of one part of a checkpoint, under the module's own names."""
    return {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}


def _config(kind: type[_Config], document: dict[str, Any], part: str, folder: Path) -> _Config:
    return config_from_json(kind, document[part], f"{folder}: {part}")


class ChunkExecution:
    """Turns predicted chunks [K, 7] into one action per step.

    Args:
        chunk: K.
        execute: Actions of a chunk carried out before the next prediction; not used with `ensemble`.
        ensemble: Temporal ensembling: predictions made `age` steps ago weigh exp(-ensemble * age). None: no
            ensembling. 0 weighs all alike; above 0 favours the newest, below 0 the oldest.

    Raises:
        ValueError: More actions to execute than a chunk holds.
    """

    def __init__(self, chunk: int, execute: int = 1, ensemble: float | None = None) -> None:
        if not 1 <= execute <= chunk:
            raise ValueError(f"execute must lie in 1 ... {chunk} (the policy's chunk), got {execute}")
        self.execute, self.ensemble = execute, ensemble
        self._chunks: deque[np.ndarray] = deque(maxlen=chunk)
        self._used = 0

    def reset(self) -> None:
        """Forget earlier chunks: a new episode or sub-goal."""
        self._chunks.clear()
        self._used = 0

    def next(self, predict: Callable[[], np.ndarray]) -> np.ndarray:
        """The action for this step, [7]; `predict` is called where a new chunk is due."""
        if self.ensemble is not None:
            self._chunks.appendleft(predict())
            return self._mean()
        if not self._chunks or self._used == self.execute:
            self._chunks.appendleft(predict())
            self._used = 0
        self._used += 1
        return self._chunks[0][self._used - 1]

    def _mean(self) -> np.ndarray:
        assert self.ensemble is not None
        ages = np.arange(len(self._chunks))
        weights = np.exp(-self.ensemble * ages)
        said = np.stack([chunk[age] for age, chunk in zip(ages, self._chunks, strict=True)])
        return (weights[:, None] * said).sum(0) / weights.sum()


@dataclass(frozen=True)
class PlayConfig:
    """How a policy is played; see `planners.mpc.AgentConfig` for the rules shared with planners.

    Attributes:
        execute, ensemble: See `ChunkExecution`.
        schedule: When the next sub-goal is shown. "budget": after the goal's step budget. "arrival": when the hand is
            within `arrive_within` metres of the sub-goal's (`YAW_METRES` per radian of turn included) and the gripper
            within `arrive_grip`, at the latest after `patience` times the budget.
        patience, arrive_within, arrive_grip: See `schedule`.
        rest: At the last sub-goal, hold still until the hand is twice as far off.
        max_gripper: Bound of a gripper delta; 0 leaves the gripper as it is, None sets no bound.
        gripper_deadband: Gripper deltas below this count as none.
        full_grip: Any other is executed as a full opening or closing. Recorded actions are differences of *measured*
            closedness, which ends where the fingers meet the object: repeated as commands they touch without pressing.
    """

    execute: int = 1
    ensemble: float | None = None
    schedule: Literal["budget", "arrival"] = "budget"
    patience: float = 2.0
    arrive_within: float = 0.02
    arrive_grip: float = 0.06
    rest: bool = False
    max_gripper: float | None = None
    gripper_deadband: float = 0.0
    full_grip: bool = False

    def __post_init__(self) -> None:
        check_name("sub-goal schedule of a policy", self.schedule, ("budget", "arrival"))
        check_numbers(self, "patience", "arrive_within", "arrive_grip", above=0)
        check_numbers(self, "max_gripper", "gripper_deadband", least=0)
        check_numbers(self, "execute", least=1)
        check_numbers(self, "ensemble")


def hand_gap(state: np.ndarray, goal: np.ndarray) -> tuple[float, float]:
    """How far the arm [7] is from a goal's [7]: the hand in metres, its turn included, and the gripper's closedness."""
    here, there = (hand_targets(torch.from_numpy(each)) for each in (state, goal))
    return float(hand_distance(here, there, YAW_METRES, 0.0)), abs(float(goal[6] - state[6]))


class PolicyAgent:
    """An `Agent` that plays a trained policy towards image goals, sub-goal after sub-goal.

    Args:
        policy: What to play.
        camera: The camera it looks through.
        generator: Source of the diffusion's noise.
        config: How it is played.
    """

    def __init__(
        self, policy: LoadedPolicy, camera: str, generator: torch.Generator, config: PlayConfig | None = None
    ) -> None:
        self.policy, self.camera, self.generator = policy, camera, generator
        self.config = config or PlayConfig()
        chunk = policy.network.config.chunk
        self.execution = ChunkExecution(chunk, self.config.execute, self.config.ensemble)
        self._seen: deque[tuple[Tensor, np.ndarray]] = deque(maxlen=policy.network.config.window)
        self._goal: Goal | None = None

    def reset(self, goal: Goal) -> None:
        """Begin an episode."""
        self._goal, self._subgoal, self._steps = goal, 0, 0
        self._resting = False
        self._seen.clear()
        self.execution.reset()
        self._aims = [self._read(observation) for observation in goal.observations]

    def act(self, observation: Observation) -> np.ndarray:
        """The next action, float32 [7]."""
        if self._goal is None:
            raise RuntimeError("call reset(goal) before act()")
        self._seen.append(self._read(observation))
        while self._subgoal + 1 < len(self._aims) and self._finished(self._goal.budgets[self._subgoal]):
            self._subgoal, self._steps = self._subgoal + 1, 0
            self.execution.reset()
        self._steps += 1
        self._resting = self._should_rest()
        if self._resting:
            self.execution.reset()
            return np.zeros(7, np.float32)
        return self._grip(self.execution.next(self._predict).astype(np.float32))

    def _finished(self, budget: int) -> bool:
        if self.config.schedule == "budget":
            return self._steps >= budget
        return self._is_there(self.config.arrive_within) or self._steps >= self.config.patience * budget

    def _should_rest(self) -> bool:
        if not self.config.rest or self._subgoal + 1 < len(self._aims):
            return False
        return self._is_there(self.config.arrive_within * (2 if self._resting else 1))

    def _is_there(self, within: float) -> bool:
        hand, grip = hand_gap(self._seen[-1][1], self._aims[self._subgoal][1])
        return hand <= within and grip <= self.config.arrive_grip

    def _grip(self, action: np.ndarray) -> np.ndarray:
        """The action with the gripper's delta as it is to be commanded."""
        action = action.copy()
        if abs(action[6]) < self.config.gripper_deadband:
            action[6] = 0
        if self.config.full_grip:
            action[6] = np.sign(action[6])
        if self.config.max_gripper is not None:
            action[6] = np.clip(action[6], -self.config.max_gripper, self.config.max_gripper)
        return action

    def _read(self, observation: Observation) -> tuple[Tensor, np.ndarray]:
        if self.camera not in observation:
            names = ", ".join(name for name in observation if name != "state")
            raise ValueError(f"no camera {self.camera!r} in the observation; it has {names or 'no image'}")
        state = np.asarray(observation["state"], np.float32)
        if state.shape != (7,) or not np.isfinite(state).all():
            raise ValueError(f"observation['state'] must be 7 finite numbers, got {state.tolist()}")
        return self.policy.look(observation[self.camera]), state

    def _predict(self) -> np.ndarray:
        """A chunk [K, 7] drawn for the present window; rows from before the episode are padding."""
        config = self.policy.network.config
        padding = config.window - len(self._seen)
        window = [self._seen[0]] * padding + list(self._seen)
        aim, aim_state = self._aims[self._subgoal]
        batch = Batch(
            frames=torch.stack([view for view, _ in window])[None],
            goal=aim[None],
            states=torch.from_numpy(np.stack([state for _, state in window]))[None],
            goal_state=torch.from_numpy(aim_state)[None],
            valid=torch.tensor([[i >= padding for i in range(config.window)]]),
            actions=torch.zeros(1, config.window, config.chunk, 7),
            mask=torch.ones(1, config.window, config.chunk, dtype=torch.bool),
        )
        return self.policy.network.act(batch, self.generator)[0].numpy()
