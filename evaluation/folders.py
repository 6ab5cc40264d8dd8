"""What a folder holds: a command refuses a bad `--out` at once, and writes over no other's results."""

from __future__ import annotations

from pathlib import Path

from armworld.evaluation.files import read_json
from armworld.types import check_folder

# What a folder holds, and the paths in it that tell; the first that is found counts. Runs that were interrupted have
# their cells only.
HOLDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a dataset", ("card.json", "meta/info.json", "*/success", "*/failure")),
    ("a checkpoint", ("model.safetensors",)),
    ("a training run", ("metrics.jsonl",)),
    ("a deployment's log", ("journal.jsonl",)),
    ("a goal", ("state.json",)),
    ("results of report", ("report.json",)),
    ("results of doctor", ("doctor.json", "planner/*/cell.json")),
    ("results of landscape", ("landscape.json",)),
    ("results of preflight", ("preflight.json",)),
    ("results of sweep horizon", ("cells/horizon_*/cell.json",)),
    ("results of sweep camera", ("views/*/look.json", "views/*/*/cell.json")),
    ("results of evaluate", ("table.md", "cells/*/*/*/*/cell.json", "cells/*/*/*/*/*/cell.json")),
    ("results of plan", ("results.json", "cells/*/cell.json")),
)


def held_by(folder: Path) -> str | None:
    """What `folder` holds, in words; None where it is not there or holds nothing that is known."""
    if (folder / "sweep.json").is_file():  # a horizon study without planning has no cells
        return f"results of sweep {read_json(folder / 'sweep.json').get('study')}"
    return next((what for what, marks in HOLDINGS if any(any(folder.glob(mark)) for mark in marks)), None)


def check_out(out: Path, verb: str) -> None:
    """`check_folder`, and a ValueError where `out` holds anything but results of the same verb, which it may go on."""
    check_folder("out", out)
    what = held_by(out)
    if what not in (None, f"results of {verb}"):
        raise ValueError(f"--out {out} holds {what}, which {verb} would write over; give another folder")
