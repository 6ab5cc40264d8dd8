"""Videos with a class each, split into training and test: our episodes, or folders laid out as Something-Something v2.

Something-Something v2: `labels.json` (class template -> number), `train.json` and `validation.json` (lists of
{"id", "template", ...}, whatever precedes these names), and one video per id somewhere below.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armworld.types import check_name
from armworld.worldmodel.clip_sources import VIDEO_SUFFIXES, ClipError, find_files

EPISODE_TARGETS = ("behaviour", "object", "direction", "task", "lab", "success")
SPLITS = ("episode", "scene")
DIRECTIONS = (("forward", "back"), ("left", "right"), ("up", "down"))  # along x, y, z of the base frame


@dataclass(frozen=True)
class LabelledVideo:
    """A video, its class, and on which side of the split it is."""

    path: Path
    label: str
    test: bool


def episode_videos(
    data: Sequence[Path],
    target: str,
    camera: str,
    held_out: float,
    generator: np.random.Generator,
    split: str = "episode",
    test_data: Sequence[Path] = (),
) -> list[LabelledVideo]:
    """Recorded episodes, labelled by what was recorded; each is on one side of the split only.

    Args:
        data: Dataset folders.
        target: behaviour, object, task, lab or success, by the metadata; or direction, the one of six in which the
            hand ends furthest from where it began.
        camera: Whose video.
        held_out: Share of each class's episodes, or scenes, kept for the test (at least one).
        generator: Draws which.
        split: By "episode" (one rendered again goes with its source), or by "scene": all episodes of a scene_id of the
            metadata (a lab, in our data) together.
        test_data: Dataset folders that are the whole test, in place of a share of `data`.

    Raises:
        ValueError: An unknown target or camera, a metadata file without the label, or a class of one episode or scene.
    """
    check_name("split", split, SPLITS)
    labelled = _labelled(data, target, camera, split)
    if not test_data:
        return _split(labelled, held_out, generator)
    tested = _labelled(test_data, target, camera, split)
    if both := {place for _, _, place in labelled} & {place for _, _, place in tested}:
        raise ValueError(f"the same {split} in data and in test_data: {min(both)}")
    sides = ((False, labelled), (True, tested))
    return [LabelledVideo(path, label, test) for test, videos in sides for path, label, _ in videos]


def _labelled(data: Sequence[Path], target: str, camera: str, split: str) -> list[tuple[Path, str, str]]:
    """(video, class, place: episode or scene) of all episodes."""
    from armworld.datasets.clips import episode_folders
    from armworld.datasets.store import recording_of
    from armworld.datasets.trajectory import read_trajectory

    check_name("probe target", target, EPISODE_TARGETS)
    labelled: list[tuple[Path, str, str]] = []
    for folder in episode_folders(list(data)):
        trajectory = read_trajectory(folder)
        check_name(f"camera of {folder}", camera, trajectory.videos)
        if target == "direction":
            label = main_direction(trajectory.states)
        else:
            label = _episode_label(folder, trajectory.metadata, target)
        place = recording_of(folder) if split == "episode" else _scene(folder, trajectory.metadata)
        labelled.append((trajectory.videos[camera], label, place))
    return labelled


def main_direction(states: np.ndarray) -> str:
    """The direction in which the hand ends furthest from its start, of states [T, 7] (m, base frame)."""
    moved = states[-1, :3] - states[0, :3]
    axis = int(np.abs(moved).argmax())
    return DIRECTIONS[axis][int(moved[axis] < 0)]


def _scene(folder: Path, metadata: dict[str, Any]) -> str:
    if metadata.get("scene_id") is None:
        raise ValueError(f"{folder}: its metadata have no scene_id; split by episode")
    return str(metadata["scene_id"])


def _episode_label(folder: Path, metadata: dict[str, Any], target: str) -> str:
    simulation = metadata.get("simulation")
    simulation = simulation if isinstance(simulation, dict) else {}
    found = {
        "behaviour": simulation.get("behaviour"),
        "object": simulation.get("object"),
        "task": metadata.get("current_task"),
        "lab": metadata.get("lab"),
        "success": metadata.get("success"),
    }[target]
    if found is None:
        raise ValueError(f"{folder}: its metadata do not say the {target}; probe another target")
    return str(found)


def _split(
    labelled: Sequence[tuple[Path, str, str]], held_out: float, generator: np.random.Generator
) -> list[LabelledVideo]:
    """Split (video, class, place) by place, which is tested with all its videos if drawn for any of its classes."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie strictly between 0 and 1, got {held_out}")
    tested: set[str] = set()
    for label in sorted({label for _, label, _ in labelled}):
        places = sorted({place for _, own, place in labelled if own == label})
        left = [place for place in places if place not in tested]
        if len(places) < 2 or not left:
            raise ValueError(f"class {label!r} has one episode or scene; training and test need one each")
        count = min(max(1, round(held_out * len(places))), len(places) - 1) - (len(places) - len(left))
        tested.update(generator.permutation(left)[: max(count, 0)].tolist())
    return [LabelledVideo(path, label, place in tested) for path, label, place in labelled]


def something_videos(folder: Path) -> list[LabelledVideo]:
    """Videos of a folder laid out as Something-Something v2, with its own split.

    Raises:
        ClipError: No videos there, or a listed one is missing.
        ValueError: A missing or malformed list, or a template that labels.json does not name.
    """
    videos = {path.stem: path for path in find_files(folder, VIDEO_SUFFIXES, "videos")}
    classes = _read(_one(folder, "labels.json"), dict)
    found = []
    for name, test in (("train.json", False), ("validation.json", True)):
        path = _one(folder, name)
        for entry in _read(path, list):
            if not isinstance(entry, dict) or "id" not in entry or "template" not in entry:
                raise ValueError(f'{path}: expected entries with "id" and "template", got {entry!r}')
            label = str(entry["template"]).replace("[", "").replace("]", "")
            if label not in classes:
                raise ValueError(f"{path}: video {entry['id']} has the template {label!r}, which labels.json lacks")
            if str(entry["id"]) not in videos:
                raise ClipError(f"{path} lists video {entry['id']}, but no such video is below {folder}")
            found.append(LabelledVideo(videos[str(entry["id"])], label, test))
    return found


def _one(folder: Path, name: str) -> Path:
    """The one file below the folder whose name ends so."""
    found = sorted(path for path in folder.rglob(f"*{name}") if path.is_file())
    if len(found) != 1:
        raise ValueError(f"{folder}: expected one file *{name}, found {[str(path) for path in found] or 'none'}")
    return found[0]


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} holds no valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def thin_out(videos: list[LabelledVideo], most: int | None, generator: np.random.Generator) -> list[LabelledVideo]:
    """At most that many videos, drawn without replacement, in their order."""
    if most is None or len(videos) <= most:
        return videos
    return [videos[i] for i in sorted(generator.permutation(len(videos))[:most])]
