"""The feature cache: opened by many at once, built by several processes, whole or not at all."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from armworld.datasets.cache import CacheConfig, cache
from armworld.datasets.droid import find_episodes, write_episode
from armworld.datasets.features import FeatureCache, build_feature_cache
from armworld.datasets.files import exclusive
from armworld.datasets.packing import build_store
from armworld.worldmodel.frozen import open_encoder, open_features

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import datasets_helpers  # noqa: E402
from datasets_helpers import kill_at_random, make_episode, quarters, tree_bytes, write_dataset  # noqa: E402

KEY = {"encoder": "abc", "image_size": 64}
SETTINGS = {"batch": 5, "shard_frames": 12, "progress": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, 6)
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of six episodes in six shards, built in one go by this process."""
    out = tmp_path_factory.mktemp("cache") / "whole"
    build_feature_cache(data, quarters, KEY, out, **SETTINGS)
    return out


def test_a_complete_cache_is_opened_while_another_process_holds_it(data: Path, whole: Path) -> None:
    def never(frames: np.ndarray) -> np.ndarray:
        raise AssertionError("nothing is missing")

    with exclusive(whole):
        assert len(build_feature_cache(data, never, KEY, whole, **SETTINGS)) == 72
        with pytest.raises(ValueError, match="another process is writing"):
            build_feature_cache(data, never, {**KEY, "encoder": "xyz"}, whole, **SETTINGS)
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    build_feature_cache(data, never, KEY, whole, **SETTINGS)
    assert before == {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}, "nothing is written again"


def test_an_unfinished_cache_has_one_builder(data: Path, tmp_path: Path) -> None:
    build_feature_cache(data, quarters, KEY, tmp_path, **SETTINGS)
    next(tmp_path.glob("shard-*.npy")).unlink()
    with exclusive(tmp_path), pytest.raises(ValueError, match="another process is writing"):
        build_feature_cache(data, quarters, KEY, tmp_path, **SETTINGS)


def test_moved_cameras_are_noticed(tmp_path: Path) -> None:
    """The poses are no part of the shards' names: what is stored beside them is compared."""
    (folder,) = write_dataset(tmp_path / "data", 1)
    build_feature_cache(tmp_path / "data", quarters, KEY, tmp_path / "out", **SETTINGS)
    serial = next((folder / "recordings" / "MP4").iterdir()).stem
    datasets_helpers.edit_array(folder, f"observation/camera_extrinsics/{serial}_left", lambda a: a + 0.5)
    again = build_feature_cache(tmp_path / "data", quarters, KEY, tmp_path / "out", **SETTINGS)
    assert np.isclose(again.extrinsics[0, 0], 1.5)


def test_neither_processes_nor_a_lost_worker_change_anything(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    monkeypatch.setenv(datasets_helpers.CRASH_VARIABLE, str(trap))
    build_feature_cache(data, quarters, KEY, tmp_path / "out", processes=2, **SETTINGS)
    assert not trap.exists(), "a worker died"
    assert tree_bytes(tmp_path / "out") == tree_bytes(whole)


def test_what_cannot_be_sent_to_processes_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be sent to other processes"):
        build_feature_cache(data, lambda frames: frames, KEY, tmp_path / "out", processes=2, **SETTINGS)


def test_the_command_makes_what_training_opens(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = cache(CacheConfig((data,), "random:debug", tmp_path / "c", image_size=64, workers=1, shard_frames=40))
    assert "72 frames, [16, 48] features each" in capsys.readouterr().out
    encoder = open_encoder("random:debug", 64, 0)
    with exclusive(tmp_path / "c"):  # shards of another size than training makes itself are as good
        assert len(open_features(encoder, [data], tmp_path / "c", "left", None, "bfloat16")) == 72
    with pytest.raises(ValueError, match="float32"):
        open_features(encoder, [data], tmp_path / "c", "left", None, "float32")
    opened = FeatureCache(tmp_path / "c", {"encoder": made.key["encoder"], "layers": None})
    frames = datasets_helpers.smooth_frames(12, 64)
    direct = encoder.encode_frames(frames[:, None])[:, 0].detach().numpy()
    assert np.corrcoef(opened.gather(np.arange(12)).ravel(), direct.ravel())[0, 1] > 0.98  # bfloat16 and video
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        cache(CacheConfig((data,), "random:debug", tmp_path / "c", workers=0))


def test_an_encoder_is_on_the_device_while_it_encodes_and_no_longer(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    encoder, device = open_encoder("random:debug", 64, 0), torch.device("cpu", 0)
    monkeypatch.setattr(encoder, "to", lambda place: moves.append(f"to {place}") or encoder)
    monkeypatch.setattr(encoder, "cpu", lambda: moves.append("back") or encoder)
    open_features(encoder, [data], tmp_path, "left", None, "float32", device)
    assert moves == ["to cpu:0"] * 2 + ["back"], "once per batch, which moves nothing after the first"
    moves.clear()
    open_features(encoder, [data], tmp_path, "left", None, "float32", device)
    assert moves == ["back"], "nothing is left to encode"


def test_weights_that_change_meanwhile_are_noticed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from armworld.datasets import cache as module
    from armworld.datasets import features

    monkeypatch.setattr(features, "encoder_hash", lambda encoder: "first")
    monkeypatch.setattr(module, "encoder_hash", lambda encoder: "second")
    with pytest.raises(ValueError, match="changed while its features were made: second now, first at the start"):
        cache(CacheConfig((data,), "random:debug", tmp_path / "c", image_size=64, workers=1))


def store_arguments(data: Path, out: Path, processes: int = 1) -> tuple[Any, ...]:
    """Arguments of `build_store` that make what `build_feature_cache` makes with `SETTINGS`."""
    return (find_episodes(data), quarters, KEY, out, "left", 5, 2, "float16", 12, None, processes)


@pytest.mark.parametrize("moments", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_at_random_moments(data: Path, whole: Path, tmp_path: Path, moments: int) -> None:
    out = tmp_path / "out"

    def visible() -> None:
        for path in out.glob("shard-*.npy"):
            assert path.read_bytes() == (whole / path.name).read_bytes()
        if (out / "plan.json").exists():
            FeatureCache(out)

    def finished() -> None:
        assert tree_bytes(out) == tree_bytes(whole)
        shutil.rmtree(out)

    kill_at_random(build_store, store_arguments(data, out), moments, 0, visible, finished)
    build_feature_cache(data, quarters, KEY, out, **SETTINGS)
    assert tree_bytes(out) == tree_bytes(whole)


@pytest.mark.slow
def test_kill_with_two_processes(data: Path, whole: Path, tmp_path: Path) -> None:
    """The killed parent's workers end by themselves and leave nothing that a rerun stumbles over."""
    out = tmp_path / "out"
    arguments = store_arguments(data, out, processes=2)
    kill_at_random(build_store, arguments, 3, 0, lambda: None, lambda: shutil.rmtree(out), on_cpu=False)
    build_feature_cache(data, quarters, KEY, out, **SETTINGS)
    assert tree_bytes(out) == tree_bytes(whole)


def test_a_grown_dataset_keeps_its_full_shards(data: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 2)
    first = build_feature_cache(tmp_path / "data", quarters, KEY, tmp_path / "out", **SETTINGS)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*.npy")}
    write_episode(tmp_path / "data", make_episode(2))
    grown = build_feature_cache(tmp_path / "data", quarters, KEY, tmp_path / "out", **SETTINGS)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*.npy")}
    assert len(first) == 24 and len(grown) == 36 and before.items() <= after.items()
