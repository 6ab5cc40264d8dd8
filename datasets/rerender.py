"""Render a collected dataset again, at another size or from other cameras, from the stored simulator states."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from armworld.datasets.card import finish_card, start_card
from armworld.datasets.collect import make_environment
from armworld.datasets.droid import find_episode, find_episodes, write_episode
from armworld.datasets.episode import EpisodeError
from armworld.datasets.files import clear_partial, exclusive
from armworld.datasets.trajectory import read_episode, read_trajectory
from armworld.evaluation.files import plain, read_json
from armworld.jobs import run_with_progress

STATE_TOLERANCE = 1e-6  # m and rad: the restored arm must be where the episode says


@dataclass(frozen=True)
class RerenderConfig:
    """Settings of `armworld rerender`.

    Attributes:
        source: Folder of a dataset that `armworld collect` made.
        out: Folder of the new dataset; a rerun adds what is missing.
        image_size: Height and width of the new frames, pixels.
        cameras: Cameras to render.
        workers: Processes.
        ray: Address of a Ray cluster, or `local` for one started here; none uses this machine's processes.
    """

    source: Path
    out: Path
    image_size: int = 256
    cameras: tuple[str, ...] = ("left",)
    workers: int = 2
    ray: str | None = None


def rerender(config: RerenderConfig) -> dict[str, Any]:
    """Make the episodes that are missing in `config.out`; answers its card.

    Raises:
        EpisodeError: An episode without simulator states, or one that this code no longer reproduces.
        ValueError: `out` holds something else, or is the source.
    """
    source, out = Path(config.source), Path(config.out)
    if source.resolve() == out.resolve():
        raise ValueError(f"rerender needs another folder than its source, got {out} twice")
    folders = find_episodes(source)
    with exclusive(out):
        clear_partial(out)
        made_with = read_json(source / "card.json")["config"] if (source / "card.json").exists() else {}
        start_card(out, made_with | {"image_size": config.image_size, "cameras": config.cameras})
        missing = [folder for folder in folders if not _done(out, folder)]
        job = functools.partial(rerender_episode, config)
        run_with_progress(job, missing, config.workers, "rerender", len(folders), config.ray)
        return finish_card(out)


def _done(out: Path, folder: Path) -> bool:
    trajectory = read_trajectory(folder)
    seed = trajectory.metadata.get("seed")
    return seed is not None and find_episode(out, str(trajectory.metadata["lab"]), seed) is not None


def rerender_episode(config: RerenderConfig, folder: Path) -> str:
    """Render one episode's rows again and write it; answers its new folder."""
    from armworld.envs.controller import Command
    from armworld.envs.simulator import SavedState

    episode = read_episode(folder)
    needed = {"physics", "command_state", "command_q"}
    if not needed <= set(episode.simulation) or episode.seed is None:
        raise EpisodeError(f"{folder}: no simulator states (simulation/physics ...): it cannot be rendered again")
    details = episode.details
    env = make_environment(
        details["env"],
        object=details["object"],
        lab=details["lab"],
        level=details["level"],
        robot=details["robot"],
        cameras=config.cameras,
        image_size=config.image_size,
        step_seconds=episode.step_seconds,
        max_steps=len(episode),
    )
    _, info = env.reset(seed=episode.seed)
    if plain(info["draws"]) != plain(details["draws"]):
        raise EpisodeError(
            f"{folder}: the scene of seed {episode.seed} differs from the recorded one; was it made by another commit?"
        )
    simulator = env.unwrapped.simulator
    frames: dict[str, list[np.ndarray]] = {name: [] for name in config.cameras}
    poses: dict[str, list[np.ndarray]] = {name: [] for name in config.cameras}
    stored = (episode.simulation[name] for name in ("physics", "command_state", "command_q"))
    for row, (physics, state, q) in enumerate(zip(*stored, strict=True)):
        simulator.restore(SavedState(physics, Command(state, q)))
        if np.abs(simulator.state[:3] - episode.states[row, :3]).max() > STATE_TOLERANCE:
            raise EpisodeError(
                f"{folder}: row {row} restores to {simulator.state[:3]}, recorded {episode.states[row, :3]}"
            )
        observation = simulator.observe(config.cameras, config.image_size, config.image_size)
        for name in config.cameras:
            frames[name].append(observation[name])
            poses[name].append(simulator.extrinsics(name))
    stacked = {name: np.stack(images) for name, images in frames.items()}
    extrinsics = {name: np.stack(pose) for name, pose in poses.items()}
    return str(write_episode(Path(config.out), replace(episode, frames=stacked, extrinsics=extrinsics)))
