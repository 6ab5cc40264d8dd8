"""Clips by seconds, packed stores, the frozen-feature cache, shards."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from armworld.datasets.clips import ClipDataset, episode_folders, load_frames, open_clips, shard_order
from armworld.datasets.droid import write_episode
from armworld.datasets.episode import EpisodeError
from armworld.datasets.features import FeatureCache, build_feature_cache, encoder_hash, stride_for
from armworld.datasets.files import TEMPORARY
from armworld.datasets.trajectory import read_episode
from armworld.pose import action_between

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import edit_array, make_episode, tree_bytes, write_dataset

KEY = {"encoder": "abc", "image_size": 32}


def pooled(frames: np.ndarray) -> torch.Tensor:
    """A stand-in for an encoder: [B, 4, 3] means of image quarters."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float() / 255
    return pixels.reshape(len(frames), 4, -1, 3).mean(2)


def test_clips_are_sampled_by_seconds(tmp_path: Path) -> None:
    (folder,) = write_dataset(tmp_path, 1, rows=20, step_seconds=0.05)  # a 20 Hz log
    dataset = ClipDataset(tmp_path, frames=4, step_seconds=0.25)
    assert dataset.strides == [5] and len(dataset) == 20 - 15
    clip, episode = dataset[2], read_episode(folder)
    rows = [2, 7, 12, 17]
    np.testing.assert_array_equal(clip["frames"], episode.frames["left"][rows])
    np.testing.assert_allclose(clip["states"], episode.states[rows], atol=1e-6)
    np.testing.assert_allclose(
        clip["actions"], action_between(episode.states[rows[:-1]], episode.states[rows[1:]]), atol=1e-6
    )
    assert clip["extrinsics"].shape == (4, 6) and clip["episode"] == str(folder) and clip["row"] == 2


def test_the_header_rate_plays_no_part(tmp_path: Path) -> None:
    """DROID's own folders: rows at 15 Hz, whatever the header says; 0.25 s is taken as 4 rows, 1 s as 15."""
    assert stride_for(1 / 15, 0.25) == 4 and stride_for(1 / 15, 1.0) == 15
    assert stride_for(0.25, 0.25) == 1 and stride_for(0.25, 1.0) == 4
    with pytest.raises(ValueError, match=r"0\.1 does not fit data recorded every 0\.25 s; possible: 0\.25, 0\.5"):
        stride_for(0.25, 0.1)


def test_clip_dataset_bounds(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, rows=6)
    dataset = ClipDataset(tmp_path, frames=4)
    assert len(dataset) == 6 and len({(dataset[i]["episode"], dataset[i]["row"]) for i in range(6)}) == 6
    with pytest.raises(IndexError):
        dataset[6]
    with pytest.raises(ValueError, match="no episode holds 9 frames"):
        ClipDataset(tmp_path, frames=9)
    with pytest.raises(EpisodeError, match="no camera 'wrist'; it has left"):
        ClipDataset(tmp_path, frames=2, camera="wrist")[0]
    assert ClipDataset(tmp_path, frames=2, image_size=16)[0]["frames"].shape == (2, 16, 16, 3)


def test_the_index_file(tmp_path: Path) -> None:
    folders = write_dataset(tmp_path, 2)
    index = tmp_path / "index.csv"
    index.write_text(f"{folders[1]} 0\n{folders[0]}\n")
    assert episode_folders(index) == [folders[1], folders[0]]
    index.write_text("/nowhere/x\n")
    with pytest.raises(ValueError, match="/nowhere/x"):
        episode_folders(index)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("observation/robot_state/cartesian_position", lambda a: None, "cartesian_position is missing"),
        ("observation/robot_state/gripper_position", lambda a: a.astype(int), "dtype int64"),
        ("observation/robot_state/cartesian_position", lambda a: a[:, :5], r"expected \[T, 6\]"),
        ("observation/robot_state/cartesian_position", lambda a: np.where(a > 0.4, np.nan, a), "NaN"),
        ("observation/timestamp/control/step_start", lambda a: a[::-1], "does not increase at row 1"),
        ("observation/robot_state/gripper_position", lambda a: a[:-2], "10 rows"),
    ],
)
def test_a_bad_episode_is_an_error_with_its_path(tmp_path: Path, key, change, message: str) -> None:
    folders = write_dataset(tmp_path, 3)
    edit_array(folders[1], key, change)
    with pytest.raises(EpisodeError, match=message) as caught:
        ClipDataset(tmp_path, frames=2)
    assert str(folders[1]) in str(caught.value)


def test_bad_videos_and_doubled_uuids_are_errors(tmp_path: Path) -> None:
    folders = write_dataset(tmp_path, 2)
    video = next((folders[1] / "recordings" / "MP4").iterdir())
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EpisodeError, match=video.name):
        load_frames(tmp_path)
    video.write_bytes(whole)
    metadata = [next(folder.glob("*.json")) for folder in folders]
    metadata[1].write_text(metadata[0].read_text())
    with pytest.raises(EpisodeError, match=r"uuid .* is also that of"):
        ClipDataset(tmp_path, frames=2)


