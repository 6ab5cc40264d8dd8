"""A training is resumed on its own data alone, wherever that lies now."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
from datasets_helpers import write_dataset  # noqa: E402
from worldmodel_runs import posttraining  # noqa: E402

from armworld.worldmodel.posttrain import posttrain  # noqa: E402


def test_a_run_goes_on_with_its_own_data_even_moved(tmp_path: Path) -> None:
    data, other, out = tmp_path / "data", tmp_path / "other", tmp_path / "run"
    write_dataset(data, 3, rows=6)
    write_dataset(other, 4, rows=6)
    config = posttraining(data, out, cache=tmp_path / "cache", frames=3, rollout=2, steps=1, validate_every=9)
    posttrain(config)
    elsewhere = replace(config, data=(other,), cache=tmp_path / "cache_other", steps=2)
    with pytest.raises(ValueError, match=r"other settings \(data: '18 frames, .* -> '24 frames, "):
        posttrain(elsewhere)
    moved = data.rename(tmp_path / "moved")
    posttrain(replace(config, data=(moved,), steps=2))
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] == 2
    for name in ("data", "views", "features"):  # as runs of earlier versions were saved
        del state["settings"][name]
    torch.save(state, out / "state.pt")
    posttrain(replace(elsewhere, steps=3))
