"""Preflight: jogs on a world with known axes, the verdict, and the page; the shipped model once, slowly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from armworld.evaluation.files import read_json
from armworld.evaluation.jogging import Jogs, Reading, infer_moves, jog, judge, read_jogs
from armworld.evaluation.picture import figure_png
from armworld.evaluation.preflight import PreflightConfig, preflight
from armworld.evaluation.preflight_page import Live, preflight_figure
from armworld.planners.plans import PlanningError
from armworld.planners.turning import Moves, turn_actions
from armworld.pose import apply_action
from armworld.types import Observation
from armworld.worldmodel.model import Rollout


class Arm:
    """A flange that goes where it is told; its picture is its position."""

    def __init__(self) -> None:
        self.state = np.array([0.5, 0.1, 0.3, np.pi, 0, 0, 0.0])

    def look(self) -> Observation:
        return {"state": self.state.astype(np.float32), "left": self.state[:3].astype(np.float32)}

    def move(self, action: np.ndarray) -> Observation:
        self.state = apply_action(self.state, np.asarray(action, np.float64))
        return self.look()


class TurnedPoint:
    """Features [1, 3] are the position; imagines Rz(turn) of every action."""

    step_seconds, camera = 0.25, "left"

    def __init__(self, turn_deg: float) -> None:
        self.turn = np.radians(turn_deg)

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(images, dtype=torch.float32)[:, :, None]

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        moved = turn_actions(actions, self.turn)[..., :3].cumsum(2)
        return Rollout(z=z[:, -1:, None] + moved[..., None, :], state=apply_action(state[:, -1:, None], actions))


def findings(turn_deg: float) -> dict[str, Any]:
    arm = Arm()
    return read_jogs(TurnedPoint(turn_deg), jog(arm.look, arm.move, "left"))


def test_a_move_that_cannot_be_imagined_is_named() -> None:
    class Spoilt(TurnedPoint):
        def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
            imagined = super().rollout(z, state, actions)
            return Rollout(imagined.z * torch.tensor([1.0, torch.nan, 1.0]).view(3, 1, 1, 1, 1), imagined.state)

    places = torch.zeros(3, 1, 3)
    moves = Moves(places, torch.zeros(3, 7), torch.zeros(3, 7), places + 0.05)
    np.testing.assert_allclose(infer_moves(TurnedPoint(0.0), moves, 0), 0.05, atol=0.01)
    with pytest.raises(PlanningError, match=r"moves \[1\]: no candidate that the model imagined has a finite energy"):
        infer_moves(Spoilt(0.0), moves, 0)


def test_jogs_go_out_and_back_along_every_axis() -> None:
    arm = Arm()
    seen = jog(arm.look, arm.move, "left")
    assert seen.states.shape == (13, 7) and seen.frames.shape == (13, 3)
    np.testing.assert_allclose(seen.states[::2, :3], np.tile(seen.states[0, :3], (7, 1)), atol=1e-6)
    out = seen.states[1::2, :3] - seen.states[0, :3]
    expected = 0.05 * np.repeat(np.eye(3), 2, 0) * np.tile([[1], [-1]], (3, 1))
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(("turn", "mark"), [(0.0, "good"), (4.0, "good"), (-60.0, "bad")])
def test_the_verdict_follows_the_known_turn(turn: float, mark: str) -> None:
    found = findings(turn)
    assert found["turn"]["yaw_deg"] == pytest.approx(turn, abs=0.5)
    assert found["axes"]["yaw_deg"] == pytest.approx(-turn, abs=3)
    assert found["axes"]["gain"] == pytest.approx(1, abs=0.1)
    marks = judge(found)
    assert marks[0][0] == mark and f"{found['turn']['yaw_deg']:+.1f}°" in marks[1][1]


def test_a_yaw_that_means_nothing_is_bad() -> None:
    found = findings(0.0)
    found["turn"] |= {"contrast": 0.02}
    assert judge(found)[0][0] == "bad"


def test_the_picture_is_drawn_with_and_without_a_known_camera() -> None:
    found, frame = findings(10.0), np.zeros((32, 32, 3), np.uint8)
    for arrows, reference in ((None, None), (np.array([[10, 10], [20, 10], [10, 20], [5, 5.0]]), frame)):
        assert figure_png(preflight_figure(found, Live(frame, arrows), reference), dpi=40)[:4] == b"\x89PNG"


def test_bad_input_is_named(tmp_path: Path) -> None:
    for azimuths in ("-30,30", "30,0"):  # the rig's own is one too
        with pytest.raises(ValueError, match="one camera"):
            preflight(PreflightConfig(azimuth=azimuths, out=tmp_path), Console(quiet=True))
    (tmp_path / "text.png").write_text("no picture")
    for name in ("nowhere.png", "text.png"):
        with pytest.raises(ValueError, match=rf"{name} is not a picture that can be read"):
            PreflightConfig(reference=tmp_path / name)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        PreflightConfig(seed=-1)
    with pytest.raises(ValueError, match="unknown camera to place 'wrist'; valid: left, right"):
        PreflightConfig(camera="wrist")
    with pytest.raises(ValueError, match="unknown camera of the cell 'front'; valid: left, right, wrist"):
        PreflightConfig(sim=True, camera="front")
    with pytest.raises(ValueError, match="camera placement needs elevation"):
        PreflightConfig(elevation="80")
    with pytest.raises(ValueError, match="--workspace is for a robot cell"):
        PreflightConfig(workspace=(0, 0, 0, 1, 1, 1))
    with pytest.raises(ValueError, match="--elevation is for the simulated cell"):
        PreflightConfig(sim=True, elevation="10")
    with pytest.raises(ValueError, match="--live is for an arm"):
        PreflightConfig(sim=True, live=True)
    with pytest.raises(ValueError, match="--workspace and --fingertips"):
        PreflightConfig(host="172.16.0.2")


def test_the_moves_are_recorded_from_the_camera_that_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the rig, which the reference picture is drawn from."""
    heard: list[tuple[Jogs, tuple[np.ndarray, np.ndarray]]] = []

    def listen(model: Any, jogs: Jogs, before: dict, recorded: tuple[np.ndarray, np.ndarray], *_: Any) -> Reading:
        heard.append((jogs, recorded))
        return Reading(before, findings(0.0), len(recorded[0]) - 1)

    monkeypatch.setattr("armworld.evaluation.preflight.adapted_reading", listen)
    assert preflight(PreflightConfig(azimuth="30", moves=16, out=tmp_path), Console(quiet=True)) == 0
    jogs, (frames, states) = heard[0]
    assert frames.shape[0] == states.shape[0] == 17
    np.testing.assert_array_equal(frames[0], jogs.frames[0])
    record = read_json(tmp_path / "preflight.json")
    assert record["moves"] == 16 and record["before"] is not None
    assert [told["title"] for told in record["verdicts"]] == ["Adapted by 16 random moves", "Before"]
    assert "as the model read the jogs before" in (tmp_path / "index.html").read_text()
    with pytest.raises(ValueError, match="moves must be 0 or at least 15, got 3"):
        PreflightConfig(moves=3)
    with pytest.raises(ValueError, match="--hands is about random moves: say how many with --moves"):
        PreflightConfig(hands=True)
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="was adapted in an earlier run"):
        PreflightConfig(out=tmp_path)


def test_the_advice_does_not_send_in_circles() -> None:
    bad = findings(60.0)
    assert "armworld preflight --moves 128" in judge(bad)[0][1] and "more moves" in judge(bad, adapted=True)[0][1]


@pytest.mark.slow
def test_the_shipped_model_passes_in_its_own_view(tmp_path: Path) -> None:
    assert preflight(PreflightConfig(out=tmp_path), Console(quiet=True)) == 0
    record = read_json(tmp_path / "preflight.json")
    assert record["mark"] != "bad" and abs(record["findings"]["turn"]["yaw_deg"]) < 10
    assert "Verdict" in (tmp_path / "index.html").read_text()
