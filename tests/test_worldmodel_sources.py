"""Clips from videos, images and mixtures; progressive resolution and length; recomputed activations."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from armworld.datasets.clips import open_clips
from armworld.datasets.store import WHOLE, Share, Store
from armworld.datasets.video import write_video
from armworld.worldmodel import clip_sources
from armworld.worldmodel.checkpoint import load_encoder
from armworld.worldmodel.clip_sources import (
    ClipError,
    ClipSource,
    ImageClips,
    MixedClips,
    VideoClips,
    frames_at,
    open_sources,
)
from armworld.worldmodel.pretrain import PretrainConfig, pretrain
from armworld.worldmodel.training import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import write_dataset


def ramp(frames: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """Frames of one grey each: frame i is 10 i."""
    return np.repeat(10 * np.arange(frames, dtype=np.uint8), size[0] * size[1] * 3).reshape(frames, *size, 3)


def greys(clip: np.ndarray) -> np.ndarray:
    return np.round(clip.mean((-3, -2, -1)) / 10).astype(int)


class Plain:
    """A source of clips that all have one value."""

    def __init__(self, value: int, size: int = 8) -> None:
        self.value, self.size = value, size

    def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
        return np.full((batch, frames, self.size, self.size, 3), self.value, np.uint8)[share]

    def content(self) -> list[str]:
        return [str(self.value)]


class WithStates(Plain):
    def sample_with_states(
        self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE
    ) -> tuple[np.ndarray, np.ndarray]:
        states = np.full((batch, frames, 7), self.value, np.float32)[share]
        return self.sample(generator, batch, frames, share), states


@pytest.fixture
def videos(tmp_path) -> Path:
    (tmp_path / "videos" / "deeper").mkdir(parents=True)
    write_video(tmp_path / "videos" / "deeper" / "ramp.mp4", ramp(20), 10)
    return tmp_path / "videos"


def test_frames_are_what_a_video_shows_at_a_time(videos):
    path = videos / "deeper" / "ramp.mp4"
    shown = frames_at(path, np.array([0.0, 0.05, 0.1, 0.55, 1.3, 1.95]), 32)
    assert shown.shape == (6, 32, 32, 3) and shown.dtype == np.uint8
    np.testing.assert_array_equal(greys(shown), [0, 0, 1, 5, 13, 19])


def test_video_clips_keep_their_step_and_repeat_by_seed(videos):
    source = VideoClips(videos, 32, step_seconds=0.3)
    clips = source.sample(np.random.default_rng(0), 8, 4)
    assert clips.shape == (8, 4, 32, 32, 3)
    np.testing.assert_array_equal(np.diff(greys(clips), axis=1), 3)
    assert len(np.unique(greys(clips)[:, 0])) > 2
    np.testing.assert_array_equal(clips, source.sample(np.random.default_rng(0), 8, 4))


def test_unreadable_and_short_videos_are_named(videos):
    with pytest.raises(ClipError, match=r"no video lasts 2.7 s, as 10 frames need"):
        VideoClips(videos, 32, 0.3).sample(np.random.default_rng(0), 1, 10)
    (videos / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(ClipError, match=r"broken\.mp4 cannot be read .*take it out of the folder"):
        VideoClips(videos, 32, 0.3)
    with pytest.raises(ClipError, match="no such folder of videos"):
        VideoClips(videos / "nowhere", 32, 0.3)


def test_a_damaged_video_is_named_when_it_is_drawn(videos):
    path = videos / "deeper" / "ramp.mp4"
    source = VideoClips(videos, 32, 0.3)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(ClipError, match=r"ramp\.mp4 cannot be read"):
        source.sample(np.random.default_rng(0), 4, 4)


def test_images_are_still_clips_of_their_centre(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    clips = ImageClips(tmp_path, 16).sample(np.random.default_rng(0), 2, 4)
    assert clips.shape == (2, 4, 16, 16, 3) and clips[..., 1:-1, 1:-1, :].min() == 200
    np.testing.assert_array_equal(clips[:, 0], clips[:, 3])
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(ClipError, match=r"a\.png cannot be read"):
        ImageClips(tmp_path, 16).sample(np.random.default_rng(0), 1, 1)


def test_mixtures_follow_their_weights_and_ask_states_of_those_who_know():
    mixed = MixedClips([Plain(1), WithStates(2)], [3.0, 1.0])
    values = mixed.sample(np.random.default_rng(0), 4000, 1)[:, 0, 0, 0, 0]
    assert (values == 1).mean() == pytest.approx(0.75, abs=0.03)
    assert (values[:1000] == 1).mean() == pytest.approx(0.75, abs=0.05)  # any part of a batch is a mixture
    clips, states = mixed.sample_with_states(np.random.default_rng(0), 5, 2)
    assert (clips == 2).all() and (states == 2).all()
    with pytest.raises(ValueError, match="videos and images carry no robot state"):
        MixedClips([Plain(1), Plain(2)], [1, 1]).sample_with_states(np.random.default_rng(0), 2, 1)
    with pytest.raises(ValueError, match=r"each of the 2 sources .* needs one positive weight"):
        MixedClips([Plain(1), Plain(2)], [1.0])
    with pytest.raises(ValueError, match="nothing to train on"):
        open_sources((), (), (), (), 64, 0.25)


@pytest.fixture
def sources(videos, tmp_path) -> dict[str, ClipSource]:
    """One of each kind, and all of them mixed."""
    write_dataset(tmp_path / "data", 2, rows=8)
    (tmp_path / "images").mkdir()
    for number, frame in enumerate(ramp(3)):
        Image.fromarray(frame).save(tmp_path / "images" / f"{number}.png")
    episodes, images = open_clips((tmp_path / "data",), 64, 0.25), ImageClips(tmp_path / "images", 64)
    kinds = {"episodes": episodes, "videos": VideoClips(videos, 64, 0.25), "images": images}
    return {**kinds, "mixture": MixedClips(list(kinds.values()), [2, 1, 1])}


@pytest.mark.parametrize("kind", ["episodes", "videos", "images", "mixture"])
@pytest.mark.parametrize("share", [slice(0, 4), slice(4, 12), slice(0), np.array([7, 2])], ids=str)
def test_a_share_is_what_the_batch_holds_there_and_all_that_is_decoded(sources, kind, share, monkeypatch):
    whole_rng, rng = np.random.default_rng(0), np.random.default_rng(0)
    whole = sources[kind].sample(whole_rng, 12, 2)
    decoded = []
    for owner, name in ((clip_sources, "frames_at"), (clip_sources, "read_image")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, plain=plain: decoded.append(a) or plain(*a))
    gather = Store.gather
    monkeypatch.setattr(Store, "gather", lambda self, rows: decoded.extend(rows) or gather(self, rows))
    np.testing.assert_array_equal(sources[kind].sample(rng, 12, 2, share), whole[share])
    assert rng.bit_generator.state == whole_rng.bit_generator.state
    assert len(decoded) == len(whole[share])


@pytest.mark.parametrize("kind", ["episodes", "mixture"])
def test_a_share_has_its_own_states(sources, kind):
    clips, states = sources[kind].sample_with_states(np.random.default_rng(0), 12, 2)
    own_clips, own_states = sources[kind].sample_with_states(np.random.default_rng(0), 12, 2, slice(3, 9))
    np.testing.assert_array_equal(own_clips, clips[3:9])
    np.testing.assert_array_equal(own_states, states[3:9])


def settings(out: Path, **changes) -> PretrainConfig:
    config = PretrainConfig(
        out=out, size="debug", image_size=64, batch=2, steps=6, dtype="float32", predictor_width=48,
        predictor_depth=1, predictor_heads=2, log_every=1,
    )  # fmt: skip
    return replace(config, **changes)


def test_episodes_videos_and_images_train_together(videos, tmp_path):
    write_dataset(tmp_path / "data", 2, rows=8)
    (tmp_path / "images").mkdir()
    Image.fromarray(ramp(1)[0]).save(tmp_path / "images" / "a.jpg")
    config = settings(
        tmp_path / "run", data=(tmp_path / "data",), videos=(videos,), images=(tmp_path / "images",),
        weights=(2, 1, 1), state_loss=1.0, state_batch=2, steps=3,
    )  # fmt: skip
    assert load_encoder(pretrain(config)).config.image_size == (64, 64)
    assert all(row["state"] > 0 for row in read_metrics(config.out / "metrics.jsonl"))
    with pytest.raises(ValueError, match=r"state_loss needs recorded episodes"):
        pretrain(settings(tmp_path / "other", videos=(videos,), state_loss=1.0))


def test_the_cooldown_is_longer_and_larger(tmp_path):
    config = settings(tmp_path, frames=2, cooldown_frames=4, cooldown_image_size=96, still_share=0.0, steps=5)
    assert config.clip_shape(0.5) == (2, 64) and config.clip_shape(0.81) == (4, 96)
    asked: list[int] = []

    class Watching(Plain):
        def sample(self, generator: np.random.Generator, batch: int, frames: int, share: Share = WHOLE) -> np.ndarray:
            asked.append(frames)
            return generator.integers(0, 256, (batch, frames, 96, 96, 3), dtype=np.uint8)[share]

    pretrain(replace(config, steps=10), Watching(0))
    assert asked == [2] * 9 + [4]
    assert load_encoder(tmp_path / "encoder").config.image_size == (96, 96)
    half = replace(config, cooldown=0.5, out=tmp_path / "half", steps=10)
    asked.clear()
    pretrain(half, Watching(0))
    assert asked == [2] * 6 + [4] * 4
    rates = [row["learning_rate"] for row in read_metrics(half.out / "metrics.jsonl")]
    np.testing.assert_allclose(np.array(rates[5:]) / half.learning_rate, [1, 0.8, 0.6, 0.4, 0.2])
    with pytest.raises(ValueError, match="cooldown must be above 0 and at most 1, got 0"):
        settings(tmp_path, cooldown=0.0)
    with pytest.raises(ValueError, match="cooldown_image_size 32 must not be below image_size 64"):
        settings(tmp_path, cooldown_image_size=32)


def test_clips_too_long_for_a_source_are_refused_before_the_cooldown_asks_for_them(videos, tmp_path):
    write_dataset(tmp_path / "data", 2, rows=8)
    long = settings(tmp_path / "run", data=(tmp_path / "data",), frames=2, cooldown_frames=16)
    with pytest.raises(ValueError, match=r"no episode of .* holds 16 frames"):
        pretrain(long)
    mixed = replace(long, videos=(videos,), weights=(1.0, 1e-9), cooldown_frames=8, step_seconds=0.5)
    for weights in ((1.0, 1e-9), (1e-9, 1.0)):  # also where it would hardly ever be drawn
        with pytest.raises(ClipError, match=r"no video lasts 3\.5 s, as 8 frames need"):
            pretrain(replace(mixed, weights=weights))
    assert not (tmp_path / "run").exists()


def test_recomputed_activations_change_no_number(tmp_path):
    for name, recompute in (("kept", False), ("recomputed", True)):
        source = WithStates(3, 64)
        source.sample = lambda generator, batch, frames, share=WHOLE: generator.integers(  # type: ignore[method-assign]
            0, 256, (batch, frames, 64, 64, 3), dtype=np.uint8
        )[share]
        pretrain(settings(tmp_path / name, steps=3, recompute=recompute), source)
    kept, again = (torch.load(tmp_path / n / "state.pt", weights_only=True)["modules"] for n in ("kept", "recomputed"))
    for name, value in kept["denoiser"].items():
        torch.testing.assert_close(again["denoiser"][name], value, rtol=0, atol=1e-6)
