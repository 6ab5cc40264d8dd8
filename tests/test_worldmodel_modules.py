"""Rotary positions, attention, encoder: the mathematics they must obey."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from armworld.worldmodel.sizes import (
    ENCODER_SIZES,
    EncoderConfig,
    encoder_config,
)

sys.path.insert(0, str(Path(__file__).parent))
from worldmodel_small import encoder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
    with pytest.raises(ValueError, match="heads must divide the width 50, got 3"):
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


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of the number of heads 3"):
        Attention(10, 3)
