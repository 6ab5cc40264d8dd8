"""Training on data from many views: the camera's pose as a token, states in the camera's frame, both carried along."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
from datasets_helpers import write_dataset  # noqa: E402
from worldmodel_runs import posttraining  # noqa: E402

from armworld.datasets.features import FeatureCache  # noqa: E402
from armworld.evaluation.agents import told_camera  # noqa: E402
from armworld.worldmodel.align import AlignConfig, align  # noqa: E402
from armworld.worldmodel.checkpoint import load_world_model  # noqa: E402
from armworld.worldmodel.posttrain import posttrain  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("views") / "data"
    write_dataset(root, 4, rows=8)
    return root


class Camera:
    """An environment that knows where its camera stands."""

    cameras = ("left",)

    @property
    def unwrapped(self) -> "Camera":
        return self

    def extrinsics(self, camera: str) -> np.ndarray:
        return np.array([1.0, 0.5, 0.7, -2.0, 0.1, 2.0])


def test_a_predictor_that_reads_the_cameras_pose(data: Path, tmp_path: Path) -> None:
    config = posttraining(data, tmp_path / "a", extrinsics=True, steps=2, frames=3, rollout=2)
    folder = posttrain(config)
    aligned = align(
        AlignConfig(
            data=(data,),
            model=str(folder),
            out=tmp_path / "b",
            cache=config.cache,
            steps=2,
            batch=4,
            held_out=0.4,
            dtype="float32",
        )
    )
    model = load_world_model(aligned)
    assert model.config.extrinsics is not None and model.predictor.config.extrinsics
    z = model.encode(np.zeros((1, 1, 64, 64, 3), np.uint8))
    state, actions = torch.zeros(1, 1, 7), 0.05 * torch.ones(1, 2, 1, 7)
    told = told_camera(model, Camera(), "left")  # type: ignore[arg-type]
    assert told.config.extrinsics[0] == 1.0 and told.predictor is model.predictor
    assert told_camera(model, None, "left") is model
    with torch.no_grad():
        model.predictor.predictor_proj.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(told.rollout(z, state, actions).z, model.rollout(z, state, actions).z)
    with pytest.raises(ValueError, match="with --extrinsics alone"):
        posttrain(posttraining(data, tmp_path / "c", init=str(folder), encoder=None))


def test_a_predictor_in_its_cameras_frame(data: Path, tmp_path: Path) -> None:
    model = load_world_model(posttrain(posttraining(data, tmp_path / "a", camera_frame=50.0, steps=2)))
    assert model.turns_states and model.config.camera_frame == 50.0
    with pytest.raises(ValueError, match="reads no camera extrinsics"):
        model.seen_from(np.zeros(6))


def test_a_checkpoint_without_the_token_learns_to_read_it(data: Path, tmp_path: Path) -> None:
    plain = posttrain(posttraining(data, tmp_path / "a", steps=1))
    assert not load_world_model(plain).predictor.config.extrinsics
    tuned = posttrain(posttraining(data, tmp_path / "b", steps=1, init=str(plain), encoder=None, extrinsics=True))
    assert load_world_model(tuned).predictor.config.extrinsics


def test_training_and_aligning_in_the_cameras_frame_draw_their_clips_in_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float | None] = []
    clips = FeatureCache.clips

    def spy(self: FeatureCache, episodes: np.ndarray, step_seconds: float, camera_frame: float | None = None):
        asked.append(camera_frame)
        return clips(self, episodes, step_seconds, camera_frame)

    monkeypatch.setattr(FeatureCache, "clips", spy)
    config = posttraining(data, tmp_path / "a", camera_frame=50.0, steps=1)
    folder = str(posttrain(config))
    assert asked == [50.0, 50.0]
    settings = {"cache": config.cache, "steps": 1, "batch": 4, "held_out": 0.4, "dtype": "float32"}
    align(AlignConfig(data=(data,), model=folder, out=tmp_path / "b", **settings))  # type: ignore[arg-type]
    assert asked == [50.0] * 4
