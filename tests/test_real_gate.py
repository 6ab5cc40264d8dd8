"""The safety gate: each refusal by name, each clip by geometry, and that nothing leaves it outside the limits."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from armworld.pose import action_between, apply_action
from armworld.real.gate import COVER_M, SPACING_M, Decision, SafetyGate, Situation, View, Watchdog, check_units
from armworld.real.limits import FRANKA_HAND, ROBOTIQ_2F85, Box, Limits
from armworld.real.protocols import Frame

DOWN = np.array([0.45, 0.0, 0.35, np.pi, 0.0, 0.0, 0.2])
LIMITS = Limits(
    workspace=Box((0.3, -0.3, 0.15), (0.7, 0.3, 0.6)),
    fingertips=Box((0.25, -0.35, 0.01), (0.75, 0.35, 0.6)),
    keep_out=(Box((0.55, 0.1, 0.0), (0.6, 0.2, 0.25)),),
    fingers=FRANKA_HAND,
)
GATE = SafetyGate(LIMITS)


def situation(state=DOWN, **changes) -> Situation:
    base = Situation(10.0, state, 9.95, state, 9.9)
    return dataclasses.replace(base, **changes)


def judge(action, state=DOWN, **changes) -> Decision:
    return GATE.check(np.asarray(action, float), situation(state, **changes))


def act(**entries) -> np.ndarray:
    action = np.zeros(7)
    for name, value in entries.items():
        action[["x", "y", "z", "roll", "pitch", "yaw", "grip"].index(name)] = value
    return action


def test_a_small_step_passes_unchanged():
    decision = judge(act(x=0.02, yaw=0.05, grip=0.3))
    assert decision.verdict == "pass" and decision.codes == ()
    np.testing.assert_allclose(decision.action, act(x=0.02, yaw=0.05, grip=0.3), atol=1e-9)
    np.testing.assert_allclose(decision.target, apply_action(DOWN, act(x=0.02, yaw=0.05, grip=0.3)), atol=1e-9)


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (act(x=np.nan), "nan"),
        (act(grip=np.inf), "nan"),
        (np.zeros(6), "shape"),
        (np.zeros((1, 7)), "shape"),
        (np.zeros(7, int), "dtype"),
        (np.array(["a"] * 7), "dtype"),
        (act(yaw=5.0), "degrees"),
        (act(x=20.0), "millimetres"),
        (act(grip=85.0), "gripper_units"),
    ],
)
def test_what_cannot_be_mended_is_held_by_name(action, code):
    decision = GATE.check(action, situation())
    assert decision.verdict == "hold" and code in decision.codes
    np.testing.assert_array_equal(decision.action, np.zeros(7))
    np.testing.assert_array_equal(decision.target, DOWN)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state_time_s": 9.7}, "stale_state"),
        ({"state_time_s": 10.1}, "stale_state"),
        ({"observed_time_s": 8.9}, "stale_plan"),
        ({"observed_state": DOWN + act(x=0.05)}, "drift"),
        ({"speed_scale": 0.0}, "speed_scale"),
        ({"state": DOWN * np.nan}, "state_nan"),
        ({"state": np.array([0.45, 0, 0.35, 180.0, 0, 0, 0.2])}, "state_degrees"),
        ({"state": np.array([450.0, 0, 350, np.pi, 0, 0, 0.2])}, "state_millimetres"),
        ({"state": np.array([0.45, 0, 0.35, np.pi, 0, 0, 85])}, "state_gripper"),
    ],
)
def test_an_action_is_held_when_the_situation_does_not_bear_it(changes, code):
    decision = GATE.check(act(x=0.01), situation(**changes))
    assert decision.verdict == "hold" and code in decision.codes


def test_speed_is_clipped_along_the_same_straight_line():
    decision = judge(act(x=0.2, y=0.1))
    assert decision.verdict == "clip" and decision.codes == ("speed",)
    assert np.linalg.norm(decision.action[:3]) == pytest.approx(0.0625)  # 250 mm/s for 0.25 s
    assert decision.action[1] / decision.action[0] == pytest.approx(0.5)


def test_first_moves_are_slower():
    assert np.linalg.norm(judge(act(x=0.2), speed_scale=0.2).action[:3]) == pytest.approx(0.0125)


def test_a_target_outside_the_box_is_clipped_to_its_face():
    edge = np.array([0.69, 0.0, 0.35, np.pi, 0.0, 0.0, 0.2])
    decision = judge(act(x=0.05), edge)
    assert decision.codes == ("workspace",) and 0.69 < decision.target[0] <= 0.7


def test_fingertips_are_kept_above_the_table():
    low = np.array([0.45, -0.2, 0.16, np.pi, 0.0, 0.0, 0.2])
    tip_floor = SafetyGate(dataclasses.replace(LIMITS, fingertips=Box((0.2, -0.4, 0.04), (0.8, 0.4, 0.6))))
    decision = tip_floor.check(act(z=-0.01), situation(low))
    assert decision.verdict == "clip" and "fingertips" in decision.codes
    assert decision.target[2] - FRANKA_HAND.length_m >= 0.04


def test_a_path_that_cuts_a_corner_of_a_keep_out_box_is_stopped_before_it():
    """Start and end are free, the straight line between them is not."""
    start = np.array([0.545, 0.085, 0.4, np.pi, 0.0, 0.0, 0.2])
    corner = Box((0.55, 0.09, 0.3), (0.7, 0.11, 0.5))
    gate = SafetyGate(dataclasses.replace(LIMITS, keep_out=(corner,)))
    action = act(x=0.03, y=0.02)
    middle, end = start[:3] + action[:3] / 2, start[:3] + action[:3]
    assert corner.outside(middle) < 0 or corner.outside(end) < 0
    decision = gate.check(action, situation(start))
    assert decision.verdict in ("clip", "hold") and "keep_out" in decision.codes


POST = Box((0.45, -0.02, 0.0), (0.55, 0.02, 0.15))  # 4 cm wide: it fits between open fingers, which are 11 cm apart
OVER_POST = SafetyGate(dataclasses.replace(LIMITS, keep_out=(POST,), fingers=ROBOTIQ_2F85))


@pytest.mark.parametrize("grip", [0.0, 0.5, 1.0])
def test_a_post_that_fits_between_the_fingertips_is_kept_out_of(grip):
    """Open fingers would straddle it, closed ones come down in its middle: at any opening the hand stays above."""
    state = np.array([0.5, 0.0, 0.345, np.pi, 0.0, 0.0, grip])
    decision = OVER_POST.check(act(z=-0.03), situation(state))
    assert decision.verdict == "clip" and decision.codes == ("keep_out",)
    assert 0.15 <= decision.target[2] - ROBOTIQ_2F85.length_m < 0.16
    below = np.array([0.5, 0.0, 0.30, np.pi, 0.0, 0.0, grip])
    assert OVER_POST.check(act(z=-0.03), situation(below)).codes == ("start_outside",)


def test_a_way_through_a_post_between_the_fingertips_is_not_clear():
    aside, above = np.array([0.5, 0.15, 0.28, np.pi, 0.0, 0.0, 1.0]), np.array([0.5, 0.0, 0.4, np.pi, 0.0, 0.0, 1.0])
    assert not OVER_POST.clear(aside, aside + act(y=-0.3)) and not OVER_POST.clear(above, above + act(z=-0.1))
    assert OVER_POST.clear(aside, aside + act(y=0.1)) and OVER_POST.clear(above, above + act(y=-0.2))


@pytest.mark.parametrize("fingers", [FRANKA_HAND, ROBOTIQ_2F85])
def test_the_points_of_the_fingers_plane_leave_no_gaps(fingers):
    """Wherever a finger is, at any opening and height, a point is within `COVER_M`."""
    tips, rng = fingers.points(), np.random.default_rng(0)
    along, across = rng.uniform(0, 1, (500, 1)), rng.uniform(-1, 1, (500, 1))
    anywhere = along * tips.mean(0) + across * (tips[0] - tips.mean(0))
    away = np.linalg.norm(anywhere[:, None] - fingers.plane(SPACING_M), axis=-1).min(1)
    assert away.max() <= COVER_M


def test_tilt_is_limited_and_may_be_undone():
    tilted = apply_action(DOWN, act(pitch=0.65))
    assert "tilt" in judge(act(pitch=0.2), tilted).codes
    assert judge(act(pitch=-0.2), tilted).verdict == "pass"


def test_an_arm_outside_its_box_is_held_but_a_tracking_error_is_led_back():
    far = np.array([0.8, 0.0, 0.35, np.pi, 0.0, 0.0, 0.2])
    assert judge(act(x=-0.05), far).codes == ("start_outside",)
    near = np.array([0.702, 0.0, 0.35, np.pi, 0.0, 0.0, 0.2])
    assert judge(act(x=-0.05), near).verdict == "pass"
    assert judge(act(x=0.05), near).verdict == "hold"


def test_a_stalled_gripper_is_not_pushed_but_may_back_off_and_may_hold_an_object():
    state = np.array([*DOWN[:6], 0.5])
    stalled = {"commanded": np.array([*DOWN[:6], 0.9]), "gripper_moved_s": 8.0}
    decision = judge(act(grip=0.4), state, **stalled)
    assert "gripper_stall" in decision.codes and decision.target[6] == pytest.approx(0.5)
    assert judge(act(grip=-0.4), state, **stalled).target[6] == pytest.approx(0.1)
    held = judge(act(), state, object_held=True, **stalled)
    assert held.verdict == "pass" and held.target[6] == pytest.approx(0.9)  # it keeps squeezing


def test_holding_still_does_not_sink_with_a_sagging_arm():
    sagging = DOWN + act(z=-0.004)
    assert judge(act(), sagging, commanded=DOWN).target[2] == pytest.approx(DOWN[2])
    pushed = DOWN + act(z=-0.02)
    assert judge(act(), pushed, commanded=DOWN).target[2] == pytest.approx(pushed[2])


def view(image=None, **changes) -> View:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8) if image is None else image
    fields = {"id": 5, "time_s": 9.8} | {k: v for k, v in changes.items() if k in ("id", "time_s")}
    rest = {k: v for k, v in changes.items() if k not in ("id", "time_s")}
    return View(Frame(image, **fields), (48, 64, 3), **({"previous_id": 4} | rest))


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        (view(time_s=9.6), "stale_frame"),
        (view(id=4), "repeated_frame"),
        (view(identical=3), "frozen_camera"),
        (view(np.zeros((48, 64, 3), np.uint8)), "black_frame"),
        (view(np.full((48, 64, 3), 128, np.uint8)), "black_frame"),
        (view(np.zeros((64, 48, 3), np.uint8)), "wrong_size"),
        (view(np.zeros((48, 64, 3), np.float32)), "wrong_size"),
    ],
)
def test_bad_frames_are_not_shown_to_an_agent(seen, code):
    decision = GATE.admit(10.0, DOWN, 9.95, {"left": seen})
    assert decision.verdict == "hold" and code in decision.codes


def test_a_good_observation_is_admitted_and_gripper_metres_are_named():
    assert GATE.admit(10.0, DOWN, 9.95, {"left": view()}, gripper_width_m=0.068).verdict == "pass"
    metres = np.array([*DOWN[:6], 0.068])
    assert "gripper_metres" in GATE.admit(10.0, metres, 9.95, {}, gripper_width_m=0.068).codes


def test_units_are_refused_by_name():
    check_units({"translation": "m", "rotation": "rad", "gripper": "closedness"})
    with pytest.raises(ValueError, match="rotation must be in 'rad', got 'deg'"):
        check_units({"translation": "m", "rotation": "deg", "gripper": "closedness"})
    with pytest.raises(ValueError, match="gripper must be in 'closedness', got 'm'"):
        check_units({"translation": "m", "rotation": "rad", "gripper": "m"})


@pytest.mark.parametrize(
    "changes", [{"max_speed": 0.3}, {"max_speed": 0}, {"max_rotation_rate": 10.0}, {"tracking_m": 0.1}]
)
def test_limits_that_are_no_limits_are_refused(changes):
    with pytest.raises(ValueError):
        dataclasses.replace(LIMITS, **changes)


def test_boxes_must_be_boxes():
    with pytest.raises(ValueError, match="low < high"):
        Box((0, 0, 0), (1, 0, 1))


def test_watchdog():
    assert not Watchdog(1.0).expired(10.0, 9.5)
    assert Watchdog(1.0).expired(10.0, 8.5) and Watchdog(1.0).expired(10.0, 11.0)


# ---------------------------------------------------------------------------------------------- properties

KINDS = ("small", "large", "huge", "special", "edge", "spin", "outward", "type")
TYPES = (None, "forwards", [[0.0], [0.0, 1.0]], np.zeros((7, 1)), np.zeros(7, complex), [0] * 7, {"x": 1.0}, [0.01] * 8)
STREAMS = 40  # streams per example
PATH = np.linspace(0, 1, 65)


def draw_action(kind: str, rng: np.random.Generator, state: np.ndarray) -> Any:
    """An adversarial action: from plausible to absurd, or aimed at the nearest face of a box."""
    scale = {"small": 0.03, "large": 0.3, "huge": 1e3}.get(kind, 0.05)
    action = rng.normal(size=7) * scale
    if kind == "special":
        action[rng.integers(7)] = rng.choice([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324])
    if kind == "spin":
        action = np.concatenate([np.zeros(3), rng.uniform(-0.8, 0.8, 3), rng.uniform(-1, 1, 1)])
    if kind == "edge":
        box = LIMITS.keep_out[0] if rng.random() < 0.5 else LIMITS.workspace
        action[:3] = np.where(rng.random(3) < 0.5, box.low, box.high) - state[:3]
    if kind == "outward":
        action[:3] = np.sign(state[:3] - [0.5, 0, 0.35]) * rng.uniform(0, 0.2, 3)
    return TYPES[rng.integers(len(TYPES))] if kind == "type" else action


def dense_paths(starts: np.ndarray, targets: np.ndarray, at: np.ndarray = PATH):
    """Flange [N, S, 3], fingertips [N, S, 2, 3], tilt [N, S] and turn [N] along commanded paths between states [N, 7].

    Computed here independently of the gate, by SciPy's rotations.
    """
    count = len(at)
    first = Rotation.from_euler("xyz", starts[:, 3:6])
    turn = (Rotation.from_euler("xyz", targets[:, 3:6]) * first.inv()).as_rotvec()
    parts = Rotation.from_rotvec((at[:, None] * turn[:, None]).reshape(-1, 3))
    every = parts * Rotation.from_quat(np.repeat(first.as_quat(), count, 0))
    flange = starts[:, None, :3] + at[:, None] * (targets - starts)[:, None, :3]
    tips = np.stack([flange + every.apply(p).reshape(-1, count, 3) for p in LIMITS.fingers.points()], 2)
    tilt = np.arccos(np.clip(-every.as_matrix()[:, 2, 2], -1, 1)).reshape(-1, count)
    return flange, tips, tilt, np.linalg.norm(turn, axis=-1)


def between(flange: np.ndarray, tips: np.ndarray) -> np.ndarray:
    """Points [..., 49, 3] wherever fingers may be: along and across, from flanges [..., 3] to tips [..., 2, 3]."""
    along, across = (grid.ravel()[:, None] for grid in np.meshgrid(np.linspace(0, 1, 7), np.linspace(-1, 1, 7)))
    middle = tips.mean(-2)
    return (
        flange[..., None, :]
        + along * (middle - flange)[..., None, :]
        + across * (tips[..., 0, :] - middle)[..., None, :]
    )


def free_states(rng: np.random.Generator, count: int) -> np.ndarray:
    """States [count, 7] with flange and fingertips inside every box and the fingers outside every keep-out box."""
    found = np.zeros((0, 7))
    while len(found) < count:
        states = np.zeros((4 * count, 7))
        states[:, :3] = rng.uniform(LIMITS.workspace.low, LIMITS.workspace.high, (4 * count, 3))
        states[:, 3], states[:, 5], states[:, 6] = np.pi, rng.uniform(-3, 3, 4 * count), rng.uniform(size=4 * count)
        flange, tips, _, _ = dense_paths(states, states, np.zeros(1))
        points = between(flange, tips)[:, 0]
        inside = LIMITS.fingertips.outside(tips[:, 0]).max(-1) <= 0
        found = np.concatenate([found, states[inside & (LIMITS.keep_out[0].outside(points).min(-1) >= 0)]])
    return found[:count]


def assert_within_limits(states: np.ndarray, targets: np.ndarray) -> None:
    """No command [N, 7], given at a state [N, 7], breaks a limit anywhere on its path."""
    flange, tips, tilt, turn = dense_paths(states, targets)
    assert np.isfinite(targets).all() and targets[:, 6].min() >= 0 and targets[:, 6].max() <= 1
    step = LIMITS.max_speed * LIMITS.step_seconds
    assert np.linalg.norm((targets - states)[:, :3], axis=-1).max() <= step + 1e-9
    assert np.linalg.norm(np.diff(tips, axis=1), axis=-1).sum(1).max() <= step + 1e-6
    assert turn.max() <= LIMITS.max_rotation_rate * LIMITS.step_seconds + 1e-6
    assert tilt.max() <= LIMITS.max_tilt + 1e-6
    assert LIMITS.workspace.outside(flange).max() <= 1e-9
    assert LIMITS.fingertips.outside(tips).max() <= 1e-9
    for box in LIMITS.keep_out:
        assert box.outside(between(flange, tips)).min() >= -1e-9
    rate = LIMITS.max_closedness_rate * LIMITS.step_seconds
    assert np.abs((targets - states)[:, 6]).max() <= rate + 1e-9


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
def test_nothing_that_leaves_the_gate_breaks_a_limit(seed, kinds):
    """250 examples of 40 streams of 1 to 3 actions, on arms that lag behind their commands: 10,000 streams."""
    rng = np.random.default_rng(seed)
    states = free_states(rng, STREAMS)
    commanded: list[np.ndarray | None] = [None] * STREAMS
    for kind in kinds:
        decisions = [
            GATE.check(draw_action(kind, rng, state), situation(state, commanded=last))
            for state, last in zip(states, commanded, strict=True)
        ]
        targets, actions = (np.array([getattr(d, name) for d in decisions]) for name in ("target", "action"))
        held = np.array([d.verdict == "hold" for d in decisions])
        assert all(d.reasons for d in decisions if d.verdict != "pass")
        assert not actions[held].any() and np.array_equal(targets[held], states[held])
        if not held.all():
            assert_within_limits(states[~held], targets[~held])
        np.testing.assert_allclose(apply_action(states, actions)[:, :3], targets[:, :3], atol=1e-9)
        states = apply_action(states, rng.uniform(0.3, 1, (STREAMS, 1)) * action_between(states, targets))
        commanded = [None if d.verdict == "hold" else d.target for d in decisions]


AGES = st.floats(-0.5, 3.0)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(AGES, AGES, st.floats(0, 0.08), st.floats(-0.5, 2.0), st.integers(0, 2**32 - 1))
def test_whatever_is_too_old_too_far_or_no_scale_is_held(state_age, plan_age, drift, scale, seed):
    """Any mix of ages, drift and speed scale: it moves only where all of them are within their limits."""
    rng = np.random.default_rng(seed)
    towards = rng.normal(size=3)
    observed = DOWN + np.array([*(drift * towards / np.linalg.norm(towards)), 0, 0, 0, 0])
    given = situation(state_time_s=10 - state_age, observed_time_s=10 - plan_age, observed_state=observed)
    given = dataclasses.replace(given, speed_scale=scale)
    decision = GATE.check(rng.normal(size=7) * 0.02, given)
    fit = 0 <= 10 - given.state_time_s <= LIMITS.max_state_age and 0 < scale <= 1
    fit &= 0 <= 10 - given.observed_time_s <= LIMITS.max_plan_age
    fit &= float(np.linalg.norm(given.state[:3] - observed[:3])) <= LIMITS.max_drift
    if not fit:
        assert decision.verdict == "hold" and decision.reasons and not decision.action.any()
    elif decision.verdict != "hold":
        reach = np.linalg.norm(decision.target[:3] - given.state[:3])
        assert reach <= LIMITS.max_speed * LIMITS.step_seconds * scale + 1e-9


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=80))
def test_arbitrary_bytes_as_an_action_never_raise(blob):
    blob = blob[: len(blob) // 8 * 8]
    decision = GATE.check(np.frombuffer(blob), situation())
    assert decision.verdict in ("pass", "clip", "hold")
