"""What is looked at before an arm may move: devices, frames, pose, box, disk, agent. Its answer ages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armworld.real.cell import Cell
from armworld.real.gate import SafetyGate, Situation, View
from armworld.real.protocols import DeviceError, Frame

FRESH_S = 120.0  # an answer older than this must be asked for again before a live start
REST_RAD = 0.004  # in 0.2 s; measured joint velocities jitter too much to tell rest
DISK_BYTES = 500_000_000  # a 200-step episode with two 256 x 256 cameras takes about a tenth of it


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True)
class Preflight:
    """All checks, and when they were made (monotonic seconds)."""

    checks: tuple[Check, ...]
    time_s: float

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def fresh(self, now_s: float) -> bool:
        """Whether the answer still counts."""
        return 0 <= now_s - self.time_s <= FRESH_S

    def lines(self) -> list[str]:
        """One line per check, for the terminal."""
        return [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.text}" for check in self.checks]


def preflight(cell: Cell, gate: SafetyGate, out: Path) -> Preflight:
    """Look at a connected cell. Moves nothing."""
    checks = [_disk(out)]
    checks += [_camera(cell, gate, name) for name in cell.cameras]
    checks += _robot(cell, gate)
    return Preflight(tuple(checks), time.monotonic())


def _disk(out: Path) -> Check:
    folder = out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check("disk", free >= DISK_BYTES, f"{free / 1e9:.1f} GB free at {folder}")


def _two_frames(cell: Cell, name: str) -> list[Frame]:
    """The next two different frames, or what came within two seconds."""
    frames = [cell.cameras[name].read()]
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        frame = cell.cameras[name].read()
        if frame.id != frames[-1].id:
            return [frames[-1], frame]
        time.sleep(0.01)
    return frames


def _camera(cell: Cell, gate: SafetyGate, name: str) -> Check:
    try:
        frames = _two_frames(cell, name)
    except DeviceError as error:
        return Check(f"camera {name}", False, str(error))
    shape = cell.cameras[name].features["image"].shape
    if len(frames) < 2:
        return Check(f"camera {name}", False, "no new frame in two seconds")
    now = time.monotonic()
    views: Mapping[str, View] = {name: View(frames[1], shape, frames[0].id)}
    decision = gate.admit(now, np.zeros(7), now, views)
    text = "; ".join(text for _, text in decision.reasons) or f"{shape[1]} x {shape[0]}, {_rate(frames):.0f} frames/s"
    return Check(f"camera {name}", decision.verdict == "pass", text)


def _rate(frames: list[Frame]) -> float:
    return (frames[1].id - frames[0].id) / max(1e-3, frames[1].time_s - frames[0].time_s)


def _robot(cell: Cell, gate: SafetyGate) -> list[Check]:
    """Arm free of errors, at rest, inside its box, and the gripper alive."""
    try:
        before = cell.arm.read()
        time.sleep(0.2)
        arm = cell.arm.read()
        gripper = cell.gripper.read() if cell.gripper is not None else None
    except DeviceError as error:
        return [Check("robot", False, str(error))]
    now = time.monotonic()
    state = np.array([*arm.pose, gripper.closedness if gripper else 0.0])
    width = gripper.width_m if gripper else None
    moved = float(np.abs(arm.joints - before.joints).max())
    checks = [Check("arm", arm.error is None, arm.error or f"flange at {np.round(arm.pose[:3], 3)} m")]
    checks.append(Check("at rest", moved < REST_RAD, f"{moved:.4f} rad in 0.2 s"))
    if gripper is not None:
        text = gripper.error or f"closedness {gripper.closedness:.2f}"
        checks.append(Check("gripper", gripper.error is None, text))
    admitted = gate.admit(now, state, arm.time_s, {}, width)
    held = gate.check(np.zeros(7), Situation(now, state, arm.time_s, state, arm.time_s))
    reasons = [text for _, text in (*admitted.reasons, *held.reasons)]
    checks.append(Check("box", not reasons, "; ".join(reasons) or "flange and fingertips inside"))
    return checks
