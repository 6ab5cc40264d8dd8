"""The policy network: diffusion mathematics, masks, sizes, and that it learns what it must."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from armworld.baselines.compute import forward_flop, parameters
from armworld.baselines.demonstrations import Demonstrations, Relabelling, measure_scales
from armworld.baselines.diffusion import DiffusionHead, cosine_betas
from armworld.baselines.policy import (
    Batch,
    FeatureStem,
    Policy,
    PolicyConfig,
    StandardConv,
    policy_config,
    state_features,
    token_mask,
)

sys.path.insert(0, str(Path(__file__).parent))
from baselines_helpers import SIZE, FakeStore

PATCHES = (SIZE // 16) ** 2


def test_cosine_schedule_keeps_almost_all_then_nothing():
    kept = torch.cumprod(1 - cosine_betas(20), 0)
    t = (torch.tensor([1.0, 10.0]) / 20 + 0.008) / 1.008 * torch.pi / 2
    expected = (t.cos() / torch.tensor(0.008 / 1.008 * torch.pi / 2).cos()) ** 2
    torch.testing.assert_close(kept[[0, 9]], expected, atol=1e-4, rtol=0)
    assert kept[0] > 0.98 and kept[-1] < 1e-3 and (kept.diff() < 0).all()
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        cosine_betas(0)


def test_sampling_with_the_exact_noise_of_a_gaussian_gives_that_gaussian():
    """For x_0 ~ N(m, v) the best prediction of the noise is linear; the recursion must then reproduce m and v."""
    mean, variance = 1.5, 0.25

    class Exact(DiffusionHead):
        def forward(self, noisy, step, condition):
            kept = self.alphas_kept[step][..., None]
            total = kept * variance + 1 - kept
            return (1 - kept).sqrt() * (noisy - kept.sqrt() * mean) / total

    drawn = Exact(1, 1).sample(torch.zeros(20000, 1), torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.03)
    assert float(drawn.std()) == pytest.approx(variance**0.5, rel=0.1)  # 20 steps: a little off is their nature


def test_an_error_of_the_predicted_noise_does_not_blow_up():
    """Off by 0.2 in every prediction, x_0 ~ N(1, 0.01) is still found; the noise levels stay those of training."""
    mean, variance, seen = 1.0, 0.01, []

    class Roughly(DiffusionHead):
        def forward(self, noisy, step, condition):
            kept = self.alphas_kept[step][..., None]
            seen.append(float(noisy.std()) / float((kept * variance + 1 - kept)[0].sqrt()))
            exact = (1 - kept).sqrt() * (noisy - kept.sqrt() * mean) / (kept * variance + 1 - kept)
            return exact + 0.2 * torch.where(torch.arange(len(noisy)) % 2 == 0, 1.0, -1.0)[:, None]

    drawn = Roughly(1, 1).sample(torch.zeros(4000, 1), torch.Generator().manual_seed(0))
    assert float((drawn - mean).abs().mean()) < 0.3
    assert max(seen) < 2.5


def test_head_recovers_two_modes():
    """Two actions, -1 with probability 0.3 and 1 with 0.7: both places and both shares within 10 %."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    head = DiffusionHead(4, 1, width=48, blocks=2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 400)
        side = 2.0 * (torch.rand(128, 1, generator=generator) < 0.7) - 1
        actions = side + 0.05 * torch.randn(128, 1, generator=generator)
        loss = head.errors(torch.zeros(128, 4), actions, *head.draw((128,), generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = head.sample(torch.zeros(4000, 4), generator)[:, 0]
    low, high = drawn[drawn < 0], drawn[drawn > 0]
    assert float(low.mean()) == pytest.approx(-1, abs=0.1) and float(high.mean()) == pytest.approx(1, abs=0.1)
    assert len(high) / 4000 == pytest.approx(0.7, abs=0.1)
    assert float((drawn.abs() - 1).abs().median()) < 0.1


def test_mask_is_block_causal_and_readouts_are_never_read():
    mask = token_mask(torch.tensor([[True, True], [False, True]]), 3)[:, 0]
    expected = torch.tensor(
        [
            [1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 0, 1, 1, 0],
            [1, 1, 0, 1, 1, 0],
            [1, 1, 0, 1, 1, 1],
        ],
        dtype=torch.bool,
    )
    assert torch.equal(mask[0], expected)
    padded = expected.clone()
    padded[3:, :3] = False
    assert torch.equal(mask[1], padded)


def small(**changes) -> Policy:
    torch.manual_seed(0)
    return Policy(replace(policy_config("debug", PATCHES), **changes))


def some_batch(count: int = 4, **changes) -> Batch:
    samples = Demonstrations([FakeStore((12, 8))], 0.25, Relabelling(**changes))
    return samples.sample(np.random.default_rng(0), count)


def readouts(policy: Policy, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return policy.readouts(batch.frames, batch.goal, batch.states, batch.goal_state, batch.valid)


def test_readouts_do_not_see_the_future_or_padding():
    policy, batch = small(), some_batch()
    batch = replace(batch, valid=torch.tensor([[True, True], [False, True]]).repeat(2, 1))
    before = readouts(policy, batch)
    later, earlier = batch.frames.clone(), batch.frames.clone()
    later[:, 1], earlier[:, 0] = 255 - later[:, 1], 255 - earlier[:, 0]
    after = readouts(policy, replace(batch, frames=later))
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-4
    after = readouts(policy, replace(batch, frames=earlier))
    torch.testing.assert_close(after[1::2, 1], before[1::2, 1])  # the padded ones
    assert (after[0::2, 1] - before[0::2, 1]).abs().max() > 1e-5


def test_masked_actions_do_not_count():
    policy, batch = small(), some_batch(16)
    step, noise = policy.head.draw((*batch.valid.shape, 3), torch.Generator().manual_seed(0))
    counted = batch.mask & batch.valid[..., None]
    assert not counted.all() and counted.any()
    condition, actions = readouts(policy, batch), policy.normalise(batch.actions).flatten(2)
    draws = zip(step.unbind(2), noise.unbind(2), strict=True)  # several per readout: their mean
    errors = [policy.head.errors(condition, actions, *draw).unflatten(-1, (4, 7))[counted].mean() for draw in draws]
    torch.testing.assert_close(policy(batch, step, noise), torch.stack(errors).mean())
    nothing = replace(batch, mask=torch.zeros_like(batch.mask))
    assert float(policy(nothing, step, noise).detach()) == 0


def test_proprioception_is_read_only_where_asked_for():
    batch = some_batch()
    moved = replace(batch, states=batch.states + 0.1)
    blind, sighted = small(proprioception=False), small()
    torch.testing.assert_close(readouts(blind, batch), readouts(blind, moved))
    assert (readouts(sighted, batch) - readouts(sighted, moved)).abs().max() > 1e-5


def test_state_features_do_not_jump_where_angles_wrap():
    state = torch.tensor([[0.5, 0, 0.3, torch.pi - 1e-4, 0, 0, 0.5], [0.5, 0, 0.3, -torch.pi + 1e-4, 0, 0, 0.5]])
    described = state_features(state, torch.zeros(3), torch.ones(3))
    assert described.shape == (2, 10)
    torch.testing.assert_close(described[0], described[1], atol=1e-3, rtol=0)


def test_stem_kernels_are_standardised():
    torch.manual_seed(0)
    conv = StandardConv(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(3).add_(0.7)
    torch.testing.assert_close(conv(x), before, atol=1e-3, rtol=1e-3)


def test_sizes():
    octo = parameters(Policy(policy_config("octo-small", 256)))
    assert 23e6 < octo < 28e6
    assert parameters(Policy(policy_config("cpu", 64))) < 4e6
    assert policy_config("cpu", 64, features=192).stem == ()
    with pytest.raises(ValueError, match="valid: debug, cpu, octo-small, octo-base"):
        policy_config("huge", 64)
    with pytest.raises(ValueError, match="one of both"):
        PolicyConfig(width=8, depth=1, heads=1, patches=4)


def test_flop_count_of_a_linear_layer():
    layer, x = torch.nn.Linear(10, 20), torch.zeros(3, 10)
    assert forward_flop(lambda: layer(x)) == 2 * 3 * 10 * 20


def test_overfits_one_episode_to_the_diffusion_floor():
    """One fixed set of samples: the noise becomes predictable from the data, and draws repeat its actions.

    A head that knew nothing of the sample would stay at the mean over the steps of abar, about 0.5, for z-scored data.
    """
    samples = Demonstrations([FakeStore((9,))], 0.25, Relabelling(cap=1, past_goal="mask"))
    scales = measure_scales(*samples.transitions())
    policy = small(chunk=1, **scales._asdict())
    batch = Demonstrations([FakeStore((9,))], 0.25, Relabelling(chunk=1, cap=1)).sample(np.random.default_rng(0), 16)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    generator, losses, steps = torch.Generator().manual_seed(0), [], 300
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        loss = policy(batch, *policy.head.draw((*batch.valid.shape, 8), generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.8 and np.mean(losses[-20:]) < 0.1
    drawn = policy.act(batch, generator)[:, 0]
    error = policy.normalise(drawn) - policy.normalise(batch.actions[:, -1, 0])
    assert float(error.abs().median()) < 0.15


def test_half_precision_features_under_autocast() -> None:
    """A feature cache stores 16 bits; training runs under bfloat16 autocast, which refuses to mix the two."""
    stem = FeatureStem(features=6, width=8)
    frames = torch.randn(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        half = stem(frames.half(), frames.half())
    torch.testing.assert_close(half.float(), stem(frames, frames), atol=0.05, rtol=0.05)
