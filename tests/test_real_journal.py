"""Journals made into episodes."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from armworld.datasets.trajectory import read_episode
from armworld.real.journal import Journal, JournalError, finish, read_journal

ZEROS = [0.0] * 7
ROW = {name: ZEROS for name in ("executed", "joints", "velocities", "proposed", "allowed", "target")}
ROW |= {"verdict": "allow", "reasons": [], "admitted": True, "time_s": 0.0, "latency": {}}


def written(folder: Path, started: str, steps: int, refused: tuple[int, ...] = ()) -> Path:
    """A journal, in which the observations of some steps were not admitted."""
    header: dict[str, Any] = {"started": started, "cameras": {"left": [32, 32]}, "lab": "lab1"}
    header |= {"step_seconds": 0.25, "task": "reach", "robot": "none"}
    journal = Journal(folder, header)
    for step in range(steps):
        row = {**ROW, "step": step, "state": [0.4 + 0.01 * step, 0, 0.3, 3.1, 0, 0, 0]}
        if step in refused:
            row |= {"admitted": False, "executed": None}
        journal.write(row, {"left": np.full((32, 32, 3), 0 if step in refused else 100 + step, np.uint8)})
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


@pytest.mark.parametrize(
    ("refused", "kept", "success"),
    [
        ((), range(9), True),
        ((0, 1), range(2, 9), True),
        ((8,), range(8), True),  # nothing was executed after it
        ((2, 4), range(5, 9), True),
        ((6,), range(6), False),  # how it went on is left out
    ],
)
def test_an_episode_is_the_longest_stretch_that_was_admitted(
    tmp_path: Path, refused: tuple[int, ...], kept: range, success: bool
) -> None:
    log = written(tmp_path / "log", "2026-01-02T03:04:05+00:00", 9, refused)
    folder = finish(log, tmp_path / "droid", success=True)
    assert folder.parent.parent.name == ("success" if success else "failure")
    episode = read_episode(folder)
    np.testing.assert_allclose(episode.states[:, 0], 0.4 + 0.01 * np.array(kept))
    np.testing.assert_allclose(episode.frames["left"].mean((1, 2, 3)), 100 + np.array(kept), atol=2)  # a film's loss
    assert not np.asarray(episode.extrinsics["left"]).any()
    with h5py.File(folder / "trajectory.h5") as file:
        assert list(file["deployment/step"]) == list(kept)  # type: ignore[arg-type]
    assert len(read_journal(log)[1]) == 9


def test_a_log_without_two_admitted_rows_in_succession_is_no_episode(tmp_path: Path) -> None:
    log = written(tmp_path / "log", "2026-01-02T03:04:05+00:00", 4, (1, 3))
    with pytest.raises(JournalError, match="1 admitted rows in succession; an episode needs two"):
        finish(log, tmp_path / "droid")
    (gone := written(tmp_path / "gone", "2026-01-02T03:04:05+00:00", 3)).joinpath("frames/left/000001.png").unlink()
    with pytest.raises(JournalError, match=r"row 1: camera 'left' needs a picture \(32, 32, 3\), got none"):
        finish(gone, tmp_path / "droid")
