"""The attentive probe: its mathematics, its splits and loaders, and a task that it solves."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from armworld.datasets.droid import write_episode
from armworld.datasets.video import write_video
from armworld.worldmodel.attentive_probe import AttentiveProbe
from armworld.worldmodel.clip_sources import ClipError
from armworld.worldmodel.labelled_videos import _split, episode_videos, main_direction, something_videos
from armworld.worldmodel.probe import ProbeConfig, probe

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import make_episode


def test_the_probe_reads_tokens_in_any_order_and_gives_each_video_its_own_answer():
    torch.manual_seed(0)
    model, x = AttentiveProbe(24, 3, 2), torch.randn(4, 10, 24)
    logits = model(x)
    assert logits.shape == (4, 3) and len(model.blocks) == 3
    torch.testing.assert_close(model(x[:, torch.randperm(10)]), logits, rtol=0, atol=1e-5)  # positions are in features
    torch.testing.assert_close(model(x[2:3]), logits[2:3], rtol=0, atol=1e-5)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="at least 1 layer, got 0"):
        AttentiveProbe(24, 3, 2, depth=0)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    """Twelve episodes: half of them, labelled `expert`, show a drifting pattern, the others its negative."""
    root = tmp_path_factory.mktemp("probe") / "data"
    for seed in range(12):
        episode = make_episode(seed, rows=8)
        even = seed % 2 == 0
        frames = episode.frames["left"] if even else 255 - episode.frames["left"]
        details = {**episode.details, "behaviour": "expert" if even else "play"}
        write_episode(root, replace(episode, frames={"left": frames}, details=details))
    return root


def test_episodes_are_split_within_each_class_and_never_across(episodes):
    videos = episode_videos((episodes,), "behaviour", "left", 0.34, np.random.default_rng(0))
    assert len(videos) == len({video.path for video in videos}) == 12
    counts = {(label, test): sum(v.label == label and v.test is test for v in videos)
              for label in ("expert", "play") for test in (False, True)}  # fmt: skip
    assert counts == {("expert", False): 4, ("expert", True): 2, ("play", False): 4, ("play", True): 2}
    assert videos == episode_videos((episodes,), "behaviour", "left", 0.34, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"unknown probe target 'mood'; valid: behaviour, object"):
        episode_videos((episodes,), "mood", "left", 0.3, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"unknown camera .*'wrist'; valid: left"):
        episode_videos((episodes,), "behaviour", "wrist", 0.3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="do not say the object; probe another target"):
        episode_videos((episodes,), "object", "left", 0.3, np.random.default_rng(0))


def test_a_recording_rendered_again_is_on_the_side_of_its_source(episodes, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(episodes, again)
    videos = episode_videos((episodes, again), "behaviour", "left", 0.34, np.random.default_rng(0))
    recordings = [video.path.relative_to(episodes).parts for video in videos if again not in video.path.parents]
    sides = [{v.test for v in videos if v.path.parts[-len(parts) :] == parts} for parts in recordings]
    assert len(videos) == 24 and len(recordings) == 12 and all(len(side) == 1 for side in sides)


def test_data_of_the_test_are_the_whole_test_and_none_of_the_training(episodes, tmp_path):
    for seed in (100, 101):
        write_episode(tmp_path / "later", replace(make_episode(seed, rows=8), details={"behaviour": "play"}))
    rng = np.random.default_rng(0)
    videos = episode_videos((episodes,), "behaviour", "left", 0.34, rng, test_data=(tmp_path / "later",))
    assert [video.test for video in videos] == 12 * [False] + 2 * [True]
    with pytest.raises(ValueError, match="the same episode in data and in test_data"):
        episode_videos((episodes,), "behaviour", "left", 0.34, rng, test_data=(episodes,))
    with pytest.raises(ValueError, match="the same scene in data and in test_data"):
        episode_videos((episodes,), "behaviour", "left", 0.34, rng, "scene", (tmp_path / "later",))


def test_a_scene_is_on_one_side_of_the_split():
    drawn = [(Path(f"{scene}-{take}"), "ab"[take % 2], str(scene)) for scene in range(8) for take in range(4)]
    videos = _split(drawn, 0.5, np.random.default_rng(0))
    sides = [{v.test for v in videos if v.path.name.startswith(f"{scene}-")} for scene in range(8)]
    assert all(len(side) == 1 for side in sides) and sum(side == {True} for side in sides) == 4
    with pytest.raises(ValueError, match="class 'a' has one episode or scene"):
        _split([(Path("x"), "a", "0"), (Path("y"), "a", "0")], 0.5, np.random.default_rng(0))


def test_the_direction_is_that_of_the_largest_displacement():
    states = np.zeros((3, 7))
    states[-1, :3] = (0.1, -0.3, 0.2)
    assert main_direction(states) == "right"
    states[-1, :3] = (0.1, 0.0, -0.2)
    assert main_direction(states) == "down"


def test_a_probe_on_random_features_tells_a_picture_from_its_negative(episodes, tmp_path):
    config = ProbeConfig(
        out=tmp_path, encoder="random:debug", image_size=64, data=(episodes,), frames=4, epochs=25, batch=4,
        held_out=0.34, learning_rate=3e-3, dtype="float32",
    )  # fmt: skip
    record = probe(config)
    assert record["accuracy"] == 1.0 and record["commonest_class"] == 0.5
    assert record["classes"]["play"] == {"train": 4, "test": 2, "right": 2}
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert saved["wilson_95"] == record["wilson_95"] and saved["config"]["encoder"] == "random:debug"
    assert np.load(tmp_path / "features.npy", mmap_mode="r").shape == (12, 2 * 16, 48)
    with pytest.raises(ValueError, match="needs 2 classes in training"):
        probe(replace(config, target="lab"))
    folders = tmp_path / "as_learned", tmp_path / "the_other_way"
    for seed in range(100, 104):
        episode, learned = make_episode(seed, rows=8), seed < 102
        frames = episode.frames["left"] if (seed % 2 == 0) is learned else 255 - episode.frames["left"]
        told = {"behaviour": "play" if seed % 2 else "expert"}
        write_episode(folders[not learned], replace(episode, frames={"left": frames}, details=told))
    tests = probe(replace(config, test_data=folders))["test_data"]
    assert [(row["right"], row["test"]) for row in tests.values()] == [(2, 2), (0, 2)]


@pytest.fixture
def something(tmp_path) -> Path:
    """Three training and two test videos in Something-Something v2's layout."""
    (tmp_path / "videos").mkdir()
    for number in range(5):
        frames = np.full((4, 64, 64, 3), 40 * number, np.uint8)
        write_video(tmp_path / "videos" / f"{number}.mp4", frames, 12)
    (tmp_path / "labels.json").write_text(json.dumps({"Moving something up": "0", "Holding something": "1"}))
    templates = ("Moving [something] up", "Holding [something]")
    entries = [{"id": str(n), "label": "moving a cup up", "template": templates[n % 2]} for n in range(5)]
    (tmp_path / "something-something-v2-train.json").write_text(json.dumps(entries[:3]))
    (tmp_path / "something-something-v2-validation.json").write_text(json.dumps(entries[3:]))
    return tmp_path


