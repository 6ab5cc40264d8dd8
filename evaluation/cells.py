"""Many episodes: cells of (environment × agent), over processes, resumable at every episode.

A cell's folder holds `cell.json` (what was asked) and `episodes/<seed>.json` (one per finished episode, written
atomically after its video). A rerun skips what is there; a folder that belongs to another question is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from armworld.evaluation.agents import AGENTS, AgentSettings, load_model, make_agent, needs_model, reads_camera
from armworld.evaluation.episodes import EpisodeResult, run_episode, try_reset
from armworld.evaluation.files import commit, plain, read_json, write_json
from armworld.jobs import run_jobs

TASKS = {
    "reach": "armworld/Reach-v0",
    "grasp": "armworld/Grasp-v0",
    "reach_with_object": "armworld/ReachWithObject-v0",
    "pick_place": "armworld/PickPlace-v0",
}


@dataclass(frozen=True)
class Cell:
    """One (environment × agent) whose episodes differ only by their seed.

    Attributes:
        env_id: A Gymnasium id of armworld's interface (`module:Name-v0` imports the module first).
        env_kwargs: Passed to `gymnasium.make`.
        agent: A name of `agents.AGENTS`.
        model: Name or path of its model; None for agents that need none.
        settings: The agent's settings.
        out: The cell's folder.
        film: Seeds to write a video of.
        threshold_m: Success distance, for the videos' chart only.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    agent: str
    out: Path
    model: str | None = None
    settings: AgentSettings = field(default_factory=AgentSettings)
    film: frozenset[int] = frozenset()
    threshold_m: float | None = None

    def question(self) -> dict[str, Any]:
        """What decides an episode's outcome, JSON-able: everything but the folder and the videos."""
        return plain(
            {
                "env_id": self.env_id,
                "env_kwargs": self.env_kwargs,
                "agent": self.agent,
                "model": model_identity(self.model) if needs_model(self.agent) else None,
                "settings": asdict(self.settings) if needs_model(self.agent) else None,
            }
        )

    def episode_file(self, seed: int) -> Path:
        """Where the episode's record lies once it is finished."""
        return self.out / "episodes" / f"{seed}.json"

    def video_file(self, seed: int) -> Path:
        """Where its video lies, if it was filmed."""
        return self.out / "videos" / f"{seed}.mp4"


def model_identity(name: str | None) -> dict[str, Any]:
    """What tells one checkpoint from another: its name, the fingerprint of its weights, how it is used."""
    from armworld.worldmodel.checkpoint import CONFIG_FILE, resolve
    from armworld.worldmodel.published import PUBLISHED_USAGE, file_id

    if name is None:
        raise ValueError("this agent needs a model: give --model NAME or PATH")
    path = resolve(name)
    if path.is_file():
        return {"name": name, "weights_id": file_id(path), "use": asdict(PUBLISHED_USAGE)}
    document = read_json(path / CONFIG_FILE)
    return {"name": name, "weights_id": document.get("weights_id"), "use": document.get("world_model")}


def env_id_of(task: str) -> str:
    """The Gymnasium id of a task's name; an id (with `/` or `:` or `-v`) passes through."""
    if task in TASKS:
        return TASKS[task]
    if "-v" in task:
        return task
    raise ValueError(f"unknown task {task!r}; valid: {', '.join(TASKS)}, or a Gymnasium id such as module:Name-v0")


def find_env(env_id: str, env_kwargs: dict[str, Any]) -> None:
    """Raise ValueError where there is no such environment, or one that does not take what armworld's are made with."""
    if env_id.startswith("armworld/"):
        import armworld.envs  # noqa: F401  (registers)
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gymnasium.spec(name)
        assert spec.entry_point is not None, "every registered environment has one"
        maker = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except (gymnasium.error.Error, ImportError, AttributeError) as error:
        raise ValueError(f"no environment {env_id!r}: {error}") from error
    try:
        inspect.signature(maker).bind(**{**spec.kwargs, **env_kwargs})
    except TypeError as error:
        raise ValueError(
            f"environment {env_id!r} is not of armworld's interface ({error}); valid: {', '.join(TASKS)}, or a "
            "Gymnasium id whose environment takes object, lab, level, cameras, image_size, step_seconds and max_steps"
        ) from error


def open_env(env_id: str, env_kwargs: dict[str, Any]) -> gymnasium.Env:
    """Make the environment, without Gymnasium's passive checker (it would cost time in every step)."""
    find_env(env_id, env_kwargs)
    return gymnasium.make(env_id, disable_env_checker=True, **env_kwargs)


