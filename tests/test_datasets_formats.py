"""LeRobot v3 out and back, real DROID's quirks, rendering again, the inspection page, Ray."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from armworld.datasets.behaviours import Mix
from armworld.datasets.card import finish_card, start_card
from armworld.datasets.collect import CollectConfig, collect
from armworld.datasets.droid import camera_serial, find_episodes, write_episode
from armworld.datasets.episode import EpisodeError
from armworld.datasets.inspect import inspect
from armworld.datasets.real_droid import import_droid
from armworld.datasets.rerender import RerenderConfig, rerender
from armworld.datasets.trajectory import read_episode, read_metadata, read_trajectory
from armworld.datasets.validate import validate
from armworld.datasets.video import read_video, write_video

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
from datasets_helpers import edit_array, make_episode, smooth_frames, write_dataset  # noqa: E402


@pytest.fixture
def root(tmp_path: Path) -> Path:
    start_card(tmp_path / "data", {"task": "reach"})
    write_dataset(tmp_path / "data", 3, cameras=("left", "wrist"), rows=12)
    finish_card(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def exported(root: Path) -> Path:
    pytest.importorskip("pyarrow")
    from armworld.datasets.lerobot import export_lerobot

    return export_lerobot(root, root.parent / "lerobot")


def test_lerobot_layout(root: Path, exported: Path) -> None:
    import pyarrow.parquet as pq

    info = json.loads((exported / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 4
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 36, 1)
    data = pq.read_table(exported / "data/chunk-000/file-000.parquet")
    columns = "observation.state action timestamp frame_index episode_index index task_index".split()  # noqa: SIM905
    assert set(data.column_names) == set(columns) <= set(info["features"])
    assert str(data.schema.field("timestamp").type) == "float" and str(data.schema.field("index").type) == "int64"
    assert data["index"].to_pylist() == list(range(36))
    tasks = pq.read_table(exported / "meta/tasks.parquet")
    assert tasks["task"].to_pylist() == ["reach cup"]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    episodes = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["length"] for row in episodes] == [12, 12, 12]
    assert [row["videos/observation.images.left/from_timestamp"] for row in episodes] == [0.0, 3.0, 6.0]
    stats = json.loads((exported / "meta/stats.json").read_text())
    states = np.concatenate([read_trajectory(folder).states for folder in find_episodes(root)])
    np.testing.assert_allclose(stats["observation.state"]["mean"], states.mean(0), atol=1e-9)
    np.testing.assert_allclose(stats["observation.state"]["std"], states.std(0), atol=1e-9)
    assert np.shape(stats["observation.images.left"]["mean"]) == (3, 1, 1)


def test_lerobot_videos_hold_the_same_frames(root: Path, exported: Path) -> None:
    joined = read_video(exported / "videos/observation.images.wrist/chunk-000/file-000.mp4")
    serial = camera_serial("wrist")
    parts = [read_video(folder / f"recordings/MP4/{serial}.mp4") for folder in find_episodes(root)]
    np.testing.assert_array_equal(joined, np.concatenate(parts))


def test_lerobot_round_trip_loses_only_compression(root: Path, exported: Path, tmp_path: Path) -> None:
    from armworld.datasets.lerobot_import import import_lerobot

    back = import_lerobot(exported, tmp_path / "back")
    assert validate(back) == []
    for old, new in zip(find_episodes(root), find_episodes(back), strict=True):
        assert old.relative_to(root) == new.relative_to(back)
        before, after = read_episode(old), read_episode(new)
        for name in ("states", "actions", "joint_positions", "joint_velocities"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        for name, array in before.simulation.items():
            np.testing.assert_array_equal(after.simulation[name], array)
        for name, images in before.frames.items():
            np.testing.assert_array_equal(before.extrinsics[name], after.extrinsics[name])
            assert np.abs(after.frames[name].astype(int) - images).mean() < 2
        assert read_metadata(old) == read_metadata(new)


def test_lerobot_of_others(exported: Path, tmp_path: Path) -> None:
    import shutil

    from armworld.datasets.lerobot_import import import_lerobot

    shutil.rmtree(exported / "armworld")
    with pytest.raises(ValueError, match="camera poses are needed for left, wrist"):
        import_lerobot(exported, tmp_path / "a")
    poses = {"left": [1, 0.5, 0.6, 0, 0, 0], "wrist": [0.5, 0, 0.4, 0, 0, 0]}
    back = import_lerobot(exported, tmp_path / "b", poses)
    assert len(find_episodes(back)) == 3 and read_episode(find_episodes(back)[0]).task == "reach cup"
    info = exported / "meta/info.json"
    info.write_text(info.read_text().replace('"v3.0"', '"v2.1"'))
    with pytest.raises(ValueError, match=r"LeRobot v2\.1, this reads v3\.0"):
        import_lerobot(exported, tmp_path / "c")


def test_lerobot_refusals(root: Path, exported: Path) -> None:
    from armworld.datasets.lerobot import export_lerobot

    with pytest.raises(ValueError, match="exists"):
        export_lerobot(root, exported)
    with pytest.raises(EpisodeError, match="no camera 'right'; it has left, wrist"):
        export_lerobot(root, root.parent / "x", cameras=("right",))
    write_episode(root, make_episode(7, cameras=("left", "wrist"), step_seconds=0.5))
    with pytest.raises(ValueError, match=r"one rate for all episodes, got \[2.0, 4.0\]"):
        export_lerobot(root, root.parent / "y")
    assert not (root.parent / "x").exists() and not (root.parent / "y").exists()


def real_droid_folder(root: Path, rows: int = 31) -> Path:
    """An episode with real DROID's quirks: 60 fps header over 15 Hz rows, a frame short, no timestamps, no rates."""
    folder = write_episode(root, make_episode(3, rows=rows, step_seconds=1 / 15))
    for key in ("control/step_start", "control/step_end", "robot_state/read_start", "robot_state/read_end"):
        edit_array(folder, f"observation/timestamp/{key}", lambda a: None)
    edit_array(folder, "simulation/action", lambda a: None)
    write_video(folder / f"recordings/MP4/{camera_serial('left')}.mp4", smooth_frames(rows - 1, 64), 60)
    path = next(folder.glob("*.json"))
    metadata = json.loads(path.read_text())
    ours = ("control_hz", "frame_hz", "video_header_fps", "step_seconds", "seed", "cameras", "simulation")
    path.write_text(json.dumps({key: value for key, value in metadata.items() if key not in ours}))
    return folder


