"""Collecting, rendering again and caching over Ray: a cluster of two nodes loses one, and nothing changes.

Starting Ray takes ten seconds and more, so these tests count as slow.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from armworld.datasets.cache import CacheConfig, cache
from armworld.datasets.collect import CollectConfig, collect
from armworld.datasets.droid import find_episodes
from armworld.datasets.features import build_feature_cache
from armworld.datasets.ray_jobs import run_ray_jobs
from armworld.datasets.validate import validate
from armworld.jobs import run_jobs

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import datasets_helpers  # noqa: E402
from datasets_helpers import quarters, slow_quarters, tree_bytes, write_dataset  # noqa: E402

KEY = {"encoder": "abc", "image_size": 64}
SETTINGS = {"batch": 5, "shard_frames": 12, "progress": None}
LOSS_WITHIN_S = 120


def loaded_ray() -> Any:
    """Ray, or a skip. A loaded machine starts a node slowly."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    return pytest.importorskip("ray")


@contextmanager
def two_nodes(until: Callable[[], bool]) -> Iterator[str]:
    """A cluster of two nodes of one CPU, by its address; the second dies, unannounced, once `until()` holds."""
    ray = loaded_ray()
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    environment = {"env_vars": {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}}
    ray.init(address=cluster.address, runtime_env=environment, log_to_driver=False)
    lost = threading.Event()

    def lose_a_node() -> None:
        end = time.monotonic() + LOSS_WITHIN_S
        while not until() and time.monotonic() < end:
            time.sleep(0.02)
        if until():
            cluster.remove_node(second, allow_graceful=False)
            lost.set()

    saboteur = threading.Thread(target=lose_a_node)
    saboteur.start()
    try:
        yield cluster.address
        saboteur.join()
        assert lost.is_set(), "no node was lost: the test tested nothing"
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Six episodes (in `data` beside it) in a cache of six shards, built by this process."""
    write_dataset(tmp_path / "data", 6)
    build_feature_cache(tmp_path / "data", quarters, KEY, tmp_path / "whole", **SETTINGS)
    return tmp_path / "whole"


@pytest.mark.slow
def test_a_local_ray_gives_what_processes_give(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Results, errors, a worker that dies, and the command, on one cluster started for them."""
    ray = loaded_ray()
    trap = tmp_path / "trap"
    trap.touch()
    monkeypatch.setenv(datasets_helpers.CRASH_VARIABLE, str(trap))
    data = tmp_path / "data"
    try:
        results = dict(run_ray_jobs(math.factorial, [1, 2, 3], 2, "local"))
        assert results == dict(run_jobs(math.factorial, [1, 2, 3], 1)) == {1: 1, 2: 2, 3: 6}
        with pytest.raises(ValueError, match=r"^factorial\(\) not defined for negative values$"):
            list(run_ray_jobs(math.factorial, [-1], 1, "local"))
        build_feature_cache(data, quarters, KEY, tmp_path / "out", processes=2, ray="local", **SETTINGS)
        assert not trap.exists(), "a worker died"
        settings: dict[str, Any] = {"image_size": 64, "workers": 2, "shard_frames": 40}
        cache(CacheConfig((data,), "random:debug", tmp_path / "over_ray", ray="local", **settings))
    finally:
        ray.shutdown()
    assert tree_bytes(tmp_path / "out") == tree_bytes(whole)
    cache(CacheConfig((data,), "random:debug", tmp_path / "here", **{**settings, "workers": 1}))
    assert tree_bytes(tmp_path / "over_ray") == tree_bytes(tmp_path / "here")
    assert capsys.readouterr().out.count("72 frames, [16, 48] features each") == 2


@pytest.mark.slow
def test_a_cache_over_two_nodes_survives_the_loss_of_one(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with two_nodes(until=lambda: any(out.glob("shard-*.npy"))) as address:
        build_feature_cache(tmp_path / "data", slow_quarters, KEY, out, processes=2, ray=address, **SETTINGS)
    assert tree_bytes(out) == tree_bytes(whole)


@pytest.mark.slow
def test_a_collection_over_two_nodes_survives_the_loss_of_one(tmp_path: Path) -> None:
    loaded_ray()
    common: dict[str, Any] = {"image_size": 64, "steps": 5, "task": "datasets_fake:fake/Arm-v0"}
    collect(CollectConfig(tmp_path / "one", episodes=20, workers=1, **common))
    done = (tmp_path / "two").glob
    with two_nodes(until=lambda: len(list(done("lab1/*/*/*/trajectory.h5"))) >= 3) as address:
        collect(CollectConfig(tmp_path / "two", episodes=20, workers=2, ray=address, **common))
    names = [[str(f.relative_to(tmp_path / n)) for f in find_episodes(tmp_path / n)] for n in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) == 20
    assert validate(tmp_path / "two") == []


def test_no_cluster_and_no_workers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        list(run_ray_jobs(math.factorial, [1], 0, "local"))
    ray = loaded_ray()

    def refuse(**settings: Any) -> None:
        raise ConnectionError("nobody there\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ValueError, match=r"no Ray cluster at '10\.0\.0\.1:1' \(nobody there\); start one"):
        list(run_ray_jobs(math.factorial, [1], 1, "10.0.0.1:1"))
