"""The ceiling: scripted experts over seeds, per task, object and lab, with Wilson intervals.

    python benchmarks/experts.py [--seeds 200] [--first 2000000] [--minutes 15] [--level none] [--out FILE]

Nothing is drawn: the expert reads the simulator. One environment per cell serves all its seeds, since a seed's
episode does not depend on what came before, and a step that the demonstration of the same episode has simulated is
not simulated again: restored states are exact. Seeds are dealt out round by round over all cells, so that a run that
its minutes cut short has about the same number of each. `--out` gets one line of JSON per episode as it ends; the
same command again, or with more seeds, goes on where that file ends.

Two rates per cell. `success` is that of the episodes. Object tasks draw a start again where the expert's own
demonstration fails (it has no goal image then), so the second rate counts every such start as a failure of the expert:
successes / (episodes + failed demonstrations). Redraws for want of room count in neither.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("LP_NUM_THREADS", "0")  # before any OpenGL context: frames are drawn in the process itself
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
import tyro

import armworld.envs
from armworld.envs.base import ArmEnv
from armworld.envs.experts import make_expert
from armworld.envs.simulator import SavedState, Simulator
from armworld.evaluation.statistics import wilson_interval
from armworld.sim_assets.catalog import LABS, OBJECTS

Row = dict[str, Any]
KEY = ("task", "object", "lab", "level", "robot", "seed")  # what identifies an episode


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        seeds: Episodes per cell.
        first: The first seed.
        minutes: Stop after this long.
        level: Variation level.
        robot: Gripper.
        tasks: Environment ids; all by default.
        objects: The tasks' objects.
        labs: Where.
        out: Text file of episodes, one JSON object per line; read first, then appended to.
    """

    seeds: int = 200
    first: int = 2_000_000
    minutes: float = 15
    level: str = "none"
    robot: str = "robotiq_2f85"
    tasks: tuple[str, ...] = tuple(armworld.envs.IDS)
    objects: tuple[str, ...] = OBJECTS
    labs: tuple[str, ...] = LABS
    out: Path | None = None


class Memory:
    """Steps of one simulator and episode by the exact state and action that they began with."""

    def __init__(self, sim: Simulator):
        self._sim, self._simulate = sim, sim.step
        self.known: dict[tuple[bytes, ...], tuple[SavedState, np.ndarray]] = {}
        sim.step = self.step

    def step(self, action: np.ndarray) -> np.ndarray:
        """What `Simulator.step` does, by restoring its result where it is known."""
        here = self._sim.save()
        arrays = (here.physics, here.command.state, here.command.q, np.asarray(action, float))
        key = tuple(array.tobytes() for array in arrays)
        if key in self.known:
            after, applied = self.known[key]
            self._sim.restore(after)
        else:
            applied = self._simulate(action)
            self.known[key] = self._sim.save(), applied
        return applied


def run(env: gymnasium.Env, memory: Memory, seed: int) -> Row:
    """One episode of the expert."""
    started = time.process_time()
    memory.known.clear()
    observation, info = env.reset(seed=seed)
    expert = make_expert(env)
    expert.reset(info["goal"])
    draws, first, truncated = info["draws"], None, False
    for step in itertools.count(1):
        observation, _, _, truncated, info = env.step(expert.act(observation))
        first = step if first is None and info["success"] else first
        if truncated:
            break
    return {
        "success": bool(info["success"]), "first_success_step": first, "distance_m": info["distance_m"],
        "redraws": draws["redraws"], "expert_failures": draws["expert_failures"],
        "cpu_seconds": time.process_time() - started,
    }  # fmt: skip


