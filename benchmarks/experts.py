"""The ceiling: scripted experts over seeds, per task, object and lab, with Wilson intervals.

    python benchmarks/experts.py [--seeds 200] [--first 2000000] [--minutes 15] [--level none] [--out FILE]

No camera is drawn but the goal's, at 16 pixels. Seeds are dealt out round by round over all cells, so that a run that
its minutes cut short has about the same number of each. A start is drawn again where the expert's own demonstration
fails (it has no goal image); such redraws are counted too, among those for want of room.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("LP_NUM_THREADS", "0")  # before any OpenGL context: frames are drawn in the process itself
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import tyro

import armworld.envs
from armworld.envs.experts import make_expert
from armworld.evaluation.statistics import wilson_interval
from armworld.sim_assets.catalog import LABS, OBJECTS


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
        out: JSON file to write.
    """

    seeds: int = 200
    first: int = 2_000_000
    minutes: float = 15
    level: str = "none"
    robot: str = "robotiq_2f85"
    tasks: tuple[str, ...] = tuple(armworld.envs.IDS)
    out: Path | None = None


@dataclass
class Cell:
    """The episodes of one task, object and lab."""

    env: gymnasium.Env
    episodes: int = 0
    failed: list[int] = field(default_factory=list)
    redraws: int = 0

    def run(self, seed: int) -> None:
        """One episode of the expert."""
        observation, info = self.env.reset(seed=seed)
        expert = make_expert(self.env)
        expert.reset(info["goal"])
        truncated = False
        while not truncated:
            observation, _, _, truncated, info = self.env.step(expert.act(observation))
        self.episodes += 1
        self.redraws += info["draws"]["redraws"]
        if not info["success"]:
            self.failed.append(seed)

    def summary(self) -> dict[str, Any]:
        """Numbers of the cell; the interval is at 95 %."""
        successes = self.episodes - len(self.failed)
        interval = wilson_interval(successes, self.episodes)
        return {
            "episodes": self.episodes, "successes": successes, "wilson_95": list(interval),
            "redraws_per_episode": self.redraws / max(1, self.episodes), "failed_seeds": self.failed,
        }  # fmt: skip


def measure(config: Config) -> dict[str, Any]:
    """Run all cells and print a table."""
    names = list(itertools.product(config.tasks, OBJECTS, LABS))
    cells = {
        name: Cell(
            gymnasium.make(
                name[0], object=name[1], lab=name[2], level=config.level, robot=config.robot, cameras=(), image_size=16
            )
        )
        for name in names
    }
    deadline = time.monotonic() + 60 * config.minutes
    for seed, name in itertools.product(range(config.first, config.first + config.seeds), names):
        if time.monotonic() > deadline:
            break
        cells[name].run(seed)
    results = {" ".join(name): cell.summary() for name, cell in cells.items() if cell.episodes}
    for name, row in results.items():
        low, high = row["wilson_95"]
        print(
            f"| {name.removeprefix('armworld/').replace('-v0 ', ' | ', 1)} | {row['successes']}/{row['episodes']} "
            f"| {100 * low:.1f}–{100 * high:.1f} % | {row['redraws_per_episode']:.2f} | {row['failed_seeds']} |",
            flush=True,
        )
    totals = Counter({"episodes": sum(r["episodes"] for r in results.values())})
    totals["successes"] = sum(r["successes"] for r in results.values())
    print(f"all: {totals['successes']}/{totals['episodes']}")
    return {"config": {"level": config.level, "robot": config.robot, "first": config.first}, "cells": results}


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    result = measure(config)
    if config.out:
        config.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
