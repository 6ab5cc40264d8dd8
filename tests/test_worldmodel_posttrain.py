"""Post-training: the losses' mathematics, and a small end-to-end run over recorded episodes."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from armworld.datasets.droid import write_episode
from armworld.datasets.episode import Episode
from armworld.pose import action_between, apply_action
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.blocks import normalize
from armworld.worldmodel.checkpoint import load_checkpoint, load_world_model
from armworld.worldmodel.encoder import Encoder
from armworld.worldmodel.posttrain import PosttrainConfig, posttrain, predictor_config
from armworld.worldmodel.prediction_loss import ACTION_SCALE, PredictionLoss
from armworld.worldmodel.sizes import ACPredictorConfig, encoder_config
from armworld.worldmodel.training import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from datasets_helpers import write_dataset
from worldmodel_runs import posttraining, stop_at


@pytest.fixture
def predictor() -> ACPredictor:
    torch.manual_seed(0)
    return ACPredictor(ACPredictorConfig(16, width=24, depth=2, heads=2, image_size=(32, 32)))


def clip(seed: int = 0, frames: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = normalize(torch.randn(3, frames, 4, 16, generator=g))
    return z, torch.randn(3, frames, 7, generator=g), torch.randn(3, frames - 1, 7, generator=g)


def test_losses_are_the_papers(predictor):
    z, states, actions = clip()
    parts = PredictionLoss(predictor, rollout=3)(z, states, actions)
    forced = normalize(predictor(z[:, :3], actions, states[:, :3]).z)
    assert torch.allclose(parts["teacher_forcing"], (forced - z[:, 1:]).abs().mean(), atol=1e-6)
    context = z[:, :1]
    for step in range(1, 4):
        latest = normalize(predictor(context, actions[:, :step], states[:, :step]).z[:, -1:])
        context = torch.cat([context, latest], 1)
    assert torch.allclose(parts["rollout"], F.l1_loss(context[:, -1], z[:, 3]), atol=1e-6)
    assert torch.allclose(parts["loss"], parts["teacher_forcing"] + parts["rollout"])


def test_rollout_reaches_back_through_the_first_prediction(predictor):
    z, states, actions = clip()
    actions.requires_grad_()
    PredictionLoss(predictor, rollout=2)(z, states, actions)["rollout"].backward()
    assert actions.grad is not None
    assert actions.grad[:, 0].abs().sum() > 0 and actions.grad[:, 1].abs().sum() > 0
    assert actions.grad[:, 2].abs().sum() == 0


def test_a_rollout_longer_than_the_clip_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rollout of 3 steps needs frames > 3, got 3"):
        posttrain(PosttrainConfig(data=(), encoder="random:debug", out=tmp_path, frames=3, rollout=3, steps=1))


def record_moving_square(root: Path, seed: int, rows: int = 12, size: int = 64) -> None:
    """An episode in which a white square shows where the arm is."""
    rng = np.random.default_rng(seed)
    states = np.zeros((rows, 7))
    states[0, :3] = [0.5, 0.0, 0.3]
    actions = np.zeros((rows, 7))
    actions[:-1, :2] = rng.uniform(-0.05, 0.05, (rows - 1, 2))
    for row in range(rows - 1):
        states[row + 1] = apply_action(states[row], actions[row])
    frames = np.zeros((rows, size, size, 3), np.uint8)
    for row, (x, y) in enumerate(states[:, :2]):
        top, left = int(np.clip((x - 0.2) * 100, 0, size - 8)), int(np.clip((y + 0.3) * 100, 0, size - 8))
        frames[row, top : top + 8, left : left + 8] = 255
    joints, views = np.zeros((rows, 7)), {"left": np.tile([1.0, 0.5, 0.6, 0, 0, 0], (rows, 1))}
    write_episode(
        root, Episode(states, actions, {"left": frames}, views, joints, joints, 0.25, "lab1", seed, True, "move")
    )


def test_recorded_episodes_become_a_world_model(tmp_path):
    data = tmp_path / "data"
    for seed in range(12):
        record_moving_square(data, seed)
    config = PosttrainConfig(
        data=(data,),
        encoder="random:debug",
        image_size=64,
        out=tmp_path / "run",
        width=48,
        depth=2,
        heads=2,
        batch=8,
        steps=60,
        held_out=0.2,
        validate_every=50,
        dtype="float32",
    )
    model = load_world_model(posttrain(config), step_seconds=0.25)
    rows = read_metrics(config.out / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert any("gain" in row for row in rows)
    z = model.encode(np.zeros((1, 1, 64, 64, 3), np.uint8))
    rollout = model.rollout(z, torch.zeros(1, 1, 7), torch.zeros(1, 5, 2, 7))
    assert rollout.z.shape == (1, 5, 2, 16, 48)
    with pytest.raises(ValueError, match=r"0.25 s; steps of 1.0 s"):
        load_world_model(config.out / "model", step_seconds=1.0)
    with pytest.raises(ValueError, match=r"step_seconds 0.1 does not fit data"):
        posttrain(PosttrainConfig(data=(data,), encoder="random:debug", out=tmp_path / "b", image_size=64,
                                  width=48, depth=2, heads=2, steps=1, step_seconds=0.1, held_out=0.2))  # fmt: skip


@pytest.mark.parametrize("middle", [0.0, 1.2, np.pi, -3.0])
def test_the_state_that_the_predictor_reads_is_small_and_centred_also_where_angles_jump(tmp_path, middle: float):
    """Angles within 0.2 rad of `middle`, told in [-pi, pi): what reaches the network has mean 0 and no jump."""
    near = np.linspace(-0.2, 0.2, 41)
    states = np.zeros((41, 7), np.float32)
    states[:, :3] = [0.5, -0.1, 0.3]
    states[:, 3:6] = ((middle + near + np.pi) % (2 * np.pi) - np.pi)[:, None]
    config = predictor_config(posttraining(tmp_path, tmp_path), Encoder(encoder_config("debug")), states)
    assert config.state_offset is not None and config.state_scale is not None
    away = np.angle(np.exp(1j * (np.array(config.state_offset[3:6]) - middle)))
    np.testing.assert_allclose(away, 0, atol=1e-5)
    np.testing.assert_allclose(config.state_offset[:3], [0.5, -0.1, 0.3], atol=1e-5)
    read = ACPredictor(config)._scale_states(torch.from_numpy(states))[:, 3:6] / torch.tensor(config.state_scale[3:6])
    np.testing.assert_allclose(read, np.repeat(near[:, None], 3, 1), atol=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("posttrain") / "data"
    write_dataset(root, 3, rows=8)
    return root


def test_frames_encoded_as_they_are_drawn_train_as_cached_features_do(data, tmp_path):
    asked = {"cache": None, "steps": 6, "save_minutes": 1e-9}
    cached = posttraining(data, tmp_path / "cached", **asked)
    drawn = posttraining(data, tmp_path / "drawn", **asked, train_from="frames")
    posttrain(cached)
    stop_at(drawn, 3)
    posttrain(drawn)
    one, other = (read_metrics(config.out / "metrics.jsonl") for config in (cached, drawn))
    assert len(one) == len(other) > 6
    for first, second in zip(one, other, strict=True):
        for name in first.keys() - {"seconds"}:
            assert second[name] == pytest.approx(first[name], rel=1e-2, abs=3e-3), name  # cached ones have 16 bits
    assert not (drawn.out / "features").exists()


def test_frames_of_another_size_than_the_encoders_are_told_at_once_or_squashed(data, tmp_path):
    config = posttraining(data, tmp_path / "run", image_size=32, cache=None, steps=1)
    with pytest.raises(ValueError, match=r"its left frames are 64 x 64 pixels, the encoder reads 32 x 32"):
        posttrain(config)
    with pytest.raises(ValueError, match="no camera 'front'; it has left"):
        posttrain(replace(config, camera="front"))
    assert not config.out.exists()
    assert load_world_model(posttrain(replace(config, train_from="frames"))).image_size == (32, 32)


def test_without_our_options_the_predictor_is_the_published_one(data, tmp_path):
    config = posttraining(data, tmp_path / "run", residual=False, normalise=False, cache=None, steps=2)
    trained = load_checkpoint(posttrain(config)).predictor
    assert trained is not None
    assert trained.config == ACPredictorConfig(48, 48, 2, 2, image_size=(64, 64))


def test_a_clip_that_is_too_short_has_no_rollout_part(predictor):
    """The frame that a rollout of T steps ends at is the one after them."""
    z, states, actions = clip(frames=4)
    assert "rollout" in PredictionLoss(predictor, rollout=3)(z, states, actions)
    for frames in (2, 3):
        parts = PredictionLoss(predictor, rollout=3)(z[:, :frames], states[:, :frames], actions[:, : frames - 1])
        assert set(parts) == {"loss", "teacher_forcing"} and parts["loss"] == parts["teacher_forcing"]


def test_the_optional_terms_are_weighed_and_in_units_of_typical_actions():
    torch.manual_seed(0)
    sizes = ACPredictorConfig(16, width=24, depth=1, heads=2, image_size=(32, 32), state_head=True)
    loss = PredictionLoss(ACPredictor(sizes), rollout=2, state_weight=0.3, inverse_weight=0.7)
    z, states, _ = clip()
    states = 0.3 * states
    actions, unit = action_between(states[:, :-1], states[:, 1:]), torch.tensor(ACTION_SCALE)
    assert loss.inverse is not None
    with torch.no_grad():
        loss.inverse.out.weight.zero_()
        loss.inverse.out.bias.zero_()  # reads "no action" from whatever it sees
    parts = loss(z, states, actions)
    torch.testing.assert_close(parts["inverse"], (actions * unit).abs().mean())
    assert float(loss._state(actions, states)) == 0
    torch.testing.assert_close(loss._state(0.5 * actions, states), 0.5 * (actions * unit).abs().mean())
    whole = parts["teacher_forcing"] + parts["rollout"] + 0.3 * parts["state"] + 0.7 * parts["inverse"]
    torch.testing.assert_close(parts["loss"], whole)


def test_a_frame_is_imagined_from_the_camera_that_saw_the_one_before():
    """Cameras that move within a clip: each step is told its own."""
    torch.manual_seed(0)
    predictor = ACPredictor(ACPredictorConfig(16, width=24, depth=1, heads=2, image_size=(32, 32), extrinsics=True))
    z, states, actions = clip()
    cameras = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    parts = PredictionLoss(predictor, rollout=2)(z, states, actions, cameras)
    forced = normalize(predictor(z[:, :3], actions, states[:, :3], cameras[:, :3]).z)
    torch.testing.assert_close(parts["teacher_forcing"], F.l1_loss(forced, z[:, 1:]))
    context = torch.cat([z[:, :1], forced[:, :1]], 1)
    latest = normalize(predictor(context, actions[:, :2], states[:, :2], cameras[:, :2]).z[:, -1])
    torch.testing.assert_close(parts["rollout"], F.l1_loss(latest, z[:, 2]))
