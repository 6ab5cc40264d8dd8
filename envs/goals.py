"""Goals from outside: any saved state, observation or image becomes the goal of the present episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from armworld.types import Goal, Observation

if TYPE_CHECKING:
    from armworld.envs.base import ArmEnv, EnvState


def from_saved(env: ArmEnv, saved: EnvState) -> tuple[Observation, dict[str, Any]]:
    """What a saved moment looks like, and the task's targets there; the environment stays where it is."""
    here = env.save_state()
    observation = env.restore_state(saved)
    targets = env.task.targets_here(env.simulator)
    env.restore_state(here)
    return observation, targets


def from_observation(env: ArmEnv, observation: Mapping[str, np.ndarray]) -> tuple[Observation, dict[str, Any]]:
    """An observation as a goal. Its "state", if there, is what reach is judged by; object tasks cannot be."""
    unknown = set(observation) - {"state", *env.cameras}
    missing = set(env.cameras) - set(observation)
    if unknown or missing:
        raise ValueError(
            f"a goal observation has the cameras {', '.join(env.cameras)} and optionally state; "
            f"unknown: {sorted(unknown)}, missing: {sorted(missing)}"
        )
    for name in env.cameras:
        _check_frame(env, name, observation[name])
    state = observation.get("state")
    if state is None:
        return dict(observation), {}
    state = np.asarray(state, np.float32)
    if state.shape != (7,) or not np.isfinite(state).all():
        raise ValueError(f"a goal's state is 7 finite numbers, got {state.tolist()}")
    return {**observation, "state": state}, env.task.targets_from_state(state)


def from_image(env: ArmEnv, image: np.ndarray) -> tuple[Observation, dict[str, Any]]:
    """One frame as a goal, for an environment with one camera; nothing can be judged by it."""
    if len(env.cameras) != 1:
        raise ValueError(f"one image is a goal for one camera; this environment has {', '.join(env.cameras) or 'none'}")
    return from_observation(env, {env.cameras[0]: image})


def _check_frame(env: ArmEnv, camera: str, frame: np.ndarray) -> None:
    expected = (env.image_size, env.image_size, 3)
    if np.shape(frame) != expected or np.asarray(frame).dtype != np.uint8:
        raise ValueError(
            f"the goal's frame of camera {camera!r} must be uint8 {list(expected)}, "
            f"got {np.asarray(frame).dtype} {list(np.shape(frame))}"
        )


def build(env: ArmEnv, sources: tuple[Any, ...], budgets: tuple[int, ...] | None) -> tuple[Goal, dict[str, Any]]:
    """The goal made of these sub-goals, in order, and the targets of the last one ({}: it cannot be judged)."""
    observations, targets = [], {}
    for source in sources:
        if isinstance(source, np.ndarray):
            observation, targets = from_image(env, source)
        elif isinstance(source, Mapping):
            observation, targets = from_observation(env, source)
        else:
            observation, targets = from_saved(env, source)
        observations.append(observation)
    shares = budgets or (max(1, env.max_steps // max(1, len(sources))),) * len(sources)
    return Goal(tuple(observations), tuple(shares)), targets
