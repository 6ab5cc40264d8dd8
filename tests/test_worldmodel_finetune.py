"""Optional losses of post-training, and fine-tuning from a checkpoint: all of it, its last blocks, adapters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from armworld.pose import action_between, apply_action
from armworld.worldmodel import checkpoint
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_checkpoint, load_world_model, save_encoder
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.finetune import add_lora, fit_predictor, merge_lora, train_last_blocks
from armworld.worldmodel.posttrain import PosttrainConfig, posttrain
from armworld.worldmodel.prediction_loss import ACTION_SCALE, PredictionLoss
from armworld.worldmodel.sizes import ACPredictorConfig, encoder_config
from armworld.worldmodel.training import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import write_dataset
from worldmodel_runs import posttraining, stop_at


def predictor(**changes) -> ACPredictor:
    torch.manual_seed(0)
    return ACPredictor(ACPredictorConfig(16, width=24, depth=2, heads=2, image_size=(32, 32), **changes))


def clips(frames: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Features, states and the actions between them."""
    generator = torch.Generator().manual_seed(0)
    z = normalize(torch.randn(2, frames, 4, 16, generator=generator))
    states = [0.1 * torch.randn(2, 7, generator=generator)]
    for _ in range(frames - 1):
        states.append(apply_action(states[-1], 0.05 * torch.randn(2, 7, generator=generator)))
    stacked = torch.stack(states, 1)
    return z, stacked, action_between(stacked[:, :-1], stacked[:, 1:])


def test_the_state_loss_is_the_error_of_the_states_change():
    module, (z, states, actions) = predictor(state_head=True, action_scale=ACTION_SCALE), clips()
    parts = PredictionLoss(module, 2, state_weight=0.5)(z, states, actions)
    delta = module(z[:, :-1], actions, states[:, :-1]).state_delta
    assert delta is not None
    scale = torch.tensor(ACTION_SCALE)
    torch.testing.assert_close(parts["state"], F.l1_loss(delta * scale, actions * scale))
    expected = parts["teacher_forcing"] + parts["rollout"] + 0.5 * parts["state"]
    torch.testing.assert_close(parts["loss"], expected)
    with pytest.raises(ValueError, match="needs a predictor with a state head"):
        PredictionLoss(predictor(), 2, state_weight=1.0)


def test_the_inverse_loss_reads_actions_from_real_and_from_predicted_features():
    module, (z, states, actions) = predictor(), clips()
    loss = PredictionLoss(module, 2, inverse_weight=0.3)
    parts = loss(z, states, actions)
    assert loss.inverse is not None
    z_hat, scaled = normalize(module(z[:, :-1], actions, states[:, :-1]).z), actions * torch.tensor(ACTION_SCALE)
    errors = [F.l1_loss(loss.inverse(z[:, :-1], after), scaled) for after in (z[:, 1:], z_hat)]
    torch.testing.assert_close(parts["inverse"], sum(errors) / 2)
    torch.testing.assert_close(parts["loss"], parts["teacher_forcing"] + parts["rollout"] + 0.3 * parts["inverse"])
    parts["inverse"].backward()
    gradient = module.predictor_proj.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_both_are_off_by_default():
    parts = PredictionLoss(predictor(), 2)(*clips())
    assert parts.keys() == {"loss", "teacher_forcing", "rollout"}
    assert "state_head.weight" not in predictor().state_dict()


def test_only_the_last_blocks_and_output_layers_are_trained():
    module = predictor()
    train_last_blocks(module, 1)
    trained = {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"predictor_blocks", "predictor_norm", "predictor_proj"}
    assert not any(p.requires_grad for p in module.predictor_blocks[0].parameters())
    assert all(p.requires_grad for p in module.predictor_blocks[1].parameters())
    with pytest.raises(ValueError, match=r"trainable_blocks must lie in 0 \.\.\. 2, got 3"):
        train_last_blocks(module, 3)


