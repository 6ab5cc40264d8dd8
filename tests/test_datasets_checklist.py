"""The checklist of the public V-JEPA 2 DROID loader, over a collected folder of 50 episodes; faults named by everyone.

The loader's steps are redone here with decord, in our own words: a folder that passes is read by it unmodified.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armworld.datasets.clips import ClipDataset, load_frames
from armworld.datasets.collect import CollectConfig, collect
from armworld.datasets.commands import ValidateConfig, run_validate
from armworld.datasets.droid import camera_serial, find_episodes
from armworld.datasets.episode import EpisodeError
from armworld.datasets.features import build_feature_cache
from armworld.datasets.trajectory import actions_of
from armworld.pose import euler_to_matrix, matrix_to_euler

sys.path.insert(0, str(Path(__file__).parent))
import datasets_fake  # noqa: F401  registers the pretend arm
from datasets_helpers import edit_array, open_h5, quarters, write_dataset

CLIP = 8
LOADER_HZ = 4  # what the published configuration asks for


def collected(out: Path, episodes: int, step_seconds: float, steps: int) -> Path:
    collect(
        CollectConfig(
            out, episodes=episodes, workers=1, steps=steps, image_size=64, cameras=("left", "right", "wrist"),
            task="datasets_fake:fake/Arm-v0", step_seconds=step_seconds,
        )
    )  # fmt: skip
    return out


def public_loader_reads(episode: str, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the public loader makes of a line of its index: a clip, states, actions and extrinsics."""
    decord = pytest.importorskip("decord")
    (name,) = [file for file in os.listdir(episode) if file.endswith(".json")]
    metadata = json.loads(Path(episode, name).read_text())
    video = Path(episode, "recordings/MP4", metadata["left_mp4_path"].split("recordings/MP4/")[-1])
    reader = decord.VideoReader(str(video), num_threads=-1, ctx=decord.cpu(0))
    stride = math.ceil(reader.get_avg_fps() / LOADER_HZ)
    assert len(reader) > CLIP * stride, "it would draw another sample instead"
    rows = np.arange(first, first + CLIP * stride)[::stride]
    with open_h5(Path(episode, "trajectory.h5")) as file:
        pose = np.array(file["observation"]["robot_state"]["cartesian_position"])
        gripper = np.array(file["observation"]["robot_state"]["gripper_position"])[:, None]
        camera = np.array(file["observation"]["camera_extrinsics"][f"{video.stem}_left"])
        assert len(pose) == len(gripper) == len(camera) == len(reader) == metadata["trajectory_length"]
    states = np.concatenate([pose, gripper], 1)[rows]
    turns = euler_to_matrix(states[:, 3:6])
    change = matrix_to_euler(turns[1:] @ np.swapaxes(turns[:-1], 1, 2))
    moves, closing = np.diff(states[:, :3], axis=0), np.diff(states[:, 6:], axis=0)
    return reader.get_batch(rows).asnumpy(), states, np.concatenate([moves, change, closing], 1), camera[rows]


@pytest.mark.parametrize(
    ("episodes", "step_seconds", "steps"), [(50, 0.25, 12), (5, 0.05, 40)], ids=["50 at 4 Hz", "5 at 20 Hz"]
)
def test_folders_pass_the_public_loader_s_checklist(
    tmp_path: Path, episodes: int, step_seconds: float, steps: int
) -> None:
    pytest.importorskip("decord")
    root = collected(tmp_path / "data", episodes, step_seconds, steps)
    lines = (root / "index.csv").read_text().splitlines()
    assert len(lines) == len(set(lines)) == episodes and not any(" " in line for line in lines)
    assert [Path(line) for line in lines] == find_episodes(root) and all(Path(line).is_absolute() for line in lines)
    ours = ClipDataset(root, frames=CLIP, step_seconds=0.25)
    per_episode = len(ours) // episodes
    uuids = set()
    for number, line in enumerate(lines):
        assert len(list(Path(line).rglob("*.mp4"))) == 3
        uuids.add(json.loads(next(Path(line).glob("*.json")).read_text())["uuid"])
        first = number % per_episode
        frames, states, actions, extrinsics = public_loader_reads(line, first)
        clip = ours[number * per_episode + first]
        assert frames.shape == (CLIP, 64, 64, 3) and clip["episode"] == line and clip["row"] == first
        assert np.abs(frames.astype(int) - clip["frames"]).mean() < 4, "decoders round colours differently"
        np.testing.assert_allclose(states, clip["states"], atol=1e-6)
        np.testing.assert_allclose(actions, clip["actions"], atol=1e-6)
        np.testing.assert_allclose(actions, actions_of(states)[:-1], atol=1e-9)
        np.testing.assert_allclose(extrinsics, clip["extrinsics"], atol=1e-6)
    assert len(uuids) == episodes


def test_packed_clips_equal_those_from_video(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3, rows=9)
    for size in (None, 32):
        video, packed = (ClipDataset(tmp_path, 3, 0.5, image_size=size, packed=p) for p in (False, True))
        assert len(video) == len(packed)
        for index in range(len(video)):
            one, other = video[index], packed[index]
            for key in ("frames", "states", "actions", "extrinsics"):
                np.testing.assert_array_equal(one[key], other[key])
            assert (one["episode"], one["row"]) == (other["episode"], other["row"])


STATE = "observation/robot_state"


def cut_video(folder: Path, other: Path) -> None:
    path = folder / f"recordings/MP4/{camera_serial('left')}.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def take_uuid(folder: Path, other: Path) -> None:
    name = next(other.glob("*.json"))
    next(folder.glob("*.json")).unlink()
    (folder / name.name).write_bytes(name.read_bytes())


def change(key: str, how: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path, Path], None]:
    return lambda folder, other: edit_array(folder, key, how)


FAULTS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "truncated MP4": (cut_video, f"{camera_serial('left')}.mp4"),
    "h5 without a key": (change(f"{STATE}/gripper_position", lambda a: None), "gripper_position is missing"),
    "wrong dtype": (change(f"{STATE}/cartesian_position", lambda a: a.astype(np.int64)), "dtype int64"),
    "doubled uuid": (take_uuid, "is also that of"),
    "NaN state": (change(f"{STATE}/cartesian_position", lambda a: np.where(a > 0.4, np.nan, a)), "NaN"),
    "clock": (change("observation/timestamp/control/step_start", lambda a: a[::-1]), "does not increase"),
}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "clips": lambda root: [clip for clip in map(ClipDataset(root, frames=4).__getitem__, range(27))],
    "packed clips": lambda root: ClipDataset(root, frames=4, packed=True),
    "packed frames": lambda root: load_frames(root),
    "features": lambda root: build_feature_cache(root, quarters, {}, root / "features", progress=None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_by_validate_and_by_every_loader(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture
) -> None:
    first, bad, _ = write_dataset(tmp_path, 3)
    load_frames(tmp_path, out=tmp_path / "before")  # packed while all was well: no excuse to go on with it
    damage, message = FAULTS[fault]
    damage(bad, first)
    assert run_validate(ValidateConfig(tmp_path)) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if message in line]
    assert lines and all(line.startswith(str(bad)) for line in lines)
    for name, load in [*LOADERS.items(), ("packed before", lambda root: load_frames(root, out=tmp_path / "before"))]:
        with pytest.raises(EpisodeError, match=message) as caught:
            load(tmp_path)
        assert str(bad) in str(caught.value), name