def test_real_droid_is_imported(tmp_path: Path) -> None:
    folder = real_droid_folder(tmp_path / "droid")
    assert validate(tmp_path / "droid") == []
    assert import_droid(tmp_path / "droid", tmp_path / "out") == []
    assert validate(tmp_path / "out") == []
    episode, original = read_episode(find_episodes(tmp_path / "out")[0]), read_trajectory(folder)
    assert len(episode) == 30 and math.isclose(episode.step_seconds, 1 / 15)
    np.testing.assert_array_equal(episode.states, original.states[:30])
    assert episode.details["original"]["uuid"] == original.metadata["uuid"]


def test_real_droid_at_another_rate_and_size(tmp_path: Path) -> None:
    folder = real_droid_folder(tmp_path / "droid")
    assert import_droid(tmp_path / "droid", tmp_path / "out", step_seconds=0.25, image_size=32) == []
    episode = read_episode(find_episodes(tmp_path / "out")[0])
    assert episode.frames["left"].shape == (8, 32, 32, 3) and math.isclose(episode.step_seconds, 4 / 15)
    np.testing.assert_array_equal(episode.states, read_trajectory(folder).states[:30:4])


def test_unreadable_real_episodes_are_named(tmp_path: Path) -> None:
    folder = real_droid_folder(tmp_path / "droid")
    good = write_episode(tmp_path / "droid", make_episode(9))
    write_video(folder / f"recordings/MP4/{camera_serial('left')}.mp4", smooth_frames(20, 64), 60)
    refused = import_droid(tmp_path / "droid", tmp_path / "out")
    assert len(refused) == 1 and "20 frames for 31 rows" in refused[0] and str(folder) in refused[0]
    assert len(find_episodes(tmp_path / "out")) == 1 and good.exists()


def test_rendering_again_gives_the_recorded_images(tmp_path: Path) -> None:
    """At the recorded size the frames come back (up to video compression), and another size or camera works."""
    config = CollectConfig(
        tmp_path / "a", episodes=1, workers=1, steps=4, image_size=64, behaviours=Mix(play=1, reach=0)
    )
    collect(config)
    rerender(RerenderConfig(tmp_path / "a", tmp_path / "b", 64, ("left",), workers=1))
    rerender(RerenderConfig(tmp_path / "a", tmp_path / "c", 96, ("right", "wrist"), workers=1))
    first, same, other = (read_episode(find_episodes(tmp_path / name)[0]) for name in "abc")
    np.testing.assert_array_equal(first.frames["left"], same.frames["left"])
    np.testing.assert_array_equal(first.states, other.states)
    assert other.frames["wrist"].shape == (5, 96, 96, 3) and set(other.extrinsics) == {"right", "wrist"}
    assert validate(tmp_path / "a") == validate(tmp_path / "c") == []
    with pytest.raises(ValueError, match="another folder than its source"):
        rerender(RerenderConfig(tmp_path / "a", tmp_path / "a"))


def test_rendering_again_needs_states(root: Path, tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="no simulator states"):
        rerender(RerenderConfig(root, tmp_path / "out", workers=1))


def test_inspection_page(root: Path) -> None:
    page = inspect(root).read_text()
    for piece in ("<td>episodes</td><td>3</td>", "play", "Workspace", "data:video/mp4;base64", "data:image/png"):
        assert piece in page, piece
    assert page.count("<video") == 3
