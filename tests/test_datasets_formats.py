"""LeRobot v3 out and back, real DROID's quirks, rendering again, the inspection page, Ray."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armworld.datasets.behaviours import Mix
from armworld.datasets.card import finish_card, start_card
from armworld.datasets.collect import CollectConfig, collect
from armworld.datasets.commands import (
    ExportConfig,
    ImportConfig,
    InspectConfig,
    ValidateConfig,
    run_export,
    run_import,
    run_inspect,
    run_validate,
)
from armworld.datasets.droid import camera_serial, find_episodes, write_episode
from armworld.datasets.episode import EpisodeError
from armworld.datasets.inspect import inspect
from armworld.datasets.real_droid import import_droid
from armworld.datasets.rerender import RerenderConfig, rerender
from armworld.datasets.trajectory import actions_of, read_episode, read_metadata, read_trajectory
from armworld.datasets.validate import validate
from armworld.datasets.video import read_video, write_video

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
from datasets_helpers import (  # noqa: E402
    edit_array,
    make_episode,
    open_h5,
    smooth_frames,
    tree_bytes,
    write_dataset,
)


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


def test_lerobot_files_of_bounded_size(root: Path, tmp_path: Path) -> None:
    """Whatever the files' size, the same rows and frames come back."""
    pq = pytest.importorskip("pyarrow.parquet")
    from armworld.datasets.lerobot import export_lerobot
    from armworld.datasets.lerobot_import import import_lerobot

    size = max(path.stat().st_size for path in root.rglob("*.mp4"))
    out = export_lerobot(root, tmp_path / "small", video_mb=2.5e-6 * size, data_mb=0.002)
    videos = sorted((out / "videos/observation.images.left").rglob("*.mp4"))
    assert [len(read_video(path)) for path in videos] == [24, 12]
    places = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["data/file_index"] for row in places] == [0, 1, 2]
    assert [row["dataset_from_index"] for row in places] == [0, 12, 24]
    for row in places:
        table = pq.read_table(out / f"data/chunk-000/file-{row['data/file_index']:03d}.parquet")
        assert table["index"].to_pylist() == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        assert set(table["episode_index"].to_pylist()) == {row["episode_index"]}
    whole = import_lerobot(export_lerobot(root, tmp_path / "large"), tmp_path / "from_large")
    assert tree_bytes(import_lerobot(out, tmp_path / "from_small") / "lab1") == tree_bytes(whole / "lab1")


