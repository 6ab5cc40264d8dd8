"""What the arm does while data is collected: agents that draw from one seeded generator.

| name | motion |
| --- | --- |
| `reach` | from target to target across the workspace: noise, speed, overshoot and dwell vary |
| `play` | smooth and abrupt random deltas, from under a millimetre to the largest action |
| `objects` | to objects, pushing through them, closing on them, lifting and dropping |
| `handle` | grasp an object as the experts do, carry it about, let go, grasp again |
| `single` | at an object or in the air, one thing at a time: the fingers, a turn, an axis, all of them, nothing |
| `expert`, `noisy_expert` | the task's scripted expert, bare or with noise on every action |
| `recover` | the expert, thrown off course every few steps |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from armworld.datasets.motions import (
    MAX_STEP,
    DisturbedAgent,
    PlayAgent,
    ScriptAgent,
    Waypoint,
    WaypointAgent,
    bounded,
    log_uniform,
)
from armworld.types import Agent, check_name, check_numbers


@dataclass(frozen=True)
class Mix:
    """Shares of the behaviours among episodes (normalised), see the module's table.

    Where none is given the task decides (`for_task`); otherwise those not given are 0.

    Attributes:
        reach: From target to target across the workspace.
        play: Random motions of all sizes.
        objects: To objects: pushing, closing, lifting, dropping.
        expert: The task's scripted expert.
        noisy_expert: The same with noise on every action.
        recover: The expert, thrown off course every few steps.
        handle: Grasp as the expert does, carry about, let go, again.
        single: One thing at a time: the fingers, a turn, an axis, nothing.
    """

    reach: float | None = None
    play: float | None = None
    objects: float | None = None
    expert: float | None = None
    noisy_expert: float | None = None
    recover: float | None = None
    handle: float | None = None
    single: float | None = None

    def __post_init__(self) -> None:
        shares = self.shares()
        check_numbers(self, *shares, least=0)
        if self.is_given() and not any(shares.values()):
            raise ValueError(f"of the behaviours' shares one must be above 0, got {shares}")

    def is_given(self) -> bool:
        """Whether any share is stated."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    def shares(self) -> dict[str, float]:
        """Behaviour name -> share, as given."""
        return {field.name: float(getattr(self, field.name) or 0) for field in fields(self)}

    def for_task(self, task: str) -> Mix:
        """These shares, or the default ones of a task (see `DEFAULTS`) where none is given; all are numbers."""
        mix = self if self.is_given() else DEFAULTS.get(task, DEFAULTS["reach"])
        return Mix(**mix.shares())

    def draw(self, rng: np.random.Generator) -> str:
        """One behaviour's name."""
        names, weights = zip(*self.shares().items(), strict=True)
        return str(rng.choice(names, p=np.asarray(weights) / sum(weights)))


# With these, at least half of the frames of the tasks with an object show a finger on it, or it moving, and every kind
# of behaviour occurs: expert, with noise, pushed off course, play with objects, random. Reach is about the arm alone.
DEFAULTS = {
    "reach": Mix(reach=0.5, play=0.5),
    "grasp": Mix(play=0.05, objects=0.1, expert=0.15, noisy_expert=0.25, recover=0.2, handle=0.25),
    "reach_with_object": Mix(play=0.05, objects=0.1, expert=0.2, noisy_expert=0.35, recover=0.3),
    "pick_place": Mix(play=0.03, objects=0.02, expert=0.1, noisy_expert=0.15, recover=0.15, handle=0.55),
}


