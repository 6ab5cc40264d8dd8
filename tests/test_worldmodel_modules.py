"""Encoder, predictors, masks: the mathematics they must obey."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armworld.worldmodel.ac_predictor import ACPredictor, merge_patches, split_patches
from armworld.worldmodel.blocks import (
    Attention,
    attend,
    attend_block_causal,
    block_causal_mask,
    grid_rotary,
    normalize,
    rotary_from_positions,
    rotate,
)
from armworld.worldmodel.encoder import IMAGE_MEAN, IMAGE_STD, Encoder, pixels_to_clip
from armworld.worldmodel.mask_predictor import MaskPredictor
from armworld.worldmodel.masks import LARGE_BLOCKS, SMALL_BLOCKS, MaskFamily, sample_masks
from armworld.worldmodel.sizes import (
    ENCODER_SIZES,
    ACPredictorConfig,
    EncoderConfig,
    MaskPredictorConfig,
    encoder_config,
)

SMALL_AC = ACPredictorConfig(features=20, width=36, depth=2, heads=2, image_size=(64, 32), max_steps=6)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def sharpen(module: torch.nn.Module, factor: float = 6.0) -> None:
    """Scale random weights up, so that attention is far from uniform and mistakes show."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)


def encoder(**changes) -> Encoder:
    model = Encoder(encoder_config("debug", **changes)).eval()
    sharpen(model)
    return model


def ac_predictor(**changes) -> ACPredictor:
    model = ACPredictor(replace(SMALL_AC, **changes)).eval()
    sharpen(model)
    return model


def ac_inputs(batch: int = 2, steps: int = 3, patches: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, steps, patches, 20), torch.randn(batch, steps, 7), torch.randn(batch, steps, 7)


# Rotary positions


@settings(max_examples=20, deadline=None)
@given(
    shift=st.tuples(*[st.integers(-5, 5)] * 3),
    first=st.tuples(*[st.integers(0, 9)] * 3),
    second=st.tuples(*[st.integers(0, 9)] * 3),
)
def test_paired_rotary_products_depend_on_relative_positions_only(shift, first, second) -> None:
    q, k = torch.randn(2, 1, 1, 1, 26, generator=torch.Generator().manual_seed(1))

    def product(offset: tuple[int, ...]) -> float:
        positions = torch.tensor([first, second]) + torch.tensor(offset)
        tables = rotary_from_positions(positions, 26, "paired")
        at_first, at_second = (type(tables)(*(t[i : i + 1] for t in tables)) for i in (0, 1))
        return float((rotate(q, at_first) * rotate(k, at_second)).sum())

    assert product(shift) == pytest.approx(product((0, 0, 0)), abs=2e-4)


def test_tiled_rotary_follows_its_definition() -> None:
    head_dim, position = 26, (3, 5, 2)  # chunks of 8, two channels left over
    x = torch.randn(head_dim)
    expected = x.clone()
    for axis in range(3):
        for channel in range(8):
            angle = position[axis] * 10000.0 ** (-(channel % 4) / 4)
            here, partner = axis * 8 + channel, axis * 8 + (channel ^ 1)
            turned = x[partner] if channel % 2 else -x[partner]
            expected[here] = x[here] * np.cos(angle) + turned * np.sin(angle)
    tables = rotary_from_positions(torch.tensor([position]), head_dim)
    torch.testing.assert_close(rotate(x.view(1, 1, 1, -1), tables).flatten(), expected)


def test_odd_head_width_rotates_all_pairs() -> None:
    tables = rotary_from_positions(torch.tensor([[1, 2, 3]]), 15)
    x = torch.randn(1, 1, 1, 15)
    even = rotary_from_positions(torch.tensor([[1, 2, 3]]), 14)  # the same chunks of 4
    assert torch.equal(rotate(x, tables)[..., 12:], x[..., 12:])
    torch.testing.assert_close(rotate(x, tables)[..., :12], rotate(x[..., :14], even)[..., :12])


def test_tables_are_computed_once_and_usable_in_training() -> None:
    with torch.inference_mode():
        tables = grid_rotary(1, 7, 5, 24, "tiled", torch.device("cpu"), torch.float32)
    assert tables is grid_rotary(1, 7, 5, 24, "tiled", torch.device("cpu"), torch.float32)
    x = torch.randn(1, 2, 35, 24, requires_grad=True)
    rotate(x, tables).sum().backward()
    assert x.grad is not None


def test_unknown_rotary_layout_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="'zigzag'; valid: tiled, paired"):
        EncoderConfig(48, 2, 2, rope="zigzag")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_written_out_attention_equals_the_fused_one(dtype: torch.dtype, masked: bool) -> None:
    q, k, v = (torch.randn(2, 3, n, 16, dtype=dtype, requires_grad=True) for n in (5, 7, 7))
    mask = torch.rand(5, 7) > 0.3 if masked else None
    if mask is not None:
        mask[:, 0] = True
    fused = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    torch.testing.assert_close(
        attend(q, k, v, mask).float(), fused, atol=0.03 if dtype == torch.bfloat16 else 1e-6, rtol=0
    )


