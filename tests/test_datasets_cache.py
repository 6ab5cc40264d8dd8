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
from armworld.datasets.episode import EpisodeError
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 0}, f"{name} must be at least 1, got 0") for name in ("layers", "workers", "batch", "shard_frames")),
        ({"device": "gpu"}, "unknown device 'gpu'; valid: auto, cpu"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; valid: float32, bfloat16"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheConfig((tmp_path,), "random:debug", tmp_path / "c", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera": "lefft"}, "seed0000000: no camera 'lefft'; it has left"),
        ({"image_size": 96}, r"its left frames are 64 x 64 pixels, the encoder reads 96 x 96; .* --image-size 96"),
        ({"layers": 9}, "layers must lie in 1 ... 2, got 9"),
    ],
)
def test_what_does_not_fit_the_data_begins_no_cache(data: Path, tmp_path: Path, changes: dict, message: str) -> None:
    values = {"image_size": 64, "workers": 1, **changes}
    with pytest.raises(ValueError, match=message):
        cache(CacheConfig((data,), "random:debug", tmp_path / "c", **values))
    assert not (tmp_path / "c").exists()


def test_training_says_that_the_frames_do_not_fit_before_any_is_encoded(data: Path, tmp_path: Path) -> None:
    for camera, message in (
        ("lefft", "seed0000000: no camera 'lefft'; it has left"),
        ("left", "the encoder reads 96 x 96"),
    ):
        with pytest.raises(ValueError, match=message):
            open_features(open_encoder("random:debug", 96, 0), [data], tmp_path / "c", camera, None, "float32")
    assert not (tmp_path / "c").exists()


def test_a_cache_takes_no_folder_of_something_else(data: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").touch()
    with pytest.raises(ValueError, match=r"holds something that is no cache of ours \(results\.json\)"):
        build_feature_cache(data, quarters, KEY, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"results\.json is a file; a cache needs a folder of its own"):
        build_feature_cache(data, quarters, KEY, tmp_path / "results.json", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_cache_that_never_began_binds_nobody(data: Path, tmp_path: Path) -> None:
    def broken(frames: np.ndarray) -> np.ndarray:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        build_feature_cache(data, broken, {**KEY, "encoder": "xyz"}, tmp_path, **SETTINGS)
    assert len(build_feature_cache(data, quarters, KEY, tmp_path, **SETTINGS)) == 72


def test_frames_of_two_sizes_are_not_packed_together(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2)
    other = write_episode(tmp_path, make_episode(2, size=96))
    with pytest.raises(EpisodeError, match=rf"{other}: its left frames are 96 x 96 .* before 64 x 64"):
        build_feature_cache(tmp_path, quarters, KEY, tmp_path / "out", progress=None)
    with pytest.raises(ValueError, match=rf"{other}: its left frames are 96 x 96 pixels, the encoder reads 64 x 64"):
        build_feature_cache(tmp_path, quarters, KEY, tmp_path / "new", progress=None, image_size=(64, 64))
    assert not (tmp_path / "new").exists()


def test_features_of_other_data_are_kept(data: Path, tmp_path: Path) -> None:
    """Whatever is there of episodes that still exist stays; those that were moved, copied or deleted are no others."""
    for seed in range(6, 9):
        write_episode(tmp_path / "other", make_episode(seed, rows=9))
    out = tmp_path / "c"
    build_feature_cache([tmp_path / "other", data], quarters, KEY, out, **SETTINGS)
    before = tree_bytes(out)
    for folders in (data, tmp_path / "other"):
        with pytest.raises(ValueError, match=r"holds features of \d other episodes, as .*; choose another folder"):
            build_feature_cache(folders, quarters, KEY, out, **SETTINGS)
    (out / "plan.json").unlink()  # as an interrupted build leaves it
    with pytest.raises(ValueError, match="holds features of other episodes in an unfinished build"):
        build_feature_cache(data, quarters, KEY, out, **SETTINGS)
    build_feature_cache([tmp_path / "other", data], quarters, KEY, out, **SETTINGS)
    assert tree_bytes(out) == before
    shutil.copytree(tmp_path / "other", tmp_path / "copy")
    assert len(build_feature_cache([tmp_path / "copy", data], quarters, KEY, out, **SETTINGS)) == 27 + 72
    shutil.rmtree(tmp_path / "copy")
    shutil.rmtree(find_episodes(tmp_path / "other")[0])
    assert len(build_feature_cache([tmp_path / "other", data], quarters, KEY, out, **SETTINGS)) == 18 + 72


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
