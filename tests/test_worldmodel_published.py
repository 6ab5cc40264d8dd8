"""Published files and Hugging Face folders: load strictly, export back, agree with transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from armworld.evaluation.cells import model_identity
from armworld.worldmodel import published
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.checkpoint import load_checkpoint, load_encoder, load_strictly, load_world_model
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.huggingface import export_huggingface, load_huggingface
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.published import export_published, load_published
from armworld.worldmodel.sizes import ACPredictorConfig, EncoderConfig, MaskPredictorConfig, encoder_config


def encoder(**changes) -> Encoder:
    torch.manual_seed(0)
    return Encoder(encoder_config("debug", **changes)).eval()


def mask_predictor(**changes) -> MaskPredictor:
    model = MaskPredictor(MaskPredictorConfig(48, 24, 2, 12, mask_tokens=3, **changes)).eval()
    with torch.no_grad():
        for token in model.mask_tokens:
            token.normal_()
    return model


def ac_predictor(**changes) -> ACPredictor:
    return ACPredictor(ACPredictorConfig(48, 32, 2, 16, **changes)).eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def as_published(path: Path, prefix: str = "module.backbone.") -> Path:
    """A file as the public code writes it: prefixed, with unused position tables, optimiser state and numbers."""
    teacher, student, predictor = encoder(), Encoder(encoder_config("debug")), mask_predictor()
    content = {
        "encoder": {prefix + k: v for k, v in student.state_dict().items()}
        | {prefix + "pos_embed": torch.zeros(1, 4, 48)},
        "target_encoder": {prefix + k: v for k, v in teacher.state_dict().items()},
        "predictor": {prefix + k: v for k, v in predictor.state_dict().items()}
        | {prefix + "predictor_pos_embed": torch.zeros(1, 4, 24)},
        "opt": {"state": {}},
        "epoch": 10,
    }
    torch.save(content, path)
    return path


def test_a_published_file_is_told_apart_by_its_content(tmp_path: Path) -> None:
    predictor, path = ac_predictor(), tmp_path / "vjepa2-ac.pt"
    export_published(path, encoder(), predictor)
    before = model_identity(str(path))
    assert before == model_identity(str(path)) and before["use"]["step_seconds"] == 1.0
    with torch.no_grad():
        next(predictor.parameters()).view(-1)[0] += 1
    export_published(path, encoder(), predictor)
    assert model_identity(str(path))["weights_id"] != before["weights_id"]


def test_one_changed_number_in_a_large_file_changes_its_fingerprint(tmp_path: Path) -> None:
    first, last = torch.zeros(2**19), torch.zeros(2**20)
    torch.save([first, last], tmp_path / "a.pt")
    first[3] = 1
    torch.save([first, last], tmp_path / "b.pt")
    assert (tmp_path / "a.pt").stat().st_size == (tmp_path / "b.pt").stat().st_size
    assert published.file_id(tmp_path / "a.pt") != published.file_id(tmp_path / "b.pt")


def test_a_pretraining_file_loads(tmp_path: Path) -> None:
    loaded = load_published(as_published(tmp_path / "vitx.pt"))
    assert same(loaded.encoder, encoder()) and loaded.encoder.config == encoder().config
    assert loaded.mask_predictor is not None and loaded.mask_predictor.config.mask_tokens == 3
    student = load_published(tmp_path / "vitx.pt", encoder_key="encoder").encoder
    assert not same(student, encoder())
    assert same(load_encoder(tmp_path / "vitx.pt"), encoder())


def test_an_action_conditioned_file_loads_as_a_world_model(tmp_path: Path) -> None:
    predictor = ac_predictor()
    path = export_published(tmp_path / "ac.pt", encoder(), predictor)
    keys = torch.load(path, weights_only=True)
    assert keys.keys() == {"encoder", "predictor", "armworld"} and "module.action_encoder.weight" in keys["predictor"]
    model = load_world_model(path)
    assert same(model.predictor, predictor) and model.step_seconds == 1.0 and model.image_size == (256, 256)
    pose = WorldModelConfig(extrinsics=(0.0,) * 6)
    loaded = load_published(path, usage=pose)
    assert loaded.predictor is not None and loaded.predictor.config.extrinsics


def test_export_and_load_are_inverse(tmp_path: Path) -> None:
    predictor = mask_predictor()
    loaded = load_published(export_published(tmp_path / "x.pt", encoder(), predictor))
    assert loaded.mask_predictor is not None
    assert same(loaded.encoder, encoder()) and same(loaded.mask_predictor, predictor)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pt"]


def test_files_of_ours_say_what_weights_cannot(tmp_path: Path) -> None:
    sizes = {"image_size": (32, 64), "max_steps": 5}
    shapes = {"width": 36, "depth": 2, "heads": 3}
    predictor = ACPredictor(ACPredictorConfig(60, **shapes, **sizes)).eval()  # type: ignore[arg-type]
    own = Encoder(EncoderConfig(60, 1, 5, image_size=(32, 64))).eval()  # of no named size
    path = export_published(tmp_path / "x.pt", own, predictor)
    loaded = load_checkpoint(path)
    assert loaded.predictor is not None and loaded.config is not None
    assert loaded.predictor.config == predictor.config and loaded.encoder.config == own.config
    assert loaded.config.image_size == (32, 64)
    clip = torch.randn(1, 3, 2, 32, 64)
    assert torch.equal(loaded.encoder(clip), own(clip))
    other = load_published(path, predictor_heads=6).predictor
    assert other is not None and other.config.heads == 6

    content = torch.load(path, weights_only=True)
    content["armworld"]["encoder"]["colour"] = 1
    torch.save(content, path)
    with pytest.raises(ValueError, match="unknown fields colour"):
        load_published(path)


@pytest.mark.parametrize(("file", "size"), [("vitl", "L"), ("vith", "H"), ("vitg", "g"), ("vitg-384", "g-384")])
def test_the_published_sizes_are_told_from_their_weights(file: str, size: str) -> None:
    with torch.device("meta"):
        wanted = encoder_config(size)
        prefixed = {f"module.backbone.{key}": value for key, value in Encoder(wanted).state_dict().items()}
        weights = published._bare({**prefixed, "module.backbone.pos_embed": torch.zeros(1)}, file)
        found = Encoder(published._encoder_config(weights, None, file, file))
    assert found.config == wanted
    load_strictly(found, weights, file)


@pytest.mark.parametrize("size", [None, "tiny"])
def test_an_encoder_of_another_depth_than_its_sizes_own_comes_back(tmp_path: Path, size: str | None) -> None:
    torch.manual_seed(0)
    model = Encoder(encoder_config("tiny", depth=6)).eval()
    loaded = load_published(export_published(tmp_path / "x.pt", model), encoder_size=size).encoder
    assert loaded.config == model.config and same(loaded, model)


def test_the_published_action_conditioned_predictor_is_told_from_its_weights() -> None:
    with torch.device("meta"):
        wanted = ACPredictor(ACPredictorConfig(1408))
    state = {f"module.{key}": value for key, value in wanted.state_dict().items()}
    found = published._predictor(state, encoder_config("g"), None, published.PUBLISHED_USAGE, "vjepa2-ac-vitg.pt")
    assert found.config == wanted.config and found.config.heads == 16 and found.config.depth == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["target_encoder"].pop("module.backbone.norm.bias"), "missing keys norm.bias"),
        (lambda c: c["target_encoder"].update({"module.backbone.extra": torch.zeros(1)}), "extra keys extra"),
        (lambda c: c["predictor"].pop("module.backbone.predictor_embed.weight"), "has no predictor_embed.weight"),
        (lambda c: c["predictor"].update({"predictor_norm.bias": torch.zeros(24)}), "appears twice"),
        (lambda c: c["target_encoder"].update({3: torch.zeros(1)}), "extra keys 3"),
        (
            lambda c: c["predictor"].update({"module.backbone.predictor_embed.weight": torch.zeros(3)}),
            r"predictor_embed.weight must have 2 dimensions, got \[3\]",
        ),
        (lambda c: [c.pop(key) for key in ("encoder", "target_encoder")], "needs a state dict under one of"),
    ],
)
def test_files_that_differ_are_refused(tmp_path: Path, change, message: str) -> None:
    path = as_published(tmp_path / "vitx.pt")
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_published(path)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = as_published(tmp_path / "vitx.pt")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"vitx\.pt is truncated or not a file of tensors"):
        load_published(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="truncated or not a file of tensors"):
        load_checkpoint(path)
    torch.save({"encoder": encoder()}, path)  # a pickled module: code, not weights
    with pytest.raises(ValueError, match="truncated or not a file of tensors"):
        load_published(path)
    export_published(path, Encoder(encoder_config("debug", width=50)))
    foreign = torch.load(path, weights_only=True)
    del foreign["armworld"]
    torch.save(foreign, path)
    with pytest.raises(ValueError, match=r"no known encoder size is 50 wide; known: debug \(48\), tiny \(192\)"):
        load_published(path)
    with pytest.raises(ValueError, match="'ema'; valid: encoder, target_encoder"):
        load_published(path, encoder_key="ema")


def test_options_that_published_models_lack_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="published models have merge=1; this ACPredictor has 2"):
        export_published(tmp_path / "x.pt", encoder(), ac_predictor(merge=2))
    with pytest.raises(ValueError, match="published models have rope=tiled; this Encoder has paired"):
        export_published(tmp_path / "x.pt", encoder(rope="paired"))
    with pytest.raises(ValueError, match="square; this encoder was trained at 64 x 32"):
        export_huggingface(tmp_path, encoder(image_size=(64, 32)), mask_predictor())
    assert not list(tmp_path.iterdir())


# Hugging Face


def test_hugging_face_export_and_load_are_inverse(tmp_path: Path) -> None:
    predictor = mask_predictor()
    loaded = load_checkpoint(export_huggingface(tmp_path, encoder(), predictor))
    assert loaded.mask_predictor is not None
    assert same(loaded.encoder, encoder()) and same(loaded.mask_predictor, predictor)
    assert loaded.encoder.config == encoder().config and loaded.mask_predictor.config == predictor.config


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", lambda b: b[:-10], "truncated"),
        ("config.json", lambda b: b.replace(b'"gelu"', b'"relu"'), "hidden_act is relu; only gelu is supported"),
        ("config.json", lambda b: b.replace(b'"crop_size"', b'"crop"'), "config.json has no 'crop_size'"),
        ("config.json", lambda b: b.replace(b'"vjepa2"', b'"vit"'), "not a transformers V-JEPA 2 folder"),
    ],
)
def test_damaged_hugging_face_folders_are_refused(tmp_path: Path, file: str, damage, message: str) -> None:
    export_huggingface(tmp_path, encoder(), mask_predictor())
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_huggingface(tmp_path)


def test_hugging_face_keys_are_strict(tmp_path: Path) -> None:
    export_huggingface(tmp_path, encoder(), mask_predictor())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=r"encoder: missing keys none; extra keys encoder\.layer\.1"):
        load_huggingface(tmp_path)


def test_unknown_hub_names_are_refused_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(name: str, **_: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"cannot get 'facebook/vjepa2-nothing' from the Hugging Face hub: no network"):
        load_encoder("facebook/vjepa2-nothing")


@pytest.mark.parametrize("direction", ["theirs to ours", "ours to theirs"])
def test_agreement_with_transformers(tmp_path: Path, direction: str) -> None:
    transformers = pytest.importorskip("transformers")
    if direction == "ours to theirs":
        export_huggingface(tmp_path, encoder(), mask_predictor(), frames_per_clip=4)
        theirs, info = transformers.VJEPA2Model.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    else:
        config = transformers.VJEPA2Config(
            crop_size=64, frames_per_clip=4, hidden_size=96, num_attention_heads=4, num_hidden_layers=2,
            mlp_ratio=48 / 11, pred_hidden_size=72, pred_num_attention_heads=3, pred_num_hidden_layers=2,
            pred_num_mask_tokens=2, pred_zero_init_mask_tokens=False,
        )  # fmt: skip
        theirs = transformers.VJEPA2Model(config)
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.normal_(std=0.15)
        theirs.save_pretrained(tmp_path)
    theirs.eval()
    loaded = load_checkpoint(tmp_path)
    assert loaded.mask_predictor is not None

    clip = torch.randn(2, 3, 4, 64, 64)
    context, target = torch.arange(0, 20).expand(2, -1), torch.arange(20, 32).expand(2, -1)
    with torch.no_grad():
        wanted = theirs(pixel_values_videos=clip.transpose(1, 2), context_mask=[context], target_mask=[target])
        features = loaded.encoder(clip)
        prediction = loaded.mask_predictor(features[:, :20], context, target, (2, 4, 4), mask_index=1)
    torch.testing.assert_close(features, wanted.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction, wanted.predictor_output.last_hidden_state, atol=1e-4, rtol=1e-4)


def test_sharded_folders_load(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_huggingface(tmp_path / "whole", encoder(), mask_predictor())
    model = transformers.VJEPA2Model.from_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    assert same(load_encoder(tmp_path / "shards"), encoder())
    shard = next(iter(sorted((tmp_path / "shards").glob("model-*.safetensors"))))
    shutil.move(shard, tmp_path / "gone")
    with pytest.raises(ValueError, match="is missing, truncated"):
        load_encoder(tmp_path / "shards")


def test_a_video_classifiers_backbone_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_huggingface(tmp_path / "plain", encoder(), mask_predictor())
    config = transformers.VJEPA2Config.from_pretrained(tmp_path / "plain", num_labels=3, num_pooler_layers=1)
    model = transformers.VJEPA2ForVideoClassification(config)
    model.vjepa2.load_state_dict(transformers.VJEPA2Model.from_pretrained(tmp_path / "plain").state_dict())
    model.save_pretrained(tmp_path / "classifier")
    loaded = load_checkpoint(tmp_path / "classifier")
    plain = load_checkpoint(tmp_path / "plain")
    assert loaded.mask_predictor is not None and plain.mask_predictor is not None
    assert same(loaded.encoder, plain.encoder) and same(loaded.mask_predictor, plain.mask_predictor)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"encoder', "is truncated or holds no valid JSON"),
        ("[]", "needs a weight_map"),
        ('{"weight_map": {}}', "needs a weight_map"),
        ('{"weight_map": {"encoder.layernorm.bias": 3}}', "needs a weight_map"),
    ],
)
def test_a_damaged_index_of_shards_is_named(tmp_path: Path, text: str, message: str) -> None:
    export_huggingface(tmp_path, encoder(), mask_predictor())
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json.* {message}"):
        load_encoder(tmp_path)
