"""Render a collected dataset again from the stored simulator states: other sizes, other cameras, varied views.

With `Variation`'s ranges every episode gets a view of its own, as training with camera variation needs: where the
exterior cameras stand is in the extrinsics, as always, and every draw in the metadata (`simulation.view`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from armworld.datasets.card import dataset_folder, finish_card, read_card
from armworld.datasets.collect import make_environment
from armworld.datasets.droid import assign_roles, find_episode, find_episodes, write_episode
from armworld.datasets.episode import Episode, EpisodeError
from armworld.datasets.files import clear_partial
from armworld.datasets.trajectory import read_episode, read_trajectory
from armworld.datasets.varying import Variation, check_rigs, draw_view
from armworld.datasets.video import check_image_size
from armworld.jobs import run_with_progress
from armworld.types import check_numbers

if TYPE_CHECKING:
    from armworld.envs.simulator import SavedState, Simulator

STATE_TOLERANCE = 1e-6  # m and rad: the restored arm must be where the episode says
LOOK_TOLERANCE = 6.0  # of 255, mean over the first frame: several times what the video's compression changes


@dataclass(frozen=True)
class RerenderConfig(Variation):
    """Settings of `armworld rerender`.

    Attributes:
        source: Folder of a dataset that `armworld collect` made.
        out: Folder of the new dataset; a rerun adds what is missing.
        image_size: Height and width of the new frames, pixels; by default those of the source's first episode.
        cameras: Cameras to render.
        workers: Processes.
        ray: Address of a Ray cluster, or `local` for one started here; none uses this machine's processes.
    """

    source: Path
    out: Path
    image_size: int | None = None
    cameras: tuple[str, ...] = ("left",)
    workers: int = 2
    ray: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "workers", least=1)
        check_image_size(self.image_size)
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras must name none twice, got {list(self.cameras)}")
        assign_roles(self.cameras)
        if Path(self.source).resolve() == Path(self.out).resolve():
            raise ValueError(f"rerender needs another folder than its source, got {self.out} twice")


def rerender(config: RerenderConfig) -> dict[str, Any]:
    """Make the episodes that are missing in `config.out`; answers its card.

    An episode's view depends on the settings and its seed alone, so workers and interruptions change nothing.

    Raises:
        EpisodeError: An episode without simulator states, or one that this code no longer reproduces.
        ValueError: Bad settings, or `out` holds something else.
    """
    source, out = Path(config.source), Path(config.out)
    folders = find_episodes(source)
    episode, env = _open(config, folders[0])  # whatever is refused is refused here, before a folder is begun
    if config.varies:
        check_rigs(config, env.randomizer.rigs)
    if config.image_size is None:
        config = replace(config, image_size=next(iter(episode.frames.values())).shape[1])
    made_with = read_card(source)["config"] if (source / "card.json").exists() else {}
    frames = {"image_size": config.image_size, "cameras": config.cameras}
    with dataset_folder(out, made_with | frames | config.settings()):
        missing = [folder for folder in folders if not _done(out, folder)]
        job = functools.partial(rerender_episode, config)
        run_with_progress(job, missing, config.workers, "rerender", len(folders), config.ray)
        clear_partial(out)  # what a lost worker left; its episodes were made again
        return finish_card(out)


def _done(out: Path, folder: Path) -> bool:
    trajectory = read_trajectory(folder)
    seed = trajectory.metadata.get("seed")
    return seed is not None and find_episode(out, str(trajectory.metadata.get("lab")), seed) is not None


def rerender_episode(config: RerenderConfig, folder: Path) -> str:
    """Render one episode's rows again and write it; answers its new folder."""
    episode, env = _open(config, folder)
    recorded = _recorded_view(env, episode, folder)
    env.randomizer.apply(recorded)
    _check_look(env.simulator, episode, folder)
    details = episode.details
    if config.varies:
        assert episode.seed is not None, "see _open"
        view = draw_view(config, env.randomizer, recorded, episode.seed)
        env.randomizer.apply(view)
        details = details | {"view": {"seed": config.view_seed, "variation": view}}
    frames, extrinsics = _render(config, env.simulator, episode, folder)
    again = replace(episode, frames=frames, extrinsics=extrinsics, details=details)
    return str(write_episode(Path(config.out), again))