def workspace_box(env: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner [3] (m) of where the flange may go."""
    workspace = env.unwrapped.simulator.workspace
    return np.asarray(workspace.low), np.asarray(workspace.high)


def reach_agent(env: Any, rng: np.random.Generator) -> Agent:
    """Targets uniform over the workspace, every other one near the last, so that fine approaches are frequent."""
    low, high = workspace_box(env)

    def targets() -> Iterator[Waypoint]:
        position: np.ndarray | None = None
        closedness = float(rng.choice([0.0, 0.0, rng.random(), 1.0]))
        while True:
            if position is not None and rng.random() < 0.5:
                position = np.clip(position + rng.uniform(-0.12, 0.12, 3), low, high)
            else:  # 3 % beyond each wall, clipped back: the walls themselves are visited too
                margin = 0.03 * (high - low)
                position = np.clip(rng.uniform(low - margin, high + margin), low, high)
            speed = rng.uniform(0.25, 1.0) * MAX_STEP
            yield Waypoint(position, closedness, speed, dwell=int(rng.integers(0, 4)), patience=16)

    return WaypointAgent(
        rng,
        targets(),
        noise=log_uniform(rng, 5e-4, 0.02),
        gain=rng.uniform(1.05, 1.6) if rng.random() < 0.3 else rng.uniform(0.5, 1.0),
        stray=float(rng.choice([0.0, 0.1])),
    )


def play_agent(env: Any, rng: np.random.Generator) -> Agent:
    """Random play; one episode in eight also turns the gripper."""
    return PlayAgent(rng, env.unwrapped.simulator.workspace, turns=rng.random() < 0.125)


def objects_agent(env: Any, rng: np.random.Generator) -> Agent:
    """To an object again and again: hover beside it, push through it, or close on it and lift."""
    return WaypointAgent(
        rng,
        _object_waypoints(env.unwrapped.simulator, rng, *workspace_box(env)),
        noise=log_uniform(rng, 5e-4, 0.01),
        gain=rng.uniform(0.7, 1.0),
        stray=float(rng.choice([0.0, 0.05])),
    )


def _object_waypoints(
    simulator: Any, rng: np.random.Generator, low: np.ndarray, high: np.ndarray
) -> Iterator[Waypoint]:
    """Waypoints without end; the objects' poses are read whenever a new visit begins."""
    drop = simulator.state[2] - simulator.tip[2]  # the flange's height above the fingertips, gripper down

    def point(position: np.ndarray, height: float) -> np.ndarray:
        return np.clip([position[0], position[1], drop + height], low, high)

    while True:
        name = str(rng.choice(simulator.present))
        position = simulator.object_pose(name)[0]
        top = float(simulator.object_extent(name)[1, 2])
        speed = rng.uniform(0.4, 1.0) * MAX_STEP
        visit = str(rng.choice(["hover", "push", "grasp"], p=[0.2, 0.35, 0.45]))
        if visit == "hover":
            beside = position + rng.uniform(-0.08, 0.08, 3)
            height = position[2] + top + rng.uniform(0.01, 0.10)
            yield Waypoint(point(beside, height), float(rng.choice([0.0, 1.0])), speed, dwell=int(rng.integers(0, 4)))
        elif visit == "push":
            angle = rng.uniform(0, 2 * np.pi)
            way = np.array([np.cos(angle), np.sin(angle), 0.0])
            height = position[2] + rng.uniform(0.2, 0.8) * top
            start, end = position - rng.uniform(0.07, 0.12) * way, position + rng.uniform(0.04, 0.15) * way
            yield Waypoint(point(start, position[2] + top + 0.05), 1.0, speed)
            yield Waypoint(point(start, height), 1.0, speed)
            yield Waypoint(point(end, height), 1.0, rng.uniform(0.2, 0.7) * MAX_STEP, patience=8)
        else:
            aside = position + rng.normal(0, rng.choice([0.002, 0.015]), 3)
            height = position[2] + rng.uniform(0.3, 0.9) * top
            yield Waypoint(point(aside, position[2] + top + rng.uniform(0.02, 0.10)), 0.0, speed)
            yield Waypoint(point(aside, height), 0.0, rng.uniform(0.3, 0.8) * MAX_STEP)
            yield Waypoint(point(aside, height), 1.0, speed, dwell=int(rng.integers(2, 4)))
            lifted = aside + rng.uniform(-0.12, 0.12, 3)
            yield Waypoint(point(aside, height + rng.uniform(0.05, 0.20)), 1.0, speed, dwell=1)
            yield Waypoint(point(lifted, height + rng.uniform(0.0, 0.20)), 1.0, speed)
            yield Waypoint(point(lifted, height + rng.uniform(0.0, 0.05)), 0.0, speed, dwell=1)


def handle_agent(env: Any, rng: np.random.Generator) -> Agent:
    """The scripted grasp, then carrying at changing speed, letting go, and again; 0.3 to 5 mm of noise."""
    simulator = env.unwrapped.simulator
    script = _handling(simulator, rng, *workspace_box(env))
    return DisturbedAgent(rng, ScriptAgent(script), noise=log_uniform(rng, 3e-4, 0.005))


def _handling(simulator: Any, rng: np.random.Generator, low: np.ndarray, high: np.ndarray) -> Iterator[np.ndarray]:
    """Actions without end, each for the simulator's present state."""
    from armworld.envs.scripts import action_towards, grasp_phases, play

    def towards(position: np.ndarray, closedness: float, steps: int, speed: float) -> Iterator[np.ndarray]:
        target = np.concatenate([np.clip(position, low, high), simulator.state[3:6], [closedness]])
        for _ in range(steps):
            action = action_towards(simulator.state, target)
            yield np.concatenate([speed * action[:6], action[6:]])
            if np.abs(target[:3] - simulator.state[:3]).max() < 0.01:
                return

    first = simulator.config.objects[0]  # the task's own; the others stand by
    while True:
        name = first if rng.random() < 0.8 else str(rng.choice(simulator.present))
        for _, action in play(simulator, grasp_phases(simulator, name, lift=rng.uniform(0.02, 0.12))):
            yield action
        for _ in range(int(rng.integers(2, 6))):
            place = simulator.state[:3] + rng.uniform(-0.15, 0.15, 3)
            yield from towards(place, 1.0, 6, rng.uniform(0.3, 1.0))
        above = max(0.0, simulator.underside(name) - simulator.table_height)  # a tilted or fallen thing's is below 0
        lowered = simulator.state[:3] - np.array([0.0, 0.0, rng.uniform(0.0, above + 0.01)])
        yield from towards(lowered, 1.0, 4, 1.0)
        yield from towards(simulator.state[:3], 0.0, 2, 1.0)


def single_agent(env: Any, rng: np.random.Generator) -> Agent:
    """One thing at a time, so that a model can tell what each of them does: most motions of the others go together."""
    return ScriptAgent(_single_motions(env.unwrapped.simulator, rng, *workspace_box(env)))


def _single_motions(
    simulator: Any, rng: np.random.Generator, low: np.ndarray, high: np.ndarray
) -> Iterator[np.ndarray]:
    """Actions without end: travel to a place (three times in four a grasp, more or less), then single motions there."""
    from armworld.envs.scripts import action_towards, arrived

    while True:
        target = _near_grasp(simulator, rng)
        if rng.random() < 0.25:
            target[:3] = rng.uniform(low, high)
        target[:3] = np.clip(target[:3], low, high)
        for _ in range(7):
            if arrived(simulator, target, 0.008):
                break
            yield bounded(action_towards(simulator.state, target))
        for _ in range(int(rng.integers(5, 10))):
            yield _single_motion(simulator.state, rng)


def _near_grasp(simulator: Any, rng: np.random.Generator) -> np.ndarray:
    """The state [7] of a grasp of some object with open fingers, off by millimetres or by centimetres, or higher up."""
    from armworld.envs.scripts import grasp_height, grasp_yaw, over, up

    name = str(rng.choice(simulator.present))
    aside = rng.normal(0, rng.choice([0.002, 0.006, 0.03]), 3) * np.array([1.0, 1.0, 0.5])
    height = grasp_height(simulator, name) + (rng.uniform(0.0, 0.12) if rng.random() < 0.4 else 0.0)
    yaw = grasp_yaw(simulator, name) + rng.normal(0, rng.choice([0.03, 0.3]))
    return over(simulator, simulator.object_pose(name)[0] + up(height) + aside, yaw, 0.0)


def _single_motion(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One action [7] that moves the fingers, the yaw, one axis, or all of them, or nothing."""
    kind = str(rng.choice(["fingers", "turn", "axis", "all", "nothing"], p=[0.3, 0.2, 0.25, 0.15, 0.1]))
    action = np.zeros(7)
    if kind in ("fingers", "all"):
        action[6] = float(rng.choice([0.0, 1.0, rng.random()])) - state[6]
    if kind in ("turn", "all"):
        action[5] = rng.uniform(-0.2, 0.2)
    if kind == "axis":
        action[rng.integers(3)] = rng.choice([-1, 1]) * log_uniform(rng, 0.004, MAX_STEP)
    if kind == "all":
        action[:3] = rng.normal(0, log_uniform(rng, 0.003, 0.05), 3)
    return bounded(action)


def expert_agent(env: Any, rng: np.random.Generator) -> Agent:
    """The task's scripted expert."""
    from armworld.envs.experts import make_expert

    return make_expert(env)


def noisy_expert_agent(env: Any, rng: np.random.Generator) -> Agent:
    """The expert with noise of 1 to 20 mm on every action and stray gripper motions."""
    return DisturbedAgent(rng, expert_agent(env, rng), noise=log_uniform(rng, 0.001, 0.02), flip=0.02)


def recover_agent(env: Any, rng: np.random.Generator) -> Agent:
    """The expert, pushed off course for one to three steps about every seventh step."""
    return DisturbedAgent(rng, expert_agent(env, rng), noise=log_uniform(rng, 5e-4, 0.005), burst=0.15)


BEHAVIOURS: dict[str, Callable[[Any, np.random.Generator], Agent]] = {
    "reach": reach_agent,
    "play": play_agent,
    "objects": objects_agent,
    "expert": expert_agent,
    "noisy_expert": noisy_expert_agent,
    "recover": recover_agent,
    "handle": handle_agent,
    "single": single_agent,
}


def make_behaviour(name: str, env: Any, rng: np.random.Generator) -> Agent:
    """The agent of a behaviour for an environment that has been reset.

    Raises:
        ValueError: Unknown name.
    """
    return BEHAVIOURS[check_name("behaviour", name, BEHAVIOURS)](env, rng)
