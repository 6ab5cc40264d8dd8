"""The safety gate: between any agent and any arm. Pure: no clock, no device, no memory of its own.

`admit` judges what was seen, `check` judges what is proposed. Each answers a `Decision`: pass, clip (the same
straight path, shortened) or hold, with the reasons and the action that is allowed. What it cannot vouch for it
holds; it never guesses a unit, a frame or a value.

The path of one action is a straight line of the flange and a rotation about one axis. It is judged at `SAMPLES`
points; between two of them a fingertip leaves the chord by at most its arc's sagitta, and boxes are shrunk by it.
Tips that stay in a box keep the fingers between them there; out of a box they do not: `keep_out` is tested with points
all over the fingers' plane, and grown by what lies between those.

The gate is software: the hardware stop and the enabling device are the only safety functions of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from armworld.pose import action_between, apply_action
from armworld.real.limits import DEGREES_RAD, MILLIMETRES_M, Limits
from armworld.real.protocols import Frame
from armworld.real.swept import Path

Verdict = Literal["pass", "clip", "hold"]
SAMPLES = 17
SPACING_M = 0.01  # of the points over the fingers' plane; between four of them is nothing farther than COVER_M
COVER_M = SPACING_M / np.sqrt(2)
POSE_SLIP_M, POSE_SLIP_RAD = 0.01, 0.1  # a commanded pose that the arm is farther from is given up
GRIPPER_SLIP = 0.05  # closedness off the commanded one that is still "arrived"
ACTION_UNITS = {"translation": "m", "rotation": "rad", "gripper": "closedness"}


@dataclass(frozen=True)
class Decision:
    """What may be done.

    Attributes:
        verdict: "pass", "clip" or "hold".
        reasons: Code and sentence of everything that was objected to; empty for "pass".
        action: The action that is allowed [7]; zeros for "hold".
        target: The state [7] to command: flange pose and closedness, base frame. For "hold", the measured state.
    """

    verdict: Verdict
    reasons: tuple[tuple[str, str], ...]
    action: np.ndarray
    target: np.ndarray

    @property
    def codes(self) -> tuple[str, ...]:
        """The reasons' codes."""
        return tuple(code for code, _ in self.reasons)


@dataclass(frozen=True)
class Situation:
    """What is known when an action is judged. Times are monotonic seconds.

    Attributes:
        now_s: The time of the judgement.
        state: Measured state [7].
        state_time_s: When it was measured.
        observed_state: The state [7] in the observation that the agent acted on.
        observed_time_s: The capture time of the oldest part of that observation.
        commanded: The state [7] last commanded; None before the first command, and after a stop.
        gripper_moved_s: When the gripper was last seen to move, or to be where it was sent.
        object_held: Whether the gripper reports an object between its fingers.
        speed_scale: In (0, 1]; below 1 for the first, slow moves.
    """

    now_s: float
    state: np.ndarray
    state_time_s: float
    observed_state: np.ndarray
    observed_time_s: float
    commanded: np.ndarray | None = None
    gripper_moved_s: float = -np.inf
    object_held: bool = False
    speed_scale: float = 1.0


@dataclass(frozen=True)
class View:
    """What an admission needs to know of one frame, and of the one before it."""

    frame: Frame
    expected_shape: tuple[int, ...]
    previous_id: int | None = None
    identical: int = 0


def check_units(units: Mapping[str, str]) -> None:
    """Refuse, by name, any units but metres, radians and closedness.

    Raises:
        ValueError: A unit is missing, unknown or another one ("deg", "mm", gripper in "m").
    """
    for quantity, unit in ACTION_UNITS.items():
        given = units.get(quantity)
        if given != unit:
            raise ValueError(f"{quantity} must be in {unit!r}, got {given!r}; convert it before the gate")
    if extra := set(units) - set(ACTION_UNITS):
        raise ValueError(f"unknown quantities {sorted(extra)}; valid: {', '.join(ACTION_UNITS)}")


