"""V-JEPA 2-AC's planner as published, and the replay of its recorded runs (the reference's `cem_*.npz`)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from armworld.planners.cem import CEM, CEMConfig
from armworld.planners.objectives import FinalL1, LatentGoal
from armworld.planners.plans import ActionSpace
from armworld.worldmodel.model import Rollout


def published_config(
    horizon: int = 1,
    samples: int = 800,
    iterations: int = 10,
    elites: int = 10,
    max_position: float = 0.075,
    momentum_mean: float = 0.15,
    momentum_std: float = 0.15,
    momentum_mean_gripper: float = 0.15,
    momentum_std_gripper: float = 0.15,
) -> CEMConfig:
    """The published planner: 800 samples, 10 iterations, top 10, mean executed, no floor, no hold candidate.

    The initial spread is `max_position` per axis (m) and 1 for the gripper, whose deltas are clipped to 0.75 and, in
    the result, set to 0 below 0.25.
    """
    space = ActionSpace(max_position=max_position, max_gripper=0.75)
    return CEMConfig(
        horizon=horizon,
        space=space,
        hold_candidate=False,
        warm_start=False,
        samples=samples,
        iterations=iterations,
        elites=elites,
        position_std=1.0,
        gripper_std=1.0 / space.max_gripper,
        min_std=0.0,
        momentum_mean=momentum_mean,
        momentum_std=momentum_std,
        momentum_mean_gripper=momentum_mean_gripper,
        momentum_std_gripper=momentum_std_gripper,
        keep_elites=0,
        noise="gaussian",
        execute="mean",
        round_gripper=0.25,
    )


@dataclass
class ToyWorld:
    """The recorded runs' world: z' = z + (action @ matrix) as [N, D] + 0.3 tanh(z) dx; matrix is [7, N * D].

    The robot state adds up the actions (it plays no part in the energy).
    """

    matrix: Tensor
    step_seconds: float = 0.25

    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        """The toy world has no camera."""
        raise ValueError("ToyWorld has no images to encode; give it features")

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        """z [B,T,N,D], state [B,T,7], actions [B,S,H,7] -> z [B,S,H,N,D], state [B,S,H,7]."""
        batch, samples, horizon, _ = actions.shape
        pushed = (actions @ self.matrix).view(batch, samples, horizon, *z.shape[2:])
        latent, frames = z[:, -1:].expand(-1, samples, -1, -1), []
        for step in range(horizon):
            latent = latent + pushed[:, :, step] + 0.3 * torch.tanh(latent) * actions[:, :, step, 0, None, None]
            frames.append(latent)
        return Rollout(z=torch.stack(frames, 2), state=state[:, -1:, None] + actions.cumsum(2))


def replay_reference(data: Mapping[str, np.ndarray]) -> np.ndarray:
    """Actions [1, H, 7] of the published planner on a recorded run, given its noise draws.

    Args:
        data: Arrays of a `cem_*.npz`: matrix, context [1,1,N,D], goal [1,1,N,D], pose [1,1,7],
            noise [iterations, H, samples, 4] and config (a Python dict as a string).
    """
    config = ast.literal_eval(str(data["config"]))
    noise = torch.from_numpy(np.array(data["noise"])).transpose(1, 2).unsqueeze(1)  # [I, 1, S, H, 4]
    planner = CEM(
        published_config(
            config["horizon"],
            config["samples"],
            config["iterations"],
            config["topk"],
            config["maxnorm"],
            config["momentum_mean"],
            config["momentum_std"],
            config["momentum_mean_gripper"],
            config["momentum_std_gripper"],
        ),
        noise=lambda iteration, shape, _: noise[iteration].reshape(shape),
    )
    tensors = {name: torch.from_numpy(np.array(data[name])) for name in ("matrix", "context", "goal", "pose")}
    plan = planner.plan(
        ToyWorld(tensors["matrix"]),
        FinalL1(),
        tensors["context"],
        tensors["pose"].to(tensors["context"]),
        LatentGoal(tensors["goal"][:, 0]),
        generator=torch.Generator().manual_seed(0),
    )
    return plan.actions.numpy()
