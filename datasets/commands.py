"""The command line's verbs over dataset folders: `validate`, `inspect`, `export`, `import`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from armworld.datasets.inspect import inspect
from armworld.datasets.lerobot import export_lerobot
from armworld.datasets.lerobot_import import import_lerobot
from armworld.datasets.real_droid import SOURCE_LICENCE, import_droid, summary
from armworld.datasets.validate import validate
from armworld.datasets.video import check_image_size
from armworld.evaluation.files import read_json
from armworld.types import check_numbers


@dataclass(frozen=True)
class ValidateConfig:
    """Check every episode of a dataset.

    Attributes:
        directory: Dataset folder.
        repair: Set bad episodes aside in `.quarantine/`, then write card and index anew.
        decode: Decode every frame of every video.
    """

    directory: tyro.conf.Positional[Path]
    repair: bool = False
    decode: bool = True


@dataclass(frozen=True)
class InspectConfig:
    """Write a page about a dataset.

    Attributes:
        directory: Dataset folder.
        out: The page; by default `inspect.html` in the folder.
        samples: Episodes whose video is shown.
    """

    directory: tyro.conf.Positional[Path]
    out: Path | None = None
    samples: int = 8

    def __post_init__(self) -> None:
        check_numbers(self, "samples", least=0)


@dataclass(frozen=True)
class ExportConfig:
    """Write a dataset in another format.

    Attributes:
        directory: Dataset folder in DROID raw.
        out: New folder.
        format: The format.
    """

    directory: tyro.conf.Positional[Path]
    out: Path
    format: Literal["lerobot"] = "lerobot"


@dataclass(frozen=True)
class ImportConfig:
    """Read foreign episodes into a dataset folder of ours.

    Attributes:
        directory: Folder of the foreign data.
        out: Dataset folder to write.
        format: droid (real DROID folders, raw) or lerobot (v3.0).
        step_seconds: Time per row of the result; by default the data's own. DROID only.
        image_size: Side of the frames; by default the data's own. DROID only.
        camera: Keep this camera only: left, right or wrist. DROID only.
        poses: JSON file, camera name -> x, y, z (m), roll, pitch, yaw (rad) in the base frame. LeRobot datasets that
            are not ours only.
        licence: Of the data, for the card; by default that of the source.
        pose_state: The state's seven numbers are x, y, z (m), roll, pitch, yaw (extrinsic-xyz rad) of panda_link8 in
            the base frame and the closedness, though they are called otherwise. LeRobot datasets that are not ours
            only.
    """

    directory: tyro.conf.Positional[Path]
    out: Path
    format: Literal["droid", "lerobot"] = "droid"
    step_seconds: float | None = None
    image_size: int | None = None
    camera: str | None = None
    poses: Path | None = None
    licence: str | None = None
    pose_state: bool = False

    def __post_init__(self) -> None:
        droid = {name: getattr(self, name) for name in ("step_seconds", "image_size", "camera")}
        stray = [name for name, value in droid.items() if value is not None] if self.format == "lerobot" else []
        if self.format == "droid":
            stray = [name for name in ("poses", "pose_state") if getattr(self, name)]
        if stray:
            raise ValueError(f"{', '.join(stray)} cannot be set for the format {self.format}")
        check_numbers(self, "step_seconds", above=0, most=10)
        check_image_size(self.image_size)


def run_validate(config: ValidateConfig) -> int:
    """Print one line per problem; exit code 1 where there is any."""
    problems = validate(config.directory, config.repair, config.decode)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems" if problems else "no problems", file=sys.stderr)
    return int(bool(problems))


def run_inspect(config: InspectConfig) -> int:
    """Write the page and print its path."""
    print(inspect(config.directory, config.out, config.samples))
    return 0


def run_export(config: ExportConfig) -> int:
    """Export and print the new folder."""
    print(export_lerobot(config.directory, config.out))
    return 0


def run_import(config: ImportConfig) -> int:
    """Import and print what was taken and what was refused."""
    if config.format == "lerobot":
        poses = read_json(config.poses) if config.poses else None
        if not isinstance(poses, dict | None):
            raise ValueError(f"{config.poses} must hold an object, camera name -> 6 numbers, got {poses!r}")
        print(import_lerobot(config.directory, config.out, poses, config.licence, config.pose_state))
        return 0
    refused = import_droid(
        config.directory,
        config.out,
        config.step_seconds,
        config.image_size,
        config.camera,
        config.licence or SOURCE_LICENCE,
    )
    print(summary(refused, config.out))
    return int(bool(refused))
