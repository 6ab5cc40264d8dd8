"""Two processes under torchrun, with DDP and with FSDP2, train as one does; a sharded run goes on in one process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from armworld.worldmodel.checkpoint import load_checkpoint, load_world_model
from armworld.worldmodel.posttrain import posttrain
from armworld.worldmodel.pretrain import _build
from armworld.worldmodel.processes import Processes, gather
from armworld.worldmodel.training import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import write_dataset
from worldmodel_runs import copy_states, posttraining, pretraining, run_all

RUNS = ("pretrain", "posttrain")
PAIRS = (("one", "ddp"), ("one", "fsdp"), ("resumed", "resumed_ddp"))
SHARED = {"step", "learning_rate", "denoising", "state", "teacher_forcing", "rollout", "inverse", "loss", "gain"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The same trainings in one process (`one`, `muon`, `resumed` from `one`) and in two of each kind."""
    root = tmp_path_factory.mktemp("processes")
    write_dataset(root / "data", 3, rows=8)
    run_all(root / "data", root / "one")
    run_all(root / "data", root / "muon", optimizer="muon")
    for name in ("resumed", "resumed_ddp"):
        copy_states(root / "one", root / name)
    run_all(root / "data", root / "resumed", steps=6)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("worldmodel_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(root)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return root


def losses(folder: Path) -> list[dict[str, float]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name in SHARED} for row in rows]


def tensors(state: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested state by their paths."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {name: value for key, part in items for name, value in tensors(part, f"{path}/{key}").items()}


@pytest.mark.parametrize(("single", "double"), PAIRS)
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_give_the_losses_and_weights_of_one(runs, run, single, double):
    one, two = losses(runs / single / run), losses(runs / double / run)
    assert len(one) == len(two) >= (2 if single == "resumed" else 4)
    for expected, found in zip(one, two, strict=True):
        assert expected.keys() == found.keys()
        assert all(math.isclose(expected[k], found[k], rel_tol=2e-5, abs_tol=2e-6) for k in expected), (expected, found)
    states = [torch.load(runs / name / run / "state.pt", weights_only=True) for name in (single, double)]
    whole, parts = ({**tensors(s["modules"]), **tensors(s["optimizer"])} for s in states)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: name + text)


def test_muon_orthogonalises_whole_matrices_of_shards(runs):
    """Its steps differ by a quarter: torch iterates in bfloat16, whose rounding grows along directions of almost no
    gradient, and sums of shards round otherwise. Shards orthogonalised one by one would differ by 0.7 to 1.3."""
    for run in RUNS:
        for expected, found in zip(losses(runs / "muon" / run), losses(runs / "muon_fsdp" / run), strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
    first = _build(pretraining(runs / "data", runs / "unused")).state_dict()
    states = [torch.load(runs / n / "pretrain" / "state.pt", weights_only=True) for n in ("muon", "muon_fsdp")]
    one, two = (state["modules"]["denoiser"] for state in states)
    hidden = [name for name, value in first.items() if "blocks" in name and value.ndim == 2]
    apart = [float((two[n] - one[n]).norm() / (one[n] - first[n]).norm()) for n in hidden]
    assert len(apart) == 12 and sum(apart) / len(apart) < 0.4


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_what_two_processes_export_loads(runs, kind):
    one, two = (load_checkpoint(runs / name / "pretrain" / "encoder") for name in ("one", kind))
    assert two.encoder.config.width == 48
    assert one.mask_predictor is not None and two.mask_predictor is not None
    for name, value in one.mask_predictor.state_dict().items():
        torch.testing.assert_close(two.mask_predictor.state_dict()[name], value, rtol=1e-3, atol=2e-5)
    assert load_world_model(runs / kind / "posttrain" / "model").predictor.state_head is not None


def test_a_sharded_run_goes_on_in_one_process(runs, tmp_path):
    """Its state is whole: two more steps in one process equal six in one process."""
    for name in ("one", "fsdp"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "state.pt").write_bytes((runs / name / "posttrain" / "state.pt").read_bytes())
        config = posttraining(runs / "data", folder, state_loss=0.5, inverse_loss=0.5)
        posttrain(replace(config, steps=6))
    one, other = (losses(tmp_path / name) for name in ("one", "fsdp"))
    assert [row["step"] for row in one] == [row["step"] for row in other] == [4, 4, 5]
    for expected, found in zip(one, other, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_sharding_needs_torchrun():
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        Processes.from_environment(torch.device("cpu"), sharded=True)


def test_gather_leaves_plain_states_alone():
    state = {"a": torch.ones(2), "b": [1, (torch.zeros(1), "x")]}
    found = gather(state)
    assert torch.equal(found["a"], state["a"]) and found["b"][1][1] == "x"
