"""The few types that every folder shares.

An observation is a plain dict, the same in simulation, in a dataset and on a real arm:

| key | value |
| --- | --- |
| `"state"` | float32 [7]: flange position (m), extrinsic-xyz Euler angles (rad), gripper closedness; base frame |
| a camera's name (`"left"`, `"right"`, `"wrist"` ...) | uint8 [H, W, 3] RGB |
| `"executed"` | float32 [7]: what was done since the observation before, if a safety gate may have changed what was asked |
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

Observation = dict[str, np.ndarray]
EXECUTED = "executed"


@dataclass(frozen=True)
class Goal:
    """What an agent is asked to reach: one observation per sub-goal, in order.

    Attributes:
        observations: The sub-goals' observations (image goals; the state is there for agents that may read it).
        budgets: Steps that each sub-goal may take before the next one is shown (the paper's 4, 10, 4 for
            pick-and-place). The last one's budget runs to the end of the episode.
    """

    observations: tuple[Observation, ...]
    budgets: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.observations or len(self.observations) != len(self.budgets):
            raise ValueError(
                f"a goal needs one budget per sub-goal and at least one sub-goal, "
                f"got {len(self.observations)} observations and {len(self.budgets)} budgets"
            )


class Agent(Protocol):
    """Anything that drives the arm: planner, behaviour cloning, scripted expert, random, hold."""

    def reset(self, goal: Goal) -> None:
        """Begin an episode."""
        ...

    def act(self, observation: Observation) -> np.ndarray:
        """The next action, float [7], from the current observation."""
        ...


def check_name(kind: str, name: str, options: Iterable[str]) -> str:
    """Return `name` if it is one of `options`; otherwise raise a ValueError that lists them."""
    options = list(options)
    if name not in options:
        raise ValueError(f"unknown {kind} {name!r}; valid: {', '.join(options) or '(none)'}")
    return name


def check_numbers(
    config: object,
    *names: str,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise a ValueError unless each named attribute is None or a finite number within the ends.

    `least` and `most` belong to what is allowed; `above` and `below` do not.
    """
    ends = {"above": above, "at least": least, "at most": most, "below": below}
    told = " and ".join(f"{words} {end:g}" for words, end in ends.items() if math.isfinite(end))
    for name in names:
        value = getattr(config, name)
        if value is None or (math.isfinite(value) and above < value < below and least <= value <= most):
            continue
        raise ValueError(f"{name} must be {told or 'finite'}, got {value}")


def check_folder(name: str, folder: Path, written: bool = True) -> None:
    """A ValueError where `folder`, or what it is to lie in, is no folder or (to be `written`) belongs to others."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{name} must be a folder, but {there} is a file")
    if written and not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name} must be a folder that can be written, but {there} cannot")


def require(module: str, extra: str):
    """Import an optional module, or raise an ImportError that says how to install it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed here; in a checkout of armworld: pip install -e '.[{extra}]'") from error
