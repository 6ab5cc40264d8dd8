"""A deployment plans with the settings that a simulation of the same task does; goals say what can be compared."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from armworld.evaluation.agents import USUAL, AgentSettings
from armworld.evaluation.setup import Setup, make_cell
from armworld.real import drawn
from armworld.real.agents import ServoAgent, agent_settings, build_agent
from armworld.real.cameras import Framing
from armworld.real.deploy import DeployConfig, deploy
from armworld.real.drawn import draw_task
from armworld.real.goal import GoalConfig
from armworld.real.goals import load_goal, save_goal
from armworld.real.replay import ReplayConfig, replay
from armworld.real.sim_block import RobotSample, SharedBlock
from armworld.real.sim_camera import Twin
from armworld.real.sim_hand import CLOSEDNESS, OPENING_M, closedness_at
from armworld.real.sim_server import parse
from armworld.types import Goal

NAN = float("nan")
DOWN = np.array([0.45, 0.0, 0.35, np.pi, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("task", sorted(USUAL))
@pytest.mark.parametrize("agent", ["cem", "mppi", "cem_published"])
def test_the_settings_are_those_of_the_simulation(task: str, agent: str) -> None:
    own: dict[str, Any] = {"samples": 17, "max_yaw": 0.1}
    config = DeployConfig(sim=True, agent=agent, task=task, goal=(Path("goal"),), **own)
    simulated = make_cell(Setup(camera="left"), AgentSettings(**own), (task, "cup", "lab1"), agent, Path("out"))
    assert agent_settings(agent, task, config, None) == simulated.settings
    assert simulated.settings is not None and simulated.settings.samples == 17


def goal_of(*states: np.ndarray | None) -> Goal:
    image = np.zeros((16, 16, 3), np.uint8)
    seen = tuple({"left": image} if state is None else {"left": image, "state": state} for state in states)
    return Goal(seen, (5,) * len(seen))


def test_goals_that_are_pictures_have_their_gripper_read() -> None:
    captured, photo = goal_of(DOWN, DOWN), goal_of(DOWN, None)
    recorded = AgentSettings(read_gripper=False)
    assert agent_settings("cem", "pick_place", AgentSettings(), photo).read_gripper is True
    assert agent_settings("cem", "pick_place", recorded, captured).read_gripper is False
    assert agent_settings("cem", "reach", recorded, photo).goal_gripper is None
    with pytest.raises(ValueError, match="a goal is a picture only"):
        agent_settings("cem", "pick_place", recorded, photo)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "juggle"}, "'juggle'; valid: .*pick_place"),
        ({"task": "reach_with_object"}, "'reach_with_object'; valid: "),
        ({"task": "grasp", "object": "none"}, "grasp needs an --object"),
        ({"task": "grasp", "done_m": 0.01}, "--done-m"),
        ({"lab": "lab9"}, "unknown lab 'lab9'; valid: lab1, lab2"),
        ({"object": "pan"}, "unknown object 'pan'; valid: cup, box, bottle, none"),
        ({"page_port": 65536}, "page_port must be at least 0 and at most 65535, got 65536"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"done_m": NAN}, "done_m must be at least 0, got nan"),
        ({"image_size": 3}, "image_size must be at least 16 and at most 1280, got 3"),
        ({"step_seconds": NAN}, "step_seconds must be at least 0, got nan"),
        ({"force_threshold": 0.0}, r"force_threshold must be above 0, got 0\.0"),
        ({"goal": (Path("a"),), "budgets": (0,)}, "budgets must be at least 1 step each"),
        ({"agent": "cem", "max_yaw": NAN}, "max_yaw must be at least 0, got nan"),
        ({"agent": "cem", "execute": 0}, "execute must be at least 1, got 0"),
        ({"agent": "cem", "bank": Path("b")}, "--bank, .* goes with --subgoals-from bank"),
        ({"goal": (Path("a"), Path("b")), "done_m": 0.01}, "--done-m"),
    ],
)
def test_tasks_that_make_no_sense_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeployConfig(sim=True, **changes)


def test_goal_folders_in_order_keep_their_grippers(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    for index, grip in enumerate((0.0, 0.4, 0.4)):
        save_goal(tmp_path / f"{index}", {"state": np.append(DOWN[:6], grip), "left": image})
    paths = [tmp_path / f"{index}" for index in range(3)]
    goal = load_goal(paths, (4, 10, 4), {"left": Framing((16, 16))})
    assert [float(seen["state"][6]) for seen in goal.observations] == pytest.approx([0, 0.4, 0.4])
    assert goal.budgets == (4, 10, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"state": [0.4, 0, 0.3, 180, 0, 0, 0]}', "degrees where radians are expected"),
        ('{"state": [400, 0, 300, 3.1, 0, 0, 0]}', "millimetres for metres"),
        ('{"state": [0.4, 0, 0.3, 3.1, 0, 0, 85]}', r"outside \[0, 1\]"),
        ('{"state": [0.4, 0, 0.3, 3.1, 0, 0, 0], "units": {"rotation": "deg"}}', "must be in 'm'"),
    ],
)
def test_a_goal_in_other_units_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    save_goal(tmp_path, {"state": DOWN, "left": np.zeros((16, 16, 3), np.uint8)})
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_goal([tmp_path], (5,), {"left": Framing((16, 16))})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((450, 0, 350, np.pi, 0, 0, 0), "millimetres for metres"),
        ((0.45, 0, 0.35, 180, 0, 0, 0), "degrees where radians are expected"),
        ((0.45, 0, 0.35, np.pi, 0, 0, 80), r"closedness 80 is outside \[0, 1\]"),
        ((0.45, 0, 0.35, np.nan, 0, 0, 0), "expected seven finite numbers"),
        ((0.45, 0, 0.95, np.pi, 0, 0, 0), r"the flange would be outside its box \(0.28, -0.38, 0.12\) to"),
    ],
)
def test_a_state_to_drive_to_in_other_units_or_out_of_the_box_is_refused(state, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^--state .*{message}"):
        GoalConfig(sim=True, state=state, out=tmp_path / "goal")


@pytest.mark.parametrize("changes", [{"max_speed": 1.0}, {"max_tilt": float("nan")}, {"keep_out": ((1.0,) * 6,)}])
def test_limits_that_cannot_be_are_refused_before_a_device_is_touched(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_speed must|max_tilt must|low < high"):
        GoalConfig(sim=True, out=tmp_path / "goal", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tilt": NAN}, "max_tilt must be positive"),
        ({"page_host": "no.such.host.invalid"}, "no page can be served at --page-host no.such"),
        ({"goal": (Path("nowhere"),)}, "no goal at nowhere"),
    ],
)
def test_a_deployment_that_cannot_be_starts_no_robot(changes: dict, message: str, tmp_path: Path, monkeypatch):
    def started(*_: object) -> None:
        raise AssertionError("the robot was started")

    monkeypatch.setattr("armworld.real.deploy.open_cell", started)
    with pytest.raises(ValueError, match=message):
        deploy(DeployConfig(sim=True, out=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_goals_are_captured_with_objects_and_labs_that_there_are() -> None:
    with pytest.raises(ValueError, match="unknown lab 'lab9'; valid: lab1, lab2"):
        GoalConfig(sim=True, lab="lab9")
    with pytest.raises(ValueError, match="unknown object 'pan'; valid: cup, box, bottle, none"):
        GoalConfig(sim=True, object="pan")


def test_cameras_of_a_cell_have_names_of_their_own() -> None:
    box = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    cameras = ("left=opencv:0", "left=opencv:1")
    with pytest.raises(ValueError, match="--cameras must have names of their own, got left, left"):
        GoalConfig(host="172.16.0.2", workspace=box, fingertips=box, cameras=cameras)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"out": Path("out")}, "give --sim too"), ({"sim": True, "out": Path()}, "holds files already; give another")],
)
def test_where_a_replay_is_logged_must_make_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayConfig(Path("log"), **settings)


def test_a_log_without_its_limits_is_named(tmp_path: Path) -> None:
    (tmp_path / "header.json").write_text("{}")
    (tmp_path / "journal.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="the log's header does not say the limits"):
        replay(ReplayConfig(tmp_path))


def test_the_expert_grips_fully_but_only_where_the_arm_has_arrived() -> None:
    near, there = DOWN + np.eye(7)[0] * 0.03, np.append(DOWN[:6], 0.4)
    agent = build_agent("expert", "", 0, AgentSettings(full_grip=True))
    assert isinstance(agent, ServoAgent)
    agent.reset(Goal(({"state": there},), (5,)))
    assert agent.act({"state": near.astype(np.float32)})[6] == 0
    assert agent.act({"state": DOWN.astype(np.float32)})[6] == 1
    assert agent.act({"state": there.astype(np.float32)})[6] == 0  # it goes on pressing
    plain = build_agent("expert", "", 0, AgentSettings())
    plain.reset(Goal(({"state": there},), (5,)))
    assert plain.act({"state": near.astype(np.float32)})[6] == pytest.approx(0.4)


def test_openings_and_closednesses_of_the_simulated_hand_belong_together() -> None:
    assert closedness_at(0.085, "robotiq_2f85") == 0 and closedness_at(0.0, "robotiq_2f85") == CLOSEDNESS[-1]
    widths = np.linspace(0, 0.085, 30)
    assert (np.diff([closedness_at(width, "robotiq_2f85") for width in widths]) < 0).all()
    assert closedness_at(0.02, "franka_hand") == pytest.approx(0.75)


class World:
    """A simulated robot that stands still."""

    def __init__(self, position: tuple[float, float, float], tilt: float = 0.0, **touches: bool) -> None:
        pose = np.array([*position, np.cos(tilt / 2), np.sin(tilt / 2), 0, 0])
        self.sample = RobotSample(np.zeros(7), 0.05, pose, 1.0, **touches)

    def truth(self) -> RobotSample:
        return self.sample


TARGET = np.array([0.5, 0.1, 0.0])


@pytest.mark.parametrize(
    ("task", "world", "solved"),
    [
        ("pick_place", World((0.52, 0.1, 0.0), supported=True), True),
        ("pick_place", World((0.52, 0.1, 0.0), supported=True, touched=True), False),  # still held
        ("pick_place", World((0.56, 0.1, 0.0), supported=True), False),
        ("pick_place", World((0.5, 0.1, 0.0), tilt=0.5, supported=True), False),
        ("grasp", World((0.5, 0.1, 0.05), touched=True), True),
        ("grasp", World((0.5, 0.1, 0.01), touched=True), False),
        ("grasp", World((0.5, 0.1, 0.05)), False),
    ],
)
def test_the_simulated_world_judges_objects_as_the_tasks_do(monkeypatch, task: str, world: Any, solved: bool) -> None:
    monkeypatch.setattr(drawn, "REST_S", 0.0)
    assert drawn.judge(task, TARGET, 0.0, world).solved is solved


def test_a_drawn_task_is_that_of_the_simulation_with_the_same_seed() -> None:
    import gymnasium

    import armworld.envs  # noqa: F401

    task = drawn.draw_task("pick_place", "cup", "lab1", "left", 64, 0.25, 1_000_003, subgoals=False)
    env = gymnasium.make("armworld/PickPlace-v0", image_size=64)
    _, info = env.reset(seed=1_000_003)
    env.close()
    assert task.start is not None and task.object_at is not None and task.goal.budgets == info["goal"].budgets
    np.testing.assert_array_equal(task.start, info["draws"]["start_state"])
    np.testing.assert_array_equal(task.object_at, info["draws"]["objects"]["cup"])
    for mine, theirs in zip(task.goal.observations, info["goal"].observations, strict=True):
        np.testing.assert_array_equal(mine["left"], theirs["left"])
        np.testing.assert_array_equal(mine["state"], theirs["state"])


@pytest.mark.parametrize("name", ["cup", "box"])
def test_the_simulated_robots_cameras_see_what_the_tasks_pictures_show(tmp_path: Path, name: str) -> None:
    """At the start of a drawn task its picture is the environment's, and the other object is in it."""
    env: Any = gymnasium.make("armworld/PickPlace-v0", object=name, image_size=96, disable_env_checker=True)
    observation, _ = env.reset(seed=3)
    simulator = env.unwrapped.simulator
    drawn = draw_task("pick_place", name, "lab1", "left", 96, 0.25, 3, False)
    assert drawn.bystander_at is not None
    block = SharedBlock.create(tmp_path / "block", ("left",), (96, 96))
    assert block.bystander() is None
    block.show_bystander(drawn.bystander_at)
    twin = Twin(parse(["--block", str(tmp_path / "block"), "--size", "96", "96", "--object", name]))
    joints = simulator.data.qpos[simulator.kinematics.qpos_index]
    sample = RobotSample(joints, float(OPENING_M[0]), simulator.data.joint(name).qpos, 0.0)
    seen = {}
    for case, bystander in (("with", block.bystander()), ("without", None)):
        twin.pose(sample, bystander)
        seen[case] = np.abs(twin.draw("left").astype(float) - observation["left"]).mean()
    env.close()
    assert seen["with"] < 0.05 and seen["without"] > 0.2, seen
