"""Reinforcement learning from the simulator's state on Reach: SAC with hindsight goals, a privileged reference.

Training uses stable-baselines3 (extra `rl`); what is kept is the actor's mean network alone, in armworld's checkpoint
format, so that playing it needs neither stable-baselines3 nor images. Privileged: it reads the goal's position, is
trained in the test's own simulator, and pays with environment steps that no offline method has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from armworld.baselines.compute import parameters, training_flop
from armworld.types import Goal, Observation, require
from armworld.worldmodel.checkpoint import config_from_json, load_strictly, read_parts, resolve, save_parts

TOLERANCE = 0.04  # m: Reach's own
CENTRE = np.array([0.49, 0.0, 0.35])  # m: the middle of Reach's box
UNIT = 0.1  # m that count as 1 in what the networks see
ORDER = ("achieved_goal", "desired_goal", "observation")  # as stable-baselines3 concatenates a dictionary


def describe(position: np.ndarray, before: np.ndarray, goal: np.ndarray) -> dict[str, np.ndarray]:
    """What the networks see of the flange's position [3], its position a step ago and the goal's (m, base frame).

    The observation is the last step's motion: HER replaces `desired_goal` alone, so nothing else may tell the goal.
    """
    return {
        "achieved_goal": ((position - CENTRE) / UNIT).astype(np.float32),
        "desired_goal": ((goal - CENTRE) / UNIT).astype(np.float32),
        "observation": ((position - before) / UNIT).astype(np.float32),
    }


class GoalEnv(gymnasium.Env):
    """Reach as a goal environment: positions in, a translation in [-1, 1] per axis out, reward 0 or -1."""

    def __init__(self, env: gymnasium.Env) -> None:
        self.env = env
        space = env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        self.bound = space.high[:3].astype(np.float64)
        box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(dict.fromkeys(ORDER, box))
        self.action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode. Without a seed the wrapped environment draws from its own generator."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._goal = info["goal"].observations[-1]["state"][:3]
        self._last = observation["state"][:3]
        return describe(self._last, self._last, self._goal), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One control step."""
        command = np.zeros(7)
        command[:3] = np.asarray(action, np.float64).clip(-1, 1) * self.bound
        observation, _, terminated, truncated, info = self.env.step(command)
        position = observation["state"][:3]
        seen = describe(position, self._last, self._goal)
        self._last = position
        reward = float(self.compute_reward(seen["achieved_goal"], seen["desired_goal"], {}))
        return seen, reward, terminated, truncated, {"is_success": bool(info["success"])}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        """0 within `TOLERANCE`, else -1; for arrays [..., 3]."""
        return -(np.linalg.norm(achieved - desired, axis=-1) * UNIT > TOLERANCE).astype(np.float32)


@dataclass(frozen=True)
class ActorConfig:
    """The actor's mean network: an MLP from positions to a translation in [-1, 1] of `bound` (m)."""

    inputs: int = 9
    hidden: tuple[int, ...] = (256, 256)
    bound: tuple[float, ...] = (0.075, 0.075, 0.075)
    step_seconds: float = 0.25


class StateActor(nn.Module):
    """tanh(MLP(x)): SAC's deterministic policy."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (config.inputs, *config.hidden)
        layers: list[nn.Module] = []
        for i in range(len(config.hidden)):
            layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.mean = nn.Linear(sizes[-1], len(config.bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mean(self.body(x)))


@dataclass(frozen=True)
class LoadedActor:
    """A trained actor. It sees no image, so `image_size` and `camera` are None."""

    network: StateActor
    about: dict[str, Any]
    image_size: None = None
    camera: None = None

    @property
    def step_seconds(self) -> float:
        return self.network.config.step_seconds


class StateAgent:
    """An `Agent` that goes to the goal's position with a trained actor; it reads states only."""

    def __init__(self, actor: LoadedActor) -> None:
        self.actor = actor

    def reset(self, goal: Goal) -> None:
        """Begin an episode; the last sub-goal is what it goes to."""
        self._goal = goal.observations[-1]["state"][:3]
        self._last: np.ndarray | None = None

    @torch.no_grad()
    def act(self, observation: Observation) -> np.ndarray:
        """The next action, float32 [7]."""
        position = observation["state"][:3]
        seen = describe(position, position if self._last is None else self._last, self._goal)
        self._last = position
        x = torch.from_numpy(np.concatenate([seen[name] for name in ORDER]))
        action = np.zeros(7, np.float32)
        action[:3] = self.actor.network(x).numpy() * np.array(self.actor.network.config.bound, np.float32)
        return action