def _off_way(state: np.ndarray, observed: np.ndarray, commanded: np.ndarray | None) -> float:
    """How far (m) the flange is from the straight way from where the plan saw it to where it was last sent.

    The last motion may still go on while the agent thinks: what is on its way there is no drift.
    """
    way = np.zeros(3) if commanded is None else np.asarray(commanded, float)[:3] - observed[:3]
    gone = np.asarray(state, float)[:3] - observed[:3]
    share = np.clip(gone @ way / max(way @ way, 1e-12), 0.0, 1.0)
    return float(np.linalg.norm(gone - share * way))


def unit_reasons(state: np.ndarray) -> list[tuple[str, str]]:
    """What speaks for other units than m, rad and closedness in a finite state [7]: code and sentence each."""
    reasons = []
    if np.abs(state[3:6]).max() > np.pi + 1e-3:
        reasons.append(("state_degrees", f"angles {state[3:6]} exceed pi: degrees where radians are expected"))
    if np.abs(state[:3]).max() > 2.0:  # no Franka reaches 2 m
        reasons.append(("state_millimetres", f"position {state[:3]} is beyond 2 m: millimetres for metres"))
    if not -0.01 <= state[6] <= 1.01:
        reasons.append(("state_gripper", f"closedness {state[6]:.4g} is outside [0, 1] (0 open, 1 closed)"))
    return reasons


