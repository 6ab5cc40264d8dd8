"""Agents that choose their own sub-goals, by the settings; recorded frames that they may choose among."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from armworld.datasets.droid import find_episodes
from armworld.datasets.trajectory import read_frames, read_trajectory
from armworld.planners.mpc import AgentConfig, PlanningAgent
from armworld.planners.objectives import Objective
from armworld.planners.sampling import Planner
from armworld.planners.subgoals import Frames
from armworld.planners.twolevel import TwoLevelAgent, TwoLevelConfig
from armworld.planners.vertical import VerticalAgent, VerticalConfig

if TYPE_CHECKING:
    from armworld.evaluation.agents import AgentSettings

FRAMES_PER_EPISODE, MOST_FRAMES = 8, 2048
_banks: WeakKeyDictionary[Any, dict[tuple[Path, str], Frames]] = WeakKeyDictionary()


def planning_agent(
    settings: AgentSettings,
    model: Any,
    planner: Planner,
    objective: Objective,
    camera: str,
    generator: torch.Generator,
    config: AgentConfig,
) -> PlanningAgent:
    """A planning agent with the sub-goals that the settings ask for; the rest as in `PlanningAgent`."""
    if settings.subgoals_from in (None, "given"):
        if settings.approach and config.schedule == "arrival":
            vertical = VerticalConfig(settings.approach)
            return VerticalAgent(model, planner, objective, camera, generator, config, vertical=vertical)
        return PlanningAgent(model, planner, objective, camera, generator, config)
    bank = None if settings.bank is None else load_bank(settings.bank, model, camera)
    levels = TwoLevelConfig(along=settings.subgoals_from == "recorded")
    count = 0 if settings.subgoals_from == "final" else settings.stops
    levels = levels if count is None else replace(levels, count=count)
    return TwoLevelAgent(model, planner, objective, camera, generator, config, levels=levels, bank=bank)


def load_bank(folder: Path, model: Any, camera: str) -> Frames:
    """Frames of a dataset's episodes, some of each, as the model's features; read once per model and process.

    Raises:
        ValueError: No episodes there, or frames of another size than the model's.
        EpisodeError: A damaged episode.
    """
    seeing = getattr(model, "model", model)  # a turned model's features are those of the model
    seeing = getattr(seeing, "encoder_model", seeing)  # the oracle's those of the one that encodes for it
    known = _banks.setdefault(getattr(seeing, "encoder", seeing), {})  # shared by all that are told of a camera
    key = (Path(folder).resolve(), camera)
    if key not in known:
        known[key] = _read(Path(folder), seeing, camera)
    return known[key]


def _read(folder: Path, model: Any, camera: str) -> Frames:
    episodes = find_episodes(folder)
    chosen = np.unique(
        np.linspace(0, len(episodes) - 1, min(len(episodes), MOST_FRAMES // FRAMES_PER_EPISODE), dtype=int)
    )
    features, states, numbers = [], [], []
    for index in chosen:
        trajectory = read_trajectory(episodes[index])
        rows = np.unique(np.linspace(0, len(trajectory) - 1, FRAMES_PER_EPISODE, dtype=int))
        images = read_frames(trajectory, camera, rows)
        if model.image_size is not None and images.shape[1:3] != tuple(model.image_size):
            size = "{} x {}".format(*images.shape[1:3])
            raise ValueError(
                f"frames of {folder} are {size}, the model sees {model.image_size[0]} x {model.image_size[1]}"
            )
        with torch.no_grad():
            features.append(model.encode(images[:, None])[:, 0].cpu())
        states.append(torch.from_numpy(trajectory.states[rows].astype(np.float32)))
        numbers.append(torch.full((len(rows),), int(index)))
    return Frames(torch.cat(features), torch.cat(states), torch.cat(numbers))
