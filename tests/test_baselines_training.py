"""Training the rivals end to end on small recorded episodes, and playing them through the runner."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from armworld.baselines.agent import load_policy
from armworld.baselines.bc import BCTrainConfig, open_sources, train, update_average
from armworld.baselines.compute import core_seconds, pretraining_flop
from armworld.baselines.demonstrations import Demonstrations
from armworld.baselines.pixels import (
    PixelModelConfig,
    PixelNetwork,
    PixelWorldModel,
    load_pixel_model,
    to_frames,
    to_patches,
    to_unit,
)
from armworld.baselines.pixels_picture import PICTURE, imagine, imagined_figure
from armworld.baselines.pixels_train import PixelTrainConfig
from armworld.baselines.pixels_train import train as train_pixels
from armworld.baselines.table import TableConfig, method_row, predictor_flop, table
from armworld.evaluation.agents import AgentSettings, make_agent
from armworld.evaluation.cells import Cell, run_episodes
from armworld.evaluation.report import Page
from armworld.evaluation.setup import Setup, resolve
from armworld.evaluation.suite import EvaluateConfig
from armworld.evaluation.table3 import show_imagined
from armworld.types import Goal
from armworld.worldmodel.ac_predictor import ACPredictor
from armworld.worldmodel.checkpoint import read_parts
from armworld.worldmodel.checkpoint import resolve as resolve_checkpoint
from armworld.worldmodel.model import WorldModelConfig
from armworld.worldmodel.sizes import ACPredictorConfig
from armworld.worldmodel.training import read_metrics, warmup_cosine

sys.path.insert(0, str(Path(__file__).parent))
import evaluation_fake as fake
from baselines_helpers import SIZE, START, picture
from datasets_helpers import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, episodes=4, rows=10, size=SIZE)
    return root


def settings(data: Path, out: Path, **changes) -> BCTrainConfig:
    base = {"size": "debug", "image_size": SIZE, "batch": 8, "steps": 6, "held_out": 0.25, "dtype": "float32"}
    return BCTrainConfig(data=(data,), out=out, **{**base, **changes})


def test_learning_rate_rises_and_falls_as_half_a_cosine():
    rates = [warmup_cosine(step / 1000, step, 1.0, 50) for step in (0, 24, 49, 500, 999)]
    np.testing.assert_allclose(rates, [0.02, 0.5, 0.994, 0.5, 0], atol=0.01)
    assert warmup_cosine(0.05, 50, 1.0, 2000) == pytest.approx(0.5, abs=0.01)  # a tenth of the budget at most


def test_average_follows_quickly_at_first():
    average, current = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = average.weight.detach().clone()
    update_average(average, current, 0.999, 0)
    torch.testing.assert_close(average.weight, 0.1 * before + 0.9 * current.weight)
    update_average(average, current, 0.0, 10**6)
    torch.testing.assert_close(average.weight, current.weight)


def test_a_resumed_run_equals_an_uninterrupted_one(data, tmp_path, monkeypatch):
    train(settings(data, tmp_path / "whole"))
    broken, draws, sample = settings(data, tmp_path / "broken", save_minutes=1e-9), [0], Demonstrations.sample

    def interrupted(self, rng, batch):
        draws[0] += 1
        if draws[0] == 4:
            raise KeyboardInterrupt
        return sample(self, rng, batch)

    monkeypatch.setattr(Demonstrations, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    assert torch.load(broken.out / "state.pt", weights_only=True)["step"] == 3
    train(broken)
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["modules"] for name in ("whole", "broken")]
    for part in ("policy", "average"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    with pytest.raises(ValueError, match="other settings"):
        train(replace(broken, ema=0.5))


def test_octo_learns_is_saved_and_plays_through_the_runner(data, tmp_path):
    config = settings(data, tmp_path, steps=80, learning_rate=3e-3, warmup=5, validate_every=40, past_goal="hold")
    folder = train(config)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert any("error_mm" in row for row in rows) and (tmp_path / "curves.png").exists()
    assert (tmp_path / "model_last" / "model.safetensors").exists()
    chunked, ensembled = AgentSettings(execute=4), AgentSettings(ensemble=0.5)
    for name, choice in (("chunked", chunked), ("ensembled", ensembled)):
        cell = Cell(fake.ID, {"image_size": SIZE}, "octo", tmp_path / name, str(folder), choice)
        (result,) = run_episodes(cell, [3])
        assert result.steps == 8 and not result.reason.startswith("planning_failed")


def test_features_policy_reads_the_frozen_encoder(data, tmp_path):
    folder = train(settings(data, tmp_path, encoder="random:debug", cache=tmp_path / "cache", proprioception=False))
    cell = Cell(fake.ID, {"image_size": SIZE}, "features_bc", tmp_path / "cell", str(folder))
    (result,) = run_episodes(cell, [3])
    assert result.steps == 8 and not result.reason.startswith("planning_failed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "large"}, "valid: debug, cpu, octo-small, octo-base"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; valid: adamw, muon"),
        ({"past_goal": "skip"}, "unknown treatment of actions past the goal 'skip'; valid: mask, hold"),
        ({"image_size": 100}, "positive multiples of 16, got 100 x 100"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1, got 1"),
        ({"held_out": 0.0}, "held_out must be above 0 and below 1, got 0"),
        ({"step_seconds": 0.0}, "step_seconds must be above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"layers": 2}, "layers and cache are about features: name the encoder with --encoder"),
        ({"steps": None}, "a training budget needs steps"),
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("layers", "window", "chunk", "goal_cap", "batch", "noise_draws", "validate_every")
        ),
    ],
)
def test_bad_settings_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"successes_only": True}, "none of the episodes is a success"),
        ({"camera": "lefft"}, "no camera 'lefft'; it has left"),
        ({"step_seconds": 0.3}, r"step_seconds 0.3 does not fit data recorded every 0.25 s"),
        ({"step_seconds": 5.0}, "no episode of .* holds 2 frames 5 s apart"),
        ({"encoder": "random:debug", "layers": 3}, r"layers must lie in 1 \.\.\. 2, got 3"),
        ({"encoder": "random:debug", "image_size": 64}, "frames are 32 x 32 pixels, the encoder reads 64 x 64"),
    ],
)
def test_what_does_not_fit_the_data_is_told_before_any_frame_is_read(tmp_path, changes, message):
    write_dataset(tmp_path / "data", episodes=2, rows=4, size=SIZE)
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path / "data", tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists() and not (tmp_path / "data" / ".cache").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 100}, "positive multiples of 16, got 100 x 100"),
        ({"channels": 6}, "channels must be a multiple of 4, got 6"),
        ({"frames": 1}, "frames must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"held_out": 1.0}, "held_out must be above 0 and below 1, got 1"),
        ({"step_seconds": 0.0}, "step_seconds must be above 0, got 0"),
        ({"minutes": 0.0}, "minutes must be above 0, got 0"),
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("channels", "blocks", "batch", "validate_every")
        ),
    ],
)
def test_bad_settings_of_the_pixel_model_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        PixelTrainConfig(data=(tmp_path,), out=tmp_path, steps=1, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"camera": "lefft"}, "no camera 'lefft'; it has left"), ({"frames": 9}, "no episode of .* holds 9 frames")],
)
def test_the_pixel_model_is_told_what_does_not_fit_before_any_frame_is_read(tmp_path, changes, message):
    write_dataset(tmp_path / "data", episodes=2, rows=4, size=SIZE)
    with pytest.raises(ValueError, match=message):
        train_pixels(PixelTrainConfig(data=(tmp_path / "data",), out=tmp_path / "out", steps=1, **changes))
    assert not (tmp_path / "out").exists() and not (tmp_path / "data" / ".cache").exists()


def test_folders_of_play_alone_are_passed_over_when_successes_are_asked_for(data, tmp_path):
    good = tmp_path / "good"
    shutil.copytree(data, good, ignore=shutil.ignore_patterns(".cache"))
    for path in sorted(good.glob("**/metadata_*.json"))[:3]:
        path.write_text(json.dumps({**json.loads(path.read_text()), "success": True}))
    config = replace(settings(data, tmp_path / "run", successes_only=True), data=(data, good))
    sources = open_sources(config, torch.device("cpu"))
    (store,) = sources.train.stores
    assert str(store.folder).startswith(str(good))


def test_models_of_several_agents_are_told_apart(data, tmp_path):
    folder = train(settings(data, tmp_path / "run", steps=1))
    setup = Setup(models=f"octo={folder}")
    assert setup.model_of("octo") == str(folder) and setup.model_of("cem") == "default"
    assert setup.model_of("hold") is None
    resolved = resolve(setup, ["octo", "hold"])
    assert (resolved.image_size, resolved.step_seconds, resolved.camera) == (SIZE, 0.25, "left")
    with pytest.raises(ValueError, match="unknown agent in models 'octo'; valid: "):
        resolve(setup, ["hold"])
    with pytest.raises(ValueError, match="expected AGENT=PATH"):
        Setup(models="octo").model_of("octo")


def test_pixels_survive_the_way_through_patches():
    frames = torch.randint(0, 256, (2, 3, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    patches = to_patches(to_unit(frames))
    assert patches.shape == (2, 3, 6, 768)
    assert torch.equal(to_frames(patches, 32, 48), frames)
    only = torch.zeros(1, 32, 48, 3, dtype=torch.uint8)
    only[0, 16:, 32:] = 255
    lit = to_patches(to_unit(only))[0].mean(-1) > 0
    assert lit.tolist() == [False] * 5 + [True]


def pixel_model() -> PixelWorldModel:
    torch.manual_seed(0)
    network = PixelNetwork(PixelModelConfig(channels=8, blocks=1, stem=(4, 4)))
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    return PixelWorldModel(network, WorldModelConfig(0.25, (SIZE, SIZE), "left"))


def test_pixel_model_imagines_each_candidate_by_itself():
    model = pixel_model()
    z = model.encode(np.stack([picture(START)] * 2)[None])
    states = torch.from_numpy(START).float().expand(1, 2, 7)
    actions = 0.05 * torch.randn(1, 70, 2, 7, generator=torch.Generator().manual_seed(0))
    rollout = model.rollout(z, states, actions)
    assert rollout.z.shape == (1, 70, 2, 4, 768) and rollout.state.shape == (1, 70, 2, 7)
    alone = model.rollout(z, states, actions[:, 66:67])
    torch.testing.assert_close(alone.z[:, 0], rollout.z[:, 66], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.state[:, 0], rollout.state[:, 66])
    assert (rollout.z[:, 0] - rollout.z[:, 1]).abs().max() > 1e-4
    actions.requires_grad_()
    model.rollout(z, states, actions).z.mean().backward()
    assert actions.grad is not None and actions.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, T, 32, 32, 3\]"):
        model.encode(np.zeros((1, 1, 16, 16, 3), np.uint8))


def test_imagined_frames_come_from_the_first_one_alone():
    model = pixel_model()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 4, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    states = torch.from_numpy(START).float().expand(2, 4, 7)
    actions = 0.05 * torch.randn(2, 3, 7, generator=generator)
    frames = imagine(model, images, states, actions)
    assert frames.shape == (2, 3, SIZE, SIZE, 3) and frames.dtype == torch.uint8
    later = torch.cat([images[:, :1], 255 - images[:, 1:]], 1)
    assert torch.equal(frames, imagine(model, later, states, actions))
    single = model.rollout(model.encode(images[1:, :1]), states[1:, :1], actions[1:, None])
    assert (to_frames(single.z[:, 0], SIZE, SIZE).int() - frames[1:].int()).abs().max() <= 1
    figure = imagined_figure(images.numpy(), frames.numpy(), 0.25)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["seen", "0.25 s", "0.5 s", "0.75 s"]


def test_pixel_model_is_trained_and_planned_with(data, tmp_path):
    config = PixelTrainConfig(
        data=(data,), out=tmp_path, image_size=SIZE, channels=8, blocks=1, batch=4, steps=45, held_out=0.25
    )
    folder = train_pixels(config)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]
    model = load_pixel_model(folder)
    assert (folder / PICTURE).read_bytes()[:4] == b"\x89PNG"
    page = Page("table3")
    show_imagined(page, EvaluateConfig(suite="table3", models=f"pixels={folder}", agents="cem,pixels", out=tmp_path))
    assert "beside the truth" in page.html()
    agent = make_agent("pixels", fake.PointEnv(), model, 0, AgentSettings(samples=8, iterations=2, elites=2))
    look = {"state": START.astype(np.float32), "left": picture(START)}
    agent.reset(Goal((look,), (2,)))
    assert agent.act(look).shape == (7,)
    with pytest.raises(ValueError, match="holds no pixel-space world model"):
        load_pixel_model(train(settings(data, tmp_path / "bc", steps=1)))


def test_core_time_adds_up_over_resumed_runs():
    rows = [
        {"core_seconds": 2.0},
        {"held_out": 0.1},
        {"core_seconds": 5.0},
        {"core_seconds": 1.0},
        {"core_seconds": 4.0},
    ]
    assert core_seconds(rows) == 9 and core_seconds([]) == 0


def test_table_of_methods(data, tmp_path, capsys):
    folder = train(settings(data, tmp_path / "run", steps=2))
    rows = table(TableConfig((f"octo={folder}", "hold"), tmp_path / "table", repeats=1))
    policy = load_policy(folder).network
    assert rows[0].parameters == sum(p.numel() for p in policy.parameters())
    assert rows[0].training_flop is not None and rows[0].training_flop > 1e6
    assert rows[0].core_hours is not None and rows[0].core_hours >= 0
    assert rows[0].seconds_per_action is not None and rows[0].seconds_per_action > 0
    text = (tmp_path / "table" / "methods.md").read_text()
    assert "Octo-style, from scratch" in text and "| hold |" in text
    with pytest.raises(ValueError, match="agent 'octo' needs a model: write octo=PATH"):
        table(TableConfig(("octo",)))


@pytest.mark.parametrize("extrinsics", [False, True])
def test_table_counts_the_steps_on_pairs_as_what_they_cost(extrinsics):
    """Two teacher-forced frames and a rollout of two against one frame, in a batch twice as large: half."""
    predictor = ACPredictor(ACPredictorConfig(48, 32, 2, 16, extrinsics=extrinsics))
    model = SimpleNamespace(predictor=predictor, grid=predictor.config.grid)
    about = {"training": {"rollout": 2, "frames": 3, "batch": 8}, "steps": 10}
    clips, mixed, pairs = (
        predictor_flop(model, {**about, "training": about["training"] | {"pair_share": share}}) for share in (0, 0.5, 1)
    )
    assert clips and mixed and pairs
    assert pairs / clips == pytest.approx(0.5, rel=0.1) and mixed == pytest.approx((clips + pairs) / 2)


def test_table_counts_a_world_models_pretraining():
    """The shipped weights tell of two runs of pretraining: operations and hours of both are in its row."""
    about = read_parts(resolve_checkpoint("default"))[0]["about"]
    row = method_row("cem", "default", repeats=0)
    runs = about["pretraining"]
    assert row.hours == pytest.approx((about["seconds"] + sum(run["seconds"] for run in runs)) / 3600)
    first = pretraining_flop(runs[0])
    assert pretraining_flop({**runs[0], "steps": 2 * runs[0]["steps"]}) == pytest.approx(2 * first)
    # One sample's forward pass of the encoder alone, 4 x 64 / 2 tokens, is 2 * parameters * tokens and more.
    encoder = 12 * 192**2 * 6
    least = 3 * runs[0]["steps"] * runs[0]["batch"] * 2 * encoder * 0.25 * 128
    assert least < first < 40 * least
    assert row.training_flop is not None and row.training_flop > first
    assert row.data == "+".join(about["data"]) + f": {about['frames']} frames"