@pytest.mark.parametrize("tokens", [3, 100])  # one masked product, or step by step
def test_block_causal_attention_equals_the_masked_one(tokens: int) -> None:
    q, k, v = torch.randn(3, 2, 2, 3 * tokens, 8)
    mask = block_causal_mask(3, tokens, torch.device("cpu"))
    assert mask[0, tokens - 1] and not mask[0, tokens] and mask[-1].all()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend_block_causal(q, k, v, 3), wanted, atol=1e-5, rtol=0)


# Encoder


@pytest.mark.parametrize("size", [(64, 64), (32, 80), (48, 16)])
def test_any_resolution_gives_one_token_per_tubelet(size: tuple[int, int]) -> None:
    features = encoder()(torch.randn(2, 3, 4, *size))
    assert features.shape == (2, 2 * size[0] * size[1] // 256, 48)


def test_patch_embedding_equals_the_convolution() -> None:
    embed = encoder().patch_embed
    clip = torch.randn(2, 3, 4, 32, 48)
    torch.testing.assert_close(embed(clip), embed.proj(clip).flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_still_equals_a_repeated_frame() -> None:
    model, frame = encoder(), torch.randn(2, 3, 1, 64, 48)
    torch.testing.assert_close(model(frame), model(frame.repeat(1, 1, 2, 1, 1)), atol=1e-4, rtol=0)


def test_masked_encoding_equals_encoding_with_all_tokens_kept_in_any_order() -> None:
    model, clip = encoder(), torch.randn(2, 3, 4, 64, 64)
    order = torch.randperm(32)
    torch.testing.assert_close(model(clip, order), model(clip)[:, order], atol=1e-4, rtol=0)


def test_each_clip_may_keep_its_own_tokens() -> None:
    model, clip = encoder(), torch.randn(2, 3, 2, 64, 64)
    index = torch.stack([torch.randperm(16)[:5], torch.randperm(16)[:5]])
    together = model(clip, index)
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], model(clip[i : i + 1], index[i]), atol=1e-4, rtol=0)


def test_encode_frames_normalises_and_treats_each_frame_as_a_still() -> None:
    model = encoder()
    images = torch.randint(0, 256, (2, 3, 32, 64, 3), dtype=torch.uint8)
    features = model.encode_frames(images, chunk=4)
    assert features.shape == (2, 3, 8, 48)
    torch.testing.assert_close(features.mean(-1), torch.zeros(2, 3, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(-1, correction=0), torch.ones(2, 3, 8), atol=1e-3, rtol=0)
    pixels = (images[1, 2].double() / 255 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    clip = pixels.float().permute(2, 0, 1)[None, :, None].repeat(1, 1, 2, 1, 1)
    torch.testing.assert_close(features[1, 2], normalize(model(clip))[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.encode_frames(images.numpy()), features, atol=1e-5, rtol=0)


def test_layers_stops_early() -> None:
    model, clip = encoder(), torch.randn(1, 3, 1, 32, 32)
    shallow = Encoder(replace(model.config, depth=1))
    shallow.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("blocks.1")})
    torch.testing.assert_close(model(clip, layers=1), shallow.eval()(clip))
    with pytest.raises(ValueError, match=r"layers must lie in 1 \.\.\. 2, got 3"):
        model(clip, layers=3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 60, 64), "multiples of 16, got 60 x 64"),
        ((1, 3, 3, 64, 64), "1 frame or a multiple of 2, got 3"),
        ((1, 4, 64, 64), r"\[B, 3, T, H, W\], got \(1, 4, 64, 64\)"),
    ],
)
def test_bad_clips_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder()(torch.randn(shape))


def test_bad_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[B, T, H, W, 3\], got torch.float32"):
        encoder().encode_frames(torch.rand(1, 1, 64, 64, 3))


def test_bad_encoder_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'medium'; valid: debug, tiny, small, base, L, H, g, g-384"):
        encoder_config("medium")
    with pytest.raises(ValueError, match="width % heads"):
        EncoderConfig(50, 2, 3)
    with pytest.raises(TypeError):
        encoder_config("tiny", dept=3)


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    expected = {"L": 303_885_312, "H": 630_000_000, "g": 1_010_000_000}  # ViT-L/16: 303.9 M with a 3D patch embedding
    for size, count in expected.items():
        with torch.device("meta"):
            model = Encoder(ENCODER_SIZES[size])
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(count, rel=0.02)


def test_recomputation_does_not_change_gradients() -> None:
    model, clip = encoder(), torch.randn(1, 3, 2, 32, 32)
    gradients = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        model(clip).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_pixels_to_clip_shape() -> None:
    assert pixels_to_clip(torch.zeros(2, 4, 16, 32, 3, dtype=torch.uint8)).shape == (2, 3, 4, 16, 32)


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


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of the number of heads 3"):
        Attention(10, 3)
