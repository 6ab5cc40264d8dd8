"""The benchmark of pretraining's levers: what it packs it deletes, what is scored it does not train again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.sizes import encoder_config

sys.path.insert(0, str(Path(__file__).parent))
from benchmarks_helpers import load_benchmark
from datasets_helpers import write_dataset


@pytest.fixture(scope="module")
def options() -> ModuleType:
    return load_benchmark("pretrain_options")


def test_packed_frames_go_with_their_arm_and_scores_stay(options, tmp_path, monkeypatch, capsys):
    write_dataset(tmp_path / "data", 2, rows=8)
    trained = []

    def pretrain(settings, source=None):
        shape = None if source is None else source.sample(np.random.default_rng(0), 2, settings.frames).shape
        trained.append((settings.out.name, shape, (settings.out / "frames").exists()))
        return settings.out / "encoder"

    monkeypatch.setattr(options, "pretrain", pretrain)
    monkeypatch.setattr(options, "open_encoder", lambda *_: Encoder(encoder_config("debug")))
    scores = {"hand_m": 0.01, "object_m": 0.02, "yaw_rad": 0.1, "guessing_m": 0.1}
    monkeypatch.setattr(options, "probe", lambda *_: scores)
    config = options.Config(
        data=(tmp_path / "data",), out=tmp_path / "out", steps=1, arms=("recipe", "96 pixels"), layers=()
    )
    options.main(config)
    assert trained == [("recipe-1-0", None, False), ("96_pixels-1-0", (2, 4, 96, 96, 3), True)]
    assert not list(tmp_path.rglob("shard-*")) and not (tmp_path / "data" / ".cache").exists()
    told = capsys.readouterr().out
    assert "arm 2 of 2: 96 pixels, seed 0" in told and "stored" not in told
    options.main(config)
    assert len(trained) == 2 and "arm 1 of 2: recipe, seed 0 (stored)" in capsys.readouterr().out


def test_bad_settings_are_refused_at_once(options, tmp_path):
    for changes, told in (
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"stills": 2}, "stills must be at least 16, got 2"),
        ({"arms": ("96",)}, "unknown arm '96'; valid: random, recipe"),
        ({"layers": (7,)}, r"layers must lie in 1 \.\.\. 6, got \(7,\)"),
    ):
        with pytest.raises(ValueError, match=told):
            options.Config(data=(tmp_path,), out=tmp_path, **changes)
