"""A contact sheet of all scenes: `python -m armworld.envs.gallery docs/scenes.png`.

Every task with every object in both labs (its start and the goals' images), every camera and preset, both grippers,
and what the levels of variation do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from armworld.envs.base import ArmEnv
from armworld.envs.cameras import CAMERAS, PRESETS
from armworld.envs.tasks import TASKS
from armworld.sim_assets import catalog

CELL = 160  # pixels
CAPTION = 14  # pixels under each picture
HEADING = 26  # pixels above each section
GAP = 4  # pixels between pictures
COLUMNS = 10
STAGES = {1: ("goal",), 3: ("grasped", "near", "placed")}  # by the number of a task's sub-goals

Tile = tuple[str, np.ndarray]  # caption, frame [CELL, CELL, 3]


@dataclass(frozen=True)
class Section:
    """A heading and the rows under it."""

    title: str
    rows: list[list[Tile]]


def sections(seed: int = 0) -> Iterator[Section]:
    """The sheet from top to bottom."""
    for lab in catalog.LABS:
        rows = [_tasks(lab, name, seed) for name in catalog.OBJECTS]
        yield Section(f"{lab}: each task's start and goal images, camera left", rows)
    rows = [_views(lab, robot, seed) for lab in catalog.LABS for robot in catalog.ROBOTS]
    yield Section("cameras and presets, both grippers; the last two with shadows", rows)
    for level in ("jitter", "full"):
        rows = [_episodes(lab, level, seed) for lab in catalog.LABS]
        yield Section(f"level {level}: ten episodes, camera left", rows)


def _tasks(lab: str, name: str, seed: int) -> list[Tile]:
    tiles = []
    for task in TASKS:
        env = ArmEnv(task, object=name, lab=lab, image_size=CELL)
        observation, info = env.reset(seed=seed)
        env.close()
        goals = info["goal"].observations
        tiles.append((f"{task} {name}", observation["left"]))
        tiles += [(stage, goal["left"]) for stage, goal in zip(STAGES[len(goals)], goals, strict=True)]
    return tiles


def _views(lab: str, robot: str, seed: int) -> list[Tile]:
    env = ArmEnv("grasp", object="bottle", lab=lab, robot=robot, cameras=CAMERAS, image_size=CELL)
    observation, _ = env.reset(seed=seed)
    tiles = [(f"{lab} {robot} {name}" if name == "left" else name, observation[name]) for name in CAMERAS]
    for name in ("front", "left_90", "right_90", "left_30", "above"):
        env.place_camera("left", PRESETS[name])
        tiles.append((name, env.observe()["left"]))
    env.close()
    shaded = ArmEnv("grasp", "bottle", lab, robot=robot, cameras=CAMERAS[:2], image_size=CELL, shadows=True)
    observation, _ = shaded.reset(seed=seed)
    shaded.close()
    return [*tiles, *((f"{name}, shadows", observation[name]) for name in CAMERAS[:2])]


def _episodes(lab: str, level: str, seed: int) -> list[Tile]:
    env = ArmEnv("grasp", lab=lab, level=level, image_size=CELL)
    frames = [env.reset(seed=seed + episode)[0]["left"] for episode in range(COLUMNS)]
    env.close()
    return [(f"{lab} {level}, seed {seed + episode}", frame) for episode, frame in enumerate(frames)]


def sheet(parts: list[Section]) -> Image.Image:
    """The sections below one another, each picture with its caption."""
    line = CELL + CAPTION
    height = sum(HEADING + len(part.rows) * line for part in parts)
    canvas = Image.new("RGB", (COLUMNS * (CELL + GAP) - GAP, height), "white")
    pen = ImageDraw.Draw(canvas)
    top = 0
    for part in parts:
        pen.text((4, top + 5), part.title, fill="black", font_size=15)
        top += HEADING
        for row in part.rows:
            for column, (caption, frame) in enumerate(row):
                left = column * (CELL + GAP)
                canvas.paste(Image.fromarray(frame), (left, top))
                pen.text((left + 2, top + CELL + 1), caption, fill="black", font_size=10)
            top += line
    return canvas


def main() -> None:
    """Write the sheet to the path given as the only argument."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m armworld.envs.gallery OUT.png")
    out = Path(sys.argv[1])
    temporary = out.with_suffix(".tmp.png")
    sheet(list(sections())).save(temporary, optimize=True)
    temporary.replace(out)


if __name__ == "__main__":
    main()
