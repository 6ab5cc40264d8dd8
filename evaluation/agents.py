"""Agents by name, for the command line: floors, the expert, planners on a world model, planners on the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch

from armworld.evaluation.configuring import BANKS, agent_config, planner_of, play_config
from armworld.types import Agent, check_name, check_numbers

STREAM = 0x41524D  # keeps an agent's draws apart from the environment's, which has the same seed


@dataclass(frozen=True)
class AgentSettings:
    """How a planning agent plans; None leaves the planner's own default. A planner takes notice of what it has.

    Attributes:
        samples: Candidates per iteration; by default the planner's.
        iterations: Iterations; by default the planner's.
        elites: Candidates that the next iteration is fitted to; by default the planner's.
        horizon: Actions per plan; by default the planner's.
        repeat: Imagined steps that each of them is kept up for.
        execute: Actions executed of each plan (or of a policy's chunk) before looking again.
        context: Frames that the model sees.
        subgoals_from: Planners: the goal's own (given, the default), its last alone (final), or those that the world
            model chooses among frames that it imagines (imagined) or that were recorded (bank), or along the recorded
            episode that begins and ends most like this one (recorded).
        bank: With bank and recorded: the dataset that the frames come from.
        stops: Sub-goals that it chooses at most before the last.
        schedule: When the next sub-goal is shown: budget, energy or arrival (the default with the aligned objective and
            of policies, which measure it by the arm's recorded states).
        patience: With energy or arrival: show it after this many times the budget anyway.
        arrive_within: With arrival: how near the hand must be, as read from the image (m).
        rest: Hold still where the last sub-goal is reached (as arrival measures it); by default in grasp and
            pick-and-place. Policies take notice, and of the objectives the aligned one alone.
        approach: Come to objects from so far above (m) and leave them upwards, in stages that the agent adds to the
            goal's images (`planners.vertical`); 0 does not. By default in grasp and pick-and-place; where sub-goals end
            by arrival alone.
        gripper: Planned together with the arm (joint) or once the arm has arrived (last).
        gripper_margin: With "last": the gripper moves only if that lowers the energy by this fraction.
        gripper_deadband: Planned gripper deltas, and those of policies, below this count as none.
        full_grip: A gripper motion, planned or a policy's, is executed as a full opening or closing.
        goal_gripper: Compare the gripper with one closedness of the goal, rather than read it from imagined images too;
            by default in grasp and pick-and-place. Of the objectives the aligned one alone takes notice.
        read_gripper: With goal_gripper: that closedness is what the goal's images mean (`planners.gripper`), so that
            goals are images alone; by default in grasp and pick-and-place. Without: what was recorded with them.
        max_yaw: Bound of a planned turn about the vertical (rad); 0 leaves rotation out.
        seconds_per_action: Time after which a search stops; results then depend on the machine's speed.
        hold_margin: Hold unless a plan lowers holding's energy by more than this fraction.
        objective: Name of an energy (`planners.objectives.OBJECTIVE_NAMES`); by default the aligned one where the model
            has a readout, else the published one (final); cem_published takes the published one.
        max_position: Bound of a planned translation per axis and step (m).
        max_norm: Bound of its length (m).
        max_gripper: Bound of a planned closedness delta; 0 leaves the gripper as it is.
        oracle_planner: The planner that `oracle` uses.
        ensemble: Policies: mean over the chunks predicted so far, weighted exp(-ensemble * age); none for no mean.
        axes_yaw: Planners: known turn of the model's axes about the vertical (degrees), taken out of every action.
        calibrate: Planners that imagine: random moves at the episode's start from which that turn is fitted; they cost
            steps.
    """

    samples: int | None = None
    iterations: int | None = None
    elites: int | None = None
    horizon: int | None = None
    repeat: int | None = None
    execute: int | None = None
    context: int | None = None
    subgoals_from: Literal["given", "final", "imagined", "bank", "recorded"] | None = None
    bank: Path | None = None
    stops: int | None = None
    schedule: Literal["budget", "energy", "arrival"] | None = None
    patience: float | None = None
    arrive_within: float | None = None
    rest: bool | None = None
    approach: float | None = None
    gripper: Literal["joint", "last"] | None = None
    gripper_margin: float | None = None
    gripper_deadband: float | None = None
    full_grip: bool | None = None
    goal_gripper: bool | None = None
    read_gripper: bool | None = None
    max_yaw: float | None = None
    seconds_per_action: float | None = None
    hold_margin: float | None = None
    objective: str | None = None
    max_position: float | None = None
    max_norm: float | None = None
    max_gripper: float | None = None
    oracle_planner: str = "cem"
    ensemble: float | None = None
    axes_yaw: float | None = None
    calibrate: int | None = None

    def __post_init__(self) -> None:
        """What depends on the agent as well is checked by `configuring.check_agent`."""
        check_numbers(self, "execute", "context", least=1)
        check_numbers(self, "stops", "approach", least=0)
        check_numbers(self, "calibrate", least=2)
        check_numbers(self, "axes_yaw", "ensemble")
        if (self.bank is not None) != (self.subgoals_from in BANKS):
            raise ValueError(
                "--bank, the folder of a dataset, goes with --subgoals-from bank or recorded; got --subgoals-from "
                f"{self.subgoals_from or 'given'} and --bank {self.bank or 'none'}"
            )

    def planner_settings(self, planner: str) -> dict[str, Any]:
        """What `planners.registry.make_planner` takes for that planner, without settings left at their defaults.

        A setting of the search that this planner has not is left out, so that one table can hold several planners.
        """
        from armworld.planners.registry import settings_of

        space: dict[str, Any] = {} if planner == "cem_published" else {"stroke": True}
        space |= {"max_position": self.max_position, "max_norm": self.max_norm, "max_gripper": self.max_gripper}
        space |= {"max_yaw": self.max_yaw, "gripper_deadband": self.gripper_deadband}
        known = settings_of(planner)
        names = [n for n in ("samples", "iterations", "elites", "horizon", "repeat", "hold_margin") if n in known]
        settings: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        space = {name: value for name, value in space.items() if value is not None}
        return settings | ({"space": space} if space else {})

    def for_task(self, task: str) -> AgentSettings:
        """The settings with what is left open filled in by the task's `USUAL` ones."""
        usual = USUAL.get(task, {})
        return replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})


