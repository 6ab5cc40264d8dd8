"""A LeRobot `Robot` over our devices: its recording and teleoperation tools drive the arm through the safety gate.

LeRobot finds plug-ins by package names that begin with `lerobot_robot_`: `pip install ./real/plugin` brings one, with
the robot type "armworld". The class also works without LeRobot installed.
Actions are absolute targets, as in LeRobot: flange pose (m, rad) and closedness. `send_action` returns what was sent.
LeRobot's loop sets the pace, 30 calls a second as a rule. The arm is given of a step's translation and turn the share
that has passed since the last command, so that calls in quick succession do not add up to more than the limits.
Dry unless `live` repeats the arm's address: what `armworld deploy --live` has typed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from armworld.pose import action_between
from armworld.real.cameras import Framing
from armworld.real.cell import Cell
from armworld.real.gate import SafetyGate, Situation, unit_reasons
from armworld.real.preflight import preflight
from armworld.real.protocols import Camera, DeviceError
from armworld.real.senses import Seen, Senses
from armworld.real.setup import CellConfig
from armworld.types import require

STATE_KEYS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
FRAME_WAIT_S = 0.15  # for frames that were not seen before
LEAST_SHARE = 1e-6  # of a step's way, for calls that the clock does not tell apart


@dataclass(frozen=True)
class ArmworldRobotConfig:
    """The cell, and the name under which LeRobot keeps it.

    Attributes:
        cell: Devices, boxes and limits, as in `armworld deploy`.
        id: LeRobot's name for this robot.
        size: (height, width) of the pictures.
        live: The arm's address once more, to let it move; otherwise nothing is sent.
    """

    cell: CellConfig = field(default_factory=CellConfig)
    id: str = "franka"
    size: tuple[int, int] = (256, 256)
    live: str = ""


class ArmworldRobot:
    """LeRobot's interface: features, connect, get_observation, send_action, disconnect."""

    config_class = ArmworldRobotConfig
    name = "armworld"

    def __init__(
        self, config: ArmworldRobotConfig, cell: Cell | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`cell` replaces the devices that the configuration names; `clock` (s) tells how far calls are apart."""
        if cell is None:
            config.cell.check_cell()
            if config.cell.sim:
                raise ValueError("the LeRobot robot is for hardware; --sim is armworld deploy's")
        if config.live and config.live != config.cell.host:
            raise ValueError(f"live must repeat the arm's address {config.cell.host!r}, got {config.live!r}")
        self.config, self.id = config, config.id
        self._cell = cell or config.cell.cell(Framing(config.size, config.cell.crop or None))
        self._gate = SafetyGate(config.cell.limits(config.cell.step_seconds or 0.25))
        self._senses = Senses(self._cell)
        self._clock, self._sent_s = clock, -np.inf  # the latter: when a target was last allowed
        self._seen: Seen | None = None  # what an action may be given for; None: nothing that is fit for use

    @property
    def observation_features(self) -> dict[str, Any]:
        """Readable while disconnected: a type per number, a shape per picture."""
        pictures = {name: camera.features["image"].shape for name, camera in self._cell.cameras.items()}
        return {f"{key}.pos": float for key in STATE_KEYS} | pictures

    @property
    def action_features(self) -> dict[str, type]:
        return {f"{key}.pos": float for key in STATE_KEYS}

    @property
    def cameras(self) -> Mapping[str, Camera]:
        """By name."""
        return self._cell.cameras

    @property
    def is_connected(self) -> bool:
        return self._cell.arm.connected

    @property
    def is_calibrated(self) -> bool:
        """A Franka arm knows its joint angles."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Connect and look at everything, as a deployment's pre-flight does; a DeviceError says what failed."""
        self._cell.connect()
        checked = preflight(self._cell, self._gate, Path.cwd())
        if not checked.ok:
            self._cell.close()
            raise DeviceError("pre-flight failed: " + "; ".join(c.text for c in checked.checks if not c.ok))

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Thresholds and limits are set at connect."""

    def disconnect(self) -> None:
        self._cell.close()

    def get_observation(self) -> dict[str, Any]:
        """State and pictures as they are now. After one that the gate objects to, nothing is sent."""
        frames = self._senses.frames(FRAME_WAIT_S, lambda: None)
        seen = self._senses.robot(frames, None)
        width = None if seen.gripper is None else seen.gripper.width_m
        admitted = self._gate.admit(time.monotonic(), seen.state, seen.time_s, self._senses.views(frames), width)
        self._seen = seen if admitted.verdict == "pass" else None
        numbers = {f"{key}.pos": float(value) for key, value in zip(STATE_KEYS, seen.state, strict=True)}
        return numbers | {name: frame.image for name, frame in frames.items()}

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        """Go towards an absolute target, as far as the gate allows; answers what was sent (on hold: the state)."""
        missing = [key for key in self.action_features if key not in action]
        if missing:
            raise ValueError(f"the action lacks {', '.join(missing)}; it needs {', '.join(self.action_features)}")
        now = self._senses.robot({}, None)
        sent = now.state.copy()
        target = self._allowed(np.array([float(action[key]) for key in self.action_features]), now)
        if target is None:
            if self.config.live:
                self._cell.arm.stop()
        else:
            sent, self._sent_s = target.copy(), self._clock()
            if self.config.live:
                sent[:6] = self._cell.arm.command(target[:6])
                if self._cell.gripper is not None:
                    sent[6] = self._cell.gripper.command(float(target[6]))
        return {f"{key}.pos": float(value) for key, value in zip(STATE_KEYS, sent, strict=True)}

    def _allowed(self, wanted: np.ndarray, now: Seen) -> np.ndarray | None:
        """The state [7] to send for an absolute target [7]; None: hold."""
        seen = self._seen
        if seen is None or not np.isfinite(wanted).all() or unit_reasons(wanted):
            return None
        taken_s = min(seen.time_s, *(frame.time_s for frame in seen.frames.values()), np.inf)
        held = now.gripper is not None and now.gripper.object_held
        passed = (self._clock() - self._sent_s) / self._gate.limits.step_seconds
        situation = Situation(
            time.monotonic(), now.state, now.time_s, seen.state, taken_s, object_held=held,
            speed_scale=float(np.clip(passed, LEAST_SHARE, 1.0)),
        )  # fmt: skip
        decision = self._gate.check(action_between(seen.state, wanted), situation)
        return None if decision.verdict == "hold" else np.array(decision.target)


def as_plugin(module: str = __name__) -> tuple[type, type]:
    """Configuration and robot as LeRobot's own subclasses, registered as robot type "armworld".

    LeRobot looks for the robot in the module of its configuration, under that name without "Config".

    Args:
        module: Whose both say they are, and in which both must be found.
    """
    robots = require("lerobot.robots", "lerobot")
    where = {"__module__": module}
    config_type = type("ArmworldRobotConfig", (ArmworldRobotConfig, robots.RobotConfig), where)
    robots.RobotConfig.register_subclass("armworld")(config_type)
    return config_type, type("ArmworldRobot", (ArmworldRobot, robots.Robot), where | {"config_class": config_type})
