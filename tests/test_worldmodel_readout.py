"""The readout of the hand: its geometry, its training, its place in a checkpoint, and the energy it aligns."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from armworld.planners.objectives import AlignedL1, FinalL1, LatentGoal, make_objective, needs_goal_state
from armworld.pose import apply_action
from armworld.worldmodel.align import AlignConfig, align, draw
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_checkpoint, load_world_model
from armworld.worldmodel.model import Rollout
from armworld.worldmodel.posttrain import posttrain
from armworld.worldmodel.readout import (
    HandReadout,
    ReadoutConfig,
    hand_distance,
    hand_targets,
    reading_errors,
    reading_loss,
)
from armworld.worldmodel.training import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from test_worldmodel_posttrain import record_moving_square
from worldmodel_runs import posttraining


def states(count: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 7, generator=generator) * torch.tensor([0.3, 0.3, 0.3, 1, 1, 3.0, 1])


def test_a_perfect_reading_has_no_error_across_the_seam_of_the_yaw():
    here = states(2)
    here[:, 5] = torch.tensor([math.pi - 0.01, -math.pi + 0.01])
    read = hand_targets(here)
    assert reading_errors(read, here) == pytest.approx({"position_m": 0, "yaw_rad": 0, "closedness": 0}, abs=1e-6)
    assert float(reading_loss(read, here)) == 0
    assert reading_errors(read.flip(0), here)["yaw_rad"] == pytest.approx(0.02, abs=1e-5)


def test_the_distance_is_a_metric_in_metres():
    read = hand_targets(states())
    a, b, c = read[:-2], read[1:-1], read[2:]
    apart = hand_distance(a, b, 0.1, 0.15)
    assert torch.equal(hand_distance(a, a, 0.1, 0.15), torch.zeros(6))
    torch.testing.assert_close(apart, hand_distance(b, a, 0.1, 0.15))
    assert bool((hand_distance(a, c, 0.1, 0.15) <= apart + hand_distance(b, c, 0.1, 0.15) + 1e-6).all())
    one, turned = torch.zeros(1, 7), torch.zeros(1, 7)
    turned[0, 0], turned[0, 5], turned[0, 6] = 0.03, 0.1, 0.5
    gap = float(hand_distance(hand_targets(one), hand_targets(turned), 0.2, 0.1))
    assert gap == pytest.approx(0.03 + 0.2 * 2 * math.sin(0.05) + 0.1 * 0.5, abs=1e-6)


def test_the_wrong_features_are_named():
    readout = HandReadout(ReadoutConfig(features=8, patches=4))
    assert readout(torch.zeros(2, 3, 4, 8)).shape == (2, 3, 6)
    with pytest.raises(ValueError, match=r"needs features \[..., 4, 8\], got \[4, 9\]"):
        readout(torch.zeros(4, 9))
    with pytest.raises(ValueError, match="centre of 3"):
        ReadoutConfig(features=8, patches=4, centre=(0.0,))


def test_the_aligned_energy_is_the_l1_plus_the_distance_read():
    torch.manual_seed(0)
    readout = HandReadout(ReadoutConfig(features=8, patches=4))
    rollout = Rollout(torch.randn(2, 5, 3, 4, 8), torch.zeros(2, 5, 3, 7))
    goal = LatentGoal(torch.randn(2, 4, 8))
    energy = AlignedL1(readout, weight=2.0, yaw_metres=0.1, grip_metres=0.3)
    read, wanted = readout(rollout.z[:, :, -1]), readout(goal.z)[:, None]
    expected = FinalL1()(rollout, goal) + 2.0 * hand_distance(read, wanted, 0.1, 0.3)
    torch.testing.assert_close(energy(rollout, goal), expected)
    there = Rollout(goal.z[:, None, None], torch.zeros(2, 1, 1, 7))
    assert torch.equal(energy(there, goal), torch.zeros(2, 1))


def test_the_gripper_of_the_goal_may_be_given_instead_of_read():
    torch.manual_seed(0)
    readout = HandReadout(ReadoutConfig(features=8, patches=4))
    rollout = Rollout(torch.randn(2, 5, 1, 4, 8), torch.rand(2, 5, 1, 7))
    goal = LatentGoal(torch.randn(2, 4, 8), torch.rand(2, 7))
    energy = AlignedL1(readout, weight=2.0, grip_metres=0.3, goal_gripper=True)
    blind = AlignedL1(readout, weight=2.0, grip_metres=0.0)
    assert goal.state is not None
    gap = (rollout.state[:, :, 0, 6] - goal.state[:, None, 6]).abs()
    torch.testing.assert_close(energy(rollout, goal), blind(rollout, goal) + 0.6 * gap)
    assert needs_goal_state(energy) and not needs_goal_state(blind)
    with pytest.raises(ValueError, match=r"goal_gripper needs goal\.state"):
        energy(rollout, LatentGoal(goal.z))


def test_the_objective_follows_what_the_model_has():
    readout = HandReadout(ReadoutConfig(features=8, patches=4))
    assert isinstance(make_objective(None), FinalL1)
    assert isinstance(make_objective(None, readout), AlignedL1)
    assert isinstance(make_objective("final", readout), FinalL1)
    with pytest.raises(ValueError, match="needs a world model with a readout"):
        make_objective("aligned")
    with pytest.raises(ValueError, match=r"unknown objective 'near'; valid: .*aligned"):
        make_objective("near", readout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """Recorded episodes, in which a white square shows the hand, and a world model over a random encoder."""
    folder = tmp_path_factory.mktemp("align")
    for seed in range(6):
        record_moving_square(folder / "data", seed)
    return folder / "data", posttrain(posttraining(folder / "data", folder / "model"))


def settings(trained: tuple[Path, Path], out: Path, **changes) -> AlignConfig:
    data, model = trained
    base = {"batch": 16, "dtype": "float32", "log_every": 1, "held_out": 0.3, "validate_every": 20}
    return AlignConfig(data=(data,), model=str(model), out=out, cache=data.parent / "features", **{**base, **changes})


def test_align_learns_to_read_and_changes_nothing_else(trained, tmp_path):
    out = align(settings(trained, tmp_path, steps=150, learning_rate=3e-3))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    errors = [row["error"] for row in rows if "error" in row]
    assert np.mean(errors[-10:]) < 0.35 * np.mean(errors[:3])
    before, after = load_checkpoint(trained[1]), load_checkpoint(out)
    assert before.readout is None and after.readout is not None
    assert before.predictor is not None and after.predictor is not None
    for old, new in ((before.encoder, after.encoder), (before.predictor, after.predictor)):
        assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
    assert after.about["readout"]["steps"] == 150
    model = load_world_model(out)
    assert model.readout is not None and not model.readout.training


def test_a_longer_alignment_goes_on_where_the_shorter_stopped(trained, tmp_path):
    for steps in (3, 6):
        align(settings(trained, tmp_path, steps=steps))
        assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == steps
    logged = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "error" in row]
    assert logged == [0, 1, 2, 3, 4, 5]


def test_align_refuses_an_encoder_alone_and_bad_settings(trained, tmp_path):
    from armworld.worldmodel.checkpoint import save_encoder

    encoder = save_encoder(tmp_path / "encoder", load_checkpoint(trained[1]).encoder)
    with pytest.raises(ValueError, match="holds an encoder only"):
        align(settings((trained[0], encoder), tmp_path / "run", steps=1))
    with pytest.raises(ValueError, match=r"imagined_share must be at least 0 and at most 1, got 2\.0"):
        settings(trained, tmp_path, steps=1, imagined_share=2.0)


@pytest.mark.parametrize("imagined", [False, True])
def test_features_to_read_come_with_the_state_that_they_show(imagined: bool) -> None:
    """Over a predictor that is always right, imagined frames show the state after the action."""
    spread = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))

    def seen(state: torch.Tensor) -> torch.Tensor:
        return normalize((state @ spread).unflatten(-1, (2, 12)))

    def sample(generator: np.random.Generator, batch: int, frames: int) -> tuple[torch.Tensor, ...]:
        told = torch.from_numpy(generator.uniform(0, 0.5, (batch, frames, 7))).float()
        return seen(told), told, torch.zeros(batch, frames, 6)

    class Right:
        config = SimpleNamespace(extrinsics=False)

        def __call__(
            self, z: torch.Tensor, actions: torch.Tensor, told: torch.Tensor, cameras: None
        ) -> SimpleNamespace:
            return SimpleNamespace(z=seen(apply_action(told, actions)))

    source: Any = SimpleNamespace(sample=sample)
    predictor: Any = Right() if imagined else None
    config = AlignConfig(data=(Path("data"),), model="m", out=Path("out"), steps=1, batch=5, dtype="float32")
    features, told = draw(source, predictor, config, np.random.default_rng(0), torch.device("cpu"))
    assert features.shape == (5, 2, 12)
    torch.testing.assert_close(features, seen(told), atol=1e-4, rtol=0)


def test_the_readout_learns_from_disturbed_features_and_goes_on_with_the_same_noise(trained, tmp_path, monkeypatch):
    """Of the asked-for deviation; a run that goes on draws what an undisturbed one would have drawn."""
    fed: list[torch.Tensor] = []
    forward = HandReadout.forward

    def spy(self: HandReadout, z: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            fed.append(z.detach())
        return forward(self, z)

    def still(clips: Any, predictor: Any, config: AlignConfig, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(config.batch, *clips.cache.item_shape), torch.zeros(config.batch, 7)

    monkeypatch.setattr(HandReadout, "forward", spy)
    monkeypatch.setattr("armworld.worldmodel.align.draw", still)
    align(settings(trained, tmp_path / "a", steps=4, noise=0.3))
    whole, fed[:] = torch.stack(fed), []
    for steps in (2, 4):
        align(settings(trained, tmp_path / "b", steps=steps, noise=0.3))
    assert torch.equal(torch.stack(fed), whole)
    assert float(whole.std()) == pytest.approx(0.3, abs=0.01) and abs(float(whole.mean())) < 0.01
    assert not torch.equal(whole[0], whole[2])
