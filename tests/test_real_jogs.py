"""Jogs of an arm before a deployment, on fakes: through the gate, judged as in simulation, never in a dry run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from armworld.evaluation.files import read_json
from armworld.evaluation.jogging import Jogs, Reading, judge, read_jogs
from armworld.evaluation.preflight import PreflightConfig, preflight
from armworld.planners.turning import turn_actions
from armworld.pose import apply_action
from armworld.real import deploy, jogs
from armworld.real.cell import Cell
from armworld.real.deploy import DeployConfig, _Run
from armworld.real.driving import Driver
from armworld.real.fakes import FakeArm, FakeCamera, FakeGripper
from armworld.real.gate import SafetyGate
from armworld.real.jogs import examine, jog_arm
from armworld.real.journal import read_journal
from armworld.real.limits import FRANKA_HAND, Box, Limits
from armworld.real.moving import JogFailed, Mover
from armworld.real.protocols import Frame
from armworld.real.roaming import roam_arm, room_to_roam
from armworld.worldmodel.model import Rollout

BOX, TIPS = (0.3, -0.3, 0.15, 0.7, 0.3, 0.6), (0.2, -0.4, 0.01, 0.8, 0.4, 0.6)
STEP_S = 0.02
LIMITS = Limits(Box(BOX[:3], BOX[3:]), Box(TIPS[:3], TIPS[3:]), fingers=FRANKA_HAND, step_seconds=STEP_S)
HOST = "172.16.0.2"
HARDWARE: dict[str, Any] = {"host": HOST, "cameras": ("left=opencv:0",), "workspace": BOX, "fingertips": TIPS}
GOALLED: dict[str, Any] = {**HARDWARE, "goal": (Path("goal.png"),)}
SEEN = Jogs(np.zeros((13, 48, 64, 3), np.uint8), np.zeros((13, 7), np.float32))
UNIT_M = 1e-6  # what a painted coordinate is counted in


class Painted(FakeCamera):
    """Noise, but for three pixels that tell where the flange is."""

    def __init__(self, arm: FakeArm) -> None:
        super().__init__()
        self.arm = arm

    def read(self) -> Frame:
        frame = super().read()
        counted = np.round((self.arm.pose[:3] + 1) / UNIT_M).astype(np.uint32)
        image = frame.image.copy()
        image[0, :3] = [[count >> 16 & 255, count >> 8 & 255, count & 255] for count in counted]
        return Frame(image, frame.id, frame.time_s)


class Turned:
    """Reads the painted position as its features [1, 3]; imagines Rz(turn) of every action."""

    step_seconds, camera, image_size = STEP_S, "left", (48, 64)

    def __init__(self, turn_deg: float) -> None:
        self.turn = np.radians(turn_deg)

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        pixels = torch.as_tensor(images)[:, :, 0, :3].double()
        return ((pixels * torch.tensor([65536.0, 256.0, 1.0])).sum(-1) * UNIT_M - 1).float()[:, :, None]

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> Rollout:
        moved = turn_actions(actions, self.turn)[..., :3].cumsum(2)
        return Rollout(z=z[:, -1:, None] + moved[..., None, :], state=apply_action(state[:, -1:, None], actions))


def fake_cell(arm: FakeArm | None = None) -> Cell:
    arm = arm or FakeArm()
    cell = Cell(arm, FakeGripper(), {"left": Painted(arm)})
    cell.connect()
    return cell


def commands(cell: Cell) -> list[np.ndarray]:
    assert isinstance(cell.arm, FakeArm)
    return cell.arm.commands


def make_driver(folder: Path, arm: FakeArm | None = None, **settings: Any) -> Driver:
    return Driver(fake_cell(arm), SafetyGate(LIMITS), folder / "drives", **settings)


def test_every_move_passes_the_gate_and_is_logged_and_the_verdict_is_the_simulations(tmp_path: Path) -> None:
    driver = make_driver(tmp_path)
    examined = examine(Turned(-60.0), driver, "left", None, tmp_path / "page", {"model": "turned"}, 0)
    assert examined is not None and examined[1].mark == "bad" and examined[1].adapted is None
    record = read_json(tmp_path / "page" / "preflight.json")
    assert record["mark"] == "bad" and record["findings"]["turn"]["yaw_deg"] == pytest.approx(-60, abs=1)
    assert "Verdict" in (tmp_path / "page" / "index.html").read_text()
    executed = [one["executed_m"] for one in record["findings"]["jogs"]]
    expected = 0.05 * np.repeat(np.eye(3), 2, 0) * np.tile([[1], [-1]], (3, 1))
    np.testing.assert_allclose(executed, expected, atol=0.0025)
    logs = sorted((tmp_path / "drives").iterdir())
    assert [log.name for log in logs] == [f"jog{i:02d}" for i in range(12)]
    rows = [row for log in logs for row in read_journal(log)[1]]
    sent = [row for row in rows if row["executed"] is not None]
    assert len(sent) == len(commands(driver.cell)) and {row["verdict"] for row in sent} <= {"pass", "clip"}
    steps = np.diff([row["target"][:3] for row in sent], axis=0)
    assert np.linalg.norm(steps, axis=1).max() <= LIMITS.max_speed * STEP_S + 1e-9


def test_a_view_that_is_understood_is_good(tmp_path: Path) -> None:
    seen = jog_arm(make_driver(tmp_path), "left")
    assert seen is not None and seen.states.shape == (13, 7)
    np.testing.assert_allclose(seen.states[::2, :3], np.tile(seen.states[0, :3], (7, 1)), atol=0.0025)
    assert judge(read_jogs(Turned(0.0), seen))[0][0] == "good"


def test_on_hardware_they_are_slow(tmp_path: Path) -> None:
    driver = make_driver(tmp_path, slow=True)
    driver.drive(np.array([0.47, 0, 0.35, np.pi, 0, 0, 0]), "one", steps=5)
    steps = np.diff([0.45, *[pose[0] for pose in commands(driver.cell)]])
    np.testing.assert_allclose(steps, 0.2 * LIMITS.max_speed * STEP_S, rtol=1e-6)


def test_without_room_nothing_moves(tmp_path: Path) -> None:
    driver = make_driver(tmp_path, FakeArm(np.array([0.66, 0.0, 0.35, np.pi, 0, 0])))
    with pytest.raises(JogFailed, match=r"no room for jogs of 5 cm: \+x \(10 mm outside\)"):
        jog_arm(driver, "left")
    assert not commands(driver.cell)
    with pytest.raises(ValueError, match="unknown camera 'wrist'; valid: left"):
        jog_arm(driver, "wrist")


class Caught(FakeArm):
    """Stops itself, or stops obeying, after some commands."""

    def __init__(self, after: int, reflex: str | None = None) -> None:
        super().__init__()
        self.after, self.reflex_then = after, reflex

    def command(self, pose: np.ndarray) -> np.ndarray:
        here = self.pose.copy()
        super().command(pose)
        if len(self.commands) > self.after:
            self.reflex = self.reflex_then
            self.pose = here
        return pose


def test_a_jog_that_is_stopped_or_blocked_is_named(tmp_path: Path) -> None:
    driver = make_driver(tmp_path / "reflex", Caught(3, "collision"))
    with pytest.raises(JogFailed, match=r"jog \+x ended: reflex: collision"):
        jog_arm(driver, "left")
    assert isinstance(driver.cell.arm, Caught) and driver.cell.arm.stops and len(driver.cell.arm.commands) == 4
    with pytest.raises(JogFailed, match=r"jog \+x: the arm went \d mm instead of 50"):
        jog_arm(make_driver(tmp_path / "blocked", Caught(1)), "left")


def test_a_stop_request_ends_them(tmp_path: Path) -> None:
    driver = make_driver(tmp_path)
    driver.stop.set("stop button")
    assert jog_arm(driver, "left") is None and not commands(driver.cell)


def test_random_moves_stay_in_what_the_boxes_leave_of_the_workspace(tmp_path: Path) -> None:
    low, high = room_to_roam(LIMITS)
    np.testing.assert_allclose(low, [0.36, -0.25, 0.24])
    np.testing.assert_allclose(high, [0.62, 0.25, 0.46])
    high_floor = replace(LIMITS, fingertips=Box((0.2, -0.4, 0.15), (0.7, 0.4, 0.6)))
    low, high = room_to_roam(high_floor)  # fingers of 11.24 cm that are kept 1 cm clear of it
    assert low[2] == pytest.approx(0.15 + 0.1124 + 0.01) and high[0] == pytest.approx(0.62)
    with pytest.raises(JogFailed, match="no room for random moves"):
        room_to_roam(replace(LIMITS, workspace=Box((0.4, -0.02, 0.2), (0.6, 0.02, 0.5))))


def test_random_moves_keep_clear_of_boxes_and_end_where_they_began(tmp_path: Path) -> None:
    post = Box((0.44, -0.06, 0.0), (0.52, 0.06, 0.5))
    driver = make_driver(tmp_path, FakeArm(np.array([0.40, 0.15, 0.35, np.pi, 0, 0])))
    driver.gate = SafetyGate(replace(LIMITS, keep_out=(post,)))
    recorded = roam_arm(driver, "left", 12, 0)
    assert recorded is not None and recorded[0].shape == (13, 48, 64, 3) and recorded[1].shape == (13, 7)
    places = recorded[1][:, :3]
    travelled = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert (travelled > 0.017).all() and (travelled < 0.105).all()
    assert (places[1:] > room_to_roam(LIMITS)[0] - 0.005).all() and (post.outside(places) > 0).all()
    verdicts = [row["verdict"] for log in (tmp_path / "drives").iterdir() for row in read_journal(log)[1]]
    assert set(verdicts) <= {"pass", "clip"}, "the gate held nothing: every way was free"
    np.testing.assert_allclose(driver.look()["state"][:3], places[0], atol=0.0025)


def test_random_moves_of_hands_turn_and_grip_above_the_table_and_come_back(tmp_path: Path) -> None:
    low, _ = room_to_roam(LIMITS, hands=True)
    assert low[2] < room_to_roam(LIMITS)[0][2] and low[2] >= LIMITS.fingertips.low[2] + LIMITS.fingers.length_m
    driver = make_driver(tmp_path, FakeArm(np.array([0.45, 0.1, 0.35, np.pi, 0, 0])))
    recorded = roam_arm(driver, "left", 16, 0, hands=True)
    assert recorded is not None
    states = recorded[1]
    assert np.ptp(states[:, 5]) > 0.3 and np.ptp(states[:, 6]) > 0.5 and (states[1:, 2] > low[2] - 0.005).all()
    now = np.asarray(driver.look()["state"])
    np.testing.assert_allclose(now[:3], states[0, :3], atol=0.0025)
    np.testing.assert_allclose(now[5:], states[0, 5:], atol=0.06)


def test_random_moves_get_an_arm_away_from_a_wall_beside_it(tmp_path: Path) -> None:
    post = Box((0.44, -0.06, 0.0), (0.52, 0.06, 0.5))
    driver = make_driver(tmp_path, FakeArm(np.array([0.48, 0.104, 0.35, np.pi, 0, 0])))
    driver.gate = SafetyGate(replace(LIMITS, keep_out=(post,)))
    state = np.asarray(driver.look()["state"], float)
    assert driver.gate.clear(state, state) and not driver.gate.clear(state, state, 0.005)
    recorded = roam_arm(driver, "left", 4, 0)
    assert recorded is not None and (post.outside(recorded[1][:, :3]) > 0).all()


def test_random_moves_end_with_the_stop_request_or_with_what_is_in_the_way(tmp_path: Path) -> None:
    driver = make_driver(tmp_path / "stopped")
    driver.stop.set("stop button")
    assert roam_arm(driver, "left", 6, 0) is None and not commands(driver.cell)
    with pytest.raises(JogFailed, match=r"random move \d: the arm went \d+ mm instead of \d+"):
        roam_arm(make_driver(tmp_path / "blocked", Caught(8)), "left", 12, 0)
    everywhere = replace(LIMITS, keep_out=(Box((0.0, -0.4, 0.0), (0.9, 0.4, 0.9)),))
    caged = make_driver(tmp_path / "caged")
    caged.gate = SafetyGate(everywhere)
    with pytest.raises(JogFailed, match="no free way for a random move"):
        roam_arm(caged, "left", 12, 0)


class Sagging(FakeArm):
    """Turns a little further from where it was sent at every command."""

    def command(self, pose: np.ndarray) -> np.ndarray:
        sent = super().command(pose)
        self.pose = self.pose + np.array([0, 0, 0, 0, 0.002, 0])
        return sent


def test_a_sag_does_not_grow_from_move_to_move(tmp_path: Path) -> None:
    driver = make_driver(tmp_path, Sagging())
    mover = Mover(driver, "move", str)
    for sign in (1, -1) * 6:
        mover.move(np.array([0.03 * sign, 0, 0, 0, 0, 0, 0]))
    assert abs(float(mover.seen["state"][4])) < 0.01


@pytest.mark.parametrize(
    ("settings", "jogs_first"),
    [
        ({}, False),  # a dry run
        ({"jog": "always"}, False),
        ({"live": True}, True),
        ({"live": True, "jog": "never"}, False),
        ({"live": True, "agent": "expert"}, False),
        ({"sim": True}, False),
        ({"sim": True, "jog": "always"}, True),
    ],
)
def test_when_an_arm_is_jogged(settings: dict[str, Any], jogs_first: bool) -> None:
    chosen: dict[str, Any] = {"agent": "cem", **({} if settings.get("sim") else GOALLED), **settings}
    assert DeployConfig(**chosen).jogs == jogs_first


def test_bad_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="agent 'expert' plans on none"):
        DeployConfig(sim=True, agent="expert", jog="always")
    with pytest.raises(ValueError, match="agent 'octo' plans on none"):
        DeployConfig(sim=True, agent="octo", jog="always")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("nowhere.png", "text.png"):
        with pytest.raises(ValueError, match=rf"{name} is not a picture that can be read"):
            DeployConfig(sim=True, reference=tmp_path / name)


def answering(mark: str | None, drivers: list[Driver]) -> Callable[..., tuple[Jogs, Reading] | None]:
    """Stands in for `examine`."""
    turn = {"yaw_deg": {"good": 1.0, "weak": 15.0}.get(mark or "", 60.0), "spread_deg": 1.0, "contrast": 0.5}
    found = {"turn": turn | {"energy": 0.1}, "copy_energy": 0.2, "axes": {"error_m": 0.01, "gain": 1.0}}

    def examined(model: Any, driver: Driver, *_: Any) -> tuple[Jogs, Reading] | None:
        drivers.append(driver)
        return None if mark is None else (SEEN, Reading(found))

    return examined


def test_a_deployment_does_not_begin_where_the_model_misreads_the_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "load_model", lambda agent, name: Turned(0.0))
    run = _Run.__new__(_Run)
    run.config = DeployConfig(**GOALLED, live=True, out=tmp_path)
    run.facts = deploy.ModelFacts(STEP_S, (48, 64), "left")
    run.driver = make_driver(tmp_path)
    run.cell, run.gate, run.stop = run.driver.cell, run.driver.gate, run.driver.stop
    run.console, run.folder = Console(record=True, width=200), tmp_path
    monkeypatch.setattr(jogs, "examine", answering("bad", []))
    with pytest.raises(ValueError, match=r"pre-flight failed: Do not deploy .* \(Yaw error \+60"):
        run._jog()
    assert "disk:" not in run.console.export_text()
    monkeypatch.setattr(jogs, "examine", answering("weak", []))
    run._jog()
    assert "disk:" in run.console.export_text(), "the other checks are repeated: they have aged"
    monkeypatch.setattr(jogs, "examine", answering(None, []))
    run._jog()


def test_the_verb_on_an_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry it moves nothing; live it asks first, then jogs slowly and judges."""
    cells: list[Cell] = []

    def opened(*_: Any) -> Cell:
        cells.append(fake_cell())
        return cells[-1]

    monkeypatch.setattr(jogs, "open_cell", opened)
    monkeypatch.setattr("armworld.worldmodel.checkpoint.load_world_model", lambda name: Turned(0.0))
    monkeypatch.setattr("armworld.evaluation.preflight.training_view", lambda *_: np.zeros((48, 64, 3), np.uint8))
    dry = PreflightConfig(**HARDWARE, out=tmp_path / "dry")
    console = Console(record=True, width=200)
    assert preflight(dry, console) == 0 and not commands(cells[-1])
    assert "Nothing was moved" in console.export_text() and not (tmp_path / "dry").exists()
    live = PreflightConfig(**HARDWARE, out=tmp_path / "live", live=True)
    drivers: list[Driver] = []
    for mark, code in (("good", 0), ("bad", 1), (None, 130)):
        monkeypatch.setattr(jogs, "examine", answering(mark, drivers))
        with pytest.raises(ValueError, match="not confirmed"):
            preflight(live, console, lambda question: "yes")
        assert not drivers
        assert preflight(live, console, lambda question: HOST) == code
        assert drivers.pop().slow
