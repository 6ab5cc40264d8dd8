"""Success predicates against states built by hand: what just counts, and what just does not."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from armworld.envs.base import ArmEnv
from armworld.envs.experts import make_expert
from armworld.envs.layout import flange_state
from armworld.envs.scripts import carry_phases, grasp_phases, play, up
from armworld.envs.tasks import film, held


def made(task: str, **options) -> Iterator[ArmEnv]:
    env = ArmEnv(task=task, cameras=(), **options)
    env.reset(seed=2)
    yield env
    env.close()


@pytest.fixture(scope="module", params=["cup", "box", "bottle"])
def grasp(request) -> Iterator[ArmEnv]:
    yield from made("grasp", object=request.param)


@pytest.fixture(scope="module")
def carry() -> Iterator[ArmEnv]:
    yield from made("reach_with_object")


@pytest.fixture(scope="module")
def place() -> Iterator[ArmEnv]:
    yield from made("pick_place", object="bottle")


@pytest.fixture(scope="module")
def reach() -> Iterator[ArmEnv]:
    yield from made("reach")


@pytest.fixture(autouse=True)
def undo(request) -> Iterator[None]:
    """Give each test the environment as it was reset."""
    names = [name for name in ("grasp", "carry", "place", "reach") if name in request.fixturenames]
    if not names:
        yield
        return
    env = request.getfixturevalue(names[0])
    state = env.save_state()
    yield
    env.restore_state(state)


def arm_to(env: ArmEnv, position: np.ndarray) -> None:
    env.simulator.set_arm(env.simulator.solve_pose(flange_state(position))[0])


@pytest.mark.parametrize(("offset", "expected"), [(0.038, True), (0.042, False)])
def test_reach_is_within_four_centimetres(reach: ArmEnv, offset: float, expected: bool) -> None:
    arm_to(reach, reach.task.targets["position"] + np.array([0, -offset, 0]))
    assert reach.task.solved(reach.simulator) is expected
    assert reach.task.distance(reach.simulator) == pytest.approx(offset, abs=1e-3)


def lift(env: ArmEnv, height: float) -> None:
    film(env.simulator, play(env.simulator, grasp_phases(env.simulator, env.task.object, height)))


def test_grasp_counts_when_lifted(grasp: ArmEnv) -> None:
    lift(grasp, 0.03)
    assert grasp.task.solved(grasp.simulator)


def test_grasp_does_not_count_below_two_centimetres(grasp: ArmEnv) -> None:
    lift(grasp, 0.012)
    contact = grasp.simulator.contact_report()[grasp.task.object]
    assert contact["left"] and contact["right"] and not contact["other"]
    assert not grasp.task.solved(grasp.simulator)


def test_grasp_does_not_count_on_the_table(grasp: ArmEnv) -> None:
    phases = grasp_phases(grasp.simulator, grasp.task.object)[:3]
    film(grasp.simulator, play(grasp.simulator, phases))
    contact = grasp.simulator.contact_report()[grasp.task.object]
    assert contact["left"] and contact["right"] and contact["other"]
    assert not grasp.task.solved(grasp.simulator)


def test_grasp_does_not_count_in_the_air_without_fingers(grasp: ArmEnv) -> None:
    spot = grasp.simulator.object_pose(grasp.task.object)[0]
    grasp.simulator.place_object(grasp.task.object, spot + up(0.1))
    assert not grasp.task.solved(grasp.simulator)


def nudge(env: ArmEnv, shift: np.ndarray) -> None:
    """Move the object by `shift` [3] (m) as it hangs or stands, and find the contacts anew."""
    env.simulator.data.joint(env.task.object).qpos[:3] += shift
    env.simulator.restore(env.simulator.save())


def test_grasp_does_not_count_with_one_finger(grasp: ArmEnv) -> None:
    sim = grasp.simulator
    lift(grasp, 0.06)
    heading = sim.finger_heading
    nudge(grasp, 0.002 * np.array([np.cos(heading), np.sin(heading), 0.0]))
    contact = sim.contact_report()[grasp.task.object]
    assert contact["left"] != contact["right"] and not contact["other"]
    assert not grasp.task.solved(sim)


def test_grasp_does_not_count_while_slipping(grasp: ArmEnv) -> None:
    lift(grasp, 0.06)
    joint = grasp.simulator.data.joint(grasp.task.object)
    joint.qvel[2] = -0.03
    assert not grasp.task.solved(grasp.simulator)
    joint.qvel[2] = -0.01
    assert grasp.task.solved(grasp.simulator)


@pytest.mark.parametrize(("short", "expected"), [(0.04, True), (0.06, False)])
def test_carried_object_counts_within_five_centimetres(carry: ArmEnv, short: float, expected: bool) -> None:
    sim, goal = carry.simulator, carry.task.targets["position"]
    way = goal - sim.state[:3]
    film(sim, play(sim, carry_phases(sim, goal - short * way / np.linalg.norm(way))))
    assert held(sim, carry.task.object)
    assert carry.task.solved(sim) is expected


def test_carried_object_does_not_count_when_let_go(carry: ArmEnv) -> None:
    sim = carry.simulator
    film(sim, play(sim, carry_phases(sim, carry.task.targets["position"])))
    assert carry.task.solved(sim)
    sim.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert not carry.task.solved(sim)


def put(env: ArmEnv, change: Callable[[np.ndarray], np.ndarray] = lambda spot: spot) -> None:
    """Stand the object where the goal has it (changed by `change`), with the arm far above, and let it rest."""
    arm_to(env, np.array([0.35, 0.0, 0.48]))
    spot = env.task.targets["object"]
    env.simulator.place_object(env.task.object, change(np.array([*spot[:2], 0.0])))
    for _ in range(2):
        env.simulator.step(np.zeros(7))


def test_placed_object_counts(place: ArmEnv) -> None:
    put(place)
    assert place.task.solved(place.simulator)


@pytest.mark.parametrize(("shift", "expected"), [(0.045, True), (0.055, False)])
def test_placed_object_counts_within_five_centimetres(place: ArmEnv, shift: float, expected: bool) -> None:
    put(place, lambda spot: spot - [shift, 0, 0])
    assert place.task.solved(place.simulator) is expected


def test_placed_object_does_not_count_lying(place: ArmEnv) -> None:
    put(place)
    joint = place.simulator.data.joint(place.task.object)
    joint.qpos[2:7] = [0.04, np.sqrt(0.5), np.sqrt(0.5), 0, 0]
    for _ in range(6):
        place.simulator.step(np.zeros(7))
    assert place.task.distance(place.simulator) < 0.05
    assert not place.task.solved(place.simulator)


@pytest.mark.parametrize(("degrees", "expected"), [(13, True), (17, False)])
def test_placed_object_counts_when_upright_within_fifteen_degrees(
    place: ArmEnv, degrees: float, expected: bool
) -> None:
    put(place)
    half = np.deg2rad(degrees) / 2
    place.simulator.data.joint(place.task.object).qpos[3:7] = [np.cos(half), np.sin(half), 0, 0]
    nudge(place, np.zeros(3))
    assert place.simulator.contact_report()[place.task.object]["other"]
    assert place.task.solved(place.simulator) is expected


def test_placed_object_does_not_count_falling(place: ArmEnv) -> None:
    put(place)
    joint = place.simulator.data.joint(place.task.object)
    joint.qvel[2] = -0.05
    assert not place.task.solved(place.simulator)


def test_placed_object_does_not_count_in_the_gripper(place: ArmEnv) -> None:
    """The expert's motion, stopped before it lets go: in place, upright, at rest, but held."""
    sim = place.simulator
    for phase, action in place.task.script(sim):
        if phase == "release":
            break
        sim.step(action)
    sim.step(np.zeros(7))
    assert place.task.distance(sim) < 0.05
    assert not place.task.solved(sim)