def summary(rows: list[Row]) -> Row:
    """Numbers of one cell's episodes; intervals are at 95 %."""
    failed = [row["seed"] for row in rows if not row["success"]]
    successes, starts = len(rows) - len(failed), len(rows) + sum(row["expert_failures"] for row in rows)
    return {
        "episodes": len(rows), "successes": successes, "wilson_95": wilson_interval(successes, len(rows)),
        "starts": starts, "wilson_95_of_starts": wilson_interval(successes, starts), "failed_seeds": failed,
        "last_first_success": max((row["first_success_step"] or 0 for row in rows), default=0),
        "cpu_seconds": sum(row["cpu_seconds"] for row in rows) / max(1, len(rows)),
    }  # fmt: skip


def read(path: Path | None) -> list[Row]:
    """Episodes of an earlier run. ValueError for a line that is none; a last line cut short is left out."""
    lines = path.read_text().splitlines(keepends=True) if path is not None and path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    for row in rows:
        if missing := {*KEY, "success"} - set(row):
            raise ValueError(f"{path}: an episode without {', '.join(sorted(missing))}: {row}")
    return rows


def append_to(path: Path) -> TextIO:
    """The file, opened to append whole lines: what a killed run left of a last line is cut off."""
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0]) + len(whole[1]))
    return path.open("a")


def measure(config: Config) -> list[Row]:
    """Run what is missing of all cells; returns all episodes of the configuration, the earlier ones too."""
    rows = read(config.out)
    known = {tuple(row[key] for key in KEY) for row in rows}
    cells = list(itertools.product(config.tasks, config.objects, config.labs))
    seeds = range(config.first, config.first + config.seeds)
    wanted = [(*cell, config.level, config.robot, seed) for seed in seeds for cell in cells]
    deadline = time.monotonic() + 60 * config.minutes
    environments: dict[tuple, tuple[gymnasium.Env, Memory]] = {}
    log = append_to(config.out) if config.out else None
    for episode in wanted:
        if episode in known:
            continue
        if time.monotonic() > deadline:
            break
        task, name, lab, level, robot, seed = episode
        if episode[:3] not in environments:
            env = gymnasium.make(task, object=name, lab=lab, level=level, robot=robot, cameras=(), image_size=16)
            assert isinstance(env.unwrapped, ArmEnv)
            environments[episode[:3]] = env, Memory(env.unwrapped.simulator)
        rows.append({**dict(zip(KEY, episode, strict=True)), **run(*environments[episode[:3]], seed)})
        if log:
            log.write(json.dumps(rows[-1]) + "\n")
            log.flush()
    for env, _ in environments.values():
        env.close()
    if log:
        log.close()
    asked = set(wanted)
    return [row for row in rows if tuple(row[key] for key in KEY) in asked]


def table(rows: Iterable[Row]) -> str:
    """A Markdown table over the cells, and the totals."""
    cells: dict[tuple, list[Row]] = {}
    for row in rows:
        task = row["task"].removeprefix("armworld/").removesuffix("-v0")
        cells.setdefault((task, row["object"], row["lab"]), []).append(row)
    lines = [
        "| task | object | lab | success | 95 % (Wilson) | of all starts | 95 % (Wilson) | latest success, step "
        "| CPU s per episode | failed seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell, episodes in sorted(cells.items()):
        numbers = summary(episodes)
        low, high = numbers["wilson_95"]
        least, most = numbers["wilson_95_of_starts"]
        lines.append(
            f"| {' | '.join(cell)} | {numbers['successes']}/{numbers['episodes']} | {100 * low:.1f}–{100 * high:.1f} % "
            f"| {numbers['successes']}/{numbers['starts']} | {100 * least:.1f}–{100 * most:.1f} % "
            f"| {numbers['last_first_success']} | {numbers['cpu_seconds']:.2f} | {numbers['failed_seeds'] or ''} |"
        )
    every = summary([row for episodes in cells.values() for row in episodes])
    lines.append(f"all: {every['successes']}/{every['episodes']} episodes, {every['starts']} starts")
    return "\n".join(lines)


def main() -> None:
    print(table(measure(tyro.cli(Config, description=__doc__))))


if __name__ == "__main__":
    main()