class Worker:
    """Runs episodes one at a time, keeping the last environment and model open between them."""

    def __init__(self) -> None:
        self._commit = commit()  # at the start: what is changed later does not reach this process
        self._env: gymnasium.Env | None = None
        self._env_key: Any = None
        self._models: dict[Any, Any] = {}

    def run(self, cell: Cell, seed: int) -> EpisodeResult:
        """Run, film if asked, and store one episode; its record is written last."""
        env, model = self.open(cell)
        # A model that reads where the camera stands is told that of this episode: variation moves it.
        failed = try_reset(env, seed) if reads_camera(model) else None
        result = replace(failed or self._play(cell, seed, env, model), commit=self._commit)
        write_json(cell.episode_file(seed), result.to_json())
        return result

    def _play(self, cell: Cell, seed: int, env: gymnasium.Env, model: Any) -> EpisodeResult:
        agent = make_agent(cell.agent, env, model, seed, cell.settings)
        recorder = None
        if seed in cell.film:
            from armworld.evaluation.video import VideoRecorder

            step = float(cell.env_kwargs.get("step_seconds", 0.25))
            recorder = VideoRecorder(cell.video_file(seed), cell.agent, step, cell.threshold_m)
        return run_episode(env, agent, seed, recorder)

    def open(self, cell: Cell) -> tuple[gymnasium.Env, Any]:
        """The cell's environment, and its model (None where its agent needs none); both are kept for the next call."""
        return self._open(cell), self._model(cell) if needs_model(cell.agent) else None

    def _open(self, cell: Cell) -> gymnasium.Env:
        key = (cell.env_id, repr(sorted(cell.env_kwargs.items())))
        if self._env is None or key != self._env_key:
            self.close()
            self._env, self._env_key = open_env(cell.env_id, cell.env_kwargs), key
        return self._env

    def _model(self, cell: Cell) -> Any:
        assert cell.model is not None, "cells of agents that need a model are claimed with it"
        key = (AGENTS[cell.agent].load, cell.model)
        if key not in self._models:
            self._models = {key: load_model(cell.agent, cell.model)}
        return self._models[key]

    def close(self) -> None:
        """Close the environment (and its renderer)."""
        if self._env is not None:
            self._env.close()
            self._env = None


def claim(cell: Cell) -> None:
    """Make the cell's folder, or refuse one that holds episodes of another question."""
    path, question = cell.out / "cell.json", cell.question()
    if not path.exists() or not any((cell.out / "episodes").glob("*.json")):
        write_json(path, question)
        return
    before = read_json(path)
    differing = [key for key in sorted({*before, *question}) if _told(before.get(key)) != _told(question.get(key))]
    if differing:
        told = "; ".join(f"{key}: {before.get(key)!r} there, {question.get(key)!r} asked" for key in differing)
        raise ValueError(f"{cell.out} holds episodes of another run ({told}); choose another --out or remove it")


def _told(value: Any) -> Any:
    """Without what is left open, so that a setting added since, and left open, does not make another question."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def load_episode(cell: Cell, seed: int) -> EpisodeResult | None:
    """The stored episode, or None if it has not been run (or was to be filmed, shows something, and was not)."""
    path = cell.episode_file(seed)
    if not path.exists():
        return None
    result = EpisodeResult.from_json(read_json(path))
    shows = bool(result.distances_m)  # an environment that fails to reset shows nothing
    return None if seed in cell.film and shows and not cell.video_file(seed).exists() else result


def run_cells(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    workers: int = 1,
    progress: Callable[[Cell, EpisodeResult], None] | None = None,
    ray: str | None = None,
) -> list[list[EpisodeResult]]:
    """Every cell on every seed; what is stored already is not run again.

    Args:
        cells: Each with a folder of its own.
        seeds: Shared by all cells, so that methods can be compared pairwise.
        workers: Processes, one thread each; 1 runs in this process.
        progress: Called in this process for every episode, stored ones included.
        ray: Address of a Ray cluster that shares the cells' folders, or `local`; None uses this machine's processes.

    Returns:
        Results, one list per cell, in the order of `seeds`.

    Raises:
        KeyboardInterrupt: After the running episodes were dropped; finished ones are kept.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if len(set(seeds)) != len(seeds):
        raise ValueError("the seeds must differ from one another")
    done: dict[tuple[int, int], EpisodeResult] = {}

    def finish(index: int, result: EpisodeResult) -> None:
        done[index, result.seed] = result
        if progress is not None:
            progress(cells[index], result)

    jobs: list[tuple[int, int]] = []
    for index, cell in enumerate(cells):
        claim(cell)
        for seed in seeds:
            stored = load_episode(cell, seed)
            if stored is None:
                jobs.append((index, seed))
            else:
                finish(index, stored)
    if jobs:
        if workers == 1 and ray is None:
            _run_here(cells, jobs, finish)
        else:
            _run_elsewhere(cells, jobs, workers, finish, ray)
    return [[done[index, seed] for seed in seeds] for index in range(len(cells))]


def run_episodes(
    cell: Cell,
    seeds: Sequence[int],
    workers: int = 1,
    progress: Callable[[Cell, EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """`run_cells` of one cell."""
    return run_cells([cell], seeds, workers, progress)[0]


Finish = Callable[[int, EpisodeResult], None]


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Torch on one thread: on a few shared cores, more threads are slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_here(cells: Sequence[Cell], jobs: list[tuple[int, int]], finish: Finish) -> None:
    worker = Worker()
    with single_thread():
        try:
            for index, seed in jobs:
                finish(index, worker.run(cells[index], seed))
        finally:
            worker.close()


_worker: Worker | None = None  # one per spawned process


def _run_job(job: tuple[int, Cell, int]) -> EpisodeResult:
    global _worker
    if _worker is None:
        _worker = Worker()
    return _worker.run(job[1], job[2])


def _run_elsewhere(
    cells: Sequence[Cell], jobs: list[tuple[int, int]], workers: int, finish: Finish, ray: str | None
) -> None:
    tasks = [(index, cells[index], seed) for index, seed in jobs]
    if ray is None:
        results = run_jobs(_run_job, tasks, workers, drop_running=True)
    else:
        from armworld.datasets.ray_jobs import run_ray_jobs

        results = run_ray_jobs(_run_job, tasks, workers, ray)
    with contextlib.ExitStack() as stack:
        stack.callback(getattr(results, "close", lambda: None))  # an interrupt ends the workers at once
        for (index, _, _), result in results:
            finish(index, result)