def answer(env: ArmEnv, monkeypatch: pytest.MonkeyPatch, *verdicts: bool) -> dict:
    """The draws of a reset in which the predicate says these in order."""
    coming = iter(verdicts)
    monkeypatch.setattr(env.task, "solved", lambda sim: next(coming))
    draws = env.reset(seed=5)[1]["draws"]
    assert next(coming, None) is None, "every verdict was asked for"
    return draws


def test_a_start_that_is_already_solved_is_drawn_again(reach: ArmEnv, monkeypatch) -> None:
    usual = answer(reach, monkeypatch, False)
    again = answer(reach, monkeypatch, True, True, False)
    assert again["redraws"] >= usual["redraws"] + 2 and again["start_state"] != usual["start_state"]
    assert again["expert_failures"] == 0


def test_a_start_that_the_expert_fails_on_is_drawn_again_and_counted(place: ArmEnv, monkeypatch) -> None:
    draws = answer(place, monkeypatch, False, True, False)  # a failed demonstration, a good one, the start
    assert draws["expert_failures"] == 1 <= draws["redraws"]


def test_an_object_in_the_fingers_is_restored_exactly(carry: ArmEnv) -> None:
    """Contacts and the solver's warm start too: the same qpos and predicate, to the bit."""
    saved, ends = carry.save_state(), []
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, (4, 7)) * [1, 1, 1, 1, 1, 1, 0]
    for seed in (None, 3):  # the second time after another episode
        if seed is not None:
            carry.reset(seed=seed)
        carry.restore_state(saved)
        solved = [carry.step(action)[4]["solved"] for action in actions]
        assert held(carry.simulator, carry.task.object)
        ends.append((carry.simulator.data.qpos.tobytes(), carry.simulator.data.qvel.tobytes(), solved))
    assert ends[0] == ends[1]