REACHING: dict[str, Any] = {"max_gripper": 0.0}
GRASPING: dict[str, Any] = {
    "gripper": "last",
    "gripper_margin": 0.03,
    "gripper_deadband": 0.1,
    "full_grip": True,
    "goal_gripper": True,
    "read_gripper": True,
    "max_yaw": 0.2,
    "hold_margin": 0.05,
    "patience": 1.5,
    "rest": True,
    "approach": 0.10,
}
USUAL = {"reach": REACHING, "reach_with_object": REACHING, "grasp": GRASPING, "pick_place": GRASPING}


def settings_for(agent: str, task: str, settings: AgentSettings) -> AgentSettings:
    """What `agent` plans with in `task`, in simulation as on an arm; the published planner's settings stay as they are.

    `settings` may be of a class that holds more; only an agent's settings are answered.
    """
    own = AgentSettings(**{field.name: getattr(settings, field.name) for field in fields(AgentSettings)})
    return own if planner_of(agent, own) == "cem_published" else own.for_task(task)


Builder = Callable[[gymnasium.Env, Any, int, AgentSettings], Agent]


def _world_model(name: str) -> Any:
    from armworld.worldmodel.checkpoint import load_world_model

    return load_world_model(name)


def _trained_policy(name: str) -> Any:
    from armworld.baselines.agent import load_policy

    return load_policy(name)


def _pixel_model(name: str) -> Any:
    from armworld.baselines.pixels import load_pixel_model

    return load_pixel_model(name)


