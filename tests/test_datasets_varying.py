"""Rendering recorded episodes again with a view of their own: drawn from seeds, recorded, and resumable."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from armworld.datasets.behaviours import Mix
from armworld.datasets.clips import open_clips
from armworld.datasets.collect import CollectConfig, collect
from armworld.datasets.droid import find_episodes
from armworld.datasets.episode import Episode, EpisodeError
from armworld.datasets.features import build_feature_cache
from armworld.datasets.rerender import RerenderConfig, rerender
from armworld.datasets.trajectory import read_episode
from armworld.datasets.validate import validate
from armworld.envs.cameras import RIGS
from armworld.planners.turning import camera_azimuth, turn_actions, turn_states
from armworld.pose import action_between

RIG = RIGS["lab1"]["left"]
VIEWS = {"vary_azimuth": 60.0, "vary_elevation": 5.0, "vary_look_at": 0.03}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded") / "a"
    collect(CollectConfig(root, episodes=2, workers=1, steps=2, image_size=64, behaviours=Mix(play=1, reach=0)))
    return root


def render(source: Path, out: Path, **settings: object) -> list[Episode]:
    rerender(RerenderConfig(source, out, 64, workers=1, **settings))  # type: ignore[arg-type]
    assert validate(out) == []
    return [read_episode(folder) for folder in find_episodes(out)]


def azimuths(episodes: list[Episode]) -> np.ndarray:
    """Degrees from the rig, one per episode; every row of an episode has the same camera."""
    poses = np.stack([episode.extrinsics["left"] for episode in episodes])
    np.testing.assert_array_equal(poses, np.repeat(poses[:, :1], poses.shape[1], 1))
    return np.degrees(camera_azimuth(torch.from_numpy(poses[:, 0])).numpy()) - RIG.azimuth


def test_every_episode_gets_a_recorded_view_of_its_own(source: Path, tmp_path: Path) -> None:
    before = [read_episode(folder) for folder in find_episodes(source)]
    views = render(source, tmp_path / "b", **VIEWS, view_seed=1)
    turned, drawn = azimuths(views), [e.details["view"]["variation"]["cameras"]["left"] for e in views]
    np.testing.assert_allclose(azimuths(before), 0, atol=1e-6)
    np.testing.assert_allclose(turned, [camera["azimuth"] - RIG.azimuth for camera in drawn], atol=1e-6)
    assert np.abs(turned).max() <= 60 and abs(turned[0] - turned[1]) > 1
    assert all(camera["distance"] == RIG.distance and camera["fovy"] == RIG.fovy for camera in drawn)
    for old, new in zip(before, views, strict=True):
        np.testing.assert_array_equal(old.states, new.states)
        assert np.abs(old.frames["left"].astype(int) - new.frames["left"]).mean() > 3
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert card["config"]["vary_azimuth"] == 60 and card["config"]["view_seed"] == 1


def test_views_resume_and_repeat_and_can_be_trained_on_together(source: Path, tmp_path: Path) -> None:
    first = render(source, tmp_path / "b", **VIEWS)
    shutil.rmtree(find_episodes(tmp_path / "b")[1])
    again, other = render(source, tmp_path / "b", **VIEWS), render(source, tmp_path / "c", **VIEWS, view_seed=1)
    kept = render(tmp_path / "b", tmp_path / "d")  # nothing varies: as the source looks
    for a, b, c, d in zip(first, again, other, kept, strict=True):
        np.testing.assert_array_equal(a.frames["left"], b.frames["left"])
        np.testing.assert_array_equal(a.extrinsics["left"], d.extrinsics["left"])
        assert not np.array_equal(a.extrinsics["left"], c.extrinsics["left"])
    clips = open_clips([source, tmp_path / "b", tmp_path / "c"], 64, 0.25)  # the episodes' names do not clash
    assert clips.sample(np.random.default_rng(0), 2, 2).shape == (2, 2, 64, 64, 3)
    with pytest.raises(ValueError, match="another configuration"):
        rerender(RerenderConfig(source, tmp_path / "b", 64, workers=1, vary_azimuth=30))


def test_clips_in_the_cameras_frame_need_to_know_where_it_stood(source: Path, tmp_path: Path) -> None:
    cache = build_feature_cache(source, lambda f: f.mean((1, 2))[:, None], {"encoder": "mean"}, tmp_path / "f")
    cache.extrinsics = np.array(cache.extrinsics)
    cache.extrinsics[cache.offsets[1] :] = 0
    cache.clips()
    with pytest.raises(ValueError, match=rf"--camera-frame needs .* of {len(cache)} .* first in {cache.names[1]}"):
        cache.clips(camera_frame=RIG.azimuth)


def test_clips_in_the_cameras_frame(source: Path, tmp_path: Path) -> None:
    """States turn by the camera's azimuth from the one named, each episode by its own; actions turn with them."""
    views = render(source, tmp_path / "b", **VIEWS)
    cache = build_feature_cache(tmp_path / "b", lambda f: f.mean((1, 2))[:, None], {"encoder": "mean"}, tmp_path / "f")
    for number, turned in enumerate(azimuths(views)):
        clips = (cache.clips(np.array([number]), camera_frame=frame) for frame in (None, RIG.azimuth))
        plain, own = (clip.sample(np.random.default_rng(0), 4, 2)[1] for clip in clips)
        assert not torch.equal(plain, own) and torch.equal(plain[..., 2], own[..., 2])
        torch.testing.assert_close(turn_states(own, math.radians(turned))[..., :3], plain[..., :3], atol=1e-5, rtol=0)
        moved = action_between(plain[:, 0], plain[:, 1])
        expected = turn_actions(moved, -math.radians(turned))
        torch.testing.assert_close(action_between(own[:, 0], own[:, 1]), expected, atol=1e-5, rtol=0)


