"""Imagined rollouts: the cached computation equals the plain one, in every configuration."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from armworld.pose import action_between, apply_action
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.model import VJEPA2AC, WorldModel, WorldModelConfig
from armworld.worldmodel.rollout import imagine
from armworld.worldmodel.sizes import ACPredictorConfig, encoder_config

CONFIG = ACPredictorConfig(features=48, width=36, depth=3, heads=2, image_size=(64, 32), max_steps=8)
USAGE = WorldModelConfig(image_size=(64, 32))
TOLERANCE = 2e-5  # of layer-normed features, float32, weights scaled up


def plain_rollout(
    predictor: ACPredictor,
    z: Tensor,
    state: Tensor,
    actions: Tensor,
    camera: Tensor | None = None,
    window: int = CONFIG.max_steps,
) -> tuple[Tensor, Tensor]:
    """The published rollout: repeat everything for every candidate and step. It sees the last `window` steps."""
    samples, steps = actions.shape[1], z.shape[1]
    z, state = z.repeat_interleave(samples, 0), state.repeat_interleave(samples, 0)
    taken = action_between(state[:, :-1], state[:, 1:])
    for action in actions.flatten(0, 1).unbind(1):
        taken = torch.cat([taken, action[:, None]], 1)
        seen, done, where = z[:, -window:], taken[:, -window:], state[:, -window:]
        extrinsics = None if camera is None else camera.expand(len(z), seen.shape[1], -1)
        z = torch.cat([z, normalize(predictor(seen, done, where, extrinsics).z[:, -1:])], 1)
        state = torch.cat([state, apply_action(state[:, -1:], action[:, None])], 1)
    return z[:, steps:].unflatten(0, (-1, samples)), state[:, steps:].unflatten(0, (-1, samples))


def make(usage: WorldModelConfig = USAGE, dtype: str = "float32", **changes) -> VJEPA2AC:
    torch.manual_seed(0)
    predictor = ACPredictor(replace(CONFIG, **changes))
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.mul_(5) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return VJEPA2AC(Encoder(encoder_config("debug")), predictor, usage, dtype=dtype)


def inputs(steps: int = 1, horizon: int = 1, samples: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = normalize(torch.randn(2, steps, 8, 48, generator=generator))
    state = torch.rand(2, steps, 7, generator=generator)
    return z, state, 0.3 * torch.randn(2, samples, horizon, 7, generator=generator)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"merge": 2, "residual": True, "action_scale": (10.0,) * 7, "state_offset": (0.2,) * 7},
        {"depth": 1},
        {"width": 30, "rope": "paired"},  # 15 channels per head: one belongs to no rotary pair
        {"state_head": True},
    ],
    ids=["published", "options", "one layer", "odd heads", "state head"],
)
def test_cached_rollout_equals_the_plain_one(steps: int, horizon: int, changes: dict) -> None:
    model = make(**changes)
    z, state, actions = inputs(steps, horizon)
    rollout = model.rollout(z, state, actions)
    with torch.no_grad():
        wanted_z, wanted_state = plain_rollout(model.predictor, z, state, actions)
    assert rollout.z.shape == (2, 5, horizon, 8, 48)
    torch.testing.assert_close(rollout.z, wanted_z, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(rollout.state, wanted_state, atol=1e-6, rtol=0)
    # The comparison means something: actions and earlier context matter at this tolerance.
    other = model.rollout(z, state, actions + 0.1).z
    assert (other - rollout.z).abs().amax() > 100 * TOLERANCE


def test_cached_rollout_reads_extrinsics() -> None:
    pose = (0.5, -0.2, 0.7, 0.1, 2.0, -1.0)
    model = make(replace(USAGE, extrinsics=pose), extrinsics=True)
    z, state, actions = inputs(steps=2, horizon=2)
    with torch.no_grad():
        wanted, _ = plain_rollout(model.predictor, z, state, actions, torch.tensor(pose))
    torch.testing.assert_close(model.rollout(z, state, actions).z, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("horizon", [1, 3])
def test_chunks_do_not_change_the_numbers(horizon: int) -> None:
    model = make(merge=2)
    z, state, actions = inputs(2, horizon, samples=7)
    whole = model.rollout(z, state, actions)
    model.memory_mb = 1e-6
    pieces = model.rollout(z, state, actions)
    torch.testing.assert_close(pieces.z, whole.z, atol=TOLERANCE, rtol=0)
    assert torch.equal(pieces.state, whole.state)


def test_candidates_do_not_influence_one_another() -> None:
    model = make()
    z, state, actions = inputs(2, 2, samples=6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        model.rollout(z, state, actions[:, order]).z,
        model.rollout(z, state, actions).z[:, order],
        atol=TOLERANCE,
        rtol=0,
    )


def test_bfloat16_is_close_and_keeps_states_exact() -> None:
    exact, low = make(residual=True), make(residual=True, dtype="bfloat16")
    z, state, actions = inputs(2, 3)
    a, b = exact.rollout(z, state, actions), low.rollout(z, state, actions)
    assert b.z.dtype == torch.bfloat16
    assert (a.z - b.z).abs().mean() < 0.03  # the features' own deviation is 1
    assert torch.equal(a.state, b.state)


def test_gradients_reach_the_actions_and_are_right() -> None:
    model = make(merge=2, residual=True).predictor.double()
    z, state, actions = (x.double() for x in inputs(2, 2, samples=2))
    weights = torch.randn(8, 48, dtype=torch.float64)

    def gradient_of(rollout: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        leaf = actions.clone().requires_grad_()
        features, states = rollout(model, z, state, leaf)
        return torch.autograd.grad((features * weights).sum() + states.square().sum(), leaf)[0]

    gradient, wanted = gradient_of(imagine), gradient_of(plain_rollout)
    torch.testing.assert_close(gradient, wanted, atol=1e-8, rtol=1e-6)


def test_no_graph_is_kept_unless_actions_ask_for_it() -> None:
    model = make()
    assert not model.rollout(*inputs()).z.requires_grad
    z, state, actions = inputs()
    assert model.rollout(z, state, actions.requires_grad_()).z.requires_grad


def test_encode_and_rollout_fit_together() -> None:
    model: WorldModel = make()
    z = model.encode(torch.randint(0, 256, (2, 1, 64, 32, 3), dtype=torch.uint8))
    _, state, actions = inputs()
    assert z.shape == (2, 1, 8, 48) and not z.requires_grad
    assert model.rollout(z, state, actions).z.shape == (2, 5, 1, 8, 48)
    assert model.step_seconds == 0.25


def test_what_does_not_fit_is_refused() -> None:
    model = make()
    z, state, actions = inputs()
    with pytest.raises(ValueError, match=r"images must be \(64, 32\) pixels, got \(32, 32\)"):
        model.encode(torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"state must be \[2, 1, 7\]"):
        model.rollout(z, state[:, :, :6], actions)
    with pytest.raises(ValueError, match=r"actions must be \[2, S, H, 7\]"):
        model.rollout(z, state, actions[:1])
    with pytest.raises(ValueError, match=r"features must be \[B, T, 8, 48\]"):
        model.rollout(z[:, :, :4], state, actions)
    with pytest.raises(ValueError, match="need 9 steps; this predictor was built for 8"):
        model.rollout(*inputs(steps=1, horizon=9))
    with pytest.raises(ValueError, match="unknown dtype 'int8'; valid: float32, bfloat16"):
        make(dtype="int8")
    with pytest.raises(ValueError, match="expects features of width 48, the encoder's have 192"):
        VJEPA2AC(Encoder(encoder_config("tiny", depth=1)), ACPredictor(CONFIG), USAGE)
    with pytest.raises(ValueError, match=r"config\.extrinsics must hold the camera pose"):
        make(extrinsics=True)
    with pytest.raises(ValueError, match="step_seconds must be positive"):
        WorldModelConfig(step_seconds=0)


def test_a_device_out_of_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("armworld.worldmodel.model.imagine", full)
    with pytest.raises(ValueError, match=r"CUDA out of memory\. Load the model with a smaller memory_mb than 1024"):
        make().rollout(*inputs())


def test_the_published_pair_has_the_published_shape() -> None:
    with torch.device("meta"):
        encoder, predictor = Encoder(encoder_config("g")), ACPredictor(ACPredictorConfig(features=1408))
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(1.01e9, rel=0.01)
    assert sum(p.numel() for p in predictor.parameters()) == pytest.approx(3.05e8, rel=0.02)  # "300M" in the paper


def test_the_benchmark_times_a_predictor_narrower_than_its_features(tmp_path: Path) -> None:
    script, out = Path(__file__).parent.parent / "benchmarks" / "worldmodel.py", tmp_path / "out.json"
    sizes = "--width 32 --features 48 --depth 2 --heads 2 --image-size 64 --batch 2 --samples 12 --repeats 1"
    command = [sys.executable, str(script), *sizes.split(), "--parts", "posttrain", "score", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(out.read_text())
    for part in ("posttrain", "score, horizon 4", "score, horizon 1"):
        assert found[part]["our_per_second"] > 0 and found[part]["largest_difference"] < 1e-4


def test_compiling_without_a_compiler_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on a CPU; install g\+\+"):
        VJEPA2AC(Encoder(encoder_config("debug")), ACPredictor(CONFIG), USAGE, compile=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_rollouts_equal_plain_ones() -> None:
    plain, compiled = make(residual=True), make(residual=True)
    compiled.compile = True
    for horizon, samples in ((1, 5), (3, 7)):
        z, state, actions = inputs(2, horizon, samples)
        wanted, found = plain.rollout(z, state, actions), compiled.rollout(z, state, actions)
        torch.testing.assert_close(found.z, wanted.z, atol=5 * TOLERANCE, rtol=0)
        assert torch.equal(found.state, wanted.state)


@pytest.mark.slow
def test_the_published_pair_runs_on_a_cpu() -> None:
    torch.manual_seed(0)
    encoder, predictor = Encoder(encoder_config("g")), ACPredictor(ACPredictorConfig(features=1408))
    model = VJEPA2AC(encoder, predictor, WorldModelConfig(), dtype="bfloat16")
    z = model.encode(torch.randint(0, 256, (1, 1, 256, 256, 3), dtype=torch.uint8))
    rollout = model.rollout(z, torch.zeros(1, 1, 7), 0.05 * torch.randn(1, 2, 2, 7))
    assert rollout.z.shape == (1, 2, 2, 256, 1408) and rollout.z.isfinite().all()


def test_a_window_of_one_step_is_a_chain_of_single_steps() -> None:
    z, state, actions = inputs(steps=3, horizon=4)
    whole = make(replace(USAGE, window=1)).rollout(z, state, actions)
    single = make()
    for sample in range(actions.shape[1]):
        now, where = z[:, -1:], state[:, -1:]
        for step in range(4):
            imagined = single.rollout(now, where, actions[:, sample : sample + 1, step : step + 1])
            now, where = imagined.z[:, 0], imagined.state[:, 0]
            torch.testing.assert_close(whole.z[:, sample, step], now[:, 0], atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(whole.state[:, sample, step], where[:, 0])


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize(("steps", "horizon"), [(1, 5), (2, 2), (4, 3)])
def test_a_window_slides_over_context_and_imagined_steps(window: int, steps: int, horizon: int) -> None:
    model = make(replace(USAGE, window=window))
    z, state, actions = inputs(steps, horizon)
    rollout = model.rollout(z, state, actions)
    with torch.no_grad():
        wanted_z, wanted_state = plain_rollout(model.predictor, z, state, actions, window=window)
    torch.testing.assert_close(rollout.z, wanted_z, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(rollout.state, wanted_state)


def test_a_window_longer_than_the_rollout_changes_nothing() -> None:
    z, state, actions = inputs(steps=2, horizon=3)
    torch.testing.assert_close(
        make(replace(USAGE, window=4)).rollout(z, state, actions).z, make().rollout(z, state, actions).z
    )
    shorter = make(replace(USAGE, window=2)).rollout(z, state, actions).z
    assert not torch.allclose(shorter, make().rollout(z, state, actions).z, atol=1e-3)
    with pytest.raises(ValueError, match="window must be at least 1 step or None, got 0"):
        replace(USAGE, window=0)


def test_a_window_lets_a_rollout_outlast_the_steps_the_predictor_was_built_for() -> None:
    z, state, actions = inputs(horizon=CONFIG.max_steps + 2)
    assert make(replace(USAGE, window=1)).rollout(z, state, actions).z.isfinite().all()
    with pytest.raises(ValueError, match="this predictor was built for 8"):
        make().rollout(z, state, actions)
