"""DROID raw: the layout's checklist, round trips, and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from armworld.datasets import files
from armworld.datasets.card import index_text
from armworld.datasets.droid import episode_name, find_episodes, write_episode
from armworld.datasets.episode import EpisodeError
from armworld.datasets.files import DiskFull, clear_partial, exclusive
from armworld.datasets.trajectory import actions_of, read_episode, read_metadata, read_trajectory
from armworld.datasets.video import VideoError, count_frames, read_video, write_video
from armworld.pose import euler_to_matrix

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import make_episode, open_h5, smooth_frames, tree_bytes, write_dataset

METADATA = [
    "uuid", "lab", "user", "user_id", "date",
    "timestamp", "hdf5_path", "building", "scene_id", "success",
    "robot_serial", "droid_version", "current_task", "trajectory_length", "wrist_cam_serial",
    "wrist_cam_extrinsics", "ext1_cam_serial", "ext1_cam_extrinsics", "ext2_cam_serial", "ext2_cam_extrinsics",
    "wrist_svo_path", "wrist_mp4_path", "ext1_svo_path", "ext1_mp4_path", "ext2_svo_path",
    "ext2_mp4_path", "left_mp4_path", "right_mp4_path",
]  # fmt: skip
ARRAYS = {
    "observation/robot_state/cartesian_position": (6,),
    "observation/robot_state/gripper_position": (),
    "observation/robot_state/joint_positions": (7,),
    "observation/robot_state/joint_velocities": (7,),
    "action/cartesian_position": (6,),
    "action/cartesian_velocity": (6,),
    "action/gripper_position": (),
    "action/gripper_velocity": (),
    "action/joint_position": (7,),
    "action/joint_velocity": (7,),
    "action/target_cartesian_position": (6,),
    "action/target_gripper_position": (),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_episode(tmp_path, make_episode(7, cameras=("left", "right", "wrist"), success=True))


def test_folder_layout(tmp_path: Path, folder: Path) -> None:
    lab, outcome, date, _ = folder.relative_to(tmp_path).parts
    assert (lab, outcome) == ("lab1", "success")
    year, month, day = date.split("-")
    assert (len(year), len(month), len(day)) == (4, 2, 2)
    assert " " not in str(folder.relative_to(tmp_path))
    metadata = read_metadata(folder)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    videos = {f"recordings/MP4/{serial}.mp4" for serial in metadata["cameras"].values()}
    assert names == {f"metadata_{metadata['uuid']}.json", "trajectory.h5"} | videos
    assert len(videos) == 3


def test_metadata_keys_and_paths(tmp_path: Path, folder: Path) -> None:
    metadata = read_metadata(folder)
    assert set(METADATA) <= set(metadata)
    assert metadata["trajectory_length"] == 12 and metadata["success"] is True
    for key in [key for key in METADATA if key.endswith("mp4_path")] + ["hdf5_path"]:
        assert (tmp_path / "lab1" / metadata[key]).is_file(), key  # relative to the lab folder
    assert "recordings/MP4/" in metadata["left_mp4_path"]
    y = {Path(metadata[f"{r}_mp4_path"]).stem: metadata[f"{r}_cam_extrinsics"][1] for r in ("ext1", "ext2")}
    assert y[Path(metadata["left_mp4_path"]).stem] > y[Path(metadata["right_mp4_path"]).stem]


def test_rates_are_stated(folder: Path) -> None:
    metadata = read_metadata(folder)
    rates = {key: metadata[key] for key in ("control_hz", "frame_hz", "video_header_fps", "step_seconds")}
    assert rates == {"control_hz": 4.0, "frame_hz": 4.0, "video_header_fps": 4.0, "step_seconds": 0.25}


def test_trajectory_arrays(folder: Path) -> None:
    metadata = read_metadata(folder)
    with open_h5(folder / "trajectory.h5") as file:
        for key, shape in ARRAYS.items():
            assert file[key].shape == (12, *shape) and file[key].dtype == np.float64, key
        for name, serial in metadata["cameras"].items():
            assert file[f"observation/camera_extrinsics/{serial}_left"].shape == (12, 6)
            assert set(file[f"observation/camera_type/{serial}"][()]) == {0 if name == "wrist" else 1}
        for kind in ("control", "cameras", "robot_state"):
            assert len(file[f"observation/timestamp/{kind}"]) > 0
            for times in file[f"observation/timestamp/{kind}"].values():
                assert (np.diff(times[()]) == 250).all() and times.dtype == np.int64  # ms
        gripper = file["observation/robot_state/gripper_position"][()]
        assert gripper.min() >= 0 and gripper.max() <= 1


def test_what_the_public_loader_reads(tmp_path: Path, folder: Path) -> None:
    """The published V-JEPA 2 loader's steps, through decord: index, the one json, left video, poses, stride."""
    decord = pytest.importorskip("decord")
    (tmp_path / "index.csv").write_text(index_text([folder]))
    episode = (tmp_path / "index.csv").read_text().split("\n")[0].split(" ")[0]
    (name,) = [file for file in os.listdir(episode) if file.endswith(".json")]
    metadata = json.loads(Path(episode, name).read_text())
    video = Path(episode, "recordings/MP4", metadata["left_mp4_path"].split("recordings/MP4/")[-1])
    reader = decord.VideoReader(str(video), num_threads=1, ctx=decord.cpu(0))
    stride = math.ceil(reader.get_avg_fps() / 4)
    assert stride == 1 and len(reader) == 12 > 8 * stride
    frames = reader.get_batch(list(range(0, 8 * stride, stride))).asnumpy()
    original = make_episode(7, cameras=("left", "right", "wrist"))
    assert np.abs(frames.astype(int) - original.frames["left"][:8]).mean() < 4
    with open_h5(Path(episode, "trajectory.h5")) as file:
        pose = np.asarray(file["observation"]["robot_state"]["cartesian_position"])
        camera = file["observation"]["camera_extrinsics"][f"{video.stem}_left"]
        assert len(pose) == len(reader) == len(camera)


