"""Settings, goals, pre-flight, live page and the LeRobot shim: what needs no robot."""

import dataclasses
import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from armworld.cli import parse
from armworld.evaluation.agents import AgentSettings
from armworld.pose import apply_action
from armworld.real.agents import ServoAgent, build_agent
from armworld.real.cameras import Framing, RecordedCamera
from armworld.real.cell import Cell
from armworld.real.deploy import DeployConfig, _Run
from armworld.real.fakes import FakeArm, FakeCamera, FakeGripper
from armworld.real.gate import SafetyGate
from armworld.real.goals import load_goal, save_goal
from armworld.real.journal import JournalError, read_journal
from armworld.real.limits import FRANKA_HAND, ROBOTIQ_2F85, Box, Limits
from armworld.real.page import LivePage
from armworld.real.preflight import Preflight, preflight
from armworld.real.setup import CellConfig, parse_camera
from armworld.types import Goal

BOX = (0.3, -0.3, 0.15, 0.7, 0.3, 0.6)
TIPS = (0.2, -0.4, 0.01, 0.8, 0.4, 0.6)
HARDWARE = {"host": "172.16.0.2", "cameras": ("left=opencv:0",), "workspace": BOX, "fingertips": TIPS}
HARDWARE |= {"goal": (Path("goal.png"),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": ""}, "--host"),
        ({"workspace": None}, "--workspace and --fingertips"),
        ({"fingertips": None}, "--workspace and --fingertips"),
        ({"cameras": ()}, "--cameras"),
        ({"cameras": ("left",)}, "NAME=KIND:SOURCE"),
        ({"cameras": ("left=webcam:0",)}, "valid: opencv, realsense, recorded"),
        ({"goal": ()}, "--goal"),
        ({"agent": "oracle"}, "unknown agent"),
        ({"hand": "robotiq_2f85"}, "--hand-port"),
        ({"max_frame_age": 1.0}, "max_frame_age must be at most 0.3"),
        ({"episodes": 2}, "--episodes"),
        ({"budgets": (1, 2)}, "one budget per sub-goal"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sim": True}, "--sim brings its own"),
    ],
)
def test_settings_that_are_missing_or_contradict_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        DeployConfig(**(HARDWARE | changes))


def test_settings_of_the_cell_and_of_the_agent_share_no_name():
    """One class holds both: a name of both would silently mean only one of them."""
    cell, agent = ({f.name for f in dataclasses.fields(kind)} for kind in (CellConfig, AgentSettings))
    assert not cell & agent


def test_the_command_line_gives_the_documented_defaults(tmp_path):
    config = parse(DeployConfig, ["deploy", "--sim", "--out", str(tmp_path)], "")
    assert config == DeployConfig(sim=True, out=tmp_path)
    limits = DeployConfig(sim=True).limits(0.25)
    assert limits.fingers == ROBOTIQ_2F85 and limits.max_plan_age > 1


def test_dry_by_default_and_listening_on_loopback():
    config = DeployConfig(**HARDWARE)
    assert not config.moves and config.page_host == "127.0.0.1"
    assert DeployConfig(sim=True).moves


def test_speeds_above_the_limit_do_not_become_limits():
    with pytest.raises(ValueError, match="max_speed"):
        CellConfig(sim=True, max_speed=0.5).limits(0.25)


def test_cameras_by_name():
    assert parse_camera("wrist=realsense:9121") == ("wrist", "realsense", "9121")
    assert parse_camera("left=opencv:/dev/v4l/by-id/a:b") == ("left", "opencv", "/dev/v4l/by-id/a:b")


def fake_cell() -> Cell:
    cell = Cell(FakeArm(), FakeGripper(), {"left": FakeCamera()})
    cell.connect()
    return cell


def limits() -> Limits:
    return Limits(Box(BOX[:3], BOX[3:]), Box(TIPS[:3], TIPS[3:]), fingers=FRANKA_HAND)


def test_preflight_passes_a_good_cell_and_names_what_is_wrong(tmp_path):
    cell, gate = fake_cell(), SafetyGate(limits())
    good = preflight(cell, gate, tmp_path / "not" / "there")
    assert good.ok, good.lines()
    assert good.fresh(good.time_s + 100) and not good.fresh(good.time_s + 130) and not good.fresh(good.time_s - 1)
    cell.cameras["left"].fault = "black"  # type: ignore[attr-defined]
    cell.arm.pose[0] = 0.9  # type: ignore[attr-defined]
    bad = {check.name: check for check in preflight(cell, gate, tmp_path).checks if not check.ok}
    assert bad.keys() == {"camera left", "box"} and "outside" in bad["box"].text


class Quiet:
    def print(self, *args, **options):
        pass


def live_run(tmp_path, typed, config=None):
    config = config or DeployConfig(**(HARDWARE | {"live": True, "out": tmp_path}))
    run = _Run.__new__(_Run)
    run.config, run.console, run.ask = config, Quiet(), lambda question: typed  # type: ignore[assignment]
    run.gate, run.cell = SafetyGate(limits()), fake_cell()
    return run


def test_live_needs_the_typed_address_and_a_fresh_preflight(tmp_path):
    fresh = preflight(fake_cell(), SafetyGate(limits()), tmp_path)
    with pytest.raises(ValueError, match="not confirmed"):
        live_run(tmp_path, "yes")._confirm_live(fresh)
    live_run(tmp_path, "172.16.0.2")._confirm_live(fresh)
    old = Preflight(fresh.checks, fresh.time_s - 1000)
    run = live_run(tmp_path, "172.16.0.2")
    run.cell.arm.reflex = "reflex"  # what happened since the old pre-flight  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="pre-flight failed"):
        run._confirm_live(old)


def test_goals_round_trip_and_pictures_are_goals(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    state = np.arange(7, dtype=np.float32) / 10
    save_goal(tmp_path / "goal", {"state": state, "left": image})
    framing = {"left": Framing((40, 60))}
    goal = load_goal([tmp_path / "goal"], [5], framing)
    np.testing.assert_array_equal(goal.observations[0]["left"], image)
    np.testing.assert_allclose(goal.observations[0]["state"], state)
    Image.fromarray(image).save(tmp_path / "goal.jpg")
    assert "state" not in load_goal([tmp_path / "goal.jpg"], [5], framing).observations[0]
    with pytest.raises(ValueError, match="no goal at"):
        load_goal([tmp_path / "nothing"], [5], framing)
    with pytest.raises(ValueError, match="no picture of camera 'wrist'; it has left"):
        load_goal([tmp_path / "goal"], [5], {"wrist": Framing()})
    (tmp_path / "goal" / "state.json").write_text('{"state": [1, 2]}')
    with pytest.raises(ValueError, match="7 finite numbers"):
        load_goal([tmp_path / "goal"], [5], framing)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture"):
        load_goal([tmp_path / "text.png"], [5], framing)


def test_a_captured_goal_is_not_cropped_again_and_keeps_to_its_crop(tmp_path):
    """What the camera showed, framed, is what the agent gets as goal; a bare picture is framed here."""
    raw, framing = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8), Framing((64, 64), 1.35)
    save_goal(tmp_path / "goal", {"state": np.zeros(7), "left": framing.apply(raw)}, 1.35)
    Image.fromarray(raw).save(tmp_path / "goal.png")
    for path in (tmp_path / "goal", tmp_path / "goal.png"):
        np.testing.assert_array_equal(
            load_goal([path], [5], {"left": framing}).observations[0]["left"], framing.apply(raw)
        )
    smaller = load_goal([tmp_path / "goal"], [5], {"left": Framing((32, 32), 1.35)}).observations[0]["left"]
    np.testing.assert_array_equal(smaller, Framing((32, 32)).apply(framing.apply(raw)))
    with pytest.raises(
        ValueError, match=r"a crop of 1\.35, and camera 'left' now has no crop: .*--crop 1\.35, .*--crop 0"
    ):
        load_goal([tmp_path / "goal"], [5], {"left": Framing((64, 64))})
    save_goal(tmp_path / "whole", {"state": np.zeros(7), "left": raw})
    with pytest.raises(ValueError, match=r"with no crop, and camera 'left' now has a crop of 1\.35"):
        load_goal([tmp_path / "whole"], [5], {"left": framing})


def test_framing_crops_the_middle_and_squeezes():
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, 80:560] = 200
    squared = Framing((64, 64), crop=1.0).apply(image)
    assert squared.shape == (64, 64, 3) and squared.min() == 200
    assert Framing((64, 64)).apply(image)[:, 0].max() < 100
    with pytest.raises(ValueError, match="crop"):
        Framing((64, 64), crop=100.0)


