"""`armworld convert`: what the trainers make, in every format, with the same features when it is read back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from armworld.worldmodel.checkpoint import load_checkpoint
from armworld.worldmodel.convert import ConvertConfig, convert
from armworld.worldmodel.posttrain import posttrain
from armworld.worldmodel.pretrain import pretrain

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import write_dataset
from worldmodel_runs import posttraining, pretraining


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two steps of pretraining export."""
    root = tmp_path_factory.mktemp("convert")
    write_dataset(root / "data", 3, rows=8)
    return pretrain(pretraining(root / "data", root / "pretrain", steps=2))


@pytest.fixture(scope="module")
def model(encoder: Path) -> Path:
    """A world model over it."""
    data = encoder.parent.parent / "data"
    return posttrain(posttraining(data, data.parent / "posttrain", encoder=str(encoder), steps=1))


def outputs(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of a fixed clip, and what the mask predictor fills in of its second half."""
    loaded = load_checkpoint(path)
    assert loaded.mask_predictor is not None
    clip = torch.randn(1, 3, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    seen, hidden = torch.arange(8), torch.arange(8, 16)
    with torch.no_grad():
        z = loaded.encoder(clip)
        return z, loaded.mask_predictor(z[:, :8], seen, hidden, (1, 4, 4), 1)


@pytest.mark.parametrize("format", ["huggingface", "published", "armworld"])
def test_a_pretrained_encoder_gives_the_same_features_in_every_format(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    out = convert(ConvertConfig(str(encoder), tmp_path / "out.pt", format))  # type: ignore[arg-type]
    assert out.is_file() == (format == "published")
    (z, filled), (again, filled_again) = outputs(encoder), outputs(out)
    assert torch.equal(z, again) and torch.equal(filled, filled_again)
    assert len(capsys.readouterr().out.splitlines()) == 1, "nothing is lost"


def test_a_world_model_does_not_carry_the_mask_predictor(encoder: Path, model: Path) -> None:
    assert load_checkpoint(encoder).mask_predictor is not None
    assert load_checkpoint(model).mask_predictor is None


def test_storage_halves_the_armworld_format(model: Path, tmp_path: Path) -> None:
    out = convert(ConvertConfig(str(model), tmp_path / "small", "armworld", storage="float16"))
    small, large = ((folder / "model.safetensors").stat().st_size for folder in (out, model))
    assert small < 0.6 * large
    loaded, before = load_checkpoint(out), load_checkpoint(model)
    assert loaded.config == before.config and loaded.about == before.about
    assert loaded.predictor is not None and before.predictor is not None
    for key, value in before.predictor.state_dict().items():
        torch.testing.assert_close(loaded.predictor.state_dict()[key], value, atol=1e-3, rtol=0)


def test_what_a_format_cannot_hold_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="posttrain/model holds no mask predictor, which a transformers folder needs"):
        convert(ConvertConfig(str(model), tmp_path / "hf", "huggingface"))
    with pytest.raises(ValueError, match="published models have residual=False; this ACPredictor has True"):
        convert(ConvertConfig(str(model), tmp_path / "x.pt", "published"))
    assert not list(tmp_path.iterdir())
    out = convert(ConvertConfig(str(model), tmp_path / "x.pt", "published", encoder_only=True))
    assert load_checkpoint(out).predictor is None


@pytest.mark.parametrize(
    ("format", "out", "changes", "message"),
    [
        ("published", ".", {}, r"is a folder; published is one file, e\.g\. model\.pt"),
        ("huggingface", "file", {}, "file is a file; a checkpoint needs a folder of its own"),
        (
            "huggingface",
            "data",
            {},
            r"data holds something that is no checkpoint of ours \(card\.json\); choose another",
        ),
        ("armworld", "data", {}, r"data holds something that is no checkpoint of ours \(card\.json\); choose another"),
        ("published", "x.pt", {"storage": "float16"}, "storage float16 goes with format armworld"),
        ("huggingface", "x", {"encoder_only": True}, "encoder_only goes with published and armworld"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, out: str, changes: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("data").mkdir()
    Path("data/card.json").touch()
    with pytest.raises(ValueError, match=message):
        ConvertConfig("default", Path(out), format, **changes)  # type: ignore[arg-type]
