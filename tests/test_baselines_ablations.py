"""The ablations' script: variants trained and played, tables over training seeds."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import evaluation_fake as fake
from baselines_helpers import SIZE
from benchmarks_helpers import load_benchmark
from datasets_helpers import write_dataset

from armworld.evaluation.statistics import mean_interval


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("bc_ablations")


def test_interval_of_a_mean_is_students():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    np.testing.assert_allclose([low, high], [2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rtol=1e-6)
    assert mean_interval([0.5] * 3) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"at least 2 finite values, got \[1.0\]"):
        mean_interval([1.0])


def test_variants_are_trained_played_and_summed_up_over_training_seeds(script, tmp_path):
    write_dataset(tmp_path / "data", episodes=4, rows=10, size=SIZE)
    config = script.AblationConfig(
        (tmp_path / "data",), tmp_path / "out", variants="base,blind", training_seeds="0,1", size="debug", batch=4,
        steps=2, weights="ema", ways="execute1", seeds="1,2", task=fake.ID, image_size=SIZE,
    )  # fmt: skip
    rows = script.main(config)
    assert {(row["variant"], row["training_seed"]) for row in rows} == {
        (v, s) for v in ("base", "blind") for s in (0, 1)
    }
    assert all(row["episodes"] == 2 and np.isfinite(row["mean_distance_m"]) for row in rows)
    order = [(-row["wins"], row["mean_distance_m"]) for row in rows]
    assert order == sorted(order)
    told = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert [row["training_seeds"] for row in told["across_seeds"]] == [[0, 1], [0, 1]]
    lines = (tmp_path / "out" / "ablations.md").read_text().splitlines()
    assert sum(line.startswith("| base") for line in lines) == 3
    with pytest.raises(ValueError, match="unknown way to play 'execute9'; valid: execute1, execute4, ensemble"):
        script.score(script.AblationConfig((tmp_path,), tmp_path, ways="execute9"), {("base", 0): tmp_path})


def test_rates_across_seeds_stay_between_none_and_all(script):
    row = {"variant": "base", "weights": "ema", "play": "execute1", "episodes": 10, "mean_distance_m": 0.02}
    (found,) = script.across_seeds([{**row, "training_seed": s, "wins": w} for s, w in ((0, 10), (1, 10), (2, 7))])
    assert found["success_rate"] == pytest.approx(0.9) and found["success_95"][1] == 1.0
    assert 0 < found["success_95"][0] < 0.9
    assert script.across_seeds([{**row, "training_seed": 0, "wins": 3}]) == []