@dataclass(frozen=True)
class SafetyGate:
    """The limits, applied. `max_identical` is how often the same pixels may repeat before the camera is frozen."""

    limits: Limits
    max_identical: int | None = 3
    _hand: np.ndarray = field(init=False, repr=False)  # both fingertips, then the points of the fingers' plane
    _radius: float = field(init=False, repr=False)  # of the fingertips about the flange, m

    def __post_init__(self) -> None:
        tips = self.limits.fingers.points()
        plane = self.limits.fingers.plane(SPACING_M) if self.limits.keep_out else tips[:0]
        object.__setattr__(self, "_hand", np.concatenate([tips, plane]))
        object.__setattr__(self, "_radius", float(np.linalg.norm(tips, axis=-1).max()))

    def admit(
        self,
        now_s: float,
        state: np.ndarray,
        state_time_s: float,
        views: Mapping[str, View],
        gripper_width_m: float | None = None,
    ) -> Decision:
        """Whether an observation may be shown to an agent: "pass" or "hold".

        Args:
            now_s: The time of the judgement.
            state: Measured state [7].
            state_time_s: When it was measured.
            views: By camera name.
            gripper_width_m: The measured opening, to tell closedness from metres.
        """
        reasons = self._state_reasons(now_s, state, state_time_s, gripper_width_m)
        for name, view in views.items():
            reasons += [(code, f"camera {name}: {text}") for code, text in self._frame_reasons(now_s, view)]
        return _hold(reasons, state) if reasons else _allow([], state, np.zeros(7))

    def check(self, action: np.ndarray, situation: Situation) -> Decision:
        """Judge one proposed action [7] (metres, radians, closedness) and say what may be commanded."""
        reasons = self._refusals(action, situation)
        if reasons:
            return _hold(reasons, situation.state)
        state = np.asarray(situation.state, float)
        wanted = apply_action(self._reference(situation), np.asarray(action, float))
        target, reasons = self._shorten(state, wanted, situation.speed_scale)
        if target is None:
            return _hold(reasons, state)
        target[6], gripper_reasons = self._gripper(state[6], wanted[6], situation)
        reasons += gripper_reasons
        return _allow(reasons, target, action_between(state, target))

    # ------------------------------------------------------------------ refusals

    def _state_reasons(
        self, now_s: float, state: np.ndarray, time_s: float, width_m: float | None
    ) -> list[tuple[str, str]]:
        state = np.asarray(state)
        if state.shape != (7,):
            return [("state_shape", f"the state must have shape (7,), got {state.shape}")]
        if not np.issubdtype(state.dtype, np.floating) or not np.isfinite(state).all():
            return [("state_nan", "the state has entries that are not finite numbers")]
        reasons = []
        age = now_s - time_s
        if not 0 <= age <= self.limits.max_state_age:
            reasons.append(("stale_state", f"the state is {age:.3f} s old, allowed {self.limits.max_state_age}"))
        reasons += unit_reasons(state)
        if width_m is not None and abs(state[6] - width_m) < 1e-6 and width_m > 0.005:
            reasons.append(("gripper_metres", f"closedness equals the opening, {width_m:.4g} m: metres for closedness"))
        return reasons

    def _frame_reasons(self, now_s: float, view: View) -> list[tuple[str, str]]:
        image, limits = view.frame.image, self.limits
        if image.shape != view.expected_shape or image.dtype != np.uint8:
            return [("wrong_size", f"expected uint8 {view.expected_shape}, got {image.dtype} {image.shape}")]
        reasons = []
        age = now_s - view.frame.time_s
        if not 0 <= age <= limits.max_frame_age:
            reasons.append(("stale_frame", f"the frame is {age:.3f} s old, allowed {limits.max_frame_age}"))
        if view.previous_id is not None and view.frame.id <= view.previous_id:
            reasons.append(("repeated_frame", f"frame {view.frame.id} after frame {view.previous_id}"))
        if self.max_identical is not None and view.identical >= self.max_identical:
            reasons.append(("frozen_camera", f"the same pixels came {view.identical + 1} times"))
        pixels = image[::4, ::4]
        if pixels.mean() < limits.min_brightness or pixels.std() < limits.min_contrast:
            reasons.append(("black_frame", f"mean {pixels.mean():.1f}, deviation {pixels.std():.1f} of 255"))
        return reasons

    def _refusals(self, action: np.ndarray, situation: Situation) -> list[tuple[str, str]]:
        """Everything about a proposal that cannot be mended by a shorter step."""
        reasons = self._action_reasons(action)
        reasons += self._state_reasons(situation.now_s, situation.state, situation.state_time_s, None)
        observed = np.asarray(situation.observed_state)
        if observed.shape != (7,) or not np.isfinite(observed).all():
            reasons.append(("state_nan", "the observed state is not seven finite numbers"))
        if not 0 < situation.speed_scale <= 1:
            reasons.append(("speed_scale", f"the speed scale must lie in (0, 1], got {situation.speed_scale}"))
        if reasons:
            return reasons
        age = situation.now_s - situation.observed_time_s
        if not 0 <= age <= self.limits.max_plan_age:
            text = f"the plan's observation is {age:.3f} s old, allowed {self.limits.max_plan_age}"
            reasons.append(("stale_plan", text))
        drift = _off_way(situation.state, observed, situation.commanded)
        if not drift <= self.limits.max_drift:
            text = f"the arm is {1000 * drift:.0f} mm off the way from where the plan saw it to where it was sent"
            reasons.append(("drift", f"{text}, allowed {1000 * self.limits.max_drift:.0f}"))
        return reasons

    @staticmethod
    def _action_reasons(action: np.ndarray) -> list[tuple[str, str]]:
        try:
            array = np.asarray(action)
        except (ValueError, TypeError):
            return [("shape", "the action is not an array of shape (7,)")]
        if array.shape != (7,):
            return [("shape", f"the action must have shape (7,), got {array.shape}")]
        if not np.issubdtype(array.dtype, np.floating):
            return [("dtype", f"the action must be floating point, got {array.dtype}")]
        if not np.isfinite(array).all():
            return [("nan", f"the action has entries that are not finite numbers: {array}")]
        reasons = []
        if np.abs(array[:3]).max() > MILLIMETRES_M:
            reasons.append(("millimetres", f"translation {array[:3]} exceeds 1 m: millimetres for metres?"))
        if np.abs(array[3:6]).max() > DEGREES_RAD:
            text = f"rotation {array[3:6]} exceeds {DEGREES_RAD} rad in a step: degrees for radians?"
            reasons.append(("degrees", text))
        if abs(array[6]) > 1.001:
            text = f"closedness delta {array[6]:.4g} exceeds 1: metres, millimetres or bits for closedness?"
            reasons.append(("gripper_units", text))
        return reasons

    # ------------------------------------------------------------------ geometry

    def _violations(self, flange: np.ndarray, hand: np.ndarray, turn: float) -> np.ndarray:
        """How far the worst point lies outside what is allowed (m), [S]; at most 0 is allowed."""
        sagitta = self._radius * (1 - np.cos(turn / (SAMPLES - 1) / 2))
        tips_outside = self.limits.fingertips.outside(hand[:, :2]).max(-1) + sagitta
        worst = np.maximum(self.limits.workspace.outside(flange), tips_outside)
        if self.limits.keep_out:
            gap = np.linalg.norm(np.diff(hand, axis=0), axis=-1).max() / 2 + sagitta + COVER_M
            for box in self.limits.keep_out:
                worst = np.maximum(worst, gap - box.outside(hand).min(-1))
        return worst

    def clear(self, state: np.ndarray, wanted: np.ndarray, margin_m: float = 0.0) -> bool:
        """Whether the whole straight way from one state [7] to another is allowed, and so far from every box's walls.

        For drawing targets beforehand; commands are judged anew when they are sent.
        """
        path = Path.between(state, wanted)
        flange, hand, tilt = path.points(np.linspace(0, 1, SAMPLES), self._hand)
        inside = self._violations(flange, hand, path.turn) <= -margin_m
        return bool(inside.all() and (tilt <= self.limits.max_tilt).all())

    def steps(self, state: np.ndarray, wanted: np.ndarray, scale: float = 1.0) -> int:
        """How many steps the straight way from one state [7] to another takes at the speed and turn allowed."""
        return math.ceil(1 / self._slow_down(Path.between(state, wanted), scale)[0])

    def _shorten(
        self, state: np.ndarray, wanted: np.ndarray, scale: float
    ) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
        """The farthest allowed state on the straight path to `wanted`, or None, and what was objected to."""
        limits, path = self.limits, Path.between(state, wanted)
        fraction, reasons = self._slow_down(path, scale)
        fractions = np.linspace(0, fraction, SAMPLES)
        flange, hand, tilt = path.points(fractions, self._hand)
        outside = self._violations(flange, hand, path.turn * fraction)
        if outside[0] > limits.tracking_m or tilt[0] > limits.max_tilt + 0.05:
            text = f"the arm stands {1000 * outside[0]:.0f} mm outside its box, tilted {tilt[0]:.2f} rad"
            return None, [("start_outside", f"{text}: drive it back by hand")]
        allowed = (np.diff(outside) <= 1e-12) | (outside[1:] <= 0)
        allowed &= (np.diff(tilt) <= 1e-12) | (tilt[1:] <= limits.max_tilt)
        end = SAMPLES - 1 if allowed.all() else int(np.argmin(allowed))
        while end > 0 and (outside[end] > 0 or tilt[end] > limits.max_tilt):
            end -= 1
        if end < SAMPLES - 1:
            reasons.append(self._blame(flange, hand[:, :2], tilt, min(end + 1, SAMPLES - 1)))
        if end == 0:
            return None, reasons
        return np.append(path.pose(fractions[end]), state[6]), reasons

    def _slow_down(self, path: Path, scale: float) -> tuple[float, list[tuple[str, str]]]:
        """The fraction of a path that speed and rotation rate allow in a step."""
        limits, fraction, reasons = self.limits, 1.0, []
        longest = limits.max_speed * limits.step_seconds * scale
        widest = limits.max_rotation_rate * limits.step_seconds * scale
        reach = path.length + self._radius * path.turn  # bounds the fingertips' way
        if reach > longest:
            fraction = longest / reach
            reasons.append(("speed", f"{1000 * reach:.0f} mm in a step, allowed {1000 * longest:.0f}"))
        if path.turn * fraction > widest:
            fraction = widest / path.turn
            reasons.append(("rotation", f"{path.turn:.3f} rad in a step, allowed {widest:.3f}"))
        return fraction, reasons

    def _blame(self, flange: np.ndarray, tips: np.ndarray, tilt: np.ndarray, at: int) -> tuple[str, str]:
        where = "({:.3f}, {:.3f}, {:.3f})".format(*flange[at])
        if tilt[at] > self.limits.max_tilt:
            return ("tilt", f"tilted {tilt[at]:.2f} rad from straight down, allowed {self.limits.max_tilt}")
        if self.limits.workspace.outside(flange[at]) > 0:
            return ("workspace", f"the flange would leave its box at {where}")
        if self.limits.fingertips.outside(tips[at]).max() > -1e-3:
            return ("fingertips", f"a fingertip would leave its box with the flange at {where}")
        return ("keep_out", f"flange or fingers would enter a keep-out box with the flange at {where}")

    # ------------------------------------------------------------------ reference and gripper

    @staticmethod
    def _reference(situation: Situation) -> np.ndarray:
        """The state [7] that the action is added to: what was commanded, where the arm got there, else what was seen.

        An arm sags below what was commanded. Adding zero to the measured pose, again and again, would sink.
        """
        reference = np.array(situation.observed_state, float)
        commanded = situation.commanded
        if commanded is None:
            return reference
        off = action_between(reference, np.asarray(commanded, float))
        if np.linalg.norm(off[:3]) < POSE_SLIP_M and np.linalg.norm(off[3:6]) < POSE_SLIP_RAD:
            reference[:6] = commanded[:6]
        if situation.object_held or abs(off[6]) < GRIPPER_SLIP:
            reference[6] = np.clip(commanded[6], 0, 1)  # fingers on an object keep squeezing it
        return reference

    def _gripper(self, closedness: float, wanted: float, situation: Situation) -> tuple[float, list[tuple[str, str]]]:
        """The closedness to command: rate-limited, in [0, 1], and not pushed further into a stall."""
        here = float(np.clip(closedness, 0, 1))
        longest = self.limits.max_closedness_rate * self.limits.step_seconds
        target = float(np.clip(wanted, max(0.0, here - longest), min(1.0, here + longest)))
        reasons = []
        if abs(target - wanted) > 1e-9:
            reasons.append(("gripper_rate", f"closedness {here:.2f} to {wanted:.2f} is more than a step allows"))
        if situation.commanded is None or situation.object_held:
            return target, reasons
        missing = float(situation.commanded[6]) - here
        stalled = situation.now_s - situation.gripper_moved_s > self.limits.gripper_stall
        if stalled and abs(missing) > GRIPPER_SLIP and (target - here) * missing > 0:  # backing off is allowed
            text = f"the gripper stands at {here:.2f} instead of {here + missing:.2f} and holds nothing"
            return here, [*reasons, ("gripper_stall", text)]
        return target, reasons


def _hold(reasons: list[tuple[str, str]], state: np.ndarray) -> Decision:
    return Decision("hold", tuple(reasons), np.zeros(7), np.asarray(state, float))


def _allow(reasons: list[tuple[str, str]], target: np.ndarray, action: np.ndarray) -> Decision:
    return Decision("clip" if reasons else "pass", tuple(reasons), action, target)


@dataclass(frozen=True)
class Watchdog:
    """Pure: whether a loop that last gave a sign of life at `beat_s` has been silent too long."""

    limit_s: float = 1.0

    def expired(self, now_s: float, beat_s: float) -> bool:
        """True when the silence exceeds the limit, or the clock ran backwards."""
        return not 0 <= now_s - beat_s <= self.limit_s
