"""Reinforcement learning from the simulator's state on Reach and Grasp: SAC with hindsight goals, privileged.

Training uses stable-baselines3 (extra `rl`); what is kept is the actor's mean network alone, in armworld's checkpoint
format, so that playing it needs neither stable-baselines3 nor images. Privileged: it reads the goal's position, in
Grasp the object's true place too, is trained in the test's own simulator, and pays with environment steps that no
offline method has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from armworld.baselines.compute import parameters, training_flop
from armworld.types import Goal, Observation, check_name, require
from armworld.worldmodel.checkpoint import config_from_json, load_strictly, read_parts, resolve, save_parts

TOLERANCE = 0.04  # m: Reach's own; Grasp's object counts as lifted to its place within it
CENTRE = np.array([0.49, 0.0, 0.35])  # m: the middle of Reach's box
UNIT = 0.1  # m that count as 1 in what the networks see
ORDER = ("achieved_goal", "desired_goal", "observation")  # as stable-baselines3 concatenates a dictionary
IDS = {"reach": "armworld/Reach-v0", "grasp": "armworld/Grasp-v0"}
MOVES = {"reach": (0, 1, 2), "grasp": (0, 1, 2, 6)}  # components of an action [7] that the actor sets
OBSERVED = {"reach": 3, "grasp": 7}  # width of the "observation"


def describe(achieved: np.ndarray, goal: np.ndarray, motion: np.ndarray, *more: np.ndarray) -> dict[str, np.ndarray]:
    """What the networks see of what is to be moved [3], where to [3] (m, base frame), and the hand's last step [3].

    HER replaces `desired_goal` alone, so nothing else may tell the goal. `more` joins the observation as it is.
    """
    return {
        "achieved_goal": ((achieved - CENTRE) / UNIT).astype(np.float32),
        "desired_goal": ((goal - CENTRE) / UNIT).astype(np.float32),
        "observation": np.concatenate([motion / UNIT, *more]).astype(np.float32),
    }


class Sight:
    """Turns observations of an episode into what the networks see.

    Reach moves the flange to the goal's flange position. Grasp moves the object to where it is lifted to, and sees the
    object from between the fingers and how closed they are; both it reads from the simulator.

    Args:
        task: reach or grasp.
        env: The environment; reach does not look at it.
    """

    def __init__(self, task: str, env: gymnasium.Env) -> None:
        self.task = check_name("task of the reinforcement-learning reference", task, IDS)
        self._env: Any = env.unwrapped

    def begin(self, goal: Goal) -> None:
        """Begin an episode."""
        self._last: np.ndarray | None = None
        if self.task == "reach":
            self._goal = goal.observations[-1]["state"][:3]
        else:
            self._goal = self._env.task.targets["object"]

    def see(self, observation: Observation) -> dict[str, np.ndarray]:
        """The present moment; called once per step."""
        hand = observation["state"][:3]
        motion = np.zeros(3) if self._last is None else hand - self._last
        self._last = hand
        if self.task == "reach":
            return describe(hand, self._goal, motion)
        simulator = self._env.simulator
        place = simulator.object_pose(self._env.task.object)[0]
        return describe(place, self._goal, motion, (place - simulator.tip) / UNIT, observation["state"][6:7])


class GoalEnv(gymnasium.Env):
    """A task as a goal environment: positions in, the task's `MOVES` in [-1, 1] out, reward 0 or -1."""

    def __init__(self, env: gymnasium.Env, task: str = "reach") -> None:
        self.env, self.sight = env, Sight(task, env)
        space = env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        self.moves = list(MOVES[task])
        self.bound = space.high[self.moves].astype(np.float64)
        sizes = {"achieved_goal": 3, "desired_goal": 3, "observation": OBSERVED[task]}
        boxes: dict[str, gymnasium.Space] = {
            name: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()
        }
        self.observation_space = gymnasium.spaces.Dict(boxes)
        self.action_space = gymnasium.spaces.Box(-1, 1, (len(self.moves),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode. Without a seed the wrapped environment draws from its own generator."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.sight.begin(info["goal"])
        return self.sight.see(observation), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One control step."""
        command = np.zeros(7)
        command[self.moves] = np.asarray(action, np.float64).clip(-1, 1) * self.bound
        observation, _, terminated, truncated, info = self.env.step(command)
        seen = self.sight.see(observation)
        reward = float(self.compute_reward(seen["achieved_goal"], seen["desired_goal"], {}))
        return seen, reward, terminated, truncated, {"is_success": bool(info["success"])}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        """0 within `TOLERANCE`, else -1; for arrays [..., 3]."""
        return -(np.linalg.norm(achieved - desired, axis=-1) * UNIT > TOLERANCE).astype(np.float32)


@dataclass(frozen=True)
class ActorConfig:
    """The actor's mean network: an MLP to the task's `MOVES` in [-1, 1] of `bound` (m, closedness)."""

    task: str = "reach"
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

    @property
    def reads_simulator(self) -> bool:
        """Whether it needs more of the environment than observation and goal."""
        return self.network.config.task != "reach"


class StateAgent:
    """An `Agent` that plays a trained actor; it sees states, in Grasp those of the environment's simulator.

    Raises:
        ValueError: An actor trained on Grasp in an environment of another task.
    """

    def __init__(self, actor: LoadedActor, env: gymnasium.Env) -> None:
        task = actor.network.config.task
        here = getattr(getattr(env.unwrapped, "task", None), "name", None)
        if actor.reads_simulator and here != task:
            raise ValueError(f"this actor was trained on {task}; the environment's task is {here}")
        self.actor, self.sight = actor, Sight(task, env)
        self.moves = list(MOVES[task])

    def reset(self, goal: Goal) -> None:
        """Begin an episode; the last sub-goal is what it goes to."""
        self.sight.begin(goal)

    @torch.no_grad()
    def act(self, observation: Observation) -> np.ndarray:
        """The next action, float32 [7]."""
        seen = self.sight.see(observation)
        x = torch.from_numpy(np.concatenate([seen[name] for name in ORDER]))
        action = np.zeros(7, np.float32)
        action[self.moves] = self.actor.network(x).numpy() * np.array(self.actor.network.config.bound, np.float32)
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
    """SAC with hindsight goals on Reach or Grasp.

    Attributes:
        out: Folder for the actor (`model`), the learning curve (monitor.csv).
        task: reach or grasp.
        object: In Grasp: cup, box or bottle.
        steps: Environment steps: the budget.
        minutes: Wall time after which training stops earlier; none for no such budget.
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
    task: str = "reach"
    object: str = "cup"
    steps: int = 20_000
    minutes: float | None = None
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

    `env` replaces the task's (an environment of armworld's interface).

    Raises:
        ImportError: stable-baselines3 is missing; the message says how to install it.
        ValueError: Unknown task, or a seed that is not for training.
    """
    check_name("task of the reinforcement-learning reference", config.task, IDS)
    sb3 = require("stable_baselines3", "rl")
    monitor = require("stable_baselines3.common.monitor", "rl")
    if not 0 <= config.seed < 1_000_000:
        raise ValueError(f"seeds of training lie in 0 ... 999999, got {config.seed}")
    config.out.mkdir(parents=True, exist_ok=True)
    goals = GoalEnv(_make(config) if env is None else env, config.task)
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
    began, began_core = time.monotonic(), time.process_time()
    try:
        model.learn(config.steps, callback=_stop_after(config.minutes, began))
    finally:
        if model.num_timesteps:
            spent = time.monotonic() - began, time.process_time() - began_core
            _export(config, model, goals.bound.tolist(), spent)
        watched.close()
    return config.out / "model"


def _stop_after(minutes: float | None, began: float) -> Callable[..., bool] | None:
    """A callback that ends training when the time is spent."""
    return None if minutes is None else lambda *_: time.monotonic() - began < 60 * minutes


def _make(config: SACConfig) -> gymnasium.Env:
    import armworld.envs  # noqa: F401  (registers)

    settings = {"lab": config.lab, "level": config.level, "step_seconds": config.step_seconds, "cameras": ()}
    return gymnasium.make(IDS[config.task], disable_env_checker=True, object=config.object, **settings)


def _export(config: SACConfig, model: Any, bound: Sequence[float], spent: tuple[float, float]) -> None:
    """The actor's mean network as a checkpoint; `spent` are seconds of wall and of processor time."""
    assert tuple(model.observation_space.spaces) == ORDER, "the extractor concatenates in this order"
    inputs, limits = 6 + OBSERVED[config.task], tuple(float(b) for b in bound)
    settings = ActorConfig(config.task, inputs, (config.hidden,) * 2, limits, config.step_seconds)
    actor = StateActor(settings)
    source = model.policy.actor
    actor.body.load_state_dict(source.latent_pi.state_dict())
    actor.mean.load_state_dict(source.mu.state_dict())
    steps = int(model.num_timesteps)
    networks = 7  # actor, two critics; the critics run thrice per update (target, own, for the actor)
    about = {
        "method": "SAC + HER from state (privileged)",
        "training": {
            "task": config.task,
            "steps": steps,
            "seed": config.seed,
            "discount": config.discount,
            "level": config.level,
        },
        "steps": steps,
        "seconds": round(spent[0]),
        "core_seconds": round(spent[1]),
        "device": "cpu",
        "parameters": parameters(model.policy),
        "training_flop": networks * training_flop(lambda: actor(torch.zeros(1, inputs)), config.batch * steps),
        "data": {"environment_steps": steps},
    }
    save_parts(config.out / "model", {"actor": actor}, None, about)
