"""A model that learns from random moves where its camera stands: its imagination, its readings, and nothing else."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from armworld.pose import action_between, apply_action
from armworld.worldmodel import adapt as adapting
from armworld.worldmodel.ac_predictor import Prediction
from armworld.worldmodel.adapt import AdaptConfig, adapt, adapt_and_save
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_world_model, save_world_model
from armworld.worldmodel.model import VJEPA2AC, WorldModelConfig
from armworld.worldmodel.readout import HandReadout, ReadoutConfig

sys.path.insert(0, str(Path(__file__).parent))
import worldmodel_small as small

SIZE = (64, 64)
CONFIG = AdaptConfig(predictor_steps=100, readout_steps=400, clips=16, frames=32, learning_rate=3e-3, dtype="float32")


def model(readout: bool = True) -> VJEPA2AC:
    torch.manual_seed(0)
    encoder = small.encoder()
    patches = (SIZE[0] // 16) * (SIZE[1] // 16)
    predictor = small.ac_predictor(features=encoder.config.width, image_size=SIZE)
    reader = HandReadout(ReadoutConfig(encoder.config.width, patches, 16, 64)) if readout else None
    return VJEPA2AC(encoder, predictor, WorldModelConfig(image_size=SIZE), readout=reader)


def recording(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A square that stands where the hand is, over a background of its own, as random moves show it."""
    rng = np.random.default_rng(seed)
    states = np.zeros((count, 7), np.float32)
    states[:, :3] = np.array([0.5, 0.0, 0.3]) + rng.uniform(-0.1, 0.1, (count, 3))
    frames = np.full((count, *SIZE, 3), 40, np.uint8)
    for frame, (x, y, z) in zip(frames, states[:, :3], strict=True):
        row, column = (round(26 + 250 * (value - centre)) for value, centre in ((x, 0.5), (y, 0.0)))
        frame[row : row + 12, column : column + 12] = 150 + round(800 * (z - 0.3))
    return frames, states


def imagined_and_copied(world: VJEPA2AC, z: Tensor, states: np.ndarray) -> tuple[float, float]:
    told = torch.from_numpy(states)
    ahead = world.rollout(z[:-1, None], told[:-1, None], action_between(told[:-1], told[1:])[:, None, None]).z[:, 0, 0]
    return float((ahead - z[1:]).abs().mean()), float((z[:-1] - z[1:]).abs().mean())


def test_it_imagines_and_reads_moves_it_has_not_seen_and_leaves_the_model_alone() -> None:
    world = model()
    assert world.readout is not None
    before, read_before = (
        {name: value.clone() for name, value in part.state_dict().items()} for part in (world.predictor, world.readout)
    )
    frames, states = recording(80, 0)
    adapted = adapt(world, frames, states, torch.Generator().manual_seed(0), CONFIG)
    other, told = recording(40, 1)
    z = world.encode(other[:, None])[:, 0]
    was, copied = imagined_and_copied(world, z, told)
    now, _ = imagined_and_copied(adapted, z, told)
    assert now < 0.75 * copied < was
    assert world.readout is not None and adapted.readout is not None
    there = torch.from_numpy(told[:, :3])
    errors = [float((read(z).detach()[:, :3] - there).norm(dim=-1).mean()) for read in (world.readout, adapted.readout)]
    assert errors[1] < 0.6 * errors[0]
    for part, kept in ((world.predictor, before), (world.readout, read_before)):
        assert all(torch.equal(value, kept[name]) for name, value in part.state_dict().items())
        assert not any(p.grad is not None for p in part.parameters())
    assert not any(p.requires_grad for p in adapted.readout.parameters())
    assert adapted.encoder is world.encoder and not any(p.requires_grad for p in adapted.predictor.parameters())


