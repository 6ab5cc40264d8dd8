"""What single frames tell: the arm's state and where the object lies, read by linear probes (for `armworld doctor`).

Free motion neither turns nor grips, so these frames are of their own: each episode starts anew, with the object
elsewhere, and one random action that also turns the hand and moves the fingers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from armworld.envs.base import ArmEnv
from armworld.evaluation.probing import fit_probe
from armworld.worldmodel.readout import reading_errors

STREAM = 0x53544C
FEWEST_STILLS = 16  # that the probes can be fitted to at all
MOVE_M, TURN_RAD = 0.06, 0.4  # largest random motion per axis, and turn about the vertical


@dataclass(frozen=True)
class Stills:
    """Single frames, encoded.

    Attributes:
        z: Features [S, N, D].
        states: float32 [S, 7].
        objects: float64 [S, 2]: x and y (m, base frame) of the task's object.
    """

    z: Tensor
    states: np.ndarray
    objects: np.ndarray


def take_stills(env: gymnasium.Env, model: Any, seeds: list[int]) -> Stills:
    """One frame per seed.

    Args:
        env: An armworld environment whose first camera is the model's.
        model: World model; only its encoder is used.
        seeds: Of the episodes.
    """
    arm = env.unwrapped
    assert isinstance(arm, ArmEnv)
    frames, states, objects = [], [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, STREAM])
        env.reset(seed=seed)
        move, turn, grip = rng.uniform(-MOVE_M, MOVE_M, 3), rng.uniform(-TURN_RAD, TURN_RAD), rng.uniform(0, 1)
        observation, *_ = env.step(np.array([*move, 0.0, 0.0, turn, grip]))
        frames.append(observation[arm.cameras[0]])
        states.append(observation["state"])
        objects.append(arm.simulator.object_pose(arm.task.object)[0][:2])
    z = torch.cat([model.encode(np.stack(frames[i : i + 64])[:, None])[:, 0].cpu() for i in range(0, len(frames), 64)])
    return Stills(z, np.stack(states), np.stack(objects))


def read_stills(model: Any, stills: Stills, rng: np.random.Generator) -> dict[str, Any]:
    """Errors on a held-out quarter: of linear probes, of guessing the mean, and of the model's readout if it has one.

    Positions in m, yaw in rad. `..._read` and `..._true` are what the object's, the yaw's and the fingers' probes
    read, and the truth.
    """
    order = rng.permutation(len(stills.z))
    test, train = np.sort(order[: len(order) // 4]), np.sort(order[len(order) // 4 :])
    yaw = stills.states[:, 5:6].astype(np.float64)
    targets = np.hstack([stills.states[:, :3], np.cos(yaw), np.sin(yaw), stills.states[:, 6:], stills.objects])
    probes = [fit_probe(stills.z[train], targets[train][:, part], train, rng) for part in _PARTS]
    read = np.hstack([probe(stills.z[test]) for probe in probes])
    readout = getattr(model, "readout", None)
    own = None if readout is None else readout(stills.z[test].float().to(next(readout.parameters()).device)).cpu()
    guess, wanted = targets[train].mean(0), targets[test]
    found = torch.from_numpy(read[:, :6]), torch.from_numpy(stills.states[test].astype(np.float64))
    return {
        "frames": len(stills.z),
        "probe": reading_errors(*found),
        "readout": None if own is None else reading_errors(own, torch.from_numpy(stills.states[test])),
        "object_error_m": float(np.linalg.norm(read[:, 6:] - wanted[:, 6:], axis=-1).mean()),
        "object_guessing_m": float(np.linalg.norm(guess[6:] - wanted[:, 6:], axis=-1).mean()),
        "object_read": read[:, 6:],
        "object_true": wanted[:, 6:],
        "yaw_read": np.arctan2(read[:, 4], read[:, 3]),
        "yaw_true": stills.states[test, 5],
        "closedness_read": read[:, 5],
        "closedness_true": stills.states[test, 6],
    }


_PARTS = (slice(0, 3), slice(3, 5), slice(5, 6), slice(6, 8))  # of position, yaw's cos and sin, fingers, object