def test_lerobot_of_others(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree(exported / "armworld")
    with pytest.raises(ValueError, match=r"camera poses are needed for left, wrist: 6 numbers each.*--poses FILE"):
        import_lerobot_of(exported, tmp_path / "a")
    poses = tmp_path / "poses.json"
    poses.write_text(json.dumps({"left": [1, 0.5, 0.6, 0, 0, 0], "wrist": [0.5, 0, 0.4, 0, 0, 0]}))
    info = exported / "meta/info.json"
    info.write_text(info.read_text().replace('"robot_type": "panda"', '"robot_type": "my arm/2"'))
    for _ in range(2):  # nothing is missing the second time
        import_lerobot_of(exported, tmp_path / "b", poses=poses, licence="CC0")
    folders = find_episodes(tmp_path / "b")
    assert len(folders) == 3 and read_episode(folders[0]).task == "reach cup" and folders[0].parts[-4] == "my_arm_2"
    assert "Licence: CC0" in (tmp_path / "b" / "README.md").read_text() and validate(tmp_path / "b") == []
    info.write_text(info.read_text().replace('"dx"', '"joint1"'))  # actions of another kind
    import_lerobot_of(exported, tmp_path / "d", poses=poses)
    other = read_episode(find_episodes(tmp_path / "d")[0])
    np.testing.assert_allclose(other.actions, actions_of(other.states), atol=1e-12)
    np.testing.assert_allclose(other.original["action"], read_episode(folders[0]).actions, atol=1e-6)
    assert "that of the source" in (tmp_path / "d" / "README.md").read_text()
    with pytest.raises(ValueError, match="camera cannot be set for the format lerobot"):
        import_lerobot_of(exported, tmp_path / "e", camera="left")
    info.write_text(info.read_text().replace('"closedness"', '"joint_7"'))
    with pytest.raises(ValueError, match=r"shape \[7\] \(.*'joint_7'\]\); expected \[7\]: x, y, z, .* --pose-state"):
        import_lerobot_of(exported, tmp_path / "f", poses=poses)
    import_lerobot_of(exported, tmp_path / "f", poses=poses, pose_state=True)
    np.testing.assert_array_equal(read_episode(find_episodes(tmp_path / "f")[0]).states, other.states)
    info.write_text(info.read_text().replace('"v3.0"', '"v2.1"'))
    with pytest.raises(ValueError, match=r"LeRobot v2\.1, this reads v3\.0"):
        import_lerobot_of(exported, tmp_path / "c")


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


def import_lerobot_of(source: Path, out: Path, **settings: Any) -> None:
    """`armworld import --format lerobot`."""
    assert run_import(ImportConfig(source, out, "lerobot", **settings)) == 0


def real_droid_folder(root: Path, rows: int = 31, seed: int = 3) -> Path:
    """An episode with real DROID's quirks: 60 fps header over 15 Hz rows, a frame short, no timestamps, no rates."""
    folder = write_episode(root, make_episode(seed, rows=rows, step_seconds=1 / 15))
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
    with open_h5(folder / "trajectory.h5") as file:  # what was commanded is not lost
        np.testing.assert_array_equal(
            episode.original["action/cartesian_velocity"], file["action/cartesian_velocity"][:30]
        )
    assert "observation/robot_state/cartesian_position" not in episode.original
    card = (tmp_path / "out" / "README.md").read_text()
    assert "that of the source" in card and "Contact with objects was not recorded" in card
    assert "not recorded" in inspect(tmp_path / "out").read_text()


def test_real_droid_without_some_cameras(tmp_path: Path) -> None:
    """A video that is absent leaves its camera out; one that is damaged, or none at all, leaves the episode out."""
    folder = write_episode(tmp_path / "droid", make_episode(3, cameras=("left", "right", "wrist")))
    video = folder / f"recordings/MP4/{camera_serial('wrist')}.mp4"
    whole = video.read_bytes()
    video.unlink()
    assert import_droid(tmp_path / "droid", tmp_path / "a") == []
    assert set(read_episode(find_episodes(tmp_path / "a")[0]).frames) == {"left", "right"}
    assert import_droid(tmp_path / "droid", tmp_path / "b", camera="right") == []
    assert set(read_episode(find_episodes(tmp_path / "b")[0]).frames) == {"right"}
    write_episode(tmp_path / "droid", make_episode(4, cameras=("left", "right")))
    assert import_droid(tmp_path / "droid", tmp_path / "c", camera="left") == []
    video.write_bytes(whole[: len(whole) // 2])
    (refused,) = import_droid(tmp_path / "droid", tmp_path / "d")
    assert video.name in refused and len(find_episodes(tmp_path / "d")) == 1


def test_a_source_that_changed_is_noticed(tmp_path: Path) -> None:
    real_droid_folder(tmp_path / "droid", seed=3)
    import_droid(tmp_path / "droid", tmp_path / "out")
    assert import_droid(tmp_path / "droid", tmp_path / "out") == []
    real_droid_folder(tmp_path / "droid", seed=2)  # comes before the other
    with pytest.raises(ValueError, match="that has changed since; import it to a new folder"):
        import_droid(tmp_path / "droid", tmp_path / "out")
    assert len(find_episodes(tmp_path / "out")) == 1


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
    shutil.rmtree(good)
    with pytest.raises(ValueError, match=r"none of the 1 episodes below .* can be read: .*20 frames for 31 rows"):
        import_droid(tmp_path / "droid", tmp_path / "none")


def test_a_gripper_in_other_units_is_refused_and_a_little_noise_is_not(tmp_path: Path) -> None:
    key = "observation/robot_state/gripper_position"
    folder = real_droid_folder(tmp_path / "droid")
    edit_array(folder, key, lambda a: np.linspace(-0.01, 1.02, len(a)))
    assert import_droid(tmp_path / "droid", tmp_path / "out") == []
    episode = read_episode(find_episodes(tmp_path / "out")[0])
    assert episode.states[0, 6] == 0 and episode.states[-1, 6] == pytest.approx(0.985, abs=1e-3)
    np.testing.assert_allclose(np.diff(episode.states[:, 6]), episode.actions[:-1, 6], atol=1e-12)
    real_droid_folder(tmp_path / "droid", seed=2)
    edit_array(folder, key, lambda a: 85 * a)
    (refused,) = import_droid(tmp_path / "droid", tmp_path / "mm")
    assert str(folder) in refused and "gripper_position spans -0.850 ... 83.782; 0 open ... 1 closed" in refused


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


def edit_metadata(folder: Path, old: str, new: str) -> None:
    path = next(folder.glob("*.json"))
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_metadata_that_lack_what_is_needed_are_named(root: Path, tmp_path: Path) -> None:
    folder = find_episodes(root)[0]
    edit_metadata(folder, '"current_task"', '"task"')
    with pytest.raises(EpisodeError, match="the metadata lack current_task"):
        read_episode(folder)
    collect(CollectConfig(tmp_path / "a", episodes=1, workers=1, steps=1, image_size=16))
    edit_metadata(find_episodes(tmp_path / "a")[0], '"object"', '"thing"')
    with pytest.raises(EpisodeError, match="the metadata's simulation lacks object: it cannot be rendered again"):
        rerender(RerenderConfig(tmp_path / "a", tmp_path / "b", workers=1))
    assert not (tmp_path / "b").exists()


def test_rendering_again_needs_states(root: Path, tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="no simulator states"):
        rerender(RerenderConfig(root, tmp_path / "out", workers=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_seconds": 0.0}, "step_seconds must be above 0 and at most 10, got 0"),
        ({"step_seconds": math.nan}, "step_seconds .* got nan"),
        ({"image_size": 0}, "image_size must be even, .* got 0"),
        ({"image_size": 33}, "image_size must be even, .* got 33"),
    ],
)
def test_bad_settings_of_an_import_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImportConfig(tmp_path, tmp_path / "out", **settings)


def test_an_import_that_cannot_begin_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    real_droid_folder(tmp_path / "droid")
    with pytest.raises(ValueError, match=r"step_seconds 0.1 does not fit data recorded every 0.0667 s"):
        run_import(ImportConfig(tmp_path / "droid", tmp_path / "out", step_seconds=0.1))
    with pytest.raises(EpisodeError, match="nowhere: no such folder"):
        run_import(ImportConfig(tmp_path / "nowhere", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(EpisodeError, match="no video of lefft; there is left"):
        run_import(ImportConfig(tmp_path / "droid", tmp_path / "out", camera="lefft"))
    assert run_import(ImportConfig(tmp_path / "droid", tmp_path / "out", camera="left")) == 0
    with pytest.raises(ValueError, match="droid holds something that is no dataset of ours"):
        run_import(ImportConfig(tmp_path / "out", tmp_path / "droid"))


def test_bad_poses_for_lerobot_begin_no_folder(root: Path, exported: Path, tmp_path: Path) -> None:
    poses = tmp_path / "poses.json"
    poses.write_text(json.dumps({"left": [1, 0.5, 0.6, 0, 0, 0], "wrist": [0.5, 0, 0.4, 0, 0, 0]}))
    with pytest.raises(ValueError, match="is an export of ours, which brings its poses and states"):
        import_lerobot_of(exported, tmp_path / "out", poses=poses)
    shutil.rmtree(exported / "armworld")
    for text, message in (
        ('{"left": [1, 2, 3, 0, 0, 0], "wrist": "abcdef"}', "camera poses are needed for wrist: 6 numbers each"),
        ("[1, 2]", r"poses.json must hold an object, camera name -> 6 numbers, got \[1, 2\]"),
    ):
        poses.write_text(text)
        with pytest.raises(ValueError, match=message):
            import_lerobot_of(exported, tmp_path / "out", poses=poses)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_folders_without_episodes_are_named(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    message = {
        "nowhere": "nowhere: no such folder",
        "file": "file: a file, not a dataset folder",
        "empty": r"empty: no episodes \(<lab>/success\|failure/<date>/<time>\) in this folder",
    }[name]
    for run in (
        lambda: run_inspect(InspectConfig(tmp_path / name)),
        lambda: run_export(ExportConfig(tmp_path / name, tmp_path / "out")),
        lambda: run_validate(ValidateConfig(tmp_path / name)),
    ):
        with pytest.raises(EpisodeError, match=message):
            run()
    assert not (tmp_path / "out").exists() and not list((tmp_path / "empty").iterdir())


def test_a_page_is_a_file_and_shows_no_fewer_than_none(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; the page is a file, e\.g\. .*inspect\.html"):
        inspect(root, tmp_path)
    with pytest.raises(ValueError, match="samples must be at least 0, got -1"):
        InspectConfig(root, samples=-1)


def test_inspection_page(root: Path) -> None:
    page = inspect(root).read_text()
    for piece in ("<td>episodes</td><td>3</td>", "play", "Workspace", "data:video/mp4;base64", "data:image/png"):
        assert piece in page, piece
    assert page.count("<video") == 3
