"""Journals made into episodes."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from armworld.real.journal import Journal, finish

ZEROS = [0.0] * 7
ROW = {name: ZEROS for name in ("executed", "joints", "velocities", "proposed", "allowed", "target")}
ROW |= {"verdict": "allow", "reasons": [], "admitted": True, "time_s": 0.0, "latency": {}}


def written(folder: Path, started: str, steps: int) -> Path:
    header: dict[str, Any] = {"started": started, "cameras": {"left": [32, 32]}, "extrinsics": {"left": [0.0] * 6}}
    header |= {"step_seconds": 0.25, "lab": "lab1", "task": "reach", "robot": "none"}
    journal = Journal(folder, header)
    for step in range(steps):
        row = {**ROW, "state": [0.4 + 0.01 * step, 0, 0.3, 3.1, 0, 0, 0]}
        journal.write(row, {"left": np.zeros((32, 32, 3), np.uint8)})
    journal.close()
    return folder


def test_two_episodes_of_the_same_second_are_both_kept(tmp_path: Path) -> None:
    first = written(tmp_path / "a", "2026-01-02T03:04:05.100000+00:00", 2)
    second = written(tmp_path / "b", "2026-01-02T03:04:05.900000+00:00", 3)
    folders = [finish(folder, tmp_path / "droid") for folder in (first, second, first, second)]
    assert folders[:2] == folders[2:] and folders[1].name == folders[0].name + "-2"
    about = [json.loads(next(folder.glob("metadata_*.json")).read_text()) for folder in folders[:2]]
    assert [one["trajectory_length"] for one in about] == [2, 3]
    assert len({one["uuid"] for one in about}) == 2