def _state_actor(name: str) -> Any:
    from armworld.baselines.rl import load_actor

    return load_actor(name)


@dataclass(frozen=True)
class Entry:
    """How an agent is built, whether it needs a model, a phrase for the command line's help, and what loads its model.

    A model is a world model unless `load` says otherwise; it has `step_seconds`, `image_size` and `camera`.
    """

    build: Builder
    model: bool
    summary: str
    load: Callable[[str], Any] = _world_model


def _hold(env: gymnasium.Env, model: Any, seed: int, settings: AgentSettings) -> Agent:
    from armworld.envs.agents import HoldAgent

    return HoldAgent()


def _random(env: gymnasium.Env, model: Any, seed: int, settings: AgentSettings) -> Agent:
    from armworld.envs.agents import RandomAgent

    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    return RandomAgent(np.random.default_rng([seed, STREAM]), space.high)


def _expert(env: gymnasium.Env, model: Any, seed: int, settings: AgentSettings) -> Agent:
    from armworld.envs.experts import make_expert

    return make_expert(env)


def _planning(planner: str | None, oracle: bool = False) -> Builder:
    """A builder of planning agents; `planner` None takes `settings.oracle_planner`."""

    def build(env: gymnasium.Env, model: Any, seed: int, settings: AgentSettings) -> Agent:
        from armworld.evaluation.banks import planning_agent
        from armworld.planners.objectives import AlignedL1, make_objective
        from armworld.planners.registry import make_planner

        if oracle:
            from armworld.envs.oracle import OracleDynamics

            model = OracleDynamics(env, model)
        model = told_camera(model, env, camera_of(env, model))
        if settings.axes_yaw and not oracle:  # the simulator's axes are right
            from armworld.planners.turning import TurnedModel

            model = TurnedModel(model, settings.axes_yaw)
        name = planner or settings.oracle_planner
        energy = settings.objective or ("final" if name == "cem_published" else None)
        grips = bool(settings.goal_gripper), bool(settings.read_gripper)
        objective = make_objective(energy, getattr(model, "readout", None), *grips)
        aligned = isinstance(objective, AlignedL1)
        if name == "servo" and not aligned:
            raise ValueError("servo goes by the aligned objective: it needs a model with a readout (armworld align)")
        agent = planning_agent(
            settings,
            model,
            make_planner(name, **settings.planner_settings(name)),
            objective,
            camera=camera_of(env, model),
            generator=torch.Generator().manual_seed(agent_seed(seed)),
            config=agent_config(settings, aligned),
        )
        if settings.calibrate is None:
            return agent
        from armworld.planners.calibrating import CalibratingAgent

        return CalibratingAgent(agent, settings.calibrate, np.random.default_rng([seed, STREAM, 1]))

    return build


def _policy(env: gymnasium.Env, model: Any, seed: int, settings: AgentSettings) -> Agent:
    from armworld.baselines.agent import PolicyAgent

    generator = torch.Generator().manual_seed(agent_seed(seed))
    return PolicyAgent(model, camera_of(env, model), generator, play_config(settings))


def _sac(env: gymnasium.Env, model: Any, seed: int, settings: AgentSettings) -> Agent:
    from armworld.baselines.rl import StateAgent

    return StateAgent(model, env)


