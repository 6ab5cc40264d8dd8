"""Examining a model that reads where its camera stands: it is told the place of the episode that it imagines."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import evaluation_fake as fake  # noqa: E402

from armworld.evaluation.doctor import drift, outcome_ranking, sensitivity  # noqa: E402
from armworld.evaluation.horizon import look_ahead  # noqa: E402
from armworld.evaluation.landscape import LandscapeConfig, landscape, simulate_step  # noqa: E402
from armworld.evaluation.preflight import PreflightConfig, preflight  # noqa: E402
from armworld.evaluation.probing import fit_probe  # noqa: E402
from armworld.evaluation.samples import JOGS, Samples, Travel, travel  # noqa: E402
from armworld.worldmodel.model import Rollout  # noqa: E402

EPISODES, STEPS = 8, 5


class Seeing:
    """Features [1, 3] are the position scaled by the camera's place; imagines moves as seen from where it is told."""

    step_seconds, image_size, camera = 0.25, (16, 16), "left"

    def __init__(self, told: list[np.ndarray] | None = None) -> None:
        self.config = SimpleNamespace(extrinsics=(1.0,) * 6)
        self.told = [] if told is None else told

    def seen_from(self, pose: np.ndarray) -> "Seeing":
        self.told.append(pose)
        moved = copy.copy(self)
        moved.config = SimpleNamespace(extrinsics=tuple(pose))
        return moved

    def encode(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(images)[:, :, 0, :3, 0].astype(np.float32) / 255)[:, :, None]

    def rollout(self, z: torch.Tensor, state: torch.Tensor, actions: torch.Tensor) -> Rollout:
        moved = self.config.extrinsics[0] * actions[..., :3].cumsum(2)
        return Rollout(z[:, None, -1:] + moved[..., None, :], state[:, -1, None, None] + actions.cumsum(2))


def walked() -> Samples:
    rng = np.random.default_rng(0)
    cameras = np.repeat(rng.permutation(EPISODES)[:, None] + 2.0, 6, 1)
    actions = np.zeros((EPISODES, STEPS, 7), np.float32)
    actions[..., :3] = rng.uniform(-0.07, 0.07, (EPISODES, STEPS, 3))
    states = np.concatenate([np.zeros((EPISODES, 1, 7), np.float32), actions.cumsum(1)], 1)
    branch = np.zeros((EPISODES, 4 + len(JOGS), 7), np.float32)
    branch[:, :4, :3] = rng.uniform(-0.07, 0.07, (EPISODES, 4, 3))
    branch[:, 4:, :3] = JOGS
    after = states[:, 2, None] + branch
    scale = cameras[:, 0].astype(np.float32)[:, None, None]
    z, branch_z = (torch.from_numpy(scale * s[..., :3])[:, :, None] for s in (states, after))
    moments = np.array([(e, 2) for e in range(EPISODES)])
    return Samples(z, states, actions, moments, branch, branch_z, after, cameras)


def test_each_episode_is_imagined_as_its_own_camera_saw_it() -> None:
    samples, rng = walked(), np.random.default_rng(0)
    assert sensitivity(Seeing(), samples, rng)["true_l1"] == pytest.approx(0, abs=1e-6)
    assert sensitivity(Seeing(), replace(samples, cameras=None), rng)["true_l1"] > 0.05
    assert outcome_ranking(Seeing(), samples)["top_1"] == 1
    journeys = Travel(samples.z, samples.states, samples.actions, samples.cameras)
    frames = samples.z.flatten(0, 1)
    probe = fit_probe(frames, samples.states[..., :3].reshape(-1, 3), np.arange(len(frames)) // (STEPS + 1), rng)
    assert max(drift(Seeing(), probe, journeys)["l1"]) < 1e-5
    ahead = look_ahead(Seeing(), journeys, rng)
    assert max(*ahead["l1"], *ahead["stepwise_l1"]) < 1e-5


class Placed(fake.PointEnv):
    """A camera that stands elsewhere in every episode."""

    def extrinsics(self, camera: str) -> np.ndarray:
        return self.target[:6]


def test_the_place_is_noted_per_episode() -> None:
    env = Placed()
    seen = travel(env, Seeing(), [1, 2, 3], 2).cameras
    assert seen is not None and seen.shape == (3, 6)
    for pose, seed in zip(seen, [1, 2, 3], strict=True):
        env.reset(seed=seed)
        np.testing.assert_array_equal(pose, env.target[:6])
    assert travel(fake.PointEnv(), Seeing(), [1], 2).cameras is None


def test_landscape_and_preflight_tell_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Seeing()
    monkeypatch.setattr("armworld.worldmodel.checkpoint.load_world_model", lambda name: model)
    config = LandscapeConfig("some", points=3, out=tmp_path / "landscape", lab="lab2")
    landscape(config)
    (told,) = model.told
    np.testing.assert_array_equal(told, simulate_step(config, model).camera)
    preflight(PreflightConfig(model="some", lab="lab2", out=tmp_path / "preflight"))
    np.testing.assert_allclose(model.told[1], told)
    assert len(model.told) == 2
