"""Goals for a real arm: a picture from a file, or a folder captured by driving the arm there.

A captured goal is a folder with one PNG per camera, framed as the camera's live picture, and `state.json`
(state [7]: m, rad, closedness; base frame; and the crop of the pictures). A bare picture is as a camera took it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from armworld.evaluation.files import read_json, write_json
from armworld.real.cameras import Framing, load_image
from armworld.real.gate import ACTION_UNITS, check_units, unit_reasons
from armworld.types import Goal, Observation

STATE_FILE = "state.json"


def save_goal(folder: Path, observation: Observation, crop: float | None = None) -> Path:
    """Write an observation as a goal folder, each file whole or not at all.

    `crop` is the aspect ratio that its pictures were cropped to; None: they were not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in observation.items():
        if name == "state":
            continue
        temporary = folder / f".{name}.part"
        with temporary.open("wb") as file:
            Image.fromarray(image).save(file, format="png")
        os.replace(temporary, folder / f"{name}.png")
    content = {"state": np.asarray(observation["state"], float).tolist(), "units": ACTION_UNITS, "crop": crop}
    write_json(folder / STATE_FILE, content)
    return folder


def load_goal(paths: Sequence[Path], budgets: Sequence[int], framings: Mapping[str, Framing]) -> Goal:
    """Sub-goals in order; each a goal folder, or a picture for the first camera.

    Args:
        paths: One per sub-goal.
        budgets: Steps per sub-goal; one per path.
        framings: Camera name -> how its live pictures are framed. A bare picture is framed so too; those of a goal
            folder are already, and are only scaled.

    Raises:
        ValueError: A path is neither, a picture cannot be read, a camera's picture or a number is missing, or a goal
            was captured with another crop than `framings` have.
    """
    return Goal(tuple(_observation(Path(path), framings) for path in paths), tuple(budgets))


def _observation(path: Path, framings: Mapping[str, Framing]) -> Observation:
    if path.is_file():
        first = next(iter(framings))
        return {first: framings[first].apply(load_image(path))}
    if not path.is_dir():
        raise ValueError(f"no goal at {path}: expected a picture, or a folder made by `armworld goal`")
    observation: Observation = {}
    for name, framing in framings.items():
        picture = path / f"{name}.png"
        if not picture.exists():
            have = ", ".join(sorted(p.stem for p in path.glob("*.png"))) or "none"
            raise ValueError(f"{path} has no picture of camera {name!r}; it has {have}")
        observation[name] = replace(framing, crop=None).apply(load_image(picture))
    about = path / STATE_FILE
    content = read_json(about) if about.exists() else None
    _check_crop(path, content, framings)
    if about.exists():
        observation["state"] = _state(about, content)
    return observation


def _check_crop(path: Path, content: Any, framings: Mapping[str, Framing]) -> None:
    captured = content.get("crop") if isinstance(content, dict) else None
    for name, framing in framings.items():
        if captured != framing.crop:
            was, asked = (f"a crop of {crop}" if crop else "no crop" for crop in (captured, framing.crop))
            raise ValueError(
                f"{path} was captured with {was}, and camera {name!r} now has {asked}: give the goal's "
                f"--crop {captured or 0}, or capture it again with --crop {framing.crop or 0}"
            )


def _state(path: Path, content: Any) -> np.ndarray:
    state = np.asarray(content.get("state") if isinstance(content, dict) else None, dtype=object)
    try:
        numbers = state.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold {{'state': [7 numbers]}}, got {json.dumps(content)[:80]}") from error
    if numbers.shape != (7,) or not np.isfinite(numbers).all():
        raise ValueError(f"{path} must hold 7 finite numbers, got {json.dumps(content)[:80]}")
    check_units(content.get("units", ACTION_UNITS))
    if reasons := unit_reasons(numbers):
        raise ValueError(f"{path}: " + "; ".join(text for _, text in reasons))
    return numbers