def test_recorded_frames_come_again_and_again(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), 40 * (i + 1), np.uint8)).save(tmp_path / f"{i}.png")
    with RecordedCamera(tmp_path, rate_hz=200, framing=Framing((16, 16))) as camera:
        seen = {}
        while len(seen) < 7:
            frame = camera.read()
            seen[frame.id] = int(frame.image.mean())
    assert set(seen.values()) == {40, 80, 120}
    with pytest.raises(ValueError, match="holds no pictures"):
        RecordedCamera(tmp_path / "..", rate_hz=10)._open()


def test_the_expert_goes_straight_to_the_goals_in_order():
    here = np.array([0.45, 0, 0.35, np.pi, 0, 0, 0.0])
    first, second = here.copy(), here.copy()
    first[0] += 0.12
    second[1] += 0.08
    agent = ServoAgent()
    agent.reset(Goal(({"state": first}, {"state": second}), (5, 5)))
    state, path = here, []
    for _ in range(9):
        action = agent.act({"state": state})
        assert np.linalg.norm(action[:3]) <= 0.05 + 1e-9
        state = apply_action(state, action)
        path.append(state)
    assert min(np.linalg.norm(s[:3] - first[:3]) for s in path) < 1e-6
    np.testing.assert_allclose(state[:3], second[:3], atol=1e-6)


