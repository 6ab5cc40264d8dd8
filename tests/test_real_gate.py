"""The safety gate: each refusal by name, each clip by geometry, and that nothing leaves it outside the limits."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from armworld.pose import apply_action
from armworld.real.gate import Decision, SafetyGate, Situation, View, Watchdog, check_units
from armworld.real.limits import FRANKA_HAND, Box, Limits
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

KINDS = ("small", "large", "huge", "special", "edge", "spin", "outward")


def draw_action(kind: str, rng: np.random.Generator, state: np.ndarray) -> np.ndarray:
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
    return action


def dense_path(start: np.ndarray, target: np.ndarray, samples: int = 101):
    """Flange, fingertips and tilt along the commanded path, computed here independently of the gate."""
    first = Rotation.from_euler("xyz", start[3:6])
    turn = (Rotation.from_euler("xyz", target[3:6]) * first.inv()).as_rotvec()
    s = np.linspace(0, 1, samples)[:, None]
    rotations = Rotation.from_rotvec(s * turn) * first
    flange = start[:3] + s * (target[:3] - start[:3])
    tips = np.stack([flange + rotations.apply(p) for p in LIMITS.fingers.points()], 1)
    tilt = np.arccos(np.clip(-rotations.as_matrix()[:, 2, 2], -1, 1))
    return flange, tips, tilt, np.linalg.norm(turn)


def free_state(rng: np.random.Generator) -> np.ndarray:
    """A state [7] with flange and fingertips inside every box and outside every keep-out box."""
    while True:
        yaw = rng.uniform(-np.pi, np.pi)
        state = np.array([*rng.uniform([0.3, -0.3, 0.15], [0.7, 0.3, 0.6]), np.pi, 0, yaw, rng.uniform()])
        flange, tips, _, _ = dense_path(state, state, 1)
        points = np.concatenate([flange, tips[0]])
        if LIMITS.fingertips.outside(tips).max() <= 0 and LIMITS.keep_out[0].outside(points).min() >= 0:
            return state


def assert_within_limits(state: np.ndarray, target: np.ndarray) -> None:
    flange, tips, tilt, turn = dense_path(state, target)
    assert np.isfinite(target).all() and 0 <= target[6] <= 1
    step = LIMITS.max_speed * LIMITS.step_seconds
    assert np.linalg.norm(target[:3] - state[:3]) <= step + 1e-9
    assert np.linalg.norm(np.diff(tips, axis=0), axis=-1).sum(0).max() <= step + 1e-6
    assert turn <= LIMITS.max_rotation_rate * LIMITS.step_seconds + 1e-6
    assert tilt.max() <= LIMITS.max_tilt + 1e-6
    assert LIMITS.workspace.outside(flange).max() <= 1e-9
    assert LIMITS.fingertips.outside(tips).max() <= 1e-9
    for box in LIMITS.keep_out:
        assert box.outside(flange).min() >= -1e-9 and box.outside(tips).min() >= -1e-9
    rate = LIMITS.max_closedness_rate * LIMITS.step_seconds
    assert abs(target[6] - state[6]) <= rate + 1e-9


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
def test_nothing_that_leaves_the_gate_breaks_a_limit(seed, kinds):
    """500 examples of 20 streams of 1 to 3 actions each: 10,000 streams, every command fully inside."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        state = free_state(rng)
        for kind in kinds:
            decision = GATE.check(draw_action(kind, rng, state), situation(state))
            if decision.verdict == "hold":
                assert decision.reasons and not decision.action.any()
                continue
            assert_within_limits(state, decision.target)
            np.testing.assert_allclose(apply_action(state, decision.action)[:3], decision.target[:3], atol=1e-9)
            state = decision.target


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=80))
def test_arbitrary_bytes_as_an_action_never_raise(blob):
    blob = blob[: len(blob) // 8 * 8]
    decision = GATE.check(np.frombuffer(blob), situation())
    assert decision.verdict in ("pass", "clip", "hold")
