"""Record one episode of an agent in an environment, with what only the simulator knows beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from armworld.datasets.episode import Episode
from armworld.types import Agent


def simulator_row(simulator: Any, cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
    """One row of what the simulator knows: joints, camera poses, the state to restore, contact and motion.

    Keys are `joint_positions`, `joint_velocities`, `extrinsics/<camera>` and `simulation/<name>`.
    """
    saved = simulator.save()
    report = simulator.contact_report().values()
    return {
        "joint_positions": simulator.arm_qpos,
        "joint_velocities": simulator.data.qvel[simulator.kinematics.dof_index].copy(),
        **{f"extrinsics/{name}": simulator.extrinsics(name) for name in cameras},
        "simulation/physics": saved.physics,
        "simulation/command_state": saved.command.state,
        "simulation/command_q": saved.command.q,
        "simulation/contact": np.array(any(item["left"] or item["right"] for item in report)),
        "simulation/moving": np.array(any(item["moving"] for item in report)),
    }


def group(columns: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The columns below `prefix/`, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in columns.items() if key.startswith(f"{prefix}/")}


def record(
    env: Any, make_agent: Callable[[Any], Agent], seed: int, steps: int, lab: str, task: str, details: dict[str, Any]
) -> Episode:
    """Reset with `seed`, run an agent for `steps` actions or to the environment's end, and keep everything.

    Args:
        env: A Gymnasium environment of ours; every image in its observation is recorded.
        make_agent: Called with the environment once it is reset; behaviours may read the scene.
        seed: The environment's seed; it also names the episode.
        steps: Number of actions; the episode has one row more.
        lab, task, details: As in `Episode`; the environment's `draws` join the details.
    """
    observation, info = env.reset(seed=seed)
    simulator = env.unwrapped.simulator
    cameras = tuple(key for key in observation if key != "state")
    agent = make_agent(env)
    agent.reset(info["goal"])
    rows: list[dict[str, np.ndarray]] = []
    for step in range(steps + 1):
        action = np.zeros(7) if step == steps else np.asarray(agent.act(observation), np.float64)
        images = {f"frames/{name}": observation[name] for name in cameras}
        moment = {"states": np.asarray(info["reached_state"], np.float64), "actions": action}
        rows.append(moment | images | simulator_row(simulator, cameras))
        if step < steps:
            observation, _, terminated, truncated, info = env.step(action)
            if (terminated or truncated) and step < steps - 1:
                steps_possible = step + 1
                raise ValueError(f"the environment ended after {steps_possible} of {steps} steps; raise its max_steps")
    columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return Episode(
        states=columns["states"],
        actions=columns["actions"],
        frames=group(columns, "frames"),
        extrinsics=group(columns, "extrinsics"),
        joint_positions=columns["joint_positions"],
        joint_velocities=columns["joint_velocities"],
        step_seconds=float(simulator.step_seconds),
        lab=lab,
        seed=seed,
        success=bool(info["success"]),
        task=task,
        details=details | {"draws": info["draws"]},
        simulation=group(columns, "simulation"),
    )
