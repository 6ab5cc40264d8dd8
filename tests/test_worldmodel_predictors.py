"""Masks, the mask predictor, the action-conditioned predictor: the mathematics they must obey."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armworld.worldmodel.ac_predictor import ACPredictor, merge_patches, split_patches
from armworld.worldmodel.blocks import (
    normalize,
)
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.masks import LARGE_BLOCKS, SMALL_BLOCKS, MaskFamily, sample_masks
from armworld.worldmodel.sizes import (
    MaskPredictorConfig,
    encoder_config,
)

sys.path.insert(0, str(Path(__file__).parent))
from worldmodel_small import SMALL_AC, ac_inputs, ac_predictor, sharpen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Masks and the mask predictor


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 4), rows=st.integers(4, 16), columns=st.integers(4, 16), seed=st.integers(0, 99))
def test_masks_of_one_clip_are_complements_over_the_full_duration(steps, rows, columns, seed) -> None:
    for mask in sample_masks((steps, rows, columns), 1, torch.Generator().manual_seed(seed)):
        everything = torch.cat([mask.context, mask.target], 1).sort(1).values
        assert torch.equal(everything, torch.arange(steps * rows * columns)[None])
        cells = mask.target.view(steps, -1) - torch.arange(steps)[:, None] * rows * columns
        assert (cells == cells[0]).all()


def test_masks_of_a_batch_are_disjoint_sorted_and_differ() -> None:
    masks = sample_masks((2, 16, 16), 8, torch.Generator().manual_seed(0))
    assert len(masks) == 2
    for mask in masks:
        assert mask.context.shape[0] == mask.target.shape[0] == 8
        for context, target in zip(mask.context, mask.target, strict=True):
            assert not set(context.tolist()) & set(target.tolist())
            assert torch.equal(context, context.sort().values)
        assert not torch.equal(mask.target[0], mask.target[1])


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(2, 4), side=st.integers(4, 16), seed=st.integers(0, 99))
def test_blocks_of_half_the_duration_leave_their_place_visible_at_other_times(steps, side, seed) -> None:
    family, cells = MaskFamily(1, 0.3, duration=0.5), side * side
    (mask,) = sample_masks((steps, side, side), 1, torch.Generator().manual_seed(seed), [family])
    everything = torch.cat([mask.context, mask.target], 1).sort(1).values
    assert torch.equal(everything, torch.arange(steps * cells)[None])
    times, places = (mask.target // cells).unique(), (mask.target % cells).unique()
    assert len(times) == max(1, round(0.5 * steps)) < steps
    assert len(times) * len(places) == mask.target.shape[1]
    assert torch.equal(times, torch.arange(int(times[0]), int(times[0]) + len(times)))


def test_masks_repeat_with_the_seed() -> None:
    first, second = (sample_masks((2, 8, 8), 3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_mask_families_hide_the_stated_share() -> None:
    single = [replace(family, blocks=1) for family in (SMALL_BLOCKS, LARGE_BLOCKS)]
    shares = [sample_masks((1, 16, 16), 1, torch.Generator().manual_seed(seed), single) for seed in range(30)]
    for i, family in enumerate(single):
        mean = np.mean([masks[i].target.shape[1] / 256 for masks in shares])
        assert mean == pytest.approx(family.scale, abs=0.02)


def test_a_family_that_hides_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="hides all of a 1 x 1 patch grid"):
        sample_masks((1, 1, 1), 1, torch.Generator().manual_seed(0), [MaskFamily(2, 0.99)])
    with pytest.raises(ValueError, match="0 < scale < 1"):
        MaskFamily(2, 1.5)
    with pytest.raises(ValueError, match="0 < duration <= 1"):
        MaskFamily(2, 0.5, duration=0)


def test_mask_predictor_does_not_mind_the_order_of_its_context() -> None:
    predictor = MaskPredictor(MaskPredictorConfig(20, 36, 2, 2)).eval()
    sharpen(predictor)
    grid, order = (2, 3, 4), torch.randperm(24)
    context, target = order[:10], order[10:]
    features = torch.randn(2, 10, 20)
    out = predictor(features, context, target, grid)
    shuffle = torch.randperm(10)
    torch.testing.assert_close(predictor(features[:, shuffle], context[shuffle], target, grid), out, atol=1e-4, rtol=0)
    torch.testing.assert_close(predictor(features, context, target.flip(0), grid), out.flip(1), atol=1e-4, rtol=0)


def test_each_mask_family_has_its_token() -> None:
    predictor = MaskPredictor(MaskPredictorConfig(20, 36, 1, 2, mask_tokens=2))
    with torch.no_grad():
        predictor.mask_tokens[1].fill_(1.0)
    arguments = torch.randn(1, 3, 20), torch.arange(3), torch.arange(3, 6), (1, 2, 3)
    first, second, third = (predictor(*arguments, mask_index=i) for i in range(3))
    assert not torch.allclose(first, second) and torch.equal(first, third)


# Action-conditioned predictor


def test_later_steps_do_not_change_earlier_predictions() -> None:
    predictor = ac_predictor(extrinsics=True)
    z, actions, states = ac_inputs()
    camera = torch.randn(2, 3, 6)
    before = predictor(z, actions, states, camera).z
    changed = [torch.cat([x[:, :2], torch.randn_like(x[:, 2:])], 1) for x in (z, actions, states, camera)]
    after = predictor(*changed).z
    torch.testing.assert_close(after[:, :2], before[:, :2], atol=1e-5, rtol=0)
    assert (after[:, 2] - before[:, 2]).abs().max() > 1e-2


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_every_input_of_an_earlier_step_matters(which: int) -> None:
    predictor = ac_predictor(extrinsics=True)
    inputs = [*ac_inputs(), torch.randn(2, 3, 6)]
    before = predictor(*inputs).z
    inputs[which] = torch.cat([inputs[which][:, :1] + 1, inputs[which][:, 1:]], 1)
    assert (predictor(*inputs).z - before).abs().amax((0, 2, 3)).min() > 1e-4


def test_one_step_equals_the_first_of_many() -> None:
    predictor, inputs = ac_predictor(), ac_inputs()
    one = predictor(*(x[:, :1] for x in inputs)).z
    torch.testing.assert_close(one, predictor(*inputs).z[:, :1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("merge", [1, 2])
def test_merging_and_splitting_are_inverse(merge: int) -> None:
    z = torch.randn(2, 3, 4 * 6, 5)
    merged = merge_patches(z, (4, 6), merge)
    assert merged.shape == (2, 3, 24 // merge**2, 5 * merge**2)
    assert torch.equal(split_patches(merged, (4, 6), merge), z)


def test_merged_tokens_hold_neighbouring_patches() -> None:
    z = torch.arange(16.0).view(1, 1, 16, 1)  # a 4 x 4 grid of its own patch numbers
    assert merge_patches(z, (4, 4), 2)[0, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_options_off_are_the_published_predictor() -> None:
    plain, inputs = ac_predictor(), ac_inputs()
    unit = replace(SMALL_AC, action_scale=(1.0,) * 7, state_scale=(1.0,) * 7, merge=1, residual=False)
    same = ACPredictor(unit).eval()
    same.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(plain(*inputs).z, same(*inputs).z)


def test_residual_adds_the_features() -> None:
    plain, inputs = ac_predictor(), ac_inputs()
    residual = ACPredictor(replace(SMALL_AC, residual=True)).eval()
    residual.load_state_dict(plain.state_dict())
    torch.testing.assert_close(residual(*inputs).z, plain(*inputs).z + inputs[0])


def test_normalisation_constants_scale_the_inputs() -> None:
    plain, (z, actions, states) = ac_predictor(), ac_inputs()
    scale = tuple(range(1, 8))
    scaled = ACPredictor(replace(SMALL_AC, action_scale=scale, state_offset=(0.5,) * 7, state_scale=(2.0,) * 7)).eval()
    scaled.load_state_dict(plain.state_dict())
    states[..., 3:6] *= 0.1  # away from the wrap
    wanted = plain(z, actions * torch.tensor(scale), (states - 0.5) * 2).z
    torch.testing.assert_close(scaled(z, actions, states).z, wanted, atol=1e-4, rtol=0)


def test_state_offset_wraps_angles() -> None:
    predictor = ac_predictor(state_offset=(0, 0, 0, 3.1, 0, 0, 0))
    z, actions, states = ac_inputs()
    states[..., 3] = 3.1
    turned = states.clone()
    turned[..., 3] -= 2 * np.pi
    torch.testing.assert_close(predictor(z, actions, states).z, predictor(z, actions, turned).z, atol=1e-4, rtol=0)


def test_state_head_predicts_in_action_units() -> None:
    predictor = ac_predictor(state_head=True, action_scale=(10.0,) * 7)
    prediction = predictor(*ac_inputs())
    assert prediction.state_delta is not None and prediction.state_delta.shape == (2, 3, 7)
    assert ac_predictor()(*ac_inputs()).state_delta is None


def test_other_resolutions_span_the_training_positions() -> None:
    predictor = ac_predictor(image_size=(64, 64))
    z, actions, states = ac_inputs(patches=64)
    assert predictor(z, actions, states, grid=(8, 8)).z.shape == z.shape
    coarse = predictor.rotary(1, (4, 4), torch.device("cpu"), torch.float32)
    fine = predictor.rotary(1, (8, 8), torch.device("cpu"), torch.float32)
    torch.testing.assert_close(fine.cos[2:].view(8, 8, -1)[::2, ::2], coarse.cos[2:].view(4, 4, -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions_BTA": torch.zeros(2, 3, 6)}, r"actions must be \[2, 3, 7\] .* got \[2, 3, 6\]"),
        ({"states_BTA": torch.zeros(2, 2, 7)}, r"states must be \[2, 3, 7\]"),
        ({"z_BTND": torch.zeros(2, 3, 9, 20)}, r"features must be \[B, T, 8, 20\] for a 4 x 2 grid"),
        ({"z_BTND": torch.zeros(2, 7, 8, 20)}, r"steps must lie in 1 \.\.\. 6, got 7"),
        ({"extrinsics_BTE": torch.zeros(2, 3, 6)}, "given exactly if config.extrinsics, which is False"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    z, actions, states = ac_inputs()
    inputs = {"z_BTND": z, "actions_BTA": actions, "states_BTA": states} | change
    with pytest.raises(ValueError, match=message):
        ac_predictor()(**inputs)


def test_bad_predictor_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="merge 3 does not divide the 4 x 2 patch grid"):
        replace(SMALL_AC, merge=3)
    with pytest.raises(ValueError, match="action_scale needs 7 values"):
        replace(SMALL_AC, action_scale=(1.0,))


def test_unused_extrinsics_encoder_is_frozen() -> None:
    frozen = [name for name, p in ac_predictor().named_parameters() if not p.requires_grad]
    assert frozen == ["extrinsics_encoder.weight", "extrinsics_encoder.bias"]
    assert all(p.requires_grad for p in ac_predictor(extrinsics=True).parameters())


@pytest.mark.parametrize("how", ["autocast", "plain"])
def test_bfloat16_is_close_to_float32(how: str) -> None:
    predictor = ACPredictor(replace(SMALL_AC, state_head=True)).eval()
    model = Encoder(encoder_config("debug")).eval()
    inputs, clip = ac_inputs(), torch.randn(1, 3, 2, 32, 32)
    exact, features = normalize(predictor(*inputs).z), normalize(model(clip))
    if how == "plain":
        predictor, model, clip = predictor.bfloat16(), model.bfloat16(), clip.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        low, low_features = predictor(*inputs).z, model(clip)
    assert (normalize(low.float()) - exact).abs().mean() < 0.03
    assert (normalize(low_features.float()) - features).abs().mean() < 0.03


def test_blocks_have_the_stated_shape_and_lie_anywhere() -> None:
    """One block per clip: at least twice as high as wide, up to every edge, and every edge as often as the other."""
    family, places = MaskFamily(1, 0.12, aspect=(2.0, 3.0)), []
    for seed in range(200):
        (mask,) = sample_masks((1, 16, 16), 1, torch.Generator().manual_seed(seed), [family])
        rows, columns = (mask.target[0] // 16).unique(), (mask.target[0] % 16).unique()
        assert len(rows) * len(columns) == mask.target.shape[1] == pytest.approx(0.12 * 256, rel=0.2)
        assert 1.6 <= len(rows) / len(columns) <= 3.5
        places.append([rows[0] == 0, rows[-1] == 15, columns[0] == 0, columns[-1] == 15])
    top, bottom, left, right = np.array(places).sum(0)
    assert min(top, bottom, left, right) > 5
    assert 0.4 < top / bottom < 2.5 and 0.4 < left / right < 2.5


@pytest.mark.parametrize(("duration", "steps", "lasting"), [(0.7, 4, 3), (0.6, 4, 2), (0.3, 8, 2), (0.05, 8, 1)])
def test_blocks_last_the_nearest_whole_number_of_steps_and_begin_at_any(
    duration: float, steps: int, lasting: int
) -> None:
    begun = set()
    for seed in range(60):
        family = MaskFamily(1, 0.2, duration=duration)
        (mask,) = sample_masks((steps, 8, 8), 1, torch.Generator().manual_seed(seed), [family])
        times = (mask.target[0] // 64).unique().tolist()
        assert times == list(range(times[0], times[0] + lasting))
        begun.add(times[0])
    assert begun == set(range(steps - lasting + 1))