def test_adapters_change_nothing_at_first_and_merge_exactly():
    pytest.importorskip("peft")
    module, (z, states, actions) = predictor(), clips()
    keys, before = set(module.state_dict()), module(z[:, :-1], actions, states[:, :-1]).z.detach()
    add_lora(module, 2)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * 2 and all("lora_" in name for name in trained)
    torch.testing.assert_close(module(z[:, :-1], actions, states[:, :-1]).z, before, rtol=0, atol=1e-6)
    with torch.no_grad():
        for p in trained.values():
            p.normal_(std=0.1)
    adapted = module(z[:, :-1], actions, states[:, :-1]).z.detach()
    assert (adapted - before).abs().max() > 1e-3
    merge_lora(module)
    assert set(module.state_dict()) == keys
    torch.testing.assert_close(module(z[:, :-1], actions, states[:, :-1]).z, adapted, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> PosttrainConfig:
    """A trained world model, `out/model`, and its data."""
    root = tmp_path_factory.mktemp("finetune")
    write_dataset(root / "data", 3, rows=8)
    config = posttraining(root / "data", root / "base")
    posttrain(config)
    return config


def changed(before: Path, after: Path) -> set[str]:
    """Names of the predictor's parameters that differ."""
    one, two = (load_checkpoint(path).predictor for path in (before, after))
    assert one is not None and two is not None
    other = two.state_dict()
    return {name for name, value in one.state_dict().items() if not torch.equal(value, other[name])}


LAST: Callable[[str], bool] = lambda name: name.startswith(("predictor_blocks.1.", "predictor_norm", "predictor_proj"))  # noqa: E731
CASES: dict[str, tuple[dict, Callable[[str], bool]]] = {
    "all": ({}, lambda name: not name.startswith("extrinsics")),
    "last block": ({"trainable_blocks": 1}, LAST),
    "adapters": ({"lora_rank": 2}, lambda name: name.startswith("predictor_blocks") and name.endswith("weight")),
}
POSES = "extrinsics_encoder.weight", "extrinsics_encoder.bias"


@pytest.mark.parametrize("case", CASES)
def test_fine_tuning_starts_from_a_checkpoint_and_trains_what_it_should(base, case, tmp_path):
    changes, may_change = CASES[case]
    if "lora_rank" in changes:
        pytest.importorskip("peft")
    model = base.out / "model"
    # The shape comes from the checkpoint, whatever --width and --depth say; the encoder too.
    config = replace(base, out=tmp_path / "run", init=str(model), encoder=None, width=96, depth=5, steps=3, **changes)
    tuned = posttrain(config)
    names = changed(model, tuned)
    assert names and all(may_change(name) for name in names)
    last = [row["loss"] for row in read_metrics(base.out / "metrics.jsonl") if "loss" in row][-1]
    first = read_metrics(config.out / "metrics.jsonl")[0]["teacher_forcing"]
    assert first < 2 * last  # it goes on from there; an untrained residual-free start would be far off
    world = load_world_model(tuned)
    assert world.predictor.config.width == base.width
    assert world.rollout(torch.zeros(1, 1, 16, 48), torch.zeros(1, 1, 7), torch.zeros(1, 2, 1, 7)).z.isfinite().all()


@pytest.mark.parametrize("part", [{"trainable_blocks": 1}, {"lora_rank": 2}])
def test_a_pose_token_that_the_checkpoint_lacks_is_learned_beside_what_else_is(base, part, tmp_path):
    if "lora_rank" in part:
        pytest.importorskip("peft")
    model = str(base.out / "model")
    with_poses = replace(base, out=tmp_path / "run", init=model, encoder=None, extrinsics=True, steps=2, **part)
    assert changed(base.out / "model", posttrain(with_poses)).issuperset(POSES)


def test_interrupted_adapters_resume_exactly(base, tmp_path):
    pytest.importorskip("peft")
    shared = replace(base, init=str(base.out / "model"), encoder=None, lora_rank=2, steps=4)
    whole = posttrain(replace(shared, out=tmp_path / "whole"))
    broken = replace(shared, out=tmp_path / "broken", save_minutes=1e-9)
    stop_at(broken, 2)
    assert not changed(whole, posttrain(broken))
    assert not changed(whole, posttrain(broken))  # a finished run only exports again


def test_a_state_head_is_added_to_a_checkpoint_without_one(base):
    loaded = load_checkpoint(base.out / "model")
    assert loaded.predictor is not None
    module = fit_predictor(loaded.predictor, "base", loaded.encoder, state_head=True)
    assert module.state_head is not None and loaded.predictor.state_head is None
    assert torch.equal(module.predictor_proj.weight, loaded.predictor.predictor_proj.weight)


def test_the_checkpoint_is_read_once(base, tmp_path, monkeypatch):
    read, reads = checkpoint.read_parts, []
    monkeypatch.setattr(checkpoint, "read_parts", lambda folder: reads.append(folder) or read(folder))
    posttrain(replace(base, encoder=None, init=str(base.out / "model"), out=tmp_path, steps=1))
    assert reads == [base.out / "model"]


def test_what_cannot_be_fine_tuned_is_refused(base, tmp_path):
    save_encoder(tmp_path / "encoder", Encoder(encoder_config("debug")))
    with pytest.raises(ValueError, match="encoder holds an encoder only; --init needs a checkpoint with a predictor"):
        posttrain(replace(base, init=str(tmp_path / "encoder"), out=tmp_path / "run"))
    with pytest.raises(ValueError, match=r"model: .* features of width 48, the encoder's have 192"):
        posttrain(replace(base, encoder="random:tiny:1", init=str(base.out / "model"), out=tmp_path / "run",
                          cache=tmp_path / "cache"))  # fmt: skip
    for changes, message in (
        ({"encoder": None}, "needs --encoder"),
        ({"trainable_blocks": 1}, "name it with --init"),
        ({"init": "default", "lora_rank": 2, "trainable_blocks": 1}, "neither trainable_blocks nor fsdp"),
        ({"state_loss": -1.0}, "state_loss must be at least 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(base, **changes)


def test_settings_of_older_runs_are_taken_as_the_defaults(base, tmp_path):
    """A run folder that knows nothing of newer options goes on; one that differs in a known setting is refused."""
    folder = tmp_path / "old"
    folder.mkdir()
    state = torch.load(base.out / "state.pt", weights_only=True)
    for name in ("init", "lora_rank", "state_loss", "inverse_loss", "trainable_blocks"):
        del state["settings"][name]
    torch.save(state, folder / "state.pt")
    posttrain(replace(base, out=folder, steps=5))
    with pytest.raises(ValueError, match=r"other settings \(inverse_loss: 0.0 -> 1.0\)"):
        posttrain(replace(base, out=folder, steps=5, inverse_loss=1.0))


def test_a_resumed_run_must_find_the_encoder_and_the_model_that_it_began_with(base, tmp_path):
    torch.manual_seed(1)
    save_encoder(tmp_path / "encoder", Encoder(encoder_config("debug")))
    first = replace(base, encoder=str(tmp_path / "encoder"), out=tmp_path / "first", cache=tmp_path / "one", steps=1)
    second = replace(first, init=str(posttrain(first)), out=tmp_path / "second")
    posttrain(second)
    posttrain(replace(first, steps=2))
    with pytest.raises(ValueError, match=r"other settings \(initial: '\w+' -> '\w+'\)"):
        posttrain(replace(second, steps=2))
    save_encoder(tmp_path / "encoder", Encoder(encoder_config("debug")))
    with pytest.raises(ValueError, match=r"other settings \(features: '\w+' -> '\w+'\)"):
        posttrain(replace(first, steps=3, cache=tmp_path / "other"))


def test_features_after_other_blocks_are_no_beginning_for_a_model(base, tmp_path):
    model = posttrain(replace(base, out=tmp_path / "early", layers=1, steps=1, cache=tmp_path / "cache"))
    tuned = replace(base, encoder=None, init=str(model), out=tmp_path / "tuned", cache=tmp_path / "tuned_cache")
    with pytest.raises(ValueError, match="reads features after 1 blocks of its encoder, asked for: all"):
        posttrain(tuned)
    usage = load_checkpoint(posttrain(replace(tuned, layers=1, steps=1))).config
    assert usage is not None and usage.layers == 1


def test_losses_with_all_options_fall(base, tmp_path):
    config = replace(base, out=tmp_path / "run", state_loss=1.0, inverse_loss=1.0, steps=40, learning_rate=3e-3)
    posttrain(config)
    rows = [row for row in read_metrics(config.out / "metrics.jsonl") if "inverse" in row]
    for name in ("state", "inverse"):
        assert np.mean([row[name] for row in rows[-8:]]) < 0.8 * np.mean([row[name] for row in rows[:8]])
