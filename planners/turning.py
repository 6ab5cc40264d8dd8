"""Where a world model's axes point: the rotation about the vertical between what it imagines and what happens.

A world model is told no camera pose. Seen from another side than in training, it imagines that the action a moves
the arm by Rz(θ) a. A few recorded moves tell θ: the true outcome is imagined best when the action is turned back,

    θ = -argmin_φ  Σ_m mean |P(z_m, s_m, Rz(φ) a_m) - z'_m|,

and `TurnedModel` turns every action by -θ before the model sees it. No pose of the camera is used anywhere.
A model that was trained in its cameras' frame (`turns_states`) has its states turned with the actions; to it, θ is
the camera's azimuth less the one that the model takes as the base frame's.

Legend: M moves, K angles, B episodes, S candidates, H steps, N patches, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from armworld.pose import apply_action, euler_to_matrix, matrix_to_euler

if TYPE_CHECKING:
    from armworld.worldmodel.model import Rollout, WorldModel

COARSE_DEG = 15.0
TOLERANCE_DEG = 0.05  # of the golden-section search
SMALLEST_MOVE_M = 0.005  # a shorter move tells no direction
CHUNK = 16  # moves per call of the model


@dataclass(frozen=True)
class Moves:
    """Recorded single steps.

    Attributes:
        z, after: Features [M, N, D] before and after.
        state: Robot states [M, 7] before.
        action: Actions [M, 7] as realised (from consecutive states).
    """

    z: Tensor
    state: Tensor
    action: Tensor
    after: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(x.shape) for x in (self.z, self.state, self.action, self.after)]
        m = len(self.z)
        if shapes[1:3] != [(m, 7), (m, 7)] or shapes[0] != shapes[3] or len(shapes[0]) != 3:
            raise ValueError(f"moves need z and after [M, N, D], state and action [M, 7], got {shapes}")


@dataclass(frozen=True)
class Turn:
    """How the model's axes are turned, and how surely.

    Attributes:
        yaw_deg: θ in (-180, 180]: the model imagines Rz(θ) of what was commanded (counter-clockwise from above).
        spread_deg: Standard error of θ from leaving out one move at a time.
        contrast: How much the energy falls from the average over all angles to the best one, as a fraction;
            near 0 the model does not respond to where actions point, and θ means nothing.
        energy: Energy at θ.
        plain_energy: Energy with the actions as they are.
        angles_deg, curve: The coarse search over θ: angles [K] and mean energies [K], for a picture.
        moves: How many moves it rests on.
    """

    yaw_deg: float
    spread_deg: float
    contrast: float
    energy: float
    plain_energy: float
    angles_deg: tuple[float, ...]
    curve: tuple[float, ...]
    moves: int


def turn_actions(actions: Tensor, yaw: Tensor | float) -> Tensor:
    """Actions [..., 7] turned about the vertical by `yaw` (rad; a number or broadcastable to [...])."""
    yaw = torch.as_tensor(yaw, dtype=actions.dtype, device=actions.device)
    zero = torch.zeros_like(yaw)
    turn = euler_to_matrix(torch.stack([zero, zero, yaw], -1))
    moved = (turn @ actions[..., :3, None]).squeeze(-1)
    rotation = matrix_to_euler(turn @ euler_to_matrix(actions[..., 3:6]) @ turn.transpose(-1, -2))
    shape = torch.broadcast_shapes(moved.shape[:-1], rotation.shape[:-1])
    parts = (moved, rotation, actions[..., 6:])
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


def turn_states(states: Tensor, yaw: Tensor | float) -> Tensor:
    """States [..., 7] turned about the base's vertical axis by `yaw` (rad; a number or broadcastable to [...])."""
    yaw = torch.as_tensor(yaw, dtype=states.dtype, device=states.device)
    zero = torch.zeros_like(yaw)
    turn = euler_to_matrix(torch.stack([zero, zero, yaw], -1))
    place = (turn @ states[..., :3, None]).squeeze(-1)
    angles = matrix_to_euler(turn @ euler_to_matrix(states[..., 3:6]))
    shape = torch.broadcast_shapes(place.shape[:-1], angles.shape[:-1])
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in (place, angles, states[..., 6:])], -1)


def camera_azimuth(extrinsics: Tensor) -> Tensor:
    """Azimuth [...] (rad) at which cameras of these extrinsics [..., 6] stand, as seen from what they look at.

    Counter-clockwise from the base's +x, as `envs.cameras` counts it. A camera that looks straight down has none.
    """
    forward = euler_to_matrix(extrinsics[..., 3:6])[..., :, 2]
    return torch.atan2(-forward[..., 1], -forward[..., 0])