def test_packed_frames_equal_the_videos(tmp_path: Path) -> None:
    folders = write_dataset(tmp_path, 3, rows=7)
    store = load_frames(tmp_path)
    assert isinstance(store.array(), np.memmap) and store.array().shape == (21, 64, 64, 3)
    for number, folder in enumerate(folders):
        rows = slice(store.offsets[number], store.offsets[number + 1])
        episode = read_episode(folder)
        np.testing.assert_array_equal(store.array()[rows], episode.frames["left"])
        np.testing.assert_allclose(store.states[rows], episode.states, atol=1e-6)
    before = tree_bytes(tmp_path / ".cache")
    load_frames(tmp_path)
    assert tree_bytes(tmp_path / ".cache") == before


def test_frames_of_several_folders_lie_apart_from_the_firsts_own(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", 1, rows=7)
    for seed in (1, 2):
        write_episode(tmp_path / "b", make_episode(seed, rows=7))
    alone, both = load_frames(tmp_path / "a"), load_frames([tmp_path / "a", tmp_path / "b"])
    assert (len(alone), len(both)) == (7, 21) and alone.folder != both.folder
    assert load_frames([tmp_path / "a"]).folder == alone.folder


def test_packed_frames_follow_the_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, rows=7)
    load_frames(tmp_path)
    write_episode(tmp_path, make_episode(2, rows=7))
    assert len(load_frames(tmp_path)) == 21


def test_open_clips_draws_windows_inside_episodes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, 2, rows=6)
    source = open_clips((tmp_path / "a", tmp_path / "b"), 64, 0.5)
    clips = source.sample(np.random.default_rng(0), 50, 3)
    assert clips.shape == (50, 3, 64, 64, 3) and clips.dtype == np.uint8
    np.testing.assert_array_equal(clips, source.sample(np.random.default_rng(0), 50, 3))
    pool = source.stores[0].array()
    pairs = {pool[i].tobytes(): i % 6 for i in range(len(pool))}
    for clip in clips:
        first, second, third = (pairs[frame.tobytes()] for frame in clip)
        assert second - first == third - second == 2  # 0.5 s apart, in one episode


def test_features_equal_direct_encoding(tmp_path: Path) -> None:
    folders = write_dataset(tmp_path / "data", 5, rows=7)
    cache = build_feature_cache(tmp_path / "data", pooled, KEY, tmp_path / "out", batch=5, shard_frames=15)
    assert len(cache) == 35 and cache.item_shape == (4, 3)
    assert len(list((tmp_path / "out").glob("shard-*.npy"))) == 3
    direct = np.concatenate([pooled(read_episode(f).frames["left"]).numpy() for f in folders]).astype(np.float16)
    rows = np.random.default_rng(0).integers(0, 35, (6, 4))
    np.testing.assert_array_equal(cache.gather(rows), direct[rows])
    cache.preload()
    np.testing.assert_array_equal(cache.gather(rows), direct[rows])
    np.testing.assert_array_equal(cache.array(), direct)


def test_what_would_fill_the_memory_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data", 3, rows=7)
    small = build_feature_cache(tmp_path / "data", pooled, KEY, tmp_path / "out", shard_frames=7)
    monkeypatch.setattr("armworld.datasets.store.physical_memory", lambda: 2 * small.nbytes)
    large = FeatureCache(tmp_path / "out")
    assert small.preload(0.5) is small and large.preload(0.49) is large
    rows = np.random.default_rng(0).integers(0, 21, (6, 4))
    np.testing.assert_array_equal(large.gather(rows), small.gather(rows))
    np.testing.assert_array_equal(FeatureCache(tmp_path / "out").array(), small.array())
    for path in (tmp_path / "out").glob("shard-*.npy"):
        np.load(path, mmap_mode="r+")[:] = 0
    assert small.gather(rows).any(), "read into memory before"
    assert not large.gather(rows).any() and not large.array().any(), "read from the files"


