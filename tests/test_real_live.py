"""`armworld deploy` with a hardware's settings, over fakes: what it takes to move, what listens, what logs are for."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from armworld import cli
from armworld.datasets.validate import validate
from armworld.real import deploy as deploying
from armworld.real import goal as capturing
from armworld.real import preflight as looking
from armworld.real.agent_process import AgentGone, InlineAgent
from armworld.real.cameras import Framing
from armworld.real.cell import Cell
from armworld.real.deploy import DeployConfig, deploy, given_goal
from armworld.real.fakes import FakeArm, FakeCamera, FakeGripper
from armworld.real.goal import GoalConfig
from armworld.real.goals import load_goal, save_goal
from armworld.real.opening import ModelFacts
from armworld.real.preflight import Preflight
from armworld.real.protocols import DeviceLost, GripperReading
from armworld.real.replay import ReplayConfig, replay
from armworld.types import Agent, Goal

sys.path.append(str(Path(__file__).parent))  # for the sockets
from real_sockets import listening

HOST = "172.16.0.2"
BOX, TIPS = (0.3, -0.3, 0.15, 0.7, 0.3, 0.6), (0.2, -0.4, 0.01, 0.8, 0.4, 0.6)
SIZE = (64, 64)


class InProcess:
    """Stands in for `AgentProcess`, whose start takes seconds."""

    def __init__(self, factory: Callable[[], Agent], threads: int) -> None:
        self.agent = factory()
        self.link = InlineAgent(self.agent)
        self.request, self.poll = self.link.request, self.link.poll

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def reset(self, goal: Goal) -> None:
        try:
            self.agent.reset(goal)
        except ValueError as error:
            raise AgentGone(str(error)) from error


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "process" not in request.fixturenames:
        monkeypatch.setattr(deploying, "AgentProcess", InProcess)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """What every call of `deploy` connects to."""
    made = Cell(FakeArm(), FakeGripper(), {"left": FakeCamera(SIZE)})

    def opened(*_: Any) -> Cell:
        made.connect()
        return made

    monkeypatch.setattr(deploying, "open_cell", opened)
    monkeypatch.setattr(capturing, "open_cell", opened)
    return made


def settings(tmp_path: Path, **changes: Any) -> DeployConfig:
    """Three steps towards a goal 5 cm away, on hardware."""
    goal = tmp_path / "goal"
    state = np.array([0.45, 0.05, 0.35, np.pi, 0, 0, 0])
    if not goal.exists():
        save_goal(goal, {"state": state, "left": np.full((*SIZE, 3), 90, np.uint8)})
    chosen: dict[str, Any] = {"host": HOST, "cameras": ("left=opencv:0",), "workspace": BOX, "fingertips": TIPS}
    chosen |= {"goal": (goal,), "steps": 3, "image_size": 64, "slow_steps": 0, "page": False, "out": tmp_path / "runs"}
    return DeployConfig(**(chosen | changes))


def commands(cell: Cell) -> list[np.ndarray]:
    assert isinstance(cell.arm, FakeArm)
    return cell.arm.commands


def quiet() -> Console:
    return Console(record=True, width=200, quiet=True)


def unasked(question: str) -> str:
    raise AssertionError(question)


def test_a_dry_run_asks_nothing_sends_nothing_and_logs(cell: Cell, tmp_path: Path) -> None:
    assert deploy(settings(tmp_path), quiet(), unasked) == 0
    assert not commands(cell)
    (log,) = tmp_path.glob("runs/*/episode00")
    header = json.loads((log / "header.json").read_text())
    assert header["settings"]["live"] is False and header["units"]["rotation"] == "rad"


@pytest.mark.parametrize("typed", ["", "yes", "y", "172.16.0.3", f"{HOST} please"])
def test_live_does_not_begin_unless_the_arms_address_is_typed(cell: Cell, tmp_path: Path, typed: str) -> None:
    with pytest.raises(ValueError, match="not confirmed"):
        deploy(settings(tmp_path, live=True, agent="hold"), quiet(), lambda question: typed)
    assert not commands(cell)


@pytest.mark.parametrize("missing", ["--workspace", "--fingertips"])
def test_live_does_not_begin_without_its_boxes(monkeypatch, capsys, tmp_path, cell: Cell, missing: str) -> None:
    boxes = {"--workspace": [*map(str, BOX)], "--fingertips": [*map(str, TIPS)]}
    given = [part for name, box in boxes.items() if name != missing for part in (name, *box)]
    call = [
        "armworld",
        "deploy",
        "--live",
        "--host",
        HOST,
        "--cameras",
        "left=opencv:0",
        "--goal",
        str(tmp_path),
        *given,
    ]
    monkeypatch.setattr("sys.argv", call)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said) == 1 and "--workspace and --fingertips" in said[0]
    assert not commands(cell)


def test_live_does_not_begin_on_a_preflight_that_has_aged_and_fails_now(
    cell: Cell, tmp_path: Path, monkeypatch
) -> None:
    """The operator takes minutes to answer; meanwhile the arm has a reflex."""
    monkeypatch.setattr(Preflight, "fresh", lambda self, now_s: False)

    def later(question: str) -> str:
        cell.arm.reflex = "reflex"  # type: ignore[attr-defined]
        return HOST

    with pytest.raises(ValueError, match="pre-flight failed: arm: reflex"):
        deploy(settings(tmp_path, live=True, agent="hold"), quiet(), later)
    assert not commands(cell)


def test_live_does_not_begin_where_the_preflight_fails(cell: Cell, tmp_path: Path) -> None:
    cell.arm.pose[0] = 0.9  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="pre-flight failed: box"):
        deploy(settings(tmp_path, live=True, agent="hold"), quiet(), unasked)
    assert not commands(cell)


def test_a_preflight_ages_after_two_minutes() -> None:
    assert looking.FRESH_S == 120 and Preflight((), 10.0).fresh(130.0) and not Preflight((), 10.0).fresh(130.1)


def test_live_moves_its_log_agrees_and_is_training_data(cell: Cell, tmp_path: Path) -> None:
    """Confirmed, it goes there; every decision is judged alike again; the episode is valid and can be trained on."""
    asked: list[str] = []

    def address(question: str) -> str:
        asked.append(question)
        return HOST

    assert deploy(settings(tmp_path, live=True), quiet(), address) == 0
    assert len(asked) == 1 and HOST in asked[0] and len(commands(cell)) == 3
    assert commands(cell)[-1][1] == pytest.approx(0.05)
    (log,) = tmp_path.glob("runs/*/episode00")
    assert json.loads((log / "outcome.json").read_text())["distance_m"] < 1e-6
    assert replay(ReplayConfig(log), quiet()) == 0
    assert validate(tmp_path / "runs" / "droid") == []
    assert list(tmp_path.glob("runs/droid/*/success/*/*/trajectory.h5"))


def test_posttraining_reads_deployments_logs(cell: Cell, tmp_path: Path) -> None:
    for _ in range(2):  # one to train on and one held out
        assert deploy(settings(tmp_path, live=True, steps=8), quiet(), lambda question: HOST) == 0
        time.sleep(1.0)  # episodes are named by the second
    out, call = tmp_path / "model", ["posttrain", "--data", str(tmp_path / "runs" / "droid")]
    call += [
        "--encoder",
        "random:debug",
        "--image-size",
        "64",
        "--steps",
        "1",
        "--batch",
        "1",
        "--width",
        "24",
        "--depth",
        "1",
        "--heads",
        "2",
        "--out",
    ]
    assert cli.run([*call, str(out)]) == 0
    assert list(out.rglob("model.safetensors"))


def test_a_device_that_is_not_there_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path: Path) -> None:
    def opened(*_: Any) -> Cell:
        raise DeviceLost("no Franka at 172.16.0.2: is FCI activated?")

    monkeypatch.setattr(deploying, "open_cell", opened)
    settings(tmp_path)
    call = ["armworld", "deploy", "--host", HOST, "--cameras", "left=opencv:0", "--goal", str(tmp_path / "goal")]
    call += ["--image-size", "64", "--workspace", *map(str, BOX), "--fingertips", *map(str, TIPS)]
    monkeypatch.setattr("sys.argv", call)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == "armworld: no Franka at 172.16.0.2: is FCI activated?"


@pytest.mark.parametrize("process", [True])  # the real one
def test_a_goal_that_the_agent_cannot_use_is_named(process: bool, cell: Cell, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="this goal has a picture only"):
        deploy(settings(tmp_path, goal=(tmp_path / "photo.png",)), quiet(), unasked)
    assert not commands(cell)


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0")])
def test_only_loopback_listens_unless_asked(cell: Cell, tmp_path: Path, monkeypatch, host: str, expected: str) -> None:
    before, seen = set(listening(os.getpid())), []
    real: Callable[..., None] = deploying.LivePage.publish

    def publish(page: Any, row: Any, images: Any) -> None:
        seen.append(listening(os.getpid()))
        real(page, row, images)

    monkeypatch.setattr(deploying.LivePage, "publish", publish)
    config = settings(tmp_path, page=True, agent="hold", steps=1)
    if host != config.page_host:
        config = dataclasses.replace(config, page_host=host)
    assert deploy(config, quiet(), unasked) == 0
    assert {address for addresses in seen for address in addresses} - before == {expected}


STATE = (0.46, 0.02, 0.36, np.pi, 0.0, 0.0, 0.0)


def goal_settings(tmp_path: Path, **changes: Any) -> GoalConfig:
    chosen: dict[str, Any] = {"host": HOST, "cameras": ("left=opencv:0",), "workspace": BOX, "fingertips": TIPS}
    return GoalConfig(**(chosen | {"out": tmp_path / "captured", "image_size": 64} | changes))


def test_a_goal_is_captured_where_the_arm_was_guided_to_and_nothing_moves(cell: Cell, tmp_path: Path) -> None:
    asked: list[str] = []
    assert capturing.goal(goal_settings(tmp_path), quiet(), lambda question: asked.append(question) or "") == 0
    assert "Guide the arm" in asked[0] and not commands(cell)
    goal = load_goal([tmp_path / "captured"], (5,), {"left": Framing(SIZE)})
    np.testing.assert_allclose(goal.observations[0]["state"][:3], [0.45, 0, 0.35], atol=1e-6)


def test_a_goal_that_was_captured_with_a_crop_is_deployed_with_it(cell: Cell, tmp_path: Path) -> None:
    config = goal_settings(tmp_path, crop=1.35)
    assert capturing.goal(config, quiet(), lambda question: "") == 0
    facts = ModelFacts(0.25, SIZE, "left")
    deployed = settings(tmp_path, goal=(config.out,), crop=1.35)
    goal = given_goal(deployed, facts)
    assert goal is not None
    with Image.open(config.out / "left.png") as picture:
        np.testing.assert_array_equal(goal.observations[0]["left"], np.asarray(picture))
    with pytest.raises(ValueError, match=r"captured with a crop of 1\.35"):
        given_goal(dataclasses.replace(deployed, crop=0.0), facts)


def test_an_arm_drives_to_a_goals_state_only_confirmed_and_slowly(cell: Cell, tmp_path: Path) -> None:
    config = goal_settings(tmp_path, state=STATE, live=True)
    with pytest.raises(ValueError, match="not confirmed"):
        capturing.goal(config, quiet(), lambda question: "yes")
    assert not commands(cell) and not config.out.exists()
    assert capturing.goal(config, quiet(), lambda question: HOST) == 0
    steps = np.linalg.norm(np.diff([[0.45, 0, 0.35], *[pose[:3] for pose in commands(cell)]], axis=0), axis=1)
    assert steps.max() <= 0.2 * 0.25 * 0.25 + 1e-9  # a fifth of 250 mm/s for a step
    seen = load_goal([config.out], (5,), {"left": Framing(SIZE)}).observations[0]["state"]
    np.testing.assert_allclose(seen[:3], STATE[:3], atol=0.003)


class SlowGripper(FakeGripper):
    """Its fingers take 1.2 s for the whole way, and go no further than `stuck_at`, where `holds` is reported."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted, self.read_s = 0.0, time.monotonic()

    def read(self) -> GripperReading:
        now = time.monotonic()
        step, self.read_s = (now - self.read_s) / 1.2, now
        end = self.wanted if self.stuck_at is None else min(self.wanted, self.stuck_at)
        moving = abs(end - self.closedness) > 1e-9
        self.closedness += float(np.clip(end - self.closedness, -step, step))
        held = self.holds and self.closedness == self.stuck_at
        return dataclasses.replace(super().read(), moving=moving, object_held=held)

    def command(self, closedness: float) -> float:
        self.wanted = closedness
        return closedness


