"""What the doctor looks at: short episodes of free motion, and from some moments what many actions really lead to.

Legend: E episodes, T steps, C moments, K actions, N patches, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from armworld.evaluation.agents import camera_of, camera_pose, reads_camera
from armworld.pose import action_between
from armworld.types import Observation

STREAM = 0x444F43  # keeps the motions' draws apart from the environment's, which has the same seed
TARGET_STEPS = 3  # steps between changes of target, so that the arm gets around
JOG_M = 0.05
JOGS = np.concatenate([JOG_M * np.eye(3), -JOG_M * np.eye(3)])  # [6, 3] m: one axis at a time


@dataclass(frozen=True)
class Samples:
    """Episodes and branches, encoded.

    Attributes:
        z: Features [E, T+1, N, D].
        states: float32 [E, T+1, 7].
        actions: float32 [E, T, 7], as realised (from consecutive states).
        moments: int [C, 2], episode and step of every branching moment.
        branch_actions: float32 [C, K, 7], as realised: K - 6 random ones, then the six jogs along the axes.
        branch_z: Features [C, K, N, D] that they really led to.
        branch_states: float32 [C, K, 7].
        cameras: float64 [E, 6], where each episode's camera stood (m, rad; base frame); None where nothing tells.
    """

    z: Tensor
    states: np.ndarray
    actions: np.ndarray
    moments: np.ndarray
    branch_actions: np.ndarray
    branch_z: Tensor
    branch_states: np.ndarray
    cameras: np.ndarray | None = None


@dataclass(frozen=True)
class Travel:
    """Episodes of free motion, encoded.

    Attributes:
        z: Features [E, T+1, N, D].
        states: float32 [E, T+1, 7].
        actions: float32 [E, T, 7], as realised (from consecutive states).
        cameras: float64 [E, 6], where each episode's camera stood (m, rad; base frame); None where nothing tells.
    """

    z: Tensor
    states: np.ndarray
    actions: np.ndarray
    cameras: np.ndarray | None = None


def travel(env: gymnasium.Env, model: Any, seeds: list[int], steps: int, bound_m: float = 0.075) -> Travel:
    """Move freely for `steps` steps per seed: from target to target at changing speed.

    Args:
        env: An armworld environment; its first camera is looked through.
        model: World model; only its encoder is used.
        bound_m: Largest translation per axis and step (m).
    """
    seen, cameras = [], []
    for seed in seeds:
        seen += [observation for observation, _ in _motion(env, seed, steps, bound_m)]
        cameras.append(camera_pose(env, camera_of(env, model)))
    return _encoded(model, seen, (len(seeds), steps + 1), cameras)


def per_camera(
    model: Any, cameras: np.ndarray | None, run: Callable[..., Tensor], *arrays: Tensor | np.ndarray
) -> Tensor:
    """`run(model, *arrays)`, where a model that reads its camera's place is told that of each row, [rows, 6].

    Args:
        run: Answers a row for every row of the arrays.
    """
    if cameras is None or not reads_camera(model):
        return run(model, *arrays)
    poses, owner = np.unique(cameras, axis=0, return_inverse=True)
    groups = [np.flatnonzero(owner.reshape(-1) == number) for number in range(len(poses))]
    parts = [
        run(model.seen_from(pose), *(array[rows] for array in arrays)) for pose, rows in zip(poses, groups, strict=True)
    ]
    return torch.cat(parts)[np.argsort(np.concatenate(groups))]


def _encoded(
    model: Any, observations: list[Observation], shape: tuple[int, int], cameras: list[np.ndarray | None]
) -> Travel:
    camera = next(name for name in observations[0] if name != "state")
    frames = [observation[camera] for observation in observations]
    states = np.stack([observation["state"] for observation in observations]).reshape(*shape, 7)
    z = torch.cat([model.encode(np.stack(frames[i : i + 64])[:, None])[:, 0].cpu() for i in range(0, len(frames), 64)])
    actions = action_between(states[:, :-1], states[:, 1:]).astype(np.float32)
    told = [pose for pose in cameras if pose is not None]
    return Travel(z.reshape(*shape, *z.shape[1:]), states, actions, np.stack(told) if told else None)


def _motion(
    env: gymnasium.Env, seed: int, steps: int, bound_m: float
) -> Iterator[tuple[Observation, np.random.Generator]]:
    """Observations of one episode of free motion, `steps + 1` of them, and the generator of its draws."""
    from armworld.envs.tasks import REACH_HIGH, REACH_LOW

    rng = np.random.default_rng([seed, STREAM])
    observation, _ = env.reset(seed=seed)
    target = observation["state"][:3]
    for step in range(steps + 1):
        yield observation, rng
        if step == steps:
            break
        if step % TARGET_STEPS == 0:
            target = rng.uniform(REACH_LOW, REACH_HIGH)
        observation, *_ = env.step(_towards(observation["state"], target, rng.uniform(0.4, 1.0) * bound_m))


def gather(
    env: gymnasium.Env, model: Any, seeds: list[int], steps: int, candidates: int = 16, bound_m: float = 0.075
) -> Samples:
    """Move freely for `steps` steps per seed; branch at a third and two thirds of each episode.

    Args:
        env: An armworld environment whose first camera is the model's.
        model: World model; only its encoder is used.
        candidates: Random actions per branching moment.
        bound_m: Largest translation per axis and step (m).
    """
    from armworld.envs.oracle import OracleDynamics

    oracle = OracleDynamics(env, model)
    branch_at = {max(1, steps // 3), max(1, 2 * steps // 3)}
    seen, moments, branches, cameras = [], [], [], []
    for episode, seed in enumerate(seeds):
        for step, (observation, rng) in enumerate(_motion(env, seed, steps, bound_m)):
            seen.append(observation)
            if step in branch_at:
                moments.append((episode, step))
                branches.append(_branch(oracle, observation["state"], rng, candidates, bound_m))
        cameras.append(camera_pose(env, camera_of(env, model)))
    walked = _encoded(model, seen, (len(seeds), steps + 1), cameras)
    branch_z, branch_states, branch_actions = (list(part) for part in zip(*branches, strict=True))
    return Samples(
        z=walked.z,
        states=walked.states,
        actions=walked.actions,
        moments=np.array(moments),
        branch_actions=np.stack(branch_actions),
        branch_z=torch.stack(branch_z),
        branch_states=np.stack(branch_states),
        cameras=walked.cameras,
    )


def _towards(state: np.ndarray, target: np.ndarray, bound_m: float) -> np.ndarray:
    """The action [7] towards a position [3], at most `bound_m` per axis."""
    error = target - state[:3]
    return np.append(error * min(1.0, bound_m / max(float(np.abs(error).max()), 1e-9)), np.zeros(4))


def _branch(
    oracle: Any, state: np.ndarray, rng: np.random.Generator, candidates: int, bound_m: float
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Features [K, N, D], states [K, 7] and realised actions [K, 7] of random actions and jogs from this moment."""
    moves = np.concatenate([rng.uniform(-bound_m, bound_m, (candidates, 3)), JOGS])
    actions = torch.from_numpy(np.pad(moves, ((0, 0), (0, 4)))).float()
    context = torch.zeros(1, 1, 1, 1), torch.from_numpy(state)[None, None]
    rollout = oracle.rollout(*context, actions[None, :, None])
    states = rollout.state[0, :, 0].numpy()
    realised = action_between(np.broadcast_to(state, states.shape), states).astype(np.float32)
    return rollout.z[0, :, 0].cpu(), states, realised
