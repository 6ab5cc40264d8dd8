"""Bad settings of the trainings and of the probe are refused before any work: by their names, with what is valid."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from armworld.baselines.bc import BCTrainConfig
from armworld.baselines.pixels_train import PixelTrainConfig
from armworld.datasets.episode import EpisodeError
from armworld.worldmodel.align import AlignConfig, align
from armworld.worldmodel.checkpoint import WEIGHTS_FOLDER, save_encoder
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.posttrain import PosttrainConfig, posttrain
from armworld.worldmodel.pretrain import PretrainConfig, pretrain
from armworld.worldmodel.probe import ProbeConfig, probe
from armworld.worldmodel.processes import check_device, pick_device
from armworld.worldmodel.recipe import RecipeConfig
from armworld.worldmodel.sizes import encoder_config

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import write_dataset

DATA = (Path("nowhere"),)
NAN = float("nan")
GOOD: dict[type, dict[str, Any]] = {
    PretrainConfig: {"data": DATA, "steps": 1},
    PosttrainConfig: {"data": DATA, "encoder": "random:debug", "steps": 1},
    AlignConfig: {"data": DATA, "model": "default", "steps": 1},
    BCTrainConfig: {"data": DATA, "steps": 1},
    PixelTrainConfig: {"data": DATA, "steps": 1},
    ProbeConfig: {"data": DATA},
    RecipeConfig: {},
}
TRAININGS = (PretrainConfig, PosttrainConfig, AlignConfig, BCTrainConfig, PixelTrainConfig)
PAIRS = {  # what goes wrong with an option, and what is told
    PretrainConfig: (
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"state_batch": 0}, "state_batch must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"ema": 2.0}, r"ema must be at least 0 and below 1, got 2\.0"),
        ({"ema": 1.0}, r"ema must be at least 0 and below 1, got 1\.0"),
        ({"still_share": 2.0}, r"still_share must be at least 0 and at most 1, got 2\.0"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0, got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay must be at least 0, got -1\.0"),
        ({"state_loss": -1.0}, r"state_loss must be at least 0, got -1\.0"),
        ({"step_seconds": 0.0}, r"step_seconds must be above 0, got 0\.0"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"frames": 3}, "clips need 1 frame or a multiple of 2, got 3"),
        ({"cooldown_frames": 0}, "cooldown_frames must be at least 1, got 0"),
        ({"cooldown_image_size": 0}, "cooldown_image_size must be at least 1, got 0"),
        ({"image_size": 100}, "multiples of 16, got 100 x 100"),
        ({"image_size": 100, "cooldown_image_size": 128}, "multiples of 16, got 100 x 100"),
        ({"image_size": 16}, "hides all of a 1 x 1 patch grid .*; use larger images or a smaller scale"),
        ({"size": "huge"}, "unknown encoder size 'huge'; valid: debug, tiny"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"predictor_width": 0}, "predictor_width must be at least 1, got 0"),
        ({"predictor_heads": 7}, "heads must divide the width 192, got 7"),
        ({"mask_scales": (NAN, 0.5)}, "mask_scales must lie in"),
        ({"mask_duration": NAN}, "mask_duration must lie in"),
        ({"weights": (1.0, 1.0)}, r"each of the 1 sources .* needs one positive weight, got \[1\.0, 1\.0\]"),
        ({"weights": (NAN,)}, r"needs one positive weight, got \[nan\]"),
        ({"data": (), "videos": DATA, "state_loss": 1.0}, "state_loss needs recorded episodes"),
    ),
    PosttrainConfig: (
        ({"step_seconds": 0.0}, r"step_seconds must be above 0, got 0\.0"),
        ({"rollout": -1}, "rollout must be at least 0, got -1"),
        ({"frames": 1, "rollout": 0}, "frames must be at least 2 and at most 33, got 1"),
        ({"frames": 40}, "frames must be at least 2 and at most 33, got 40"),
        ({"pair_share": 2.0}, r"pair_share must be at least 0 and at most 1, got 2\.0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": 3}, r"window must be below frames \(it would not be trained\), got 3, 3"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"weight_decay": -1.0}, r"weight_decay must be at least 0, got -1\.0"),
        ({"learning_rate": NAN}, "learning_rate must be above 0, got nan"),
        ({"held_out": 1.0}, r"held_out must be above 0 and below 1, got 1\.0"),
        ({"camera_frame": NAN}, "camera_frame must be finite, got nan"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"validate_every": 0}, "validate_every must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"heads": 5}, "heads must divide the width 192, got 5"),
        ({"image_size": 100}, "multiples of 16, got 100 x 100"),
        ({"trainable_blocks": -1, "init": "default"}, "trainable_blocks must be at least 0, got -1"),
    ),
    AlignConfig: (
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"noise": NAN}, "noise must be at least 0, got nan"),
        ({"imagined_share": -1.0}, r"imagined_share must be at least 0 and at most 1, got -1\.0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0, got 0\.0"),
        ({"held_out": 0.0}, r"held_out must be above 0 and below 1, got 0\.0"),
        ({"validate_every": 0}, "validate_every must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
    ),
    ProbeConfig: (
        ({"target": "mood"}, "unknown probe target 'mood'; valid: behaviour, object"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"max_videos": 1}, "max_videos must be at least 2, got 1"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0, got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay must be at least 0, got -1\.0"),
        ({"held_out": 1.0}, r"held_out must be above 0 and below 1, got 1\.0"),
        ({"image_size": 100}, "multiples of 16, got 100 x 100"),
        ({"seed": -1}, "seed must be at least 0"),
    ),
    RecipeConfig: (
        ({"scale": NAN}, "scale must be above 0, got nan"),
        ({"pretrain_minutes": 0.0}, r"pretrain_minutes must be above 0, got 0\.0"),
        ({"sharpen_minutes": -1.0}, r"sharpen_minutes must be above 0, got -1\.0"),
        ({"posttrain_minutes": NAN}, "posttrain_minutes must be above 0, got nan"),
        ({"align_minutes": 0.0}, r"align_minutes must be above 0, got 0\.0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ),
}


def make(kind: type, tmp_path: Path, **changes: Any) -> Any:
    return kind(**{"out": tmp_path / "run", **GOOD[kind], **changes})


@pytest.mark.parametrize(
    ("kind", "changes", "told"), [(kind, *case) for kind, cases in PAIRS.items() for case in cases], ids=str
)
def test_a_bad_number_is_refused_at_once(tmp_path, kind, changes, told):
    with pytest.raises(ValueError, match=told):
        make(kind, tmp_path, **changes)


@pytest.mark.parametrize("kind", TRAININGS)
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": None}, "needs steps, minutes or both"),
        ({"steps": 0}, "steps must be above 0, got 0"),
        ({"minutes": -1.0}, r"minutes must be above 0, got -1\.0"),
        ({"minutes": NAN}, "minutes must be above 0, got nan"),
        ({"save_minutes": -1.0}, r"save_minutes must be at least 0, got -1\.0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**70}, "seed must be at least 0 and at most"),
    ],
)
def test_every_training_looks_at_its_budget_and_seed_first(tmp_path, kind, changes, told):
    with pytest.raises(ValueError, match=told):
        make(kind, tmp_path, **changes)


@pytest.mark.parametrize("kind", GOOD)
def test_device_precision_and_folder_are_looked_at_first(tmp_path, kind):
    make(kind, tmp_path)
    with pytest.raises(ValueError, match="unknown device 'tpu'; valid: auto, cpu, cuda, cuda:N"):
        make(kind, tmp_path, device="tpu")
    with pytest.raises(ValueError, match="unknown dtype 'float8'; valid: float32, bfloat16"):
        make(kind, tmp_path, dtype="float8")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out must be a folder, but .*file is a file"):
        make(kind, tmp_path, out=tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"out must be a folder that can be written, but {tmp_path} cannot"):
        make(PretrainConfig, tmp_path)


def test_cuda_is_this_ranks_device_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=f"device '{name}' asked for, but torch sees no CUDA device"):
            check_device(name)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    names = ("auto", "cuda", "cuda:0", "cpu")
    assert [str(pick_device(name)) for name in names] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    assert [str(device) for device in taken] == ["cuda:1", "cuda:1", "cuda:0"]  # with a number, as torch asks for
    with pytest.raises(ValueError, match="'cuda:2' asked for, but the last CUDA device that torch sees is cuda:1"):
        check_device("cuda:2")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("settings") / "data"
    write_dataset(folder, 2, rows=8)
    return folder


@pytest.fixture
def nothing_runs(monkeypatch):
    """No frame is decoded or encoded."""

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    for name in ("posttrain.open_features", "align.open_features", "probe.encode_videos"):
        monkeypatch.setattr(f"armworld.worldmodel.{name}", run)
    monkeypatch.setattr("armworld.datasets.clips.open_clips", run)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"merge": 3}, "merge 3 does not divide the 8 x 8 patch grid"),
        ({"merge": 0}, "merge 0 does not divide"),
        ({"layers": 9}, r"layers must lie in 1 \.\.\. 2, got 9"),
        ({"init": "default", "encoder": None, "trainable_blocks": 99}, "trainable_blocks must lie in 0 .* got 99"),
        ({"init": "default", "encoder": None, "lora_rank": 999}, r"lora_rank must lie in 1 \.\.\. 256, .* got 999"),
        ({"encoder": "missing"}, "no checkpoint 'missing': not an existing path"),
        ({"encoder": "random:huge"}, "unknown encoder size 'huge'"),
        ({"camera": "lefft"}, "no camera 'lefft'; it has left"),
        ({"step_seconds": 0.1}, r"step_seconds 0\.1 does not fit data"),
        ({"frames": 9}, r"no episode of .*data holds 9 frames 0\.25 s apart"),
        ({"data": ()}, "no folder given"),
    ],
)
def test_posttraining_refuses_before_it_encodes(tmp_path, data, changes, told):
    with pytest.raises(ValueError, match=told):
        posttrain(make(PosttrainConfig, tmp_path, **{"data": (data,), **changes}))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"init": "missing"}, "no checkpoint 'missing': not an existing path"),
        ({"videos": DATA}, "nowhere: no such folder of videos"),
        ({"step_seconds": 0.1}, r"step_seconds 0\.1 does not fit data"),
        ({"frames": 10}, r"no episode of .*data holds 10 frames 0\.25 s apart"),
        ({"cooldown_frames": 10}, r"no episode of .*data holds 10 frames 0\.25 s apart"),
    ],
)
def test_pretraining_refuses_before_it_packs_frames(tmp_path, data, changes, told):
    with pytest.raises(ValueError, match=told):
        pretrain(make(PretrainConfig, tmp_path, **{"size": "debug", "data": (data,), **changes}))
    with pytest.raises(EpisodeError, match="nowhere: no such folder"):
        pretrain(make(PretrainConfig, tmp_path, size="debug", data=(data, Path("nowhere"))))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_runs")
def test_a_model_that_is_none_is_told_before_data_are_read(tmp_path):
    foreign, empty, wrong = tmp_path / "foreign.pt", tmp_path / "empty", tmp_path / "wrong"
    foreign.write_text("nothing to be read as an archive")
    empty.mkdir()
    shutil.copytree(WEIGHTS_FOLDER / "default", wrong)
    config = (wrong / "config.json").read_text()
    (wrong / "config.json").write_text(config.replace('"width": 192', '"width": "wide"', 1))
    encoder = save_encoder(tmp_path / "encoder", Encoder(encoder_config("debug")))
    for name, told in (
        ("missing", "no checkpoint 'missing'"),
        (str(foreign), "is truncated or not a file of tensors: no archive as torch"),
        (str(wrong), "wrong: encoder: "),
        (str(empty), "is not a checkpoint: it has no model.safetensors"),
    ):
        for run, config in (
            (pretrain, make(PretrainConfig, tmp_path, size="debug", init=name)),
            (posttrain, make(PosttrainConfig, tmp_path, encoder=name)),
            (posttrain, make(PosttrainConfig, tmp_path, encoder=None, init=name)),
            (align, make(AlignConfig, tmp_path, model=name)),
            (probe, make(ProbeConfig, tmp_path, encoder=name)),
        ):
            with pytest.raises(ValueError, match=told):
                run(config)
    with pytest.raises(ValueError, match="holds an encoder only"):
        align(make(AlignConfig, tmp_path, model=str(encoder)))
