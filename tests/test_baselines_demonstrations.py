"""Hindsight goals, chunks and masks of behaviour cloning; augmentation."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armworld.baselines.augment import Augmentation, augment, draw_augmentation
from armworld.baselines.demonstrations import (
    Demonstrations,
    Relabelling,
    choose_episodes,
    draw_goals,
    measure_scales,
)
from armworld.datasets.store import split_recordings
from armworld.pose import apply_action

sys.path.insert(0, str(Path(__file__).parent))
from baselines_helpers import FakeStore

RULES = st.builds(
    Relabelling,
    window=st.integers(1, 4),
    chunk=st.integers(1, 6),
    cap=st.none() | st.integers(1, 30),
    past_goal=st.sampled_from(["mask", "hold"]),
)


@settings(deadline=None, max_examples=200)
@given(rule=RULES, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_relabelling_never_looks_past_the_episode(rule, seed, data):
    lengths = np.array(data.draw(st.lists(st.integers(2, 40), min_size=1, max_size=20)))
    rng = np.random.default_rng(seed)
    present = rng.integers(0, lengths - rule.nearest)
    draw = draw_goals(rng, present, lengths, rule)
    end = lengths[:, None]
    assert (draw.goal < lengths).all() and (draw.goal >= present + rule.nearest).all()
    assert rule.cap is None or (draw.goal - present <= rule.cap).all()
    assert (draw.window >= 0).all() and (draw.window < end).all() and (draw.window[:, -1] == present).all()
    assert (draw.valid == (present[:, None] + np.arange(1 - rule.window, 1) >= 0)).all()
    assert (draw.actions >= 0).all() and (draw.actions + 1 < end[..., None]).all()  # an action has a row after it
    row = draw.window[..., None] + np.arange(rule.chunk)
    counted = draw.mask & ~draw.past
    assert (draw.actions[counted] == row[counted]).all()
    assert (draw.actions < draw.goal[:, None, None])[counted].all()
    assert not draw.mask[~draw.valid].any()
    if rule.past_goal == "mask":
        assert not (draw.mask & draw.past).any()
    else:
        assert draw.mask[draw.valid].all()


def test_goals_are_uniform_over_the_future():
    present, lengths = np.zeros(20000, int), np.full(20000, 11)
    draw = draw_goals(np.random.default_rng(0), present, lengths, Relabelling(cap=None))
    counts = np.bincount(draw.goal, minlength=11)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / 20000, 0.1, atol=0.01)


def test_a_row_without_a_future_is_refused():
    with pytest.raises(ValueError, match="row 4 of an episode of 5 rows has no row for its goal"):
        draw_goals(np.random.default_rng(0), np.array([4]), np.array([5]), Relabelling())
    with pytest.raises(ValueError, match="valid: mask, hold"):
        Relabelling(past_goal="forget")


@pytest.mark.parametrize("past_goal", ["mask", "hold"])
def test_samples_stay_within_one_episode_and_actions_lead_on(past_goal):
    stores = [FakeStore((5, 9, 2)), FakeStore((13,), seed=1)]
    samples = Demonstrations(stores, 0.25, Relabelling(past_goal=past_goal, cap=None))
    rows = sum(len(store) for store in stores)
    assert len(samples) == (rows if past_goal == "hold" else rows - 4)
    batch = samples.sample(np.random.default_rng(0), 64)
    assert batch.frames.shape == (64, 2, 3, 32, 32) and batch.actions.shape == (64, 2, 4, 7)
    known = {store.states[row].tobytes(): (i, int(np.searchsorted(store.offsets, row, "right")))
             for i, store in enumerate(stores) for row in range(len(store))}  # fmt: skip
    states, goals = batch.states.numpy(), batch.goal_state.numpy()
    for b in range(64):
        assert len({known[states[b, t].tobytes()] for t in range(2)} | {known[goals[b].tobytes()]}) == 1
        if batch.valid[b].all():
            first = apply_action(batch.states[b, 0], batch.actions[b, 0, 0])
            if batch.mask[b, 0, 0] and not (batch.actions[b, 0, 0] == 0).all():
                torch.testing.assert_close(first[:3], batch.states[b, 1, :3], atol=1e-5, rtol=0)


def test_a_longer_step_takes_every_second_row():
    store = FakeStore((9,))
    samples = Demonstrations([store], 0.5, Relabelling(cap=None))
    assert samples.episodes == 2 and len(samples) == (5 - 1) + (4 - 1)
    states, actions = samples.transitions()
    assert states.shape == (7, 7)
    torch.testing.assert_close(
        apply_action(torch.from_numpy(states[:4]), torch.from_numpy(actions[:4]))[:, :3],
        torch.from_numpy(store.states[2:10:2, :3]),
        atol=1e-5,
        rtol=0,
    )
    with pytest.raises(ValueError, match="does not fit data"):
        Demonstrations([store], 0.3, Relabelling())


def test_scales_leave_the_gripper_and_floor_what_does_not_move():
    rng = np.random.default_rng(0)
    actions = np.zeros((500, 7), np.float32)
    actions[:, 0], actions[:, 6] = rng.normal(0.01, 0.02, 500), rng.normal(0, 0.3, 500)
    scales = measure_scales(rng.normal(size=(500, 7)).astype(np.float32), actions)
    assert scales.action_mean[0] == pytest.approx(0.01, abs=0.003)
    assert scales.action_std[0] == pytest.approx(0.02, abs=0.002)
    assert scales.action_std[3] == 1e-3 and (scales.action_mean[6], scales.action_std[6]) == (0, 1)


def test_a_recording_and_its_renderings_are_on_the_same_side_of_a_split():
    names = [f"lab1/success/2025-01-01/seed{i}" for i in range(10)]
    together = FakeStore((3,) * 20)
    together.names = [f"data/{name}" for name in names] + [f"views/{name}" for name in names]
    train, held_out = together.split(0.2, seed=1)
    assert sorted([*train, *held_out]) == list(range(20)) and len(held_out) == 4
    assert held_out[:2].tolist() == (held_out[2:] - 10).tolist()

    stores = [FakeStore((3,) * 10), FakeStore((3,) * 10)]
    for store, root in zip(stores, ("data", "views"), strict=True):
        store.names = [f"{root}/{name}" for name in names]
    chosen = [np.arange(10), np.arange(0, 10, 2)]
    trained, kept_out = split_recordings(stores, 0.2, np.random.default_rng(1), chosen)
    assert kept_out[0].tolist() == held_out[:2].tolist()
    assert set(kept_out[1]) == set(kept_out[0]) & set(chosen[1])
    assert [len(part) for part in trained] == [8, 5 - len(kept_out[1])]
    with pytest.raises(ValueError, match="needs >= 2 recordings"):
        split_recordings(stores, 0.2, np.random.default_rng(0), [np.arange(1)] * 2)


def test_successes_are_read_from_metadata(tmp_path):
    store = FakeStore((3, 3))
    store.names = [str(tmp_path / "a"), str(tmp_path / "b")]
    for name, success in zip("ab", ("true", "false"), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"metadata_{name}.json").write_text(f'{{"success": {success}}}')
    assert choose_episodes(store, True).tolist() == [0] and choose_episodes(store, False).tolist() == [0, 1]


def test_augmentation_is_shared_within_a_sample_and_bounded():
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (8, 1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    changed = augment(frame.expand(-1, 3, -1, -1, -1), draw_augmentation(8, generator))
    assert changed.shape == (8, 3, 3, 32, 32) and changed.min() >= 0 and changed.max() <= 255
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert (changed[:, 0] - frame[:, 0]).abs().mean() > 1
    crops = draw_augmentation(1000, generator).crops
    corners = crops[:, :, :2].sum(-1) + crops[:, :, 2].abs()
    assert corners.max() <= 1 + 1e-6
    area = crops[:, 0, 0] * crops[:, 1, 1]
    assert area.min() > 0.78 and area.max() <= 1


def test_augmentation_of_no_width_changes_nothing():
    nothing = Augmentation(area=1, aspect=1, brightness=0, contrast=0, saturation=0, hue=0)
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    torch.testing.assert_close(
        augment(frame, draw_augmentation(2, generator, nothing)), frame.float(), atol=0.01, rtol=0
    )


def test_hue_keeps_greys():
    only_hue = Augmentation(area=1, aspect=1, brightness=0, contrast=0, saturation=0, hue=0.25)
    grey = torch.full((4, 1, 3, 8, 8), 90.0)
    changed = augment(grey, draw_augmentation(4, torch.Generator().manual_seed(0), only_hue))
    torch.testing.assert_close(changed, grey, atol=0.1, rtol=0)


def test_crops_are_sampled_bilinearly():
    """The matrices per axis do what general bilinear sampling does, borders included; bfloat16 within its rounding."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (4, 1, 3, 16, 16), dtype=torch.uint8, generator=generator)
    draws = draw_augmentation(4, generator, Augmentation(brightness=0, contrast=0, saturation=0, hue=0))
    grid = torch.nn.functional.affine_grid(draws.crops, [4, 3, 16, 16], align_corners=False)
    expected = torch.nn.functional.grid_sample(frame[:, 0].float(), grid, align_corners=False, padding_mode="border")
    torch.testing.assert_close(augment(frame, draws)[:, 0], expected, atol=0.01, rtol=0)
    half = augment(frame, draws, torch.bfloat16)[:, 0]
    assert half.dtype == torch.bfloat16 and (half.float() - expected).abs().max() < 4