def test_looks_change_colours_and_light_but_not_the_camera(source: Path, tmp_path: Path) -> None:
    before = [read_episode(folder) for folder in find_episodes(source)]
    for old, new in zip(before, render(source, tmp_path / "b", looks="full"), strict=True):
        np.testing.assert_array_equal(old.extrinsics["left"], new.extrinsics["left"])
        assert np.abs(old.frames["left"].astype(int) - new.frames["left"]).mean() > 10
        drawn = new.details["view"]["variation"]
        assert drawn["surfaces"] and drawn["lights"] and drawn["objects"]["cup"]["size"] == 1.0


def test_another_scene_than_the_recorded_one_is_refused(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "a")
    path = next(find_episodes(tmp_path / "a")[0].glob("*.json"))
    metadata = json.loads(path.read_text())
    metadata["simulation"]["draws"]["variation"]["cameras"]["left"]["azimuth"] += 40
    path.write_text(json.dumps(metadata))
    with pytest.raises(EpisodeError, match="draws another scene"):
        rerender(RerenderConfig(tmp_path / "a", tmp_path / "b", 64, workers=1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"vary_azimuth": -1.0}, "vary_azimuth must be at least 0 and at most 180, got -1"),
        ({"vary_azimuth": math.nan}, "vary_azimuth .* got nan"),
        ({"vary_distance": 1.0}, "vary_distance must be at least 0 and below 1, got 1"),
        ({"vary_fov": 500.0}, "vary_fov .* at most 90, got 500"),
        ({"vary_look_at": 2.0}, "vary_look_at .* at most 1, got 2"),
        ({"view_seed": -1}, "view_seed must be at least 0, got -1"),
        ({"image_size": 0}, "image_size must be even, .* got 0"),
        ({"image_size": 33}, "image_size must be even, .* got 33"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"cameras": ("wrist",)}, "one or two exterior cameras"),
        ({"cameras": ("left", "left")}, "cameras must name none twice"),
    ],
)
def test_impossible_settings_are_refused(bad: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        RerenderConfig(tmp_path, tmp_path / "b", **bad)


def test_clips_of_several_views_are_turned_by_as_much_as_the_camera_was_moved_round(
    source: Path, tmp_path: Path
) -> None:
    """Where the camera stands at the azimuth named, its frame is the base's; each degree further round is one less."""
    views = render(source, tmp_path / "b", **VIEWS)
    cache = build_feature_cache(tmp_path / "b", lambda f: f.mean((1, 2))[:, None], {"encoder": "mean"}, tmp_path / "f")
    for number, turned in enumerate(azimuths(views)):
        plain, same, own = (
            cache.clips(np.array([number]), camera_frame=frame).sample(np.random.default_rng(0), 4, 2)[1]
            for frame in (None, RIG.azimuth + turned, RIG.azimuth)
        )
        torch.testing.assert_close(same[..., :3], plain[..., :3], atol=1e-5, rtol=0)
        angle = torch.atan2(own[..., 1], own[..., 0]) - torch.atan2(plain[..., 1], plain[..., 0])
        torch.testing.assert_close(torch.rad2deg(angle), torch.full_like(angle, -turned), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"vary_fov": 45.0}, r"vary_fov 45 are too wide for the left camera \(elevation 31, field of view 43\)"),
        ({"vary_elevation": 70.0}, "vary_elevation 70 and .* too wide for the left camera"),
        ({"cameras": ("lefft",)}, "unknown camera 'lefft'; valid: left, right, wrist"),
    ],
)
def test_what_the_recorded_scene_refuses_begins_no_folder(
    source: Path, bad: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        rerender(RerenderConfig(source, tmp_path / "b", workers=1, **bad))
    assert not list(tmp_path.iterdir())


def test_frames_keep_the_size_of_the_source(source: Path, tmp_path: Path) -> None:
    card = rerender(RerenderConfig(source, tmp_path / "b", workers=1))
    assert card["config"]["image_size"] == 64
    for folder in find_episodes(tmp_path / "b"):
        assert read_episode(folder).frames["left"].shape[1:] == (64, 64, 3)
