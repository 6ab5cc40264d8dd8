"""The debug size, start to end: collect, train (killed, resumed), export, reload, plan an episode."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from armworld.datasets.collect import CollectConfig, collect
from armworld.evaluation.plan import PlanConfig, plan
from armworld.worldmodel.checkpoint import load_world_model
from armworld.worldmodel.posttrain import posttrain
from armworld.worldmodel.pretrain import pretrain
from armworld.worldmodel.training import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from worldmodel_runs import posttraining, pretraining, stop_at

PATIENCE = 200  # s, for a child to import, train a few steps and save; typically 5
PRETRAIN = (
    "pretrain --size debug --image-size 64 --batch 4 --predictor-width 48 --predictor-depth 1 --predictor-heads 2 "
    "--dtype float32 --log-every 1 --steps 100000 --save-minutes 1e-6"
)
POSTTRAIN = (
    "posttrain --image-size 64 --width 48 --depth 2 --heads 2 --batch 4 --pair-share 0.5 --held-out 0.4 "
    "--validate-every 2 --dtype float32 --log-every 1 --steps 100000 --save-minutes 1e-6"
)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """An `armworld` command of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "armworld", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end_after_steps(arguments: list[str], out: Path, number: signal.Signals) -> int:
    """Run the command, send the signal once it has saved a few steps, and answer its exit code."""
    child, deadline = start(arguments), time.monotonic() + PATIENCE
    try:
        while not (out / "metrics.jsonl").exists() or len(read_metrics(out / "metrics.jsonl")) < 4:
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < deadline, "the child trained no step in time"
            time.sleep(0.05)
        child.send_signal(number)
        return child.wait(PATIENCE)
    finally:
        child.kill()
        child.communicate()


def saved_step(out: Path) -> int:
    return torch.load(out / "state.pt", weights_only=True)["step"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "data"
    collect(CollectConfig(out=folder, episodes=4, workers=1, steps=8, image_size=64))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the children: more threads would add numbers up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_debug_size_trains_is_killed_resumes_exports_and_plans(data, tmp_path, one_thread):
    encoding = pretraining(data, tmp_path / "encoder", steps=100_000, save_minutes=1e-6)
    code = end_after_steps(
        [*PRETRAIN.split(), "--data", str(data), "--out", str(encoding.out)], encoding.out, signal.SIGKILL
    )
    assert code == -signal.SIGKILL
    killed_at = saved_step(encoding.out)
    assert killed_at >= 2
    uninterrupted = replace(encoding, out=tmp_path / "uninterrupted")
    for config in (encoding, uninterrupted):
        stop_at(config, killed_at + 3)
    resumed, whole = (read_metrics(config.out / "metrics.jsonl") for config in (encoding, uninterrupted))
    assert [row["step"] for row in resumed] == list(range(killed_at + 3))  # no row twice, none missing
    assert [row["denoising"] for row in resumed] == [row["denoising"] for row in whole]
    encoder = pretrain(replace(encoding, steps=killed_at + 4))
    assert saved_step(encoding.out) == killed_at + 4

    cache = tmp_path / "features"
    acting = posttraining(data, tmp_path / "predictor", encoder=str(encoder), cache=cache)
    options = ["--data", str(data), "--out", str(acting.out), "--encoder", str(encoder), "--cache", str(cache)]
    assert end_after_steps([*POSTTRAIN.split(), *options], acting.out, signal.SIGTERM) == 130
    stopped_at = saved_step(acting.out)
    model = posttrain(replace(acting, steps=stopped_at + 3))
    assert saved_step(acting.out) == stopped_at + 3

    loaded = load_world_model(model, step_seconds=0.25)
    assert loaded.image_size == (64, 64) and loaded.camera == "left"
    settings = PlanConfig(
        model=str(model),
        out=tmp_path / "plan",
        episodes=1,
        seed=1_000_000,
        max_steps=3,
        samples=8,
        iterations=1,
        baselines="none",
        videos=0,
    )
    record = plan(settings)
    assert (tmp_path / "plan" / "results.json").is_file()
    assert [row["steps"] for row in record["episodes"]] == [3]
