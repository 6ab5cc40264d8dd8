"""The LeRobot robot over fakes: dry unless told, always through the gate, registered as LeRobot expects."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from armworld.real.cell import Cell
from armworld.real.fakes import FakeArm, FakeCamera, FakeGripper
from armworld.real.lerobot_robot import ArmworldRobot, ArmworldRobotConfig
from armworld.real.protocols import DeviceError
from armworld.real.setup import CellConfig

HOST = "172.16.0.2"
BOX, TIPS = (0.3, -0.3, 0.15, 0.7, 0.3, 0.6), (0.2, -0.4, 0.01, 0.8, 0.4, 0.6)
HARDWARE = CellConfig(host=HOST, cameras=("left=opencv:0",), workspace=BOX, fingertips=TIPS)


def fakes() -> Cell:
    return Cell(FakeArm(), FakeGripper(), {"left": FakeCamera()})


def commands(cell: Cell) -> list[np.ndarray]:
    assert isinstance(cell.arm, FakeArm)
    return cell.arm.commands


@pytest.fixture
def cell() -> Cell:
    return fakes()


def robot(cell: Cell, live: str = HOST, clock: Callable[[], float] = time.monotonic) -> ArmworldRobot:
    made = ArmworldRobot(ArmworldRobotConfig(HARDWARE, live=live), cell, clock)
    made.connect()
    return made


def target(arm: ArmworldRobot, **offsets: float) -> dict[str, float]:
    """Where it was last seen, and some way off."""
    seen = arm.get_observation()
    return {key: seen[key] + offsets.get(key.removesuffix(".pos"), 0.0) for key in arm.action_features}


def test_features_are_readable_while_disconnected(cell: Cell) -> None:
    made = ArmworldRobot(ArmworldRobotConfig(HARDWARE), cell)
    assert not made.is_connected and made.is_calibrated
    assert made.observation_features["left"] == (48, 64, 3) and made.action_features["gripper.pos"] is float
    assert set(made.cameras) == {"left"}


def test_it_answers_what_was_sent(cell: Cell) -> None:
    made = robot(cell)
    wanted = target(made, x=0.5)
    sent = made.send_action(wanted)
    assert wanted["x.pos"] - sent["x.pos"] == pytest.approx(0.5 - 0.0625)  # the gate shortened it
    assert commands(cell)[-1][0] == pytest.approx(sent["x.pos"])
    with pytest.raises(ValueError, match=r"lacks y\.pos"):
        made.send_action({key: value for key, value in wanted.items() if key != "y.pos"})
    made.disconnect()
    assert not made.is_connected


@pytest.mark.parametrize(("rate_hz", "seconds"), [(30.0, 1.0), (4.0, 1.0), (1.0, 3.0), (1000.0, 0.1)])
@pytest.mark.parametrize(("towards", "index", "limit"), [("x", 0, 0.25), ("yaw", 5, 1.0)])
def test_calls_at_any_rate_keep_the_limits_per_second(
    cell: Cell, rate_hz: float, seconds: float, towards: str, index: int, limit: float
) -> None:
    """An arm that goes at once where it is sent: m/s and rad/s hold over any time, after a first step of 0.25 s."""
    moments = [0.0]
    made = robot(cell, clock=lambda: moments[-1])
    start = cell.arm.read().pose
    for number in range(round(rate_hz * seconds)):
        moments.append(number / rate_hz)
        made.send_action(target(made, **{towards: 0.5 if number % 2 else -0.5}))  # to and fro: no box is met
    ways = np.abs(np.diff([start, *commands(cell)], axis=0)[:, index])
    assert len(ways) == round(rate_hz * seconds) and ways[1:].max() <= limit * min(1 / rate_hz, 0.25) + 1e-9
    assert ways.sum() <= limit * (0.25 + seconds) + 1e-9


def test_it_is_dry_unless_the_address_is_repeated(cell: Cell) -> None:
    made = robot(cell, live="")
    assert made.send_action(target(made, x=0.02))["x.pos"] == pytest.approx(0.47)
    assert not commands(cell)
    with pytest.raises(ValueError, match="live must repeat the arm's address"):
        ArmworldRobot(ArmworldRobotConfig(HARDWARE, live="yes"), cell)
    with pytest.raises(ValueError, match="--workspace and --fingertips"):
        ArmworldRobot(ArmworldRobotConfig(CellConfig(host=HOST, cameras=("left=opencv:0",)), live=HOST))


@pytest.mark.parametrize(
    "nonsense", [{"x": np.nan}, {"x": 400.0}, {"yaw": 90.0}, {"gripper": 85.0}], ids=["nan", "mm", "degrees", "bits"]
)
def test_targets_in_other_units_are_held(cell: Cell, nonsense: dict[str, float]) -> None:
    made = robot(cell)
    wanted = target(made, **nonsense)
    sent = made.send_action(wanted)
    assert not commands(cell) and sent["x.pos"] == pytest.approx(0.45)


def test_nothing_is_sent_after_a_bad_picture_or_none(cell: Cell) -> None:
    made = robot(cell)
    unseen = dict.fromkeys(made.action_features, 0.0)
    made.send_action(unseen)  # nothing was observed yet
    assert not commands(cell)
    wanted = target(made, x=0.02)
    cell.cameras["left"].fault = "black"  # type: ignore[attr-defined]
    made.get_observation()
    made.send_action(wanted)
    assert not commands(cell)


def test_it_does_not_connect_where_the_preflight_fails(cell: Cell) -> None:
    cell.arm.pose[0] = 0.9  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="pre-flight failed"):
        robot(cell)
    assert not cell.arm.connected


def fake_lerobot(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The two base classes and the registry that LeRobot's plug-ins are written against."""
    known: dict[str, type] = {}

    class RobotConfig:
        @classmethod
        def register_subclass(cls, name: str) -> Any:
            return lambda kind: known.setdefault(name, kind)

    robots = ModuleType("lerobot.robots")
    robots.RobotConfig, robots.Robot = RobotConfig, type("Robot", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lerobot", ModuleType("lerobot"))
    monkeypatch.setitem(sys.modules, "lerobot.robots", robots)
    return known


def test_the_lerobot_plugin_registers_itself_and_its_robot_is_found_beside_its_configuration(monkeypatch) -> None:
    known = fake_lerobot(monkeypatch)
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "real" / "plugin"))
    import lerobot_robot_armworld as plugin  # type: ignore[import-not-found]

    config = known["armworld"]
    assert config.__name__ == "ArmworldRobotConfig" and config.__module__ == "lerobot_robot_armworld"
    assert issubclass(plugin.ArmworldRobot, sys.modules["lerobot.robots"].Robot)  # type: ignore[attr-defined]
    assert plugin.ArmworldRobot.config_class is config
    sys.modules.pop("lerobot_robot_armworld")
