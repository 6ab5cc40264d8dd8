"""The safety gate at the edges of its limits: either sign, either side, one limit at a time."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_real_gate import DOWN, GATE, LIMITS, act, dense_paths, judge, situation, view

from armworld.pose import apply_action
from armworld.real.gate import SAMPLES, SafetyGate, unit_reasons
from armworld.real.limits import Box

STEP_M = LIMITS.max_speed * LIMITS.step_seconds
STEP_RAD = LIMITS.max_rotation_rate * LIMITS.step_seconds


@pytest.mark.parametrize(
    ("action", "code"),
    [(act(yaw=-5.0), "degrees"), (act(z=-20.0), "millimetres"), (act(grip=-85.0), "gripper_units")],
)
def test_actions_in_other_units_are_named_of_either_sign(action: np.ndarray, code: str) -> None:
    assert code in GATE.check(action, situation()).codes


@pytest.mark.parametrize(
    ("axis", "value", "code"),
    [
        (0, -450.0, "state_millimetres"),
        (1, 450.0, "state_millimetres"),
        (2, 350.0, "state_millimetres"),
        (3, -180.0, "state_degrees"),
        (5, 90.0, "state_degrees"),
        (6, -0.05, "state_gripper"),
        (6, 1.05, "state_gripper"),
    ],
)
def test_a_state_in_other_units_is_named_whichever_entry_it_is(axis: int, value: float, code: str) -> None:
    state = DOWN.copy()
    state[axis] = value
    assert [found for found, _ in unit_reasons(state)] == [code]


def test_what_was_seen_in_the_future_was_not_seen() -> None:
    """A clock that jumped: such a frame or plan is as little to be trusted as an old one."""
    assert "stale_plan" in judge(act(x=0.01), observed_time_s=10.1).codes
    assert "stale_frame" in GATE.admit(10.0, DOWN, 9.95, {"left": view(time_s=10.1)}).codes
    assert "stale_state" in GATE.admit(10.0, DOWN, 10.1, {"left": view()}).codes


@pytest.mark.parametrize(("scale", "share"), [(1.0, 1.0), (0.2, 0.2)])
def test_a_turn_is_slowed_down_as_a_move_is(scale: float, share: float) -> None:
    """By both limits: on the turn itself, and on the way of the fingertips, which lie off its axis."""
    yawed = judge(act(yaw=0.7), speed_scale=scale)
    reach = float(np.linalg.norm(LIMITS.fingers.points(), axis=-1).max())
    assert yawed.verdict == "clip" and "speed" in yawed.codes
    assert yawed.action[5] == pytest.approx(min(STEP_RAD, STEP_M / reach) * share, rel=1e-3)


def test_a_move_with_a_turn_is_as_slow_as_the_slower_of_both_asks() -> None:
    decision = judge(act(x=0.3, yaw=0.3))
    assert np.linalg.norm(decision.action[:3]) < STEP_M and decision.action[5] < STEP_RAD
    assert decision.action[5] / decision.action[0] == pytest.approx(1.0, rel=1e-3)
    assert judge(act(x=0.3, yaw=0.3), speed_scale=0.5).action[0] == pytest.approx(decision.action[0] / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("away", "steps"), [({"x": 0.06}, 1), ({"x": 0.07}, 2), ({"x": 0.13}, 3), ({"y": -0.12}, 2), ({}, 1)]
)
def test_the_steps_that_a_way_takes_are_enough(away: dict[str, float], steps: int) -> None:
    wanted = DOWN + act(**away)
    if steps > 1:
        assert GATE.steps(DOWN, wanted, 0.5) in (2 * steps - 1, 2 * steps)
    assert GATE.steps(DOWN, wanted) == steps
    state = DOWN
    for left in range(steps, 0, -1):
        state = judge((wanted - state) / left, state).target
    np.testing.assert_allclose(state, wanted, atol=1e-6)


@pytest.mark.parametrize(("tilt", "told"), [(0.74, ()), (0.76, ("start_outside",))])
def test_a_hand_that_stands_tilted_too_far_is_not_moved(tilt: float, told: tuple[str, ...]) -> None:
    """A little over the limit of 0.7 rad it may be undone; further it is for people."""
    state = apply_action(np.array([*DOWN[:2], 0.45, *DOWN[3:]]), act(pitch=tilt))
    assert judge(act(pitch=-0.1), state).codes == told


def test_a_clear_way_keeps_its_margin() -> None:
    there = DOWN + act(x=0.2)  # 5 cm from the wall of the workspace
    assert GATE.clear(DOWN, there) and GATE.clear(DOWN, there, 0.04) and not GATE.clear(DOWN, there, 0.06)
    assert not GATE.clear(DOWN, DOWN + act(x=0.26)) and not GATE.clear(DOWN, DOWN + act(x=0.26), 0.02)


@pytest.mark.parametrize(
    ("off", "kept"),
    [(act(z=-0.008), True), (act(z=-0.012), False), (act(yaw=0.08), True), (act(yaw=0.12), False)],
)
def test_what_was_commanded_is_held_on_to_while_the_arm_is_near_it(off: np.ndarray, kept: bool) -> None:
    """Near it in place and in turn."""
    seen = apply_action(DOWN, off)
    np.testing.assert_allclose(judge(act(), seen, commanded=DOWN).target, DOWN if kept else seen, atol=1e-9)


@pytest.mark.parametrize(
    ("closedness", "held", "target"), [(0.47, False, 0.5), (0.4, False, 0.4), (0.4, True, 0.5), (0.53, False, 0.5)]
)
def test_fingers_stay_as_commanded_where_they_got_there_or_hold_something(
    closedness: float, held: bool, target: float
) -> None:
    seen = np.array([*DOWN[:6], closedness])
    commanded = np.array([*DOWN[:6], 0.5])
    decision = judge(act(), seen, commanded=commanded, object_held=held, gripper_moved_s=10.0)
    assert decision.target[6] == pytest.approx(target) and decision.verdict == "pass"


@pytest.mark.parametrize(("closedness", "grip", "target"), [(0.9, 0.3, 1.0), (0.1, -0.3, 0.0), (0.9, -0.3, 0.6)])
def test_a_gripper_is_not_sent_beyond_its_stroke(closedness: float, grip: float, target: float) -> None:
    decision = judge(act(grip=grip), np.array([*DOWN[:6], closedness]))
    assert decision.target[6] == pytest.approx(target)


def test_a_gripper_that_still_moves_is_no_stalled_one() -> None:
    state, commanded = np.array([*DOWN[:6], 0.5]), np.array([*DOWN[:6], 0.9])
    for moved_s, stalled in ((9.1, False), (8.9, True)):
        decision = judge(act(grip=0.3), state, commanded=commanded, gripper_moved_s=moved_s)
        assert ("gripper_stall" in decision.codes) == stalled
        assert decision.target[6] == pytest.approx(0.5 if stalled else 0.8)


@pytest.mark.parametrize(("grip", "target"), [(0.2, 0.6), (0.5, 0.65), (-0.5, 0.15), (-0.1, 0.3)])
def test_a_slow_gripper_gets_as_far_as_its_rate_allows_in_a_step(grip: float, target: float) -> None:
    gate = SafetyGate(dataclasses.replace(LIMITS, max_closedness_rate=1.0))  # a quarter of the stroke in 0.25 s
    decision = gate.check(act(grip=grip), situation(np.array([*DOWN[:6], 0.4])))
    assert decision.target[6] == pytest.approx(target)
    assert decision.codes == (("gripper_rate",) if abs(grip) > 0.25 else ())


@pytest.mark.parametrize(
    ("out_m", "back_m", "told"), [(0.0045, 0.01, ()), (0.0045, 0.001, ("workspace",)), (0.0045, -0.001, ("workspace",))]
)
def test_an_arm_just_outside_its_box_may_come_all_the_way_back(out_m: float, back_m: float, told: tuple) -> None:
    """Over several of the points at which its path is judged; a step that ends outside is none."""
    decision = judge(act(x=-back_m), np.array([0.7 + out_m, *DOWN[1:]]))
    assert decision.codes == told and decision.verdict == ("hold" if told else "pass")


def test_a_hand_tilted_a_little_too_far_is_not_left_so() -> None:
    state = apply_action(np.array([*DOWN[:2], 0.45, *DOWN[3:]]), act(pitch=0.74))
    assert judge(act(pitch=-0.1), state).verdict == "pass"
    decision = judge(act(pitch=-0.02), state)
    assert decision.verdict == "hold" and decision.codes == ("tilt",)


def test_a_fingertip_does_not_swing_out_of_its_box_between_the_points_that_are_judged() -> None:
    """It turns on a circle, of which the judged points are corners: the wall stands between them and the circle."""
    turn, limits = 0.2, dataclasses.replace(LIMITS, keep_out=())
    first = dense_paths(DOWN[None], DOWN[None], np.zeros(1))[1][0, 0, 0, :2] - DOWN[:2]
    towards_wall = np.pi / 2 - np.arctan2(first[1], first[0])  # the yaw at which a fingertip is farthest along y
    for part in (0.3, 0.5, 0.7):  # where between two judged points that is
        state = DOWN + act(yaw=towards_wall - turn * (6 + part) / (SAMPLES - 1))
        there = apply_action(state, act(yaw=turn))
        judged, swung = (
            dense_paths(state[None], there[None], np.linspace(0, 1, count))[1][0, :, :, 1].max()
            for count in (SAMPLES, 16001)
        )
        assert swung - judged > 1e-7
        wall = Box((0.25, -0.35, 0.01), (0.75, (judged + swung) / 2, 0.6))
        decision = SafetyGate(dataclasses.replace(limits, fingertips=wall)).check(act(yaw=turn), situation(state))
        assert decision.verdict == "clip" and "fingertips" in decision.codes
        tips = dense_paths(state[None], decision.target[None], np.linspace(0, 1, 4001))[1]
        assert wall.outside(tips).max() <= 1e-9


@pytest.mark.parametrize(
    ("gone", "sent", "drifts"),
    [
        (act(x=0.06), act(x=0.06), False),  # the last motion ended while the agent thought
        (act(x=0.04), act(x=0.06), False),
        (act(x=0.06, z=0.029), act(x=0.06), False),
        (act(x=0.06, z=0.031), act(x=0.06), True),
        (act(x=0.091), act(x=0.06), True),
        (act(x=-0.031), act(x=0.06), True),
        (act(x=0.06), act(y=0.06), True),
        (act(x=0.031), act(), True),
        (act(x=0.031), None, True),
        (act(), act(x=float("nan")), True),
    ],
)
def test_only_what_leaves_the_way_to_where_the_arm_was_sent_is_drift(
    gone: np.ndarray, sent: np.ndarray | None, drifts: bool
) -> None:
    assert LIMITS.max_drift == 0.03
    now = situation(DOWN + gone, observed_state=DOWN, commanded=None if sent is None else DOWN + sent)
    assert ("drift" in GATE.check(act(x=0.01), now).codes) is drifts