def _open(config: RerenderConfig, folder: Path) -> tuple[Episode, Any]:
    """A recorded episode and its scene, able to draw frames of the new size and of the recorded one."""
    episode = read_episode(folder)
    details, needed = episode.details, {"physics", "command_state", "command_q"}
    if not needed <= set(episode.simulation) or episode.seed is None:
        raise EpisodeError(f"{folder}: no simulator states (simulation/physics ...): it cannot be rendered again")
    absent = [key for key in ("env", "object", "lab", "level", "robot", "draws") if key not in details]
    if absent:
        raise EpisodeError(
            f"{folder}: the metadata's simulation lacks {', '.join(absent)}: it cannot be rendered again"
        )
    env = make_environment(
        details["env"],
        object=details["object"],
        lab=details["lab"],
        level=details["level"],
        robot=details["robot"],
        cameras=config.cameras,
        image_size=max(config.image_size or 0, *(max(frames.shape[1:3]) for frames in episode.frames.values())),
        step_seconds=episode.step_seconds,
        max_steps=len(episode),
    )
    return episode, env.unwrapped


def _recorded_view(env: Any, episode: Episode, folder: Path) -> dict[str, Any]:
    """How the scene looked when the episode's frames were drawn, last time."""
    details = episode.details
    if "view" in details:
        return details["view"]["variation"]
    if "variation" in details["draws"]:
        return details["draws"]["variation"]
    if details["level"] != "none":
        raise EpisodeError(f"{folder}: level {details['level']!r} without its draws: it cannot be rendered again")
    return env.randomizer.draw(np.random.default_rng(0))  # as compiled; nothing is drawn at this level


def _check_look(simulator: Simulator, episode: Episode, folder: Path) -> None:
    """The first recorded frame must come back, up to the video's compression: other code may draw another scene."""
    camera, frames = next(iter(episode.frames.items()))
    simulator.restore(_saved(episode, 0))
    height, width = frames.shape[1:3]
    drawn = simulator.observe((camera,), height, width)[camera]
    off = float(np.abs(drawn.astype(float) - frames[0]).mean())
    if off > LOOK_TOLERANCE:
        raise EpisodeError(
            f"{folder}: the first {camera} frame differs from the recorded one by {off:.1f} of 255 on average "
            f"(at most {LOOK_TOLERANCE:g}): this code draws another scene than the one that made it"
        )


def _saved(episode: Episode, row: int) -> SavedState:
    from armworld.envs.controller import Command
    from armworld.envs.simulator import SavedState

    physics, state, q = (episode.simulation[name][row] for name in ("physics", "command_state", "command_q"))
    return SavedState(physics, Command(state, q))


def _render(
    config: RerenderConfig, simulator: Simulator, episode: Episode, folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Frames uint8 [T, size, size, 3] and extrinsics [T, 6] of every camera, as the scene looks now."""
    assert config.image_size is not None, "rerender has taken the source's by now"
    frames: dict[str, list[np.ndarray]] = {name: [] for name in config.cameras}
    poses: dict[str, list[np.ndarray]] = {name: [] for name in config.cameras}
    for row in range(len(episode)):
        simulator.restore(_saved(episode, row))
        if np.abs(simulator.state[:3] - episode.states[row, :3]).max() > STATE_TOLERANCE:
            raise EpisodeError(
                f"{folder}: row {row} restores to {simulator.state[:3]}, recorded {episode.states[row, :3]}"
            )
        observation = simulator.observe(config.cameras, config.image_size, config.image_size)
        for name in config.cameras:
            frames[name].append(observation[name])
            poses[name].append(simulator.extrinsics(name))
    stacked = {name: np.stack(images) for name, images in frames.items()}
    return stacked, {name: np.stack(pose) for name, pose in poses.items()}
