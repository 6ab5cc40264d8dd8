"""Random but sensible places: where the arm starts, where a goal lies, where objects stand."""

from __future__ import annotations

import numpy as np

from armworld.envs.controller import DOWN_EULER
from armworld.envs.simulator import Simulator

OBJECT_LOW, OBJECT_HIGH = np.array([0.34, -0.32]), np.array([0.66, 0.32])  # m: where bystanders may stand
GRIPPER_REACH = 0.10  # m: half the width of the open gripper, rounded up
CLEARANCE = 0.03  # m: between an object and whatever must not touch it


class NoRoom(RuntimeError):
    """A layout could not be found; the caller draws again."""


class ExpertFailed(NoRoom):
    """The layout is there, but the scripted expert does not solve it, so that it has no goal images."""


def flange_state(position: np.ndarray, yaw: float = 0.0, closedness: float = 0.0) -> np.ndarray:
    """State [7] of a flange at `position` [3] (m), pointing straight down, turned by `yaw` (rad)."""
    return np.concatenate([position, DOWN_EULER + np.array([0.0, 0.0, yaw]), [closedness]])


def move_arm(sim: Simulator, state: np.ndarray) -> None:
    """Put the arm at a flange pose by inverse kinematics, at rest. NoRoom where it cannot reach or is in contact."""
    q, error = sim.solve_pose(state)
    if error > 5e-3:
        raise NoRoom(f"the flange cannot reach {np.round(state[:6], 3).tolist()}: {error:.4f} m off")
    sim.set_arm(q)
    if sim.robot_touches():
        raise NoRoom(f"the arm touches something at {np.round(state[:6], 3).tolist()}")


def _distance_to_segment(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    along = end - start
    share = np.clip((point - start) @ along / max(along @ along, 1e-12), 0, 1)
    return float(np.linalg.norm(point - start - share * along))


def footprint(sim: Simulator, name: str) -> float:
    """Radius (m) of the circle that an upright object occupies on the table at any yaw."""
    low, high = sim.object_extent(name)
    return float(np.hypot(*np.maximum(-low[:2], high[:2])))


def place_bystanders(
    sim: Simulator,
    names: tuple[str, ...],
    rng: np.random.Generator,
    paths: list[tuple[np.ndarray, np.ndarray]],
    taken: list[tuple[np.ndarray, float]],
) -> dict[str, list[float]]:
    """Stand objects on the table, clear of the fingertips' straight paths, of each other and of `taken` circles.

    Args:
        sim: The scene; its objects are moved.
        names: Objects to place.
        rng: Source of the draws.
        paths: Segments (start [3], end [3]; m) that the fingertips will follow.
        taken: Circles (centre [2], radius; m) to stay out of.

    Returns:
        {object: [x, y, z (m), yaw (rad)]}.
    """
    taken, placed = list(taken), {}
    for name in names:
        radius, height = footprint(sim, name), sim.object_extent(name)[1, 2]
        for _ in range(200):
            spot = rng.uniform(OBJECT_LOW, OBJECT_HIGH)
            apart = all(np.linalg.norm(spot - c) > radius + r + CLEARANCE for c, r in taken)
            clear = all(
                min(a[2], b[2]) > height + CLEARANCE
                or _distance_to_segment(spot, a[:2], b[:2]) > radius + GRIPPER_REACH + CLEARANCE
                for a, b in paths
            )
            if apart and clear:
                break
        else:
            raise NoRoom(f"no free place for {name}")
        yaw = float(rng.uniform(-np.pi, np.pi))
        sim.place_object(name, np.array([*spot, 0.0]), yaw)
        taken.append((spot, radius))
        placed[name] = [float(spot[0]), float(spot[1]), 0.0, yaw]
    return placed