def test_a_step_of_zero_is_no_default(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 1)
    cache = build_feature_cache(tmp_path / "data", pooled, KEY, tmp_path / "out")
    with pytest.raises(ValueError, match=r"step_seconds 0 does not fit data recorded every 0.25 s"):
        cache.clips(step_seconds=0.0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_camera_that_the_data_lack_is_named(tmp_path: Path, packed: bool) -> None:
    write_dataset(tmp_path, 1, cameras=("left", "wrist"))
    write_episode(tmp_path, make_episode(1))
    with pytest.raises(EpisodeError, match="seed0000001: no camera 'wrist'; it has left"):
        ClipDataset(tmp_path, camera="wrist", packed=packed)
    with pytest.raises(EpisodeError, match="seed0000000: no camera 'lefft'; it has left, wrist"):
        open_clips([tmp_path], 64, 0.25, "lefft")


def test_feature_clips(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 4, rows=7)
    cache = build_feature_cache(tmp_path / "data", pooled, KEY, tmp_path / "out", shard_frames=14)
    train, held_out = cache.split(0.25, seed=1)
    assert sorted([*train, *held_out]) == [0, 1, 2, 3] and len(held_out) == 1
    clips = cache.clips(held_out)
    z, states, _ = clips.sample(np.random.default_rng(0), 16, 3)
    assert z.shape == (16, 3, 4, 3) and z.dtype == torch.float16 and states.shape == (16, 3, 7)
    own = clips.sample(np.random.default_rng(0), 16, 3, slice(4, 8))
    assert all(torch.equal(a, b[4:8]) for a, b in zip(own, clips.sample(np.random.default_rng(0), 16, 3), strict=True))
    rows = clips.starts(3)
    assert rows.min() >= cache.offsets[held_out[0]] and rows.max() + 2 < cache.offsets[held_out[0] + 1]
    windows = cache.windows(rows, 3)
    np.testing.assert_array_equal(windows.states[:, 1], cache.states[rows + 1])
    with pytest.raises(ValueError, match="no episode"):
        clips.starts(8)


def test_another_key_is_an_error(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 1)
    build_feature_cache(tmp_path / "data", pooled, KEY, tmp_path / "out")
    other = {**KEY, "encoder": "xyz"}
    with pytest.raises(ValueError, match="encoder: 'abc' there, 'xyz' asked for"):
        build_feature_cache(tmp_path / "data", pooled, other, tmp_path / "out")
    with pytest.raises(ValueError, match="encoder: 'abc' there, 'xyz' asked for"):
        FeatureCache(tmp_path / "out", other)
    assert FeatureCache(tmp_path / "out", KEY).key["image_size"] == 32
    with pytest.raises(ValueError, match="no finished cache"):
        FeatureCache(tmp_path / "nothing")


def test_caching_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data", 5, rows=7)
    calls = []

    def counting(frames: np.ndarray) -> torch.Tensor:
        calls.append(len(frames))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pooled(frames)

    build_feature_cache(tmp_path / "data", pooled, KEY, tmp_path / "whole", batch=7, shard_frames=7)
    with pytest.raises(KeyboardInterrupt):
        build_feature_cache(tmp_path / "data", counting, KEY, tmp_path / "out", batch=7, shard_frames=7)
    with pytest.raises(ValueError, match="no finished cache"):
        FeatureCache(tmp_path / "out")
    build_feature_cache(tmp_path / "data", counting, KEY, tmp_path / "out", batch=7, shard_frames=7)
    assert sum(calls) == 7 * (5 + 1), "only the interrupted shard is encoded again"
    assert tree_bytes(tmp_path / "out") == tree_bytes(tmp_path / "whole")


def test_damaged_caches_and_odd_values_are_errors(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 1)
    build_feature_cache(tmp_path / "data", pooled, KEY, tmp_path / "out")
    shard = next((tmp_path / "out").glob("shard-*.npy"))
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(ValueError, match=shard.name):
        FeatureCache(tmp_path / "out")
    with pytest.raises(ValueError, match="fit float16; the largest magnitude is 100000"):
        build_feature_cache(tmp_path / "data", lambda f: torch.full((len(f), 1, 1), 1e5), KEY, tmp_path / "big")
    with pytest.raises(ValueError, match="answered 1 values for 12 frames"):
        build_feature_cache(tmp_path / "data", lambda f: torch.zeros(1, 1, 1), KEY, tmp_path / "few")
    assert not list((tmp_path / "big").glob(f"{TEMPORARY}*"))


def test_different_steps_cannot_share_a_cache(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", 1)
    write_dataset(tmp_path / "b", 1, step_seconds=0.5)
    with pytest.raises(ValueError, match=r"differ in step_seconds: \[0\.25, 0\.5\]|uuid"):
        build_feature_cache([tmp_path / "a", tmp_path / "b"], pooled, KEY, tmp_path / "out")


def test_encoder_hash_sees_every_weight() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    before = encoder_hash(layer)
    assert encoder_hash(layer) == before
    with torch.no_grad():
        layer.bias[1] += 1e-6
    assert encoder_hash(layer) != before
    assert encoder_hash(layer.bfloat16()) != before


def test_shards_cover_an_epoch_once() -> None:
    shards = [list(shard_order(103, 0, 1, r, 2, w, 3)) for r in range(2) for w in range(3)]
    everything = [index for shard in shards for index in shard]
    assert len(everything) == len(set(everything)) == 102 and {len(shard) for shard in shards} == {17}
    assert list(shard_order(103, 0, 1, 1, 2, 2, 3)) == shards[-1]
    assert list(shard_order(103, 0, 2, 1, 2, 2, 3)) != shards[-1]
    with pytest.raises(ValueError, match="rank < world_size"):
        shard_order(10, 0, 0, rank=2, world_size=2)
