"""Scripted motion: phases of "go there, gripper so" that the experts and the goal images are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from armworld.envs.controller import ACTION_BOUND
from armworld.envs.layout import flange_state
from armworld.envs.simulator import Simulator
from armworld.pose import action_between, matrix_to_euler
from armworld.sim_assets.catalog import GRASP_HEIGHT

GRIP_WIDTH = 0.08  # m: widest side that fits between the open fingers
Script = Iterator[tuple[str, np.ndarray]]  # (phase name, action [7]); the caller applies each before the next
HOVER = 0.05  # m: fingertips above an object's top before they go down


@dataclass(frozen=True)
class Phase:
    """One part of a scripted motion.

    Attributes:
        name: For logs and tests.
        target: The state [7] to go to, asked anew at each step.
        done: Whether the phase is over, asked after at least one step of it.
        limit: Steps after which it is over anyway.
    """

    name: str
    target: Callable[[], np.ndarray]
    done: Callable[[], bool]
    limit: int = 20


def up(height: float) -> np.ndarray:
    """The vector [3] that points up by `height` (m)."""
    return np.array([0.0, 0.0, height])


def action_towards(state: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The action [7] from state [7] towards a target state [7], along a straight line and within the bounds.

    Translation and rotation are each shortened as a whole, so that the direction is kept.
    """
    action = action_between(state, target)
    for part in (slice(0, 3), slice(3, 6), slice(6, 7)):
        action[part] /= max(1.0, float(np.max(np.abs(action[part]) / ACTION_BOUND[part])))
    return action


def arrived(sim: Simulator, target: np.ndarray, metres: float = 0.006, radians: float = 0.04) -> bool:
    """Whether the flange is within `metres` and `radians` of a target state [7]."""
    rest = action_between(sim.state, target)
    return bool(np.linalg.norm(rest[:3]) < metres and np.linalg.norm(rest[3:6]) < radians)


def play(sim: Simulator, phases: list[Phase]) -> Script:
    """Yield (phase name, action [7]) for the present state, until the last phase is done.

    The caller applies each action to `sim` before asking for the next.
    """
    for phase in phases:
        for count in range(phase.limit):
            target = phase.target()
            if (count and phase.done()) or (not count and arrived_at_start(sim, phase, target)):
                break
            yield phase.name, action_towards(sim.state, target)


def arrived_at_start(sim: Simulator, phase: Phase, target: np.ndarray) -> bool:
    """A motion whose target is already met takes no step; the gripper's phases always take one."""
    return phase.name not in ("close", "release") and arrived(sim, target) and phase.done()


def grasp_yaw(sim: Simulator, name: str) -> float:
    """Flange yaw (rad), the smallest that lays the fingers across a side of the object that fits between them."""
    low, high = sim.object_extent(name)
    width = high - low
    yaw = matrix_to_euler(sim.object_pose(name)[1])[2]
    headings = []  # of the fingers, across the object
    if width[1] <= GRIP_WIDTH:
        headings.append(yaw + np.pi / 2)
    if width[0] <= GRIP_WIDTH and abs(low[0] + high[0]) < 0.005:
        headings.append(yaw)
    mounted = sim.finger_heading - sim.state[5]
    turns = [(heading - mounted + np.pi / 2) % np.pi - np.pi / 2 for heading in headings]
    return float(min(turns or [0.0], key=abs))


def grasp_height(sim: Simulator, name: str) -> float:
    """Height (m) of the tip above the object's underside at which it is grasped from above."""
    return GRASP_HEIGHT[name] * sim.object_scale(name)


def over(sim: Simulator, point: np.ndarray, yaw: float, closedness: float) -> np.ndarray:
    """The flange state [7] that brings the tip to `point` [3] (m) with the tool straight down."""
    tool = sim.tip - sim.state[:3]
    length = float(np.linalg.norm(tool))
    return flange_state(point + up(length), yaw, closedness)


def grasp_phases(sim: Simulator, name: str, lift: float = 0.10) -> list[Phase]:
    """Go above the object with open fingers, down, close, lift by `lift` metres."""
    height = sim.object_extent(name)[1, 2]
    grip, yaw = grasp_height(sim, name), grasp_yaw(sim, name)
    base = sim.object_pose(name)[0]
    above = over(sim, base + up(height + HOVER), yaw, 0.0)
    low = over(sim, base + up(grip), yaw, 0.0)
    closed = np.concatenate([low[:6], [1.0]])
    raised = closed + np.array([0, 0, lift, 0, 0, 0, 0])

    def approach() -> np.ndarray:
        """Straight over the object, but first upwards while the fingertips are too low to cross it."""
        state, beside = sim.state, np.linalg.norm(sim.tip[:2] - base[:2]) > 0.03
        if beside and sim.tip[2] < base[2] + height + 0.02:
            return np.concatenate([state[:2], above[2:]])
        return above

    def gripped() -> bool:
        contact = sim.contact_report()[name]
        return contact["left"] and contact["right"]

    return [
        Phase("approach", approach, lambda: arrived(sim, above, 0.01)),
        Phase("descend", lambda: low, lambda: arrived(sim, low)),
        Phase("close", lambda: closed, gripped, limit=4),
        Phase("lift", lambda: raised, lambda: arrived(sim, raised)),
    ]


def place_phases(sim: Simulator, name: str, spot: np.ndarray, travel: float = 0.10) -> list[Phase]:
    """Carry a held object above `spot` [3] (m; where its origin shall stand), lower it, let go, retreat upwards.

    The grip is read when the phases are made: the object's origin relative to the tip.
    """
    yaw = sim.state[5]
    grip = sim.tip - sim.object_pose(name)[0]
    above = over(sim, spot + grip + up(travel), yaw, 1.0)
    down = over(sim, spot + grip + up(0.003), yaw, 1.0)
    released = np.concatenate([down[:6], [0.0]])
    away = released + np.array([0, 0, 0.10, 0, 0, 0, 0])

    def free() -> bool:
        return not sim.contact_report()[name]["robot"]

    return [
        Phase("carry", lambda: above, lambda: arrived(sim, above, 0.01)),
        Phase("lower", lambda: down, lambda: arrived(sim, down)),
        Phase("release", lambda: released, free, limit=3),
        Phase("retreat", lambda: away, lambda: arrived(sim, away, 0.01)),
    ]


def tilt(rotation: np.ndarray) -> float:
    """Angle (rad) between an object's own up axis and the vertical, from its rotation [3, 3]."""
    return float(np.arccos(np.clip(rotation[2, 2], -1, 1)))


def carry_phases(sim: Simulator, spot: np.ndarray) -> list[Phase]:
    """Bring the flange, with what it holds, to `spot` [3] (m)."""
    target = np.concatenate([spot, sim.state[3:6], [1.0]])
    return [Phase("carry", lambda: target, lambda: arrived(sim, target))]
