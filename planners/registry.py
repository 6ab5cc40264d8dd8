"""Planners by name, with their settings checked: `make_planner("cem", samples=128, horizon=2)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from armworld.planners.cem import CEM, CEMConfig
from armworld.planners.gradient import AdamConfig, GradientConfig, GradientPlanner
from armworld.planners.icem import ICEM, ICEMConfig
from armworld.planners.mppi import MPPI, MPPIConfig
from armworld.planners.plans import ActionSpace
from armworld.planners.published import published_config
from armworld.planners.random_shooting import RandomShooting, RandomShootingConfig
from armworld.planners.sampling import Planner, PlannerConfig
from armworld.planners.servo import Servo, ServoConfig
from armworld.types import check_name


@dataclass(frozen=True)
class Entry:
    """A planner's constructor, its default settings, and a phrase for the command line's help."""

    build: Callable[[Any], Planner]
    defaults: PlannerConfig
    summary: str


PLANNERS: dict[str, Entry] = {
    "cem": Entry(CEM, CEMConfig(), "cross-entropy method, best candidate executed, spread floor, elites kept"),
    "cem_published": Entry(CEM, published_config(), "V-JEPA 2-AC's planner exactly as published"),
    "cem_adam": Entry(
        CEM,
        CEMConfig(iterations=2, refine=AdamConfig()),
        "two rounds of the cross-entropy method, then Adam on the best four",
    ),
    "icem": Entry(ICEM, ICEMConfig(), "cross-entropy method with coloured noise and elites that live on"),
    "mppi": Entry(MPPI, MPPIConfig(), "path-integral weights over all samples"),
    "gradient": Entry(GradientPlanner, GradientConfig(), "Adam through the predictor from several starts"),
    "random_shooting": Entry(RandomShooting, RandomShootingConfig(), "best of many uniform plans"),
    "servo": Entry(Servo, ServoConfig(), "straight to the hand read in the goal, nothing imagined"),
}

ONE_STEP = {"servo"}  # planners that look no further, and so know neither horizon nor repeat
_NESTED = {"space": ActionSpace, "refine": AdamConfig, "adam": AdamConfig}


def make_planner(name: str, **settings: Any) -> Planner:
    """The planner called `name` with `settings` in place of its defaults.

    A nested setting (space, refine, adam) may be its dataclass or a dict of the fields to change.

    Raises:
        ValueError: Unknown planner or setting (the valid ones are listed), or a value out of range.
    """
    entry = PLANNERS[check_name("planner", name, PLANNERS)]
    return entry.build(_changed(entry.defaults, f"setting of planner {name}", settings))


def settings_of(name: str) -> set[str]:
    """The names of the settings that the planner called `name` takes."""
    names = {field.name for field in fields(PLANNERS[check_name("planner", name, PLANNERS)].defaults)}
    return names - ({"horizon", "repeat"} if name in ONE_STEP else set())


def _changed(defaults: Any, kind: str, settings: Mapping[str, Any]) -> Any:
    valid = [field.name for field in fields(defaults)]
    changes = {}
    for key, value in settings.items():
        check_name(kind, key, valid)
        if isinstance(value, Mapping):
            value = _changed(getattr(defaults, key) or _NESTED[key](), f"{kind}.{key}", value)
        changes[key] = value
    return replace(defaults, **changes)