def test_round_trip_loses_only_compression(tmp_path: Path) -> None:
    original = make_episode(3, cameras=("left", "wrist"), size=64)
    copy = read_episode(write_episode(tmp_path, original))
    for name in ("states", "actions", "joint_positions", "joint_velocities"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(original, name))
    for camera in original.frames:
        np.testing.assert_array_equal(copy.extrinsics[camera], original.extrinsics[camera])
        assert np.abs(copy.frames[camera].astype(int) - original.frames[camera]).mean() < 3
    for key, array in original.simulation.items():
        np.testing.assert_array_equal(copy.simulation[key], array)
        assert copy.simulation[key].dtype == array.dtype
    for name in ("step_seconds", "lab", "seed", "success", "task", "details"):
        assert getattr(copy, name) == getattr(original, name)


def test_actions_are_recovered_from_states(tmp_path: Path) -> None:
    original = make_episode(5)
    trajectory = read_trajectory(write_episode(tmp_path, original))
    recovered = actions_of(trajectory.states)
    np.testing.assert_allclose(recovered[:, [0, 1, 2, 6]], original.actions[:, [0, 1, 2, 6]], atol=1e-12)
    np.testing.assert_allclose(
        euler_to_matrix(recovered[:, 3:6]), euler_to_matrix(original.actions[:, 3:6]), atol=1e-12
    )


def test_same_episode_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_episode(tmp_path / name, make_episode(1))
    assert tree_bytes(tmp_path / "a") == tree_bytes(tmp_path / "b")


def test_names_sort_by_seed() -> None:
    names = [episode_name(seed) for seed in (0, 1, 59, 60, 1439, 1440, 99_999, 999_999)]
    assert names == sorted(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("indices", [[0], [11], [3, 5, 7], [10, 11], [2, 2, 9], list(range(12))], ids=lambda i: str(i))
def test_random_access_equals_full_decoding(tmp_path: Path, indices: list[int]) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, smooth_frames(12, 32), 4)
    np.testing.assert_array_equal(read_video(path, indices), read_video(path)[indices])


@pytest.mark.parametrize("rate", [4, 15, 20, 60, 10 / 3, 29.97])
def test_random_access_at_any_rate(tmp_path: Path, rate: float) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, smooth_frames(40, 32), rate)
    everything = read_video(path)
    assert len(everything) == count_frames(path) == 40
    np.testing.assert_array_equal(read_video(path, [0, 13, 29, 39]), everything[[0, 13, 29, 39]])


def test_video_errors_name_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(VideoError, match=r"a\.mp4"):
        read_video(path)
    write_video(path, smooth_frames(12, 32), 4)
    with pytest.raises(VideoError, match=r"a\.mp4.*frame 12"):
        read_video(path, [10, 12])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(VideoError, match=r"a\.mp4"):
        read_video(path)
    with pytest.raises(ValueError, match="even"):
        write_video(path, smooth_frames(3, 33), 4)
    with pytest.raises(ValueError, match="uint8"):
        write_video(path, np.zeros((3, 32, 32, 3)), 4)


def test_a_crash_leaves_no_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), 9)

    monkeypatch.setattr(files, "_flush_tree", die)
    child = os.fork()
    if child == 0:
        write_episode(tmp_path, make_episode(1))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9
    monkeypatch.undo()
    assert [p for p in tmp_path.rglob("*.h5")], "the crash came after the files were written"
    with pytest.raises(EpisodeError, match="no episodes"):
        find_episodes(tmp_path)
    assert clear_partial(tmp_path) == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    folder = write_episode(tmp_path, make_episode(1))
    assert find_episodes(tmp_path) == [folder]


def test_full_disk_is_one_error_and_no_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_flush_tree", full)
    with pytest.raises(DiskFull, match="no space left on the disk"):
        write_episode(tmp_path, make_episode(1))
    assert len(find_episodes(tmp_path)) == 1
    assert clear_partial(tmp_path) == 0


def test_the_first_writer_of_an_episode_wins(tmp_path: Path) -> None:
    folder = write_episode(tmp_path, make_episode(1))
    before = tree_bytes(tmp_path)
    assert write_episode(tmp_path, make_episode(1)) == folder
    assert tree_bytes(tmp_path) == before


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(ValueError, match="another process is writing"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_a_single_exterior_camera_is_left(tmp_path: Path) -> None:
    metadata = read_metadata(write_episode(tmp_path, make_episode(1, cameras=("right",))))
    assert metadata["left_mp4_path"] == metadata["ext1_mp4_path"] and metadata["right_mp4_path"] is None
    with pytest.raises(EpisodeError, match="exterior"):
        write_episode(tmp_path, make_episode(2, cameras=("wrist",)))


def test_bad_episodes_are_refused() -> None:
    good = make_episode(1)
    states = good.states.copy()
    states[4, 2] = np.nan
    for change, message in (
        ({"states": states}, "states holds NaN or infinity in row 4"),
        ({"actions": good.actions[:-1]}, "actions must have shape"),
        ({"extrinsics": {}}, "need extrinsics"),
        ({"frames": {"left": good.frames["left"][:-1]}}, "has 11 rows"),
        ({"step_seconds": 0.0}, "positive step"),
    ):
        with pytest.raises(EpisodeError, match=message):
            type(good)(**{**vars(good), **change})
