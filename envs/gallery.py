"""A contact sheet of all scenes: `python -m armworld.envs.gallery docs/scenes.png`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from armworld.envs.base import ArmEnv
from armworld.envs.randomization import LEVELS
from armworld.envs.tasks import TASKS
from armworld.sim_assets import catalog

CELL = 160  # pixels
MARGIN = 14  # pixels of caption under each picture


def tiles(seed: int = 0) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Rows of (caption, frame [CELL, CELL, 3]): every task with each object, then labs, levels, robots and cameras."""
    for task in TASKS:
        for name in catalog.OBJECTS:
            env = ArmEnv(task=task, object=name, image_size=CELL, cameras=("left", "wrist"))
            observation, info = env.reset(seed=seed)
            goals = [(f"goal {i + 1}", view["left"]) for i, view in enumerate(info["goal"].observations)]
            start = [(f"{task} {name}", observation["left"]), ("wrist", observation["wrist"])]
            env.close()
            yield [*start, *goals]
    for lab in catalog.LABS:
        for robot in catalog.ROBOTS:
            for level in LEVELS:
                yield list(_looks(lab, robot, level, seed))


def _looks(lab: str, robot: str, level: str, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    cameras = ("left", "right", "wrist")
    env = ArmEnv("grasp", lab=lab, robot=robot, level=level, cameras=cameras, image_size=CELL)
    for episode in range(2 if level == "none" else 3):
        observation, _ = env.reset(seed=seed + episode)
        for camera in cameras if episode == 0 else cameras[:1]:
            yield f"{lab} {robot} {level} {camera}", observation[camera]
    env.close()


def sheet(rows: list[list[tuple[str, np.ndarray]]], columns: int = 10) -> Image.Image:
    """The pictures in reading order, each with its caption."""
    flat = [tile for row in rows for tile in row]
    height = -(-len(flat) // columns)
    canvas = Image.new("RGB", (columns * CELL, height * (CELL + MARGIN)), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (caption, frame) in enumerate(flat):
        x, y = index % columns * CELL, index // columns * (CELL + MARGIN)
        canvas.paste(Image.fromarray(frame), (x, y))
        pen.text((x + 2, y + CELL + 1), caption, fill="black", font_size=9)
    return canvas


def main() -> None:
    """Write the sheet to the path given as the only argument."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m armworld.envs.gallery OUT.png")
    out = Path(sys.argv[1])
    temporary = out.with_suffix(".tmp.png")
    sheet(list(tiles())).save(temporary)
    temporary.replace(out)


if __name__ == "__main__":
    main()
