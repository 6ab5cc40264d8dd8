"""A LeRobot `Robot` over our devices: its recording and teleoperation tools drive the arm through the safety gate.

LeRobot finds plug-ins by package names that begin with `lerobot_robot_`; such a package needs one line:

    from armworld.real.lerobot_robot import ArmworldRobot, ArmworldRobotConfig

The class also works without LeRobot installed; with it, `as_plugin()` registers both under its base classes.
Actions are absolute targets, as in LeRobot: flange pose (m, rad) and closedness. `send_action` returns what was sent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from armworld.pose import action_between
from armworld.real.cameras import Framing
from armworld.real.cell import Cell
from armworld.real.gate import SafetyGate, Situation
from armworld.real.setup import CellConfig
from armworld.types import require

STATE_KEYS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclass(frozen=True)
class ArmworldRobotConfig:
    """The cell, and the name under which LeRobot keeps it."""

    cell: CellConfig = field(default_factory=CellConfig)
    id: str = "franka"
    size: tuple[int, int] = (256, 256)


class ArmworldRobot:
    """LeRobot's interface: features, connect, get_observation, send_action, disconnect."""

    config_class = ArmworldRobotConfig
    name = "armworld"

    def __init__(self, config: ArmworldRobotConfig, cell: Cell | None = None) -> None:
        """`cell` replaces the devices that the configuration names."""
        if cell is None:
            config.cell.check_cell()
        self.config, self.id = config, config.id
        self._cell = cell or config.cell.cell(Framing(config.size, config.cell.crop or None))
        self._gate = SafetyGate(config.cell.limits(config.cell.step_seconds or 0.25))

    @property
    def observation_features(self) -> dict[str, Any]:
        """Readable while disconnected: a type per number, a shape per picture."""
        pictures = {name: camera.features["image"].shape for name, camera in self._cell.cameras.items()}
        return {f"{key}.pos": float for key in STATE_KEYS} | pictures

    @property
    def action_features(self) -> dict[str, type]:
        return {f"{key}.pos": float for key in STATE_KEYS}

    @property
    def is_connected(self) -> bool:
        return self._cell.arm.connected

    @property
    def is_calibrated(self) -> bool:
        """A Franka arm knows its joint angles."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._cell.connect()

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Thresholds and limits are set at connect."""

    def disconnect(self) -> None:
        self._cell.close()

    def get_observation(self) -> dict[str, Any]:
        """State and pictures as they are now."""
        state = self._state()[0]
        numbers = {f"{key}.pos": float(value) for key, value in zip(STATE_KEYS, state, strict=True)}
        return numbers | {name: camera.read().image for name, camera in self._cell.cameras.items()}

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        """Go towards an absolute target, as far as the gate allows; answers what was sent (on hold: the state)."""
        missing = [key for key in self.action_features if key not in action]
        if missing:
            raise ValueError(f"the action lacks {', '.join(missing)}; it needs {', '.join(self.action_features)}")
        state, time_s = self._state()
        wanted = np.array([float(action[key]) for key in self.action_features])
        now = time.monotonic()
        situation = Situation(now, state, time_s, state, now)
        decision = self._gate.check(action_between(state, wanted), situation)
        sent = np.array(decision.target)
        if decision.verdict == "hold":
            self._cell.arm.stop()
        else:
            sent[:6] = self._cell.arm.command(decision.target[:6])
            if self._cell.gripper is not None:
                sent[6] = self._cell.gripper.command(float(decision.target[6]))
        return {f"{key}.pos": float(value) for key, value in zip(STATE_KEYS, sent, strict=True)}

    def _state(self) -> tuple[np.ndarray, float]:
        arm = self._cell.arm.read()
        closedness = self._cell.gripper.read().closedness if self._cell.gripper is not None else 0.0
        return np.array([*arm.pose, closedness]), arm.time_s


def as_plugin() -> tuple[type, type]:
    """Configuration and robot as LeRobot's own subclasses, registered as robot type "armworld"."""
    robots = require("lerobot.robots", "lerobot")
    config_type = type("ArmworldRobotConfig", (ArmworldRobotConfig, robots.RobotConfig), {})
    robots.RobotConfig.register_subclass("armworld")(config_type)
    return config_type, type("ArmworldRobot", (ArmworldRobot, robots.Robot), {"config_class": config_type})