def test_goal_from_a_saved_state(reach: ArmEnv) -> None:
    start = reach.save_state()
    reach.step(np.array([0.05, 0, 0, 0, 0, 0, 0]))
    there = reach.save_state()
    reach.restore_state(start)
    goal = reach.set_goal(there)
    np.testing.assert_allclose(goal.observations[0]["state"], there_state(reach, there), atol=1e-6)
    assert reach.task.distance(reach.simulator) == pytest.approx(0.05, abs=2e-3)
    reach.step(np.array([0.05, 0, 0, 0, 0, 0, 0]))
    assert reach.task.solved(reach.simulator)


def there_state(env: ArmEnv, state) -> np.ndarray:
    here = env.save_state()
    observed = env.restore_state(state)["state"]
    env.restore_state(here)
    return observed


def test_goal_from_observations_and_images() -> None:
    env = ArmEnv(image_size=32)
    env.reset(seed=0)
    first, *_ = env.step(np.array([0.05, 0, 0, 0, 0, 0, 0]))
    env.reset(seed=0)
    goal = env.set_goal(first["left"], first, budgets=(3, 5))
    assert goal.budgets == (3, 5) and "state" not in goal.observations[0]
    assert env.task.distance(env.simulator) == pytest.approx(0.05, abs=2e-3)
    env.set_goal(first["left"])
    *_, info = env.step(np.zeros(7))
    assert np.isnan(info["distance_m"]) and not info["solved"]
    with pytest.raises(ValueError, match=r"uint8 \[32, 32, 3\], got uint8 \[16, 16, 3\]"):
        env.set_goal(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"unknown: \['top'\], missing: \['left'\]"):
        env.set_goal({"top": first["left"]})
    with pytest.raises(ValueError, match="at least one sub-goal"):
        env.set_goal()
    env.close()


def test_more_subgoals_of_the_same_pick_and_place() -> None:
    """The same draw and the paper's three images, with one above the object before and one clear of it after."""
    goals = []
    for more in (False, True):
        env = ArmEnv("pick_place", object="box", image_size=64, subgoals=more)
        env.reset(seed=3)
        goals.append(env.goal)
        env.close()
        assert env.max_steps == (26 if more else 22)
    paper, more = goals
    assert paper.budgets == (4, 10, 4) and len(more.budgets) == len(more.observations) == 5
    for ours, theirs in zip(more.observations[1:4], paper.observations, strict=True):
        assert np.array_equal(ours["left"], theirs["left"]) and np.array_equal(ours["state"], theirs["state"])
    above, grasped, _, placed, clear = (observation["state"] for observation in more.observations)
    assert above[2] > grasped[2] + 0.03 and above[6] < 0.05 < grasped[6]
    assert clear[2] > placed[2] + 0.05 and np.linalg.norm(clear[:2] - placed[:2]) < 0.02


@pytest.mark.parametrize("task", ["reach", "grasp", "reach_with_object"])
def test_a_goal_is_what_the_expert_leaves(task: str) -> None:
    """Playing the expert from the start, and holding for a step, shows the goal's image and state, to the bit."""
    env = ArmEnv(task, object="box", image_size=64)
    observation, info = env.reset(seed=4)
    expert = make_expert(env)
    expert.reset(info["goal"])
    while True:
        action = expert.act(observation)
        observation, *_ = env.step(action)
        if expert.phase == "hold":
            break
    goal = info["goal"].observations[-1]
    assert np.array_equal(observation["left"], goal["left"]) and np.array_equal(observation["state"], goal["state"])
    env.close()


@pytest.mark.parametrize(
    ("solved", "success"), [("111", "001"), ("110111", "000001"), ("0111101", "0001100"), ("1011011", "0000000")]
)
def test_success_is_the_predicate_three_steps_in_a_row(
    reach: ArmEnv, monkeypatch: pytest.MonkeyPatch, solved: str, success: str
) -> None:
    reach.reset(seed=2)
    marks = iter(solved)
    monkeypatch.setattr(reach.task, "solved", lambda simulator: next(marks) == "1")
    told = [reach.step(np.zeros(7))[4] for _ in solved]
    assert "".join(str(int(info["solved"])) for info in told) == solved
    assert "".join(str(int(info["success"])) for info in told) == success


def test_the_dwell_starts_again_with_another_goal_and_is_restored_with_its_moment(
    reach: ArmEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach.reset(seed=2)
    monkeypatch.setattr(reach.task, "solved", lambda simulator: True)

    def steps(count: int) -> list[bool]:
        return [reach.step(np.zeros(7))[4]["success"] for _ in range(count)]

    assert steps(2) == [False, False]
    moment = reach.save_state()
    assert steps(2) == [True, True]
    reach.restore_state(moment)
    assert steps(1) == [True]
    reach.set_goal(moment)
    assert steps(3) == [False, False, True]
