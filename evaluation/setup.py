"""What every command that runs episodes shares: model, scene options, processes, and cells made from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from armworld.envs.cameras import CAMERAS, IMAGE_SIZES
from armworld.envs.controller import count_substeps
from armworld.envs.randomization import LEVELS
from armworld.evaluation.agents import AGENTS, AgentSettings, load_model, needs_model, settings_for
from armworld.evaluation.cells import TASKS, Cell, env_id_of, find_env, run_cells
from armworld.evaluation.episodes import EpisodeResult
from armworld.sim_assets.catalog import LABS, OBJECTS
from armworld.sim_assets.physics import TIMESTEP
from armworld.types import check_name, check_numbers

THRESHOLDS = {"reach": 0.04}  # m; the other tasks are judged by where the object is


@dataclass(frozen=True)
class Setup:
    """Where and how episodes run.

    Attributes:
        model: Name of a shipped world model, or the path of a checkpoint.
        models: Other checkpoints for some agents: AGENT=PATH, separated by commas.
        out: Folder for results and pages. Finished episodes in it are kept and not run again.
        workers: Processes, one thread each.
        ray: Address of a Ray cluster whose nodes share `out`, or `local`; none uses this machine's processes.
        level: Variation between episodes: none, jitter or full.
        camera: Camera that the agents see; by default the model's.
        image_size: Height and width of the images (pixels); by default the model's, or 128.
        step_seconds: Length of a step (s); by default the model's, or 0.25.
        max_steps: Steps per episode; by default the task's.
        subgoals: Show more goal images of the way than the paper does, which is easier: grasp (above, grasped, lifted)
            and pick_place (above, grasped, near, placed, clear).
    """

    model: str = "default"
    models: str = ""
    out: Path = Path("runs/plan")
    workers: int = 1
    ray: str | None = None
    level: str = "none"
    camera: str | None = None
    image_size: int | None = None
    step_seconds: float | None = None
    max_steps: int | None = None
    subgoals: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "workers", "max_steps", least=1)
        check_numbers(self, "step_seconds", above=0)
        check_numbers(self, "image_size", least=IMAGE_SIZES[0], most=IMAGE_SIZES[1])

    @property
    def _own_models(self) -> dict[str, str]:
        pairs = [part.strip().partition("=") for part in self.models.split(",") if part.strip()]
        for agent, _, path in pairs:
            if not agent or not path:
                raise ValueError(f"models {self.models!r}: expected AGENT=PATH, separated by commas")
        return {agent: path for agent, _, path in pairs}

    def model_of(self, agent: str) -> str | None:
        """Name or path of the agent's model; None for one that needs none."""
        return self._own_models.get(agent, self.model) if needs_model(agent) else None

    def check_models(self, agents: Sequence[str]) -> None:
        """A ValueError where `models` names an agent that does not run or needs no model."""
        for name in self._own_models:
            check_name("agent in models", name, [agent for agent in agents if needs_model(agent)])

    def env_kwargs(self, object_name: str, lab: str) -> dict[str, Any]:
        """Arguments of `gymnasium.make`; the setup must be resolved."""
        kwargs: dict[str, Any] = {
            "object": object_name,
            "lab": lab,
            "level": self.level,
            "cameras": (self.camera,),
            "image_size": self.image_size,
            "step_seconds": self.step_seconds,
        }
        kwargs |= {"subgoals": True} if self.subgoals else {}
        return kwargs if self.max_steps is None else kwargs | {"max_steps": self.max_steps}


AnySetup = TypeVar("AnySetup", bound=Setup)


def resolve(setup: AnySetup, agents: Iterable[str]) -> AnySetup:
    """Fill camera, image size and step length from the model where they are left open.

    Raises:
        ValueError: No such model, or a given value that contradicts it.
    """
    agents = list(agents)
    setup.check_models(agents)
    models = {(AGENTS[name].load, setup.model_of(name)): name for name in agents if needs_model(name)}
    camera, cameras = setup.camera, dict[str, str]()
    for (_, path), name in models.items():
        assert path is not None, "an agent that needs a model has one"
        model = load_model(name, path)
        setup = _fit(setup, path, model)
        if model.camera is not None:
            cameras.setdefault(model.camera, path)
    if camera is None and len(cameras) > 1:
        told = ", ".join(f"{path!r} for {name}" for name, path in cameras.items())
        raise ValueError(f"the models were made for different cameras ({told}): give --camera")
    return replace(
        setup,
        camera=setup.camera or "left",
        image_size=setup.image_size or 128,
        step_seconds=setup.step_seconds or 0.25,
    )


def _fit(setup: AnySetup, name: str, model: Any) -> AnySetup:
    """The setup with what this model determines; one that sees no image leaves camera and image size open."""
    told: dict[str, Any] = {"step_seconds": model.step_seconds}
    if model.image_size is not None:
        height, width = model.image_size
        if height != width:
            raise ValueError(f"model {name!r} sees {height}×{width} images; the environments render squares")
        told["image_size"] = height
    for key, value in told.items():
        if getattr(setup, key) not in (None, value):
            raise ValueError(f"model {name!r} was made for {key} {value}, got {getattr(setup, key)}")
    return replace(setup, camera=setup.camera or model.camera, **told)


def check_scene(setup: Setup, where: tuple[str, str, str]) -> None:
    """Raise ValueError for what the scene of `where` = (task, object, lab) has not; a Gymnasium id's own is its own."""
    task, object_name, lab = where
    find_env(env_id_of(task), setup.env_kwargs(object_name, lab))
    if task not in TASKS:
        return
    check_name("camera", setup.camera or "left", CAMERAS)
    check_name("object", object_name, OBJECTS)
    check_name("lab", lab, LABS)
    check_name("level", setup.level, LEVELS)
    if setup.step_seconds is not None:
        count_substeps(setup.step_seconds, TIMESTEP)


def make_cell(
    setup: Setup,
    settings: AgentSettings,
    where: tuple[str, str, str],
    agent: str,
    out: Path,
    film: frozenset[int] = frozenset(),
) -> Cell:
    """The cell of one agent in `where` = (task, object, lab), of a resolved setup."""
    task, object_name, lab = where
    check_scene(setup, where)
    return Cell(
        env_id=env_id_of(task),
        env_kwargs=setup.env_kwargs(object_name, lab),
        agent=agent,
        out=out,
        model=setup.model_of(agent),
        settings=settings_for(agent, task, settings),
        film=film,
        threshold_m=THRESHOLDS.get(task),
    )


def run_with_progress(
    cells: Sequence[Cell], seeds: Sequence[int], workers: int, ray: str | None = None
) -> list[list[EpisodeResult]]:
    """`run_cells` with a progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("episodes", total=len(cells) * len(seeds))

        def told(cell: Cell, result: EpisodeResult) -> None:
            progress.update(bar, advance=1, description=f"{cell.agent} {result.seed}: {result.reason.split(':')[0]}")

        return run_cells(cells, seeds, workers, told, ray)
