"""Checkpoints: what is saved comes back, and whatever is wrong gives one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from armworld.worldmodel import checkpoint
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.checkpoint import (
    load_checkpoint,
    load_encoder,
    load_world_model,
    save_encoder,
    save_world_model,
)
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.sizes import ACPredictorConfig, MaskPredictorConfig, encoder_config

USAGE = WorldModelConfig(step_seconds=0.25, image_size=(64, 64), camera="right")


def modules() -> tuple[Encoder, ACPredictor]:
    torch.manual_seed(0)
    config = ACPredictorConfig(48, 36, 2, 2, image_size=(64, 64), merge=2, action_scale=tuple(range(1, 8)))
    return Encoder(encoder_config("debug")), ACPredictor(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_world_model(tmp_path / "model", *modules(), USAGE, about={"data": "none", "seed": 3})


@pytest.mark.parametrize(("storage", "tolerance"), [("float32", 0.0), ("float16", 1e-4), ("bfloat16", 1e-3)])
def test_a_world_model_comes_back(tmp_path: Path, storage: str, tolerance: float) -> None:
    encoder, predictor = modules()
    loaded = load_checkpoint(save_world_model(tmp_path, encoder, predictor, USAGE, about={"seed": 3}, storage=storage))
    assert loaded.config == USAGE and loaded.about == {"seed": 3} and loaded.mask_predictor is None
    assert loaded.predictor is not None and loaded.predictor.config == predictor.config
    assert loaded.encoder.config == encoder.config
    for before, after in ((encoder, loaded.encoder), (predictor, loaded.predictor)):
        for key, value in after.state_dict().items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, before.state_dict()[key], atol=tolerance, rtol=0)
    assert json.loads((tmp_path / "config.json").read_text())["storage"] == storage


def test_a_loaded_model_is_frozen_and_gives_the_same_numbers(folder: Path) -> None:
    encoder, _ = modules()
    model = load_world_model(folder, step_seconds=0.25)
    assert not any(p.requires_grad for m in (model.encoder, model.predictor) for p in m.parameters())
    assert (model.camera, model.image_size, model.step_seconds) == ("right", (64, 64), 0.25)
    images = torch.randint(0, 256, (1, 1, 64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(model.encode(images), encoder.eval().encode_frames(images), atol=1e-5, rtol=0)
    assert load_world_model(folder, dtype="bfloat16").predictor.predictor_embed.weight.dtype == torch.bfloat16


def test_a_loaded_encoder_can_be_trained_on(folder: Path) -> None:
    encoder = load_encoder(folder)
    encoder(torch.randn(1, 3, 1, 32, 32)).sum().backward()
    torch.optim.SGD(encoder.parameters(), 0.1).step()
    assert load_encoder(folder).norm.bias.abs().max() == 0  # the file is untouched


def test_pretraining_checkpoints_keep_the_mask_predictor(tmp_path: Path) -> None:
    predictor = MaskPredictor(MaskPredictorConfig(48, 24, 1, 2))
    loaded = load_checkpoint(save_encoder(tmp_path, modules()[0], mask_predictor=predictor))
    assert loaded.predictor is None and loaded.config is None and loaded.mask_predictor is not None
    assert torch.equal(loaded.mask_predictor.predictor_embed.weight, predictor.predictor_embed.weight)
    with pytest.raises(ValueError, match="holds an encoder only"):
        load_world_model(tmp_path)


def test_saving_the_same_weights_twice_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_world_model(tmp_path / name, *modules(), USAGE)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_whoever_may_read_the_config_may_read_the_weights(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_config_may_be_edited(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"right"', '"wrist"'))
    assert load_world_model(folder).camera == "wrist"


def test_an_interrupt_between_the_two_files_leaves_a_whole_checkpoint(folder: Path) -> None:
    old = (folder / "config.json").read_text()
    encoder, predictor = modules()
    with torch.no_grad():
        encoder.norm.bias.fill_(2.0)
    save_world_model(folder, encoder, predictor, WorldModelConfig(image_size=(64, 64), step_seconds=0.5))
    (folder / "config.json").write_text(old)  # as if the second rename had not happened
    loaded = load_checkpoint(folder)
    assert loaded.config is not None and loaded.config.step_seconds == 0.5
    assert (loaded.encoder.norm.bias == 2.0).all()


def test_an_interrupted_save_keeps_the_last_good_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(weights: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_world_model(folder, *modules(), USAGE)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    load_world_model(folder)


def test_nan_is_never_written(folder: Path) -> None:
    encoder, predictor = modules()
    with torch.no_grad():
        predictor.predictor_norm.bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"predictor\.predictor_norm\.bias has NaN"):
        save_world_model(folder, encoder, predictor, USAGE)
    load_world_model(folder)
    with pytest.raises(ValueError, match="unknown storage precision 'int4'; valid: float32, float16, bfloat16"):
        save_world_model(folder, *modules(), USAGE, storage="int4")


def test_another_step_length_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"trained on steps of 0.25 s; steps of 1.0 s were asked for"):
        load_world_model(folder, step_seconds=1.0)


def test_unknown_names_list_the_shipped_ones(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(checkpoint, "WEIGHTS_FOLDER", folder.parent)
    assert checkpoint.shipped_names() == ["model"]
    assert load_world_model("model").camera == "right"
    with pytest.raises(ValueError, match=r"no checkpoint 'defualt'.* shipped: model$"):
        load_world_model("defualt")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, drop: str = "", add: str = "") -> None:
    path = folder / "model.safetensors"
    weights, text = load_file(path), (folder / "config.json").read_text()
    weights.pop(drop, None)
    if add:
        weights[add] = torch.zeros(2)
    save_file(weights, path, metadata={"config": text})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors is truncated"),
        (lambda f: (f / "model.safetensors").write_bytes(b"hello"), "model.safetensors is truncated or not"),
        (lambda f: (f / "model.safetensors").unlink(), "is not a checkpoint: it has no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "not a complete checkpoint: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json holds no valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is not an armworld checkpoint"),
        (lambda f: edit_config(f, version=9), "has checkpoint version 9; this armworld reads 1"),
        (lambda f: save_file({"x": torch.zeros(1)}, f / "model.safetensors"), "was not written by armworld"),
        (lambda f: edit_weights(f, drop="encoder.norm.bias"), "encoder: missing keys norm.bias; extra keys none"),
        (lambda f: edit_weights(f, add="predictor.more"), "predictor: missing keys none; extra keys more"),
        (lambda f: edit_weights(f, add="other.x"), "unknown weights other.x"),
        (lambda f: edit_config(f, encoder={"width": 48}), "encoder: unknown fields none; missing fields depth, heads"),
        (lambda f: edit_config(f, encoder={"width": 24, "depth": 2, "heads": 2}), r"must be \[.*\], got"),
        (lambda f: edit_config(f, world_model={"step": 1}), "world_model: unknown fields step"),
        (lambda f: edit_config(f, encoder=None), "weights of encoder without its configuration"),
    ],
)
def test_damage_gives_one_clear_error(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_world_model(folder)