def test_agents_that_need_a_simulator_are_refused():
    for name in ("oracle", "sac"):
        with pytest.raises(ValueError, match=f"unknown agent '{name}'; valid: .*expert, cem"):
            build_agent(name, "", 0, AgentSettings())
        with pytest.raises(ValueError, match=f"unknown agent '{name}'; valid: .*expert, cem"):
            DeployConfig(sim=True, agent=name)


def fetch(url, data=None, host=None):
    request = urllib.request.Request(url, data=data, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read()


def test_the_live_page_shows_status_and_stops(tmp_path):
    said = []
    image = np.zeros((8, 8, 3), np.uint8)
    page = LivePage(said.append, live=False, goal_images=[{"left": image}, {"left": image + 9}])
    try:
        assert page.address.startswith("http://127.0.0.1:")
        row = {"step": 3, "verdict": "pass", "state": np.zeros(7), "reasons": (), "proposed": None}
        page.publish(row | {"latency": {"agent": 0.1}, "agent": {"energy": 0.5}}, {"left": image})
        status = json.loads(fetch(page.address + "status"))
        assert status["step"] == 3 and status["distance"] == 0.5 and status["images"] == ["goal left", "left"]
        assert fetch(page.address + "image/goal%20left").startswith(b"\x89PNG") and b"STOP" in fetch(page.address)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(page.address + "status", host="evil.example")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(page.address + "image/none")
        first = fetch(page.address + "image/goal%20left")
        page.publish(row | {"latency": {}, "agent": {"energy": 0.4, "image": 1}}, {"left": image})
        assert fetch(page.address + "image/goal%20left") != first  # the sub-goal that is planned for
        fetch(page.address + "stop", data=b"")
        assert said == ["stop button"]
    finally:
        page.close()


def test_a_torn_journal_is_read_up_to_its_last_line(tmp_path):
    (tmp_path / "header.json").write_text("{}")
    (tmp_path / "journal.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert [row["step"] for row in read_journal(tmp_path)[1]] == [0, 1]
    (tmp_path / "journal.jsonl").write_text('{"st\n{"step": 1}\n')
    with pytest.raises(JournalError, match="line 1"):
        read_journal(tmp_path)
    with pytest.raises(JournalError, match="no journal"):
        read_journal(tmp_path / "nothing")
