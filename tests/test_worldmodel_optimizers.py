"""Muon beside AdamW: which parameter goes where, one step against torch's own, exact resume; the log's TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.metrics import Metrics
from armworld.worldmodel.optimizers import Optimizers, make_optimizer
from armworld.worldmodel.posttrain import posttrain
from armworld.worldmodel.sizes import ACPredictorConfig

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import write_dataset
from worldmodel_runs import posttraining, stop_at

RATE, DECAY = 1e-2, 0.04


def predictor() -> ACPredictor:
    torch.manual_seed(0)
    return ACPredictor(ACPredictorConfig(16, width=24, depth=2, heads=2, image_size=(32, 32)))


def muon(module: ACPredictor) -> Optimizers:
    return make_optimizer("muon", module, module.predictor_blocks, RATE, DECAY)


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None


def hidden(module: ACPredictor) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters() if n.startswith("predictor_blocks") and p.ndim == 2}


def test_muon_takes_the_blocks_matrices_and_adamw_all_else_once():
    module = predictor()
    optimizer = muon(module)
    matrices = {id(p) for p in hidden(module).values()}
    assert {id(p) for group in optimizer.parts[0].param_groups for p in group["params"]} == matrices
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(everything) == len(set(everything)) == sum(p.requires_grad for p in module.parameters())


def test_rate_scale_halves_what_adamw_keeps():
    optimizer = muon(predictor())
    optimizer.set_rate(0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05, 0.05]


def test_one_step_equals_torchs_muon_and_adamw():
    ours, theirs = predictor(), predictor()
    optimizer = muon(ours)
    optimizer.set_rate(RATE)
    give_gradients(ours, 1)
    give_gradients(theirs, 1)
    optimizer.step()
    matrices = list(hidden(theirs).values())
    torch.optim.Muon(matrices, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw").step()
    rest = [p for p in theirs.parameters() if p.requires_grad and all(p is not m for m in matrices)]
    groups = [{"params": [p], "weight_decay": DECAY if p.ndim >= 2 else 0.0} for p in rest]
    torch.optim.AdamW(groups, lr=RATE / 2).step()
    for (name, mine), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-7, msg=lambda text, name=name: name + text)
    assert not torch.equal(ours.predictor_proj.weight, predictor().predictor_proj.weight)


def test_muons_update_is_nearly_orthogonal():
    module = predictor()
    before = module.predictor_blocks[0].get_parameter("mlp.fc1.weight").detach().clone()
    optimizer = make_optimizer("muon", module, module.predictor_blocks, RATE, 0.0)
    give_gradients(module, 2)
    optimizer.step()
    update = module.predictor_blocks[0].get_parameter("mlp.fc1.weight").detach() - before
    values = torch.linalg.svdvals(update)
    assert values.max() / values.min() < 2  # five Newton-Schulz steps bring singular values near one another


def test_a_restored_muon_goes_on_exactly():
    whole, first = predictor(), predictor()
    uninterrupted = muon(whole)
    for seed in (1, 2):
        give_gradients(whole, seed)
        uninterrupted.step()
    optimizer = muon(first)
    give_gradients(first, 1)
    optimizer.step()
    second = predictor()
    second.load_state_dict(first.state_dict())
    resumed = muon(second)
    resumed.load_state_dict(optimizer.state_dict())
    give_gradients(second, 2)
    resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_unknown_optimizers_are_named():
    module = predictor()
    with pytest.raises(ValueError, match=r"unknown optimizer 'sgd'; valid: adamw, muon"):
        make_optimizer("sgd", module, module.predictor_blocks, RATE, DECAY)


def test_a_run_with_muon_resumes_exactly_and_logs_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_dataset(tmp_path / "data", 3, rows=8)
    whole = posttraining(tmp_path / "data", tmp_path / "whole", optimizer="muon", tensorboard=True)
    posttrain(whole)
    halves = posttraining(tmp_path / "data", tmp_path / "halves", optimizer="muon", save_minutes=1e-9)
    stop_at(halves, 2)
    posttrain(halves)
    one, two = (torch.load(c.out / "state.pt", weights_only=True)["modules"]["predictor"] for c in (whole, halves))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    board = EventAccumulator(str(whole.out / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [0, 1, 2, 3]


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"checkout of armworld: pip install -e '\.\[tensorboard\]'"):
        Metrics(tmp_path / "metrics.jsonl", 0, tensorboard=True)