def load_actor(name_or_path: str | Path) -> LoadedActor:
    """Read an actor's checkpoint folder; ValueError if there is none or it holds something else."""
    folder = resolve(name_or_path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a checkpoint folder")
    document, weights = read_parts(folder)
    if "actor" not in document:
        raise ValueError(f"{folder} holds no actor; train one with examples/train_sac.py")
    network = StateActor(config_from_json(ActorConfig, document["actor"], f"{folder}: actor"))
    own = {key.removeprefix("actor."): value for key, value in weights.items()}
    load_strictly(network, own, f"{folder}: actor").requires_grad_(False)
    return LoadedActor(network, document.get("about", {}))


@dataclass(frozen=True)
class SACConfig:
    """SAC with hindsight goals on Reach.

    Attributes:
        out: Folder for the actor (`model`), the learning curve (monitor.csv).
        steps: Environment steps: the budget.
        lab: lab1 or lab2.
        level: Variation between episodes: none, jitter or full.
        step_seconds: Length of a step (s).
        seed: First episode's seed, of training (below 1,000,000), and of the networks.
        hidden: Width of the two hidden layers of actor and critics.
        batch: Transitions per gradient step; one gradient step per environment step.
        learning_rate: Of all networks.
        discount: Per step.
        relabelled: Hindsight goals per real one.
    """

    out: Path = Path("runs/sac")
    steps: int = 20_000
    lab: str = "lab1"
    level: str = "none"
    step_seconds: float = 0.25
    seed: int = 0
    hidden: int = 256
    batch: int = 256
    learning_rate: float = 1e-3
    discount: float = 0.95
    relabelled: int = 4


def train_sac(config: SACConfig, env: gymnasium.Env | None = None) -> Path:
    """Train and return the actor's checkpoint folder, `out/model`. An interrupt keeps the actor as it is by then.

    `env` replaces Reach (an environment of armworld's interface).

    Raises:
        ImportError: stable-baselines3 is missing; the message says how to install it.
    """
    sb3 = require("stable_baselines3", "rl")
    monitor = require("stable_baselines3.common.monitor", "rl")
    if not 0 <= config.seed < 1_000_000:
        raise ValueError(f"seeds of training lie in 0 ... 999999, got {config.seed}")
    config.out.mkdir(parents=True, exist_ok=True)
    goals = GoalEnv(_reach(config) if env is None else env)
    watched = monitor.Monitor(goals, str(config.out / "monitor.csv"), info_keywords=("is_success",))
    model = sb3.SAC(
        "MultiInputPolicy",
        watched,
        replay_buffer_class=sb3.HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": config.relabelled, "goal_selection_strategy": "future"},
        learning_starts=min(500, config.steps // 2),
        batch_size=config.batch,
        learning_rate=config.learning_rate,
        gamma=config.discount,
        policy_kwargs={"net_arch": [config.hidden, config.hidden]},
        seed=config.seed,
        device="cpu",
    )
    began = time.monotonic()
    try:
        model.learn(config.steps)
    finally:
        if model.num_timesteps:
            _export(config, model, goals.bound.tolist(), time.monotonic() - began)
        watched.close()
    return config.out / "model"


def _reach(config: SACConfig) -> gymnasium.Env:
    import armworld.envs  # noqa: F401  (registers)

    settings = {"lab": config.lab, "level": config.level, "step_seconds": config.step_seconds, "cameras": ()}
    return gymnasium.make("armworld/Reach-v0", disable_env_checker=True, **settings)


def _export(config: SACConfig, model: Any, bound: Sequence[float], seconds: float) -> None:
    """The actor's mean network as a checkpoint."""
    assert tuple(model.observation_space.spaces) == ORDER, "the extractor concatenates in this order"
    settings = ActorConfig(9, (config.hidden,) * 2, tuple(float(b) for b in bound), config.step_seconds)
    actor = StateActor(settings)
    source = model.policy.actor
    actor.body.load_state_dict(source.latent_pi.state_dict())
    actor.mean.load_state_dict(source.mu.state_dict())
    steps = int(model.num_timesteps)
    networks = 7  # actor, two critics; the critics run thrice per update (target, own, for the actor)
    about = {
        "method": "SAC + HER from state (privileged)",
        "training": {"steps": steps, "seed": config.seed, "discount": config.discount, "level": config.level},
        "steps": steps,
        "seconds": round(seconds),
        "device": "cpu",
        "parameters": parameters(model.policy),
        "training_flop": networks * training_flop(lambda: actor(torch.zeros(1, 9)), config.batch * steps),
        "data": {"environment_steps": steps},
    }
    save_parts(config.out / "model", {"actor": actor}, None, about)
