"""Collect interaction data: seeded episodes over several processes, resumable, whole or not at all.

Every episode depends on (configuration, seed) alone, so that the number of workers, an interrupt or a crash change
nothing: a rerun makes the episodes that are missing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from armworld.datasets.behaviours import Mix, make_behaviour
from armworld.datasets.card import dataset_folder, finish_card
from armworld.datasets.droid import assign_roles, find_episode, write_episode
from armworld.datasets.files import clear_partial
from armworld.datasets.packing import TRAINING_SEEDS
from armworld.datasets.record import record
from armworld.datasets.video import check_image_size
from armworld.jobs import run_with_progress
from armworld.sim_assets.labs import TEST_LABS
from armworld.types import check_name, check_numbers

REPORTED_SEEDS = 2_000_000  # seeds from here on are for reported results
STREAM = 0x434F4C  # keeps the behaviour's draws apart from the environment's, which has the same seed; 0 would not


@dataclass(frozen=True)
class CollectConfig:
    """Settings of `armworld collect`.

    Attributes:
        out: Folder of the dataset; a rerun adds what is missing.
        episodes: Number of episodes; their seeds are `seed`, `seed + 1`, ...
        seed: First seed; training data stay below 1,000,000, and `for_tests` begins there.
        workers: Processes.
        steps: Actions per episode; it has one frame more.
        task: Environment: `grasp`, `reach` ..., or a full Gymnasium id.
        objects: Each episode draws one of these.
        labs: Each episode draws one of these, too.
        level: Variation level of the environment.
        robot: Gripper variant.
        cameras: Recorded cameras.
        image_size: Height and width of the frames, pixels.
        step_seconds: Time per action.
        behaviours: Shares of the behaviours; by default the task's own (`behaviours.DEFAULTS`).
        for_tests: Episodes to test on (`armworld probe`), of any lab; training refuses them.
        ray: Address of a Ray cluster that shares the folder `out`, or `local` for one started here; none uses
            this machine's processes.
    """

    out: Path
    episodes: int = 100
    seed: int = 0
    workers: int = 2
    steps: int = 25
    task: str = "grasp"
    objects: tuple[str, ...] = ("cup",)
    labs: tuple[str, ...] = ("lab1",)
    level: str = "none"
    robot: str = "robotiq_2f85"
    cameras: tuple[str, ...] = ("left",)
    image_size: int = 128
    step_seconds: float = 0.25
    behaviours: Mix = field(default_factory=Mix)
    for_tests: bool = False
    ray: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "episodes", "workers", "steps", least=1)
        check_numbers(self, "step_seconds", above=0, most=10)
        check_image_size(self.image_size)
        last = self.seed + self.episodes - 1
        if self.for_tests:
            if not TRAINING_SEEDS <= self.seed <= last < REPORTED_SEEDS:
                raise ValueError(
                    f"seeds of tests lie in {TRAINING_SEEDS} ... {REPORTED_SEEDS - 1} (earlier ones are for training, "
                    f"later ones for reported results), got {self.seed} ... {last}"
                )
        elif not 0 <= self.seed <= last < TRAINING_SEEDS:
            raise ValueError(
                f"training seeds lie in 0 ... {TRAINING_SEEDS - 1} (later ones are for selection and reported "
                f"results), got {self.seed} ... {last}"
            )
        elif kept := set(self.labs) & set(TEST_LABS):
            raise ValueError(
                f"{', '.join(sorted(kept))} is for tests of what was learned elsewhere: no training data; "
                "--for-tests makes episodes to test on"
            )
        for name in ("objects", "labs", "cameras"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name at least one, and none twice, got {list(values)}")
        assign_roles(self.cameras)

    @property
    def env_id(self) -> str:
        """The Gymnasium id: `reach` stands for `armworld/Reach-v0`."""
        if "/" in self.task or ":" in self.task:
            return self.task
        return f"armworld/{''.join(part.capitalize() for part in self.task.split('_'))}-v0"


# What may differ between two runs into one folder: where, how many, how fast. The rest makes the episodes.
FREE = ("out", "episodes", "seed", "for_tests", "workers", "ray")


def collect(config: CollectConfig) -> dict[str, Any]:
    """Make the episodes that are missing in `config.out`, then write the card; answers the card.

    A KeyboardInterrupt keeps the finished episodes, writes the card for them and is raised on.

    Raises:
        ValueError: Bad settings, a folder of another configuration, or one that another process writes to.
        DiskFull: No space left; finished episodes are kept.
    """
    out = Path(config.out)
    config = replace(config, behaviours=config.behaviours.for_task(config.task))
    check_environment(config.env_id, config.objects, config.labs)
    seeds = range(config.seed, config.seed + config.episodes)
    missing = [seed for seed in seeds if not _is_done(config, seed)]
    if missing:  # whatever it refuses it refuses here, before a folder is begun and processes are started
        _environment(config, config.labs[0], config.objects[0])
    with dataset_folder(out, {key: value for key, value in asdict(config).items() if key not in FREE}):
        try:
            job = functools.partial(collect_episode, config)
            run_with_progress(job, missing, config.workers, "collect", len(seeds), config.ray)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):  # the first error matters, not the card's
                finish_card(out)
            raise
        clear_partial(out)  # what a lost worker left; its episodes were made again
        return finish_card(out)


def _is_done(config: CollectConfig, seed: int) -> bool:
    return any(find_episode(Path(config.out), lab, seed) for lab in config.labs)


def collect_episode(config: CollectConfig, seed: int) -> str:
    """Record and write the episode of one seed; answers its folder."""
    rng = np.random.default_rng([seed, STREAM])
    choice = {
        "lab": str(rng.choice(config.labs)),
        "object": str(rng.choice(config.objects)),
        "behaviour": config.behaviours.draw(rng),
    }
    env = _environment(config, choice["lab"], choice["object"])
    details = choice | {"level": config.level, "robot": config.robot, "env": config.env_id}
    episode = record(
        env,
        lambda env: make_behaviour(choice["behaviour"], env, rng),
        seed,
        config.steps,
        choice["lab"],
        f"{config.task} {choice['object']}",
        details,
    )
    busy = int((episode.simulation["contact"] | episode.simulation["moving"]).sum())
    episode.details["contact_rows"] = busy
    return str(write_episode(Path(config.out), episode))


def _environment(config: CollectConfig, lab: str, thing: str) -> Any:
    """The environment of an episode in that lab with that object."""
    return make_environment(
        config.env_id,
        object=thing,
        lab=lab,
        level=config.level,
        cameras=config.cameras,
        image_size=config.image_size,
        robot=config.robot,
        step_seconds=config.step_seconds,
        max_steps=config.steps,
    )


_ENVIRONMENTS: dict[str, Any] = {}  # this process's, by what they were made with


def check_environment(env_id: str, objects: Iterable[str] = (), labs: Iterable[str] = ()) -> None:
    """ValueError for an id of ours, or an object or a lab for it, that does not exist; those that do are listed."""
    import armworld.envs
    from armworld.sim_assets.catalog import LABS, OBJECTS

    if env_id.startswith("armworld/"):
        check_name("environment", env_id, armworld.envs.IDS)
        for kind, names, options in (("object", objects, OBJECTS), ("lab", labs, LABS)):
            for name in names:
                check_name(kind, name, options)


def make_environment(env_id: str, **settings: Any) -> Any:
    """This process's environment of that id and settings; compiling a scene and a renderer takes long.

    Raises:
        ValueError: Unknown id (the registered ones are listed), a setting that the environment refuses, or an
            environment that does not take our settings.
    """
    import gymnasium

    check_environment(env_id)
    key = f"{env_id} {sorted(settings.items())}"
    if key not in _ENVIRONMENTS:
        try:
            _ENVIRONMENTS[key] = gymnasium.make(env_id, disable_env_checker=True, **settings)
        except (gymnasium.error.Error, TypeError) as error:
            raise ValueError(f"environment {env_id!r} cannot be made with our settings: {error}") from error
    return _ENVIRONMENTS[key]