def test_it_is_repeatable_and_what_is_switched_off_stays() -> None:
    world = model()
    frames, states = recording(20, 0)
    short = AdaptConfig(predictor_steps=3, readout_steps=0, clips=4, rollout=2)
    first, second = (adapt(world, frames, states, torch.Generator().manual_seed(3), short) for _ in range(2))
    for a, b in zip(first.predictor.parameters(), second.predictor.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.readout is not None and world.readout is not None
    assert torch.equal(first.readout.out.weight, world.readout.out.weight)
    assert adapt(model(readout=False), frames, states, torch.Generator(), short).readout is None


def test_a_predictor_that_reads_extrinsics_is_told_them() -> None:
    torch.manual_seed(0)
    encoder = small.encoder()
    predictor = small.ac_predictor(features=encoder.config.width, image_size=SIZE, extrinsics=True)
    usage = WorldModelConfig(image_size=SIZE, extrinsics=(0.5, 0.4, 0.6, 1.0, 0.0, 0.0))
    world = VJEPA2AC(encoder, predictor, usage)
    frames, states = recording(20, 0)
    adapted = adapt(world, frames, states, torch.Generator(), AdaptConfig(predictor_steps=2, clips=4))
    assert adapted.config.extrinsics == usage.extrinsics


def test_a_model_in_its_cameras_frame_is_in_the_base_frame_afterwards() -> None:
    """What it learns from is told there; nothing may turn its states any more."""
    world = model()
    world.config = WorldModelConfig(image_size=SIZE, camera_frame=40.0)
    frames, states = recording(20, 0)
    adapted = adapt(world, frames, states, torch.Generator(), AdaptConfig(predictor_steps=1, readout_steps=1))
    assert world.turns_states and not adapted.turns_states


def test_it_is_stored_as_a_checkpoint_that_says_what_it_learned_from(tmp_path: Path) -> None:
    frames, states = recording(17, 0)
    world, source = model(), tmp_path / "source"
    parts = world.encoder, world.predictor, world.config
    save_world_model(source, *parts, readout=world.readout, about={"made": "by hand"})
    adapted = adapt_and_save(
        world, frames, states, 5, tmp_path / "model", str(source), AdaptConfig(predictor_steps=2, readout_steps=2)
    )
    again = load_world_model(tmp_path / "model")
    z = adapted.encode(frames[:, None])[:, 0]
    assert again.readout is not None and adapted.readout is not None
    torch.testing.assert_close(again.readout(z), adapted.readout(z), atol=2e-3, rtol=0)
    config = (tmp_path / "model" / "config.json").read_text()
    assert '"moves": 16' in config and f'"from": "{source}"' in config and '"made": "by hand"' in config


def test_what_it_cannot_learn_from_is_named() -> None:
    world, (frames, states) = model(), recording(20, 0)
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"T >= 16, got \(10, 64, 64, 3\) and \(10, 7\)"):
        adapt(world, frames[:10], states[:10], generator)
    with pytest.raises(ValueError, match=r"and \(19, 7\)"):
        adapt(world, frames, states[1:], generator)
    with pytest.raises(ValueError, match="states must be finite"):
        adapt(world, frames, np.full_like(states, np.nan), generator)
    half = copy.deepcopy(world)
    half.predictor.to(torch.bfloat16)
    with pytest.raises(ValueError, match="float32"):
        adapt(half, frames, states, generator)
    with pytest.raises(ValueError, match="learning_rate be positive"):
        AdaptConfig(learning_rate=0)
    with pytest.raises(ValueError, match="diverged"):
        adapt(world, frames, states, generator, AdaptConfig(predictor_steps=20, learning_rate=1e30, dtype="float32"))


class Right(torch.nn.Module):
    """A predictor that is always right in a world whose features are the arm's state; it notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(grid=(1, 1), features=7)
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, z: Tensor, actions: Tensor, states: Tensor, cameras: None = None) -> Prediction:
        self.asked.append((z, actions, states))
        return Prediction(seen(apply_action(states, actions)) + self.unused, None)


class Passing(torch.nn.Module):
    """A readout that answers the features that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.unused


SPREAD = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))


def seen(states: Tensor) -> Tensor:
    """Features [..., 1, 16] of states [..., 7]."""
    return normalize((states @ SPREAD)[..., None, :])


def told(count: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.rand(count, 7, generator=generator)


def right_model() -> Any:
    config = SimpleNamespace(extrinsics=None)
    return SimpleNamespace(predictor=Right(), readout=Passing(), config=config)


def test_the_predictor_learns_from_each_frame_the_move_that_led_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consecutive frames, their own states, and actions from each to the next: the loss of who is right is 0."""
    losses, loss_of = [], adapting.PredictionLoss.forward

    def spy(self: adapting.PredictionLoss, *arguments: Any) -> dict[str, Tensor]:
        parts = loss_of(self, *arguments)
        losses.append(float(parts["loss"].detach()))
        return parts

    monkeypatch.setattr(adapting.PredictionLoss, "forward", spy)
    states, world = told(), right_model()
    config = AdaptConfig(predictor_steps=60, clips=8, rollout=2, dtype="float32", learning_rate=1e-9)
    adapting._teach_predictor(world, seen(states), states, torch.Generator().manual_seed(0), config)
    assert len(losses) == 60 and max(losses) < 1e-4
    forced = [call for call in world.predictor.asked if call[1].shape[1] == 2]
    for z, actions, at in forced:
        torch.testing.assert_close(z[:, 0], seen(at)[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(apply_action(at, actions)[:, :-1], at[:, 1:], atol=1e-5, rtol=0)
    begun = torch.cat([at[:, 0] for *_, at in forced])
    assert all(bool((begun == state).all(1).any()) for state in states[:-2])  # the whole recording is drawn from


@pytest.mark.parametrize("imagined", [0.0, 1.0])
def test_the_readout_learns_each_frame_with_the_state_that_it_shows(
    imagined: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real ones, or imagined ones, of which the first frame has none; with noise of the asked-for deviation."""
    taught: list[tuple[Tensor, Tensor]] = []

    def note(read: Tensor, states: Tensor) -> Tensor:
        taught.append((read.detach(), states))
        return 0 * read.sum()

    monkeypatch.setattr(adapting, "reading_loss", note)
    states = told()
    for noise in (0.0, 0.2):
        for everyone in (3, 4):  # the generator passed in decides, not torch's own
            torch.manual_seed(everyone)
            config = AdaptConfig(readout_steps=20, frames=16, noise=noise, imagined_share=imagined, dtype="float32")
            generator = torch.Generator().manual_seed(0)
            adapting._teach_readout(right_model(), seen(states), states, generator, config)
    quiet, noisy = (torch.stack([part[0] for part in taught[k : k + 20]]) for k in (0, 40))
    at = torch.stack([part[1] for part in taught[:20]])
    torch.testing.assert_close(quiet, seen(at), atol=1e-3, rtol=0)
    assert torch.equal(noisy, torch.stack([part[0] for part in taught[60:]]))
    assert float((noisy - quiet).std()) == pytest.approx(0.2, abs=0.01)
    assert float((noisy - quiet).mean()) == pytest.approx(0, abs=0.01)
    shown = [bool((at == state).all(-1).any()) for state in states]
    assert shown == [imagined == 0] + [True] * 39
