"""From an agent's settings to the configurations of what it is made of; and the same ahead of time, as a check."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from armworld.planners.mpc import AgentConfig, check_execution
from armworld.planners.objectives import OBJECTIVE_NAMES
from armworld.planners.registry import PLANNERS, make_planner
from armworld.types import check_name

if TYPE_CHECKING:
    from armworld.baselines.agent import PlayConfig
    from armworld.evaluation.agents import AgentSettings

POLICIES = ("octo", "features_bc")
BANKS = ("bank", "recorded")  # sub-goals that are chosen among recorded frames
PLAYED = ("execute", "ensemble", "patience", "arrive_within", "rest", "max_gripper", "gripper_deadband", "full_grip")


def planner_of(agent: str, settings: AgentSettings) -> str | None:
    """The planner (a name of `planners.registry`) that `agent` searches with; None where it does not plan."""
    planner = {"oracle": settings.oracle_planner, "pixels": "cem"}.get(agent, agent)
    return planner if agent == "oracle" or planner in PLANNERS else None


def agent_config(settings: AgentSettings, aligned: bool) -> AgentConfig:
    """How a `PlanningAgent` with these settings acts; `aligned`: its objective is the aligned one."""
    choices: dict[str, Any] = {"schedule": settings.schedule or ("arrival" if aligned else "budget")}
    choices |= {"execute_steps": settings.execute, "rest": settings.rest and aligned}
    choices |= {"read_gripper": settings.read_gripper and aligned}
    names = ("context", "gripper", "gripper_margin", "full_grip", "patience", "arrive_within", "seconds_per_action")
    choices |= {name: getattr(settings, name) for name in names}
    return AgentConfig(**{key: value for key, value in choices.items() if value is not None})


def play_config(settings: AgentSettings) -> PlayConfig:
    """How a policy with these settings is played."""
    from armworld.baselines.agent import PlayConfig

    choices: dict[str, Any] = {"schedule": settings.schedule or "arrival"}
    return PlayConfig(**choices, **{n: getattr(settings, n) for n in PLAYED if getattr(settings, n) is not None})


def check_agent(name: str, task: str, settings: AgentSettings, **changes: Any) -> None:
    """Raise ValueError, before a model is loaded or anything written, where `name` cannot be made with these settings.

    `settings` are as given; what they leave open is filled in as for the agent (`agents.settings_for`). `changes` are
    what a study varies.
    """
    from armworld.evaluation.agents import AGENTS, settings_for

    check_name("agent", name, AGENTS)
    settings = replace(settings_for(name, task, settings), **changes)
    if name in POLICIES:
        play_config(settings)
    if (planner := planner_of(name, settings)) is None:
        return
    check_name("planner", planner, PLANNERS)
    if settings.objective is not None:
        check_name("objective", settings.objective, OBJECTIVE_NAMES)
    if planner == "servo" and (settings.calibrate is not None or settings.axes_yaw):
        raise ValueError("servo imagines nothing whose axes could turn: adapt the model (armworld preflight --moves)")
    made = make_planner(planner, **settings.planner_settings(planner))
    check_execution(agent_config(settings, aligned=True), made)
    if settings.bank is not None:
        from armworld.datasets.droid import find_episodes

        find_episodes(settings.bank)