def test_something_something_folders_bring_labels_and_split(something):
    videos = something_videos(something)
    assert [(v.path.stem, v.label, v.test) for v in videos] == [
        ("0", "Moving something up", False),
        ("1", "Holding something", False),
        ("2", "Moving something up", False),
        ("3", "Holding something", True),
        ("4", "Moving something up", True),
    ]
    config = ProbeConfig(
        out=something / "out", encoder="random:debug", image_size=64, something=something, frames=2, epochs=1, batch=2,
        depth=2, dtype="float32",
    )  # fmt: skip
    assert probe(config)["classes"].keys() == {"Moving something up", "Holding something"}


def test_what_a_something_something_folder_lacks_is_named(something):
    (something / "videos" / "4.mp4").unlink()
    with pytest.raises(ClipError, match="lists video 4, but no such video"):
        something_videos(something)
    (something / "labels.json").write_text(json.dumps({"Holding something": "1"}))
    with pytest.raises(ValueError, match=r"template 'Moving something up', which labels.json lacks"):
        something_videos(something)
    (something / "labels.json").unlink()
    with pytest.raises(ValueError, match=r"expected one file \*labels.json, found none"):
        something_videos(something)


def test_either_episodes_or_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"either --data .* or --something"):
        ProbeConfig(out=tmp_path)
    with pytest.raises(ValueError, match="frames must be a positive multiple of 2, got 3"):
        ProbeConfig(out=tmp_path, data=(tmp_path,), frames=3)