AGENTS: dict[str, Entry] = {
    "hold": Entry(_hold, False, "does nothing: the floor"),
    "random": Entry(_random, False, "random actions: the other floor"),
    "expert": Entry(_expert, False, "scripted, reads the simulator: the ceiling"),
    "cem": Entry(_planning("cem"), True, "cross-entropy method on the world model"),
    "cem_published": Entry(_planning("cem_published"), True, "V-JEPA 2-AC's planner exactly as published"),
    "cem_adam": Entry(_planning("cem_adam"), True, "cross-entropy method, then Adam through the predictor"),
    "icem": Entry(_planning("icem"), True, "cross-entropy method with coloured noise and lasting elites"),
    "mppi": Entry(_planning("mppi"), True, "path-integral weights over all samples"),
    "gradient": Entry(_planning("gradient"), True, "Adam through the predictor from several starts"),
    "random_shooting": Entry(_planning("random_shooting"), True, "best of many uniform plans"),
    "servo": Entry(_planning("servo"), True, "straight to the hand read in the goal, nothing imagined"),
    "pixels": Entry(_planning("cem"), True, "cross-entropy method on a world model of pixels", _pixel_model),
    "octo": Entry(_policy, True, "Octo-style behaviour cloning, from scratch", _trained_policy),
    "features_bc": Entry(_policy, True, "behaviour cloning on a frozen encoder's features", _trained_policy),
    "sac": Entry(_sac, True, "reinforcement learning on the simulator's state: a privileged reference", _state_actor),
    "oracle": Entry(_planning(None, oracle=True), True, "the simulator as the model, the same encoder and energy"),
}


def told_camera(model: Any, env: gymnasium.Env | None, camera: str) -> Any:
    """The model, told where the camera stands if it reads that and there is a simulated camera to ask."""
    pose = None if env is None else camera_pose(env, camera)
    return model.seen_from(pose) if reads_camera(model) and pose is not None else model


def reads_camera(model: Any) -> bool:
    """Whether the model reads where its camera stands."""
    return getattr(getattr(model, "config", None), "extrinsics", None) is not None


def camera_pose(env: gymnasium.Env, camera: str) -> np.ndarray | None:
    """Where a camera stands in the present episode, [6] (m, rad; base frame); None where it is not simulated."""
    pose_of = getattr(env.unwrapped, "extrinsics", None)
    return None if pose_of is None else pose_of(camera)


def camera_of(env: gymnasium.Env | None, model: Any) -> str:
    """The camera that an agent looks through: the environment's first, or the model's where there is none."""
    cameras = None if env is None else getattr(env.unwrapped, "cameras", None)
    return cameras[0] if cameras else model.camera


def needs_model(name: str) -> bool:
    """Whether the agent `name` plans on a world model or plays a trained policy."""
    return AGENTS[check_name("agent", name, AGENTS)].model


def plans_on_features(name: str) -> bool:
    """Whether the agent `name` plans on a world model of features, `worldmodel.model.VJEPA2AC`."""
    return needs_model(name) and AGENTS[name].load is AGENTS["cem"].load


def load_model(agent: str, name: str) -> Any:
    """The model that `agent` needs: shipped as `name`, or in that folder. ValueError where it is of another kind."""
    return AGENTS[check_name("agent", agent, AGENTS)].load(name)


def agent_seed(seed: int) -> int:
    """A 63-bit seed for an agent's own draws in the episode `seed`."""
    return int(np.random.SeedSequence([seed, STREAM]).generate_state(1, np.uint64)[0] >> 1)


def make_agent(name: str, env: gymnasium.Env, model: Any, seed: int, settings: AgentSettings | None = None) -> Agent:
    """A fresh agent for one episode.

    Args:
        name: One of `AGENTS`.
        env: The environment that it will act in (the expert and the oracle read it).
        model: What `load_model` answers, for the agents that need one; else None.
        seed: The episode's seed; the agent's own draws are derived from it.
        settings: How planners plan.

    Raises:
        ValueError: Unknown name or setting, no model where one is needed, or a model of another step length.
    """
    entry = AGENTS[check_name("agent", name, AGENTS)]
    if entry.model:
        if model is None:
            raise ValueError(f"agent {name!r} needs a trained model; none was given")
        step = getattr(getattr(env.unwrapped, "simulator", env.unwrapped), "step_seconds", model.step_seconds)
        if abs(step - model.step_seconds) > 1e-6:
            raise ValueError(f"the model's step is {model.step_seconds} s, the environment's {step} s")
    return entry.build(env, model, seed, settings or AgentSettings())
