"""Servoing on readings: the geometry of a step, grippers, and readings that are shifted and stretched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from armworld.planners.calibrating import LOW_M, WORKSPACE, WideMoves, roaming_box
from armworld.planners.mpc import AgentConfig, PlanningAgent
from armworld.planners.objectives import AlignedL1, FinalL1, LatentGoal
from armworld.planners.plans import GRIPPER, YAW, Plan
from armworld.planners.registry import make_planner
from armworld.planners.servo import Servo
from armworld.pose import apply_action
from armworld.types import Goal, Observation

START = np.array([0.5, 0.0, 0.3, np.pi, 0.0, 0.0, 0.2])


class Reading(torch.nn.Module):
    """Reads what stands in the first patch."""

    def forward(self, z: Tensor) -> Tensor:
        return z[..., 0, :]


class Seen:
    """Features [1, 6]: the hand as it is read, positions put through an affine map. Nothing can be imagined."""

    step_seconds, camera = 0.25, "left"

    def __init__(self, linear: np.ndarray | None = None) -> None:
        self.linear = torch.as_tensor(np.eye(3) if linear is None else linear, dtype=torch.float32)

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        state = torch.as_tensor(images, dtype=torch.float32)
        position = state[..., :3] @ self.linear.T + 0.1
        yaw = state[..., 5:6]
        return torch.cat([position, yaw.cos(), yaw.sin(), state[..., 6:]], -1)[..., None, :]

    def rollout(self, z: Tensor, state: Tensor, actions: Tensor) -> None:
        raise AssertionError("servoing imagines nothing")


def see(state: np.ndarray) -> Observation:
    return {"state": state.astype(np.float32), "left": state.astype(np.float32)}


def step(planner: Servo, here: np.ndarray, there: np.ndarray, objective: AlignedL1 | None = None) -> Plan:
    """The plan from one arm state [7] to a goal that shows another."""
    model = Seen()
    z, goal = model.encode(here[None, None]), model.encode(there[None])
    state = torch.as_tensor(here, dtype=torch.float32)[None, None]
    goal = LatentGoal(goal, torch.as_tensor(there, dtype=torch.float32)[None])
    objective = objective or AlignedL1(Reading())  # pyright: ignore[reportArgumentType]
    return planner.plan(model, objective, z, state, goal, generator=torch.Generator())  # pyright: ignore


def servo(**settings: object) -> Servo:
    planner = make_planner("servo", **settings)
    assert isinstance(planner, Servo)
    return planner


def test_a_step_is_a_share_of_the_way_within_the_bounds() -> None:
    near, far = START.copy(), START.copy()
    near[:3] += [0.02, -0.03, 0.01]
    far[:3] += [0.2, -0.3, 0.1]
    arm = {"max_gripper": 0.0, "max_position": 0.075}
    plan = step(servo(gain=0.5, space=arm), START, near)
    np.testing.assert_allclose(plan.actions[0, 0], [0.01, -0.015, 0.005, 0, 0, 0, 0], atol=1e-6)
    assert float(plan.cost) == pytest.approx(6.0 * 0.5 * float(np.linalg.norm(near[:3] - START[:3])), abs=1e-5)
    plan = step(servo(gain=0.5, space=arm), START, far)
    np.testing.assert_allclose(plan.actions[0, 0, :3], [0.05, -0.075, 0.025], atol=1e-6)  # shorter, not bent
    assert bool(step(servo(space=arm), START, START).hold)


def test_the_shorter_turn_and_the_gripper_as_the_objective_compares_it() -> None:
    there = START.copy()
    there[5], there[6] = -3.0, 0.6
    here = START.copy()
    here[5] = 3.0
    space = {"max_yaw": 0.2, "max_gripper": 0.75, "stroke": True}
    plan = step(servo(gain=1.0, space=space), here, there)
    assert float(plan.actions[0, 0, YAW]) == pytest.approx(0.2)  # 0.28 rad over pi, not 6 back
    assert float(plan.actions[0, 0, GRIPPER]) == pytest.approx(0.4)
    recorded = AlignedL1(Reading(), goal_gripper=True, closed_enough=True)  # pyright: ignore[reportArgumentType]
    here[6] = 0.9  # fingers that hold an object do not open to correct what was read
    assert float(step(servo(space=space), here, there, recorded).actions[0, 0, GRIPPER]) == 0
    exact = replace(recorded, closed_enough=False)
    assert float(step(servo(space=space), here, there, exact).actions[0, 0, GRIPPER]) == pytest.approx(-0.3)


def walk(count: int, hands: bool = False) -> np.ndarray:
    moves = WideMoves(np.random.default_rng(1), *roaming_box(hands), hands=hands)
    state, states = START, [START]
    for _ in range(count):
        state = apply_action(state, moves.next(state).astype(np.float64))
        states.append(state)
    return np.stack(states)


def test_wide_moves_stay_in_their_box_and_fill_it() -> None:
    places = walk(200)[:, :3]
    assert (places >= WORKSPACE[0] - 1e-6).all() and (places <= WORKSPACE[1] + 1e-6).all()
    assert (np.ptp(places, axis=0) > 0.6 * (WORKSPACE[1] - WORKSPACE[0])).all()
    assert np.linalg.norm(np.diff(places, axis=0), axis=1).max() <= 0.1 + 1e-6
    with pytest.raises(ValueError, match="low < high"):
        WideMoves(np.random.default_rng(0), WORKSPACE[1], WORKSPACE[0])


def test_moves_of_hands_go_down_to_the_table_turn_both_ways_and_grip() -> None:
    states = walk(400, hands=True)
    assert LOW_M <= states[:, 2].min() < LOW_M + 0.03
    turned = np.unwrap(states[:, 5]) - START[5]
    assert -0.7 <= turned.min() < -0.5 and 0.5 < turned.max() <= 0.7
    assert np.abs(np.diff(turned)).max() <= 0.3 + 1e-6
    closedness, grips = states[:, 6], np.abs(np.diff(states[:, 6])) > 1e-6
    assert closedness.min() == 0 and closedness.max() == 1 and 0.1 < (closedness % 1 > 0).mean() < 0.6
    assert 0.2 < grips.mean() < 0.5  # two fifths of the moves, some of which find the fingers where they want them
    assert (walk(20)[:, 3:] == START[3:]).all()


def test_readings_lead_to_the_goal() -> None:
    """Readings that are shifted and a third too long: what counts is that they agree on where the goal is."""
    objective = AlignedL1(Reading())  # pyright: ignore[reportArgumentType]
    planner = servo(space={"max_gripper": 0.0})
    agent = PlanningAgent(Seen(1.3 * np.eye(3)), planner, objective, "left", torch.Generator(), AgentConfig())  # pyright: ignore
    state, target = START.copy(), START.copy()
    target[:3] += [0.1, 0.15, -0.05]
    agent.reset(Goal((see(target),), (30,)))
    for _ in range(30):
        state = apply_action(state, agent.act(see(state)).astype(np.float64))
    assert float(np.linalg.norm(state[:3] - target[:3])) < 0.005


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gain": 0.0}, "gain must lie in"),
        ({"horizon": 2}, "one step ahead; got horizon 2"),
        ({"samples": 8}, "samples"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_planner("servo", **settings)


def test_servoing_needs_a_readout() -> None:
    z, state = torch.zeros(1, 1, 1, 6), torch.zeros(1, 1, 7)
    with pytest.raises(ValueError, match="needs the aligned objective"):
        servo().plan(Seen(), FinalL1(), z, state, LatentGoal(z[0]), generator=torch.Generator())  # pyright: ignore


def test_it_goes_to_a_place_of_the_hand_and_not_to_the_picture() -> None:
    """Stages of a grasp are places: 5 cm above the hand that the picture shows, the fingers held as they are."""
    shown, wanted = START.copy(), START.copy()
    shown[:3] += [0.04, 0.0, 0.0]
    shown[6] = 0.7
    wanted[:3] += [0.04, -0.02, 0.05]
    model, objective = Seen(), AlignedL1(Reading())  # pyright: ignore[reportArgumentType]
    hand = model.encode(wanted[None])[:, 0]
    goal = LatentGoal(model.encode(shown[None]), torch.as_tensor(shown, dtype=torch.float32)[None], hand=hand)
    state = torch.as_tensor(START, dtype=torch.float32)[None, None]
    planner = servo(gain=0.5, space={"max_gripper": 1.0, "max_position": 0.1})
    seen = model.encode(START[None, None])
    plan = planner.plan(model, objective, seen, state, goal, generator=torch.Generator())  # pyright: ignore
    np.testing.assert_allclose(plan.actions[0, 0], [0.02, -0.01, 0.025, 0, 0, 0, 0], atol=1e-6)
    left = np.hypot(0.02, 0.01) + 0.025  # sideways and in height are added at a place, not taken as one length
    assert float(plan.cost[0]) == pytest.approx(6.0 * left, abs=1e-5)
    lengths = [float(objective.gaps(seen[:, -1:], state, other)[0]) for other in (goal, replace(goal, hand=None))]
    assert lengths == pytest.approx([np.hypot(0.04, 0.02) + 0.05, 0.04], abs=1e-6)


@pytest.mark.parametrize(("yaw", "shown"), [(0.3, [0, 0, 0, 0]), (0.0, [0, 0, 1, 1]), (-0.3, [0, 0, 0, 0])])
def test_a_hand_that_only_turns_has_not_arrived(yaw: float, shown: list[int]) -> None:
    """Nor is a plan that turns one that holds: the next sub-goal waits until the hand has turned."""
    planner = servo(gain=0.2, space={"max_gripper": 0.0, "max_yaw": 0.3})
    config = AgentConfig(schedule="energy", switch_energy=-1.0, switch_holds=2, arrived_rad=0.02)
    objective = AlignedL1(Reading())  # pyright: ignore[reportArgumentType]
    agent = PlanningAgent(Seen(), planner, objective, "left", torch.Generator(), config)  # pyright: ignore
    turned, far = START.copy(), START.copy()
    turned[5] += yaw
    far[0] += 0.2
    agent.reset(Goal((see(turned), see(far)), (30, 30)))
    state = START
    for _ in range(4):
        action = agent.act(see(state)).astype(np.float64)
        state = apply_action(state, action)
    assert [record.subgoal for record in agent.history] == shown
    assert agent.history[0].hold == (yaw == 0)


def test_fingers_that_still_close_have_not_arrived_either() -> None:
    """The hand is there; 0.4 of the stroke takes four steps, then two plans that hold end the sub-goal."""
    planner = servo(space={"max_gripper": 0.1})
    config = AgentConfig(schedule="energy", switch_energy=-1.0, switch_holds=2)
    objective = AlignedL1(Reading())  # pyright: ignore[reportArgumentType]
    agent = PlanningAgent(Seen(), planner, objective, "left", torch.Generator(), config)  # pyright: ignore
    closed, far = START.copy(), START.copy()
    closed[6] += 0.4
    far[0] += 0.2
    agent.reset(Goal((see(closed), see(far)), (30, 30)))
    state = START
    for _ in range(8):
        state = apply_action(state, agent.act(see(state)).astype(np.float64))
    assert [record.subgoal for record in agent.history] == [0] * 6 + [1] * 2