def captured(config: GoalConfig) -> np.ndarray:
    """The state [7] in the goal that was captured."""
    assert capturing.goal(config, quiet(), lambda question: HOST) == 0
    return load_goal([config.out], (5,), {"left": Framing(SIZE)}).observations[0]["state"]


def test_a_goals_picture_is_taken_once_the_arm_has_turned_too(cell: Cell, tmp_path: Path) -> None:
    turned = (0.45, 0.0, 0.35, np.pi, 0.0, 0.5, 0.0)
    state = captured(goal_settings(tmp_path, state=turned, live=True))
    np.testing.assert_allclose(np.abs(state[3:6]), [np.pi, 0, 0.5], atol=0.02)
    assert len(commands(cell)) >= 9  # a fifth of 1 rad/s for steps of 0.25 s


@pytest.mark.parametrize(("stuck_at", "holds", "ends"), [(None, False, 1.0), (0.6, True, 0.6), (0.6, False, 0.6)])
def test_a_goals_picture_is_taken_once_the_fingers_have_closed(
    cell: Cell, tmp_path: Path, stuck_at: float | None, holds: bool, ends: float
) -> None:
    """Fully, on an object, or on something that the gripper does not report."""
    gripper = SlowGripper()
    gripper.stuck_at, gripper.holds, cell.gripper = stuck_at, holds, gripper
    closed = (0.45, 0.0, 0.35, np.pi, 0.0, 0.0, 1.0)
    assert captured(goal_settings(tmp_path, state=closed, live=True))[6] == pytest.approx(ends, abs=0.05)


def test_a_slow_way_gets_the_steps_that_it_takes(cell: Cell, tmp_path: Path) -> None:
    """A fifth of 50 mm/s for steps of 0.02 s: 75 of them for 15 mm."""
    there = (0.465, 0.0, 0.35, np.pi, 0.0, 0.0, 0.0)
    state = captured(goal_settings(tmp_path, state=there, live=True, max_speed=0.05, step_seconds=0.02))
    np.testing.assert_allclose(state[:3], there[:3], atol=0.003)
    assert len(commands(cell)) > 60


def test_a_state_without_live_and_live_without_a_state_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--state moves the arm: give --live"):
        goal_settings(tmp_path, state=STATE)
    with pytest.raises(ValueError, match="there is none"):
        goal_settings(tmp_path, live=True)