class TurnedModel:
    """A `WorldModel` whose axes are turned back: actions reach `model` turned by -yaw. What comes out is the robot's.

    The robot's states reach it as they are, unless the model `turns_states` too.

    Everything else of the model (step_seconds, camera, image_size ...) is reached through it.
    """

    def __init__(self, model: WorldModel, yaw_deg: float) -> None:
        """`yaw_deg` is `Turn.yaw_deg` of `model`."""
        if not math.isfinite(yaw_deg):
            raise ValueError(f"yaw_deg must be finite, got {yaw_deg}")
        self.model, self.yaw_deg, self.step_seconds = model, float(yaw_deg), model.step_seconds

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not set yet: a copy is being unpickled
            raise AttributeError(name)
        return getattr(self.model, name)

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] RGB -> features [B, T, N, D]."""
        return self.model.encode(images)

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        """As the model's, of the turned actions; the states [B, S, H, 7] follow the actions as given."""
        from armworld.worldmodel.model import Rollout

        back = -math.radians(self.yaw_deg)
        told = turn_states(state, back) if getattr(self.model, "turns_states", False) else state
        imagined = self.model.rollout(z, told, turn_actions(actions, back))
        states, here = [], state[:, -1:].expand(-1, actions.shape[1], -1).to(actions)
        for action in actions.unbind(2):
            here = apply_action(here, action)
            states.append(here)
        return Rollout(z=imagined.z, state=torch.stack(states, 2).to(imagined.state))


def fit_turn(model: WorldModel, moves: Moves) -> Turn:
    """θ from recorded moves: a coarse search over the circle, then golden section; see the module.

    Raises:
        ValueError: Fewer than two moves of at least 5 mm in the horizontal plane, or an energy that is not finite.
    """
    long = moves.action[:, :2].norm(dim=-1) >= SMALLEST_MOVE_M
    if int(long.sum()) < 2:
        raise ValueError(
            f"the axes need at least 2 horizontal moves of {SMALLEST_MOVE_M} m, got {int(long.sum())} of {len(long)}"
        )
    moves = Moves(*(x[long] for x in (moves.z, moves.state, moves.action, moves.after)))
    angles = np.arange(-180.0, 180.0, COARSE_DEG)
    energies = _energies(model, moves, angles)  # [M, K]
    if not np.isfinite(energies).all():
        lost = int((~np.isfinite(energies)).any(1).sum())
        raise ValueError(f"the axes cannot be fitted: no finite energy of {lost} of {len(energies)} moves")
    curve = energies.mean(0)
    best = angles[int(curve.argmin())]
    yaw, energy = _golden(
        lambda angle: float(_energies(model, moves, np.array([angle])).mean()), best - COARSE_DEG, best + COARSE_DEG
    )
    return Turn(
        yaw_deg=_wrapped(yaw),
        spread_deg=_spread(energies, angles),
        contrast=float(1 - energy / max(float(curve.mean()), 1e-12)),
        energy=energy,
        plain_energy=float(curve[int(np.abs(angles).argmin())]),
        angles_deg=tuple(angles.tolist()),
        curve=tuple(curve.tolist()),
        moves=len(moves.z),
    )


def _energies(model: WorldModel, moves: Moves, thetas_deg: np.ndarray) -> np.ndarray:
    """mean |P(z, s, Rz(-θ) a) - z'| [M, K] of every move under every θ."""
    back = torch.from_numpy(-np.radians(thetas_deg)).to(moves.action.dtype)
    turns_states, rows = getattr(model, "turns_states", False), []
    with torch.no_grad():
        for z, state, action, after in zip(
            *(x.split(CHUNK) for x in (moves.z, moves.state, moves.action, moves.after)), strict=True
        ):
            turned = turn_actions(action[:, None], back[None])  # [m, K, 7]
            if turns_states:  # each angle has states of its own
                count, angles = turned.shape[:2]
                states = turn_states(state[:, None], back[None]).reshape(-1, 1, 7)
                each = model.rollout(z.repeat_interleave(angles, 0)[:, None], states, turned.reshape(-1, 1, 1, 7))
                imagined = each.z[:, 0, 0].unflatten(0, (count, angles))
            else:
                imagined = model.rollout(z[:, None], state[:, None], turned[:, :, None]).z[:, :, 0]
            rows.append((imagined.to(after) - after[:, None]).abs().mean((-2, -1)).cpu())
    return torch.cat(rows).double().numpy()


def _golden(function: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Minimum of a function with one valley in [low, high]: (where, value)."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = function(a), function(b)
    while high - low > TOLERANCE_DEG:
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = function(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = function(b)
    return (a, fa) if fa < fb else (b, fb)


def _spread(energies: np.ndarray, angles_deg: np.ndarray) -> float:
    """Jackknife standard error (degrees) of the valley's place, read from the coarse curves [M, K]."""
    m, total = len(energies), energies.sum(0)
    full = _valley(total, angles_deg)
    away = np.array([_wrapped(_valley(total - curve, angles_deg) - full) for curve in energies])
    return float(np.sqrt((m - 1) / m * np.square(away - away.mean()).sum()))


def _valley(curve: np.ndarray, angles_deg: np.ndarray) -> float:
    """Where the parabola through the lowest point of a periodic curve [K] and its neighbours has its minimum."""
    k = int(curve.argmin())
    before, here, after = curve[k - 1], curve[k], curve[(k + 1) % len(curve)]
    bend = before - 2 * here + after
    return float(angles_deg[k] + (0.5 * COARSE_DEG * (before - after) / bend if bend > 0 else 0.0))


def _wrapped(angle_deg: float) -> float:
    """The same angle in (-180, 180]."""
    return float(180.0 - (180.0 - angle_deg) % 360.0)
