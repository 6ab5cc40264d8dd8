"""`armworld plan` end to end on a point world: schema, page, picture, video, resume, errors."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import evaluation_fake as fake  # noqa: E402

from armworld.evaluation.plan import PlanConfig, plan  # noqa: E402
from armworld.evaluation.records import parse_seeds  # noqa: E402
from armworld.evaluation.report import Page  # noqa: E402
from armworld.evaluation.setup import Setup, resolve  # noqa: E402
from armworld.evaluation.video import read_mp4, write_mp4  # noqa: E402

NAN = float("nan")
EPISODE_KEYS = {"seed", "success", "final_distance_m", "steps", "seconds_per_action", "reason"}
KEYS = {"task", "object", "lab", "agent", "model", "step_seconds", "episodes", "success_rate", "wilson_95"}


def run(out: Path, **changes):
    values: dict[str, Any] = {
        "task": fake.ID,
        "agent": "walk",
        "baselines": "broken",
        "episodes": 3,
        "max_steps": 8,
        "videos": 1,
    }
    printed = io.StringIO()
    record = plan(PlanConfig(out=out, **(values | changes)), Console(file=printed, width=200))
    return record, printed.getvalue()


def test_plan_writes_everything(tmp_path: Path) -> None:
    record, printed = run(tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert set(stored) == KEYS | {"baselines", "summary", "config", "commit", "commits", "versions"}
    assert all(set(episode) == EPISODE_KEYS for episode in stored["episodes"])
    assert [e["seed"] for e in stored["episodes"]] == [2_000_000, 2_000_001, 2_000_002]
    assert stored["success_rate"] == record["success_rate"] == 1.0 and stored["model"] is None
    assert stored["wilson_95"] == pytest.approx([0.4385, 1.0], abs=1e-4)
    beside = stored["baselines"]["broken"]
    assert beside["success_rate"] == 0 and beside["summary"]["reasons"] == {"planning_failed": 3}
    assert "3/3" in printed and "planning_failed" in printed and "index.html" in printed

    page = (tmp_path / "index.html").read_text()
    assert "data:video/mp4;base64," in page and "data:image/png;base64," in page and "3/3" in page
    assert Image.open(tmp_path / "summary.png").size[0] > 1000
    films = list((tmp_path / "cells" / "walk" / "videos").iterdir())
    assert [film.name for film in films] == ["2000000.mp4"]
    frames = read_mp4(films[0])
    assert len(frames) == 9 + 8 and frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    assert np.abs(frames[0].astype(int) - frames[8]).mean() > 1  # it moves
    assert np.abs(frames[9].astype(int) - frames[-1]).mean() < 0.5  # the last frame stays


def test_a_rerun_reuses_and_extends(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    second, _ = run(tmp_path, episodes=4, videos=2)
    assert second["episodes"][0] == first["episodes"][0] and second["episodes"][2] == first["episodes"][2]
    assert len(second["episodes"]) == 4
    assert (tmp_path / "cells" / "walk" / "videos" / "2000001.mp4").exists()


def test_a_run_that_went_on_after_a_change_names_both_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armworld.evaluation.cells.commit", lambda: "abc")
    run(tmp_path)
    monkeypatch.setattr("armworld.evaluation.cells.commit", lambda: "def")
    monkeypatch.setattr("armworld.evaluation.records.commit", lambda: "def")
    record, _ = run(tmp_path, episodes=4)
    assert record["commit"] == "def" and record["commits"] == ["abc", "def"]
    assert record["baselines"]["broken"]["commits"] == ["abc", "def"]
    assert "def; its episodes were run at abc, def" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"agent": "walkk"}, "unknown agent 'walkk'; valid: hold, random, expert"),
        ({"baselines": "hold,holt"}, "unknown agent 'holt'"),
        ({"task": "reech"}, "unknown task 'reech'; valid: reach"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"seeds": "9-3"}, "first is larger"),
        ({"seeds": "nowhere.txt"}, "no seed"),
        ({"agent": "cem", "model": "nonesuch"}, "no checkpoint 'nonesuch'"),
        ({"object": "pan"}, "unknown object 'pan'; valid: cup, box"),
        ({"image_size": 0}, "image_size must be at least 16 and at most 1280, got 0"),
        ({"step_seconds": 0.0}, r"step_seconds must be above 0, got 0\.0"),
        ({"step_seconds": NAN}, "step_seconds must be above 0, got nan"),
        ({"task": "reach", "step_seconds": 0.2501}, "must be a positive multiple of the physics step"),
        ({"task": "reach", "level": "wild"}, "unknown level 'wild'; valid: none, jitter, full"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"videos": -1}, "videos must be at least 0, got -1"),
        ({"agent": "cem", "arrive_within": -1.0}, r"arrive_within must be above 0, got -1\.0"),
        ({"agent": "cem", "patience": NAN}, "patience must be above 0, got nan"),
        ({"agent": "cem", "max_yaw": NAN}, "max_yaw must be at least 0, got nan"),
        ({"agent": "cem", "gripper_deadband": NAN}, "gripper_deadband must be at least 0, got nan"),
        ({"agent": "octo", "gripper_deadband": NAN}, "gripper_deadband must be at least 0, got nan"),
        ({"agent": "cem", "execute": 0}, "execute must be at least 1, got 0"),
        ({"agent": "cem", "execute": 3}, "execute_steps 3 exceeds the planner's horizon 1"),
        ({"agent": "cem", "samples": 4}, "2 <= elites <= samples"),
        ({"agent": "cem", "objective": "finale"}, "unknown objective 'finale'; valid: final"),
        ({"agent": "cem", "axes_yaw": NAN}, "axes_yaw must be finite, got nan"),
        ({"agent": "cem", "calibrate": 1}, "calibrate must be at least 2, got 1"),
        ({"agent": "cem", "bank": Path("b")}, "--bank, the folder of a dataset, goes with --subgoals-from bank"),
        ({"agent": "cem", "bank": Path("b"), "subgoals_from": "bank"}, "b: no such folder"),
        ({"agent": "oracle", "oracle_planner": "random"}, "unknown planner 'random'; valid: .*random_shooting"),
        ({"task": "CartPole-v1"}, "'CartPole-v1' is not of armworld's interface .*valid: reach, grasp"),
        ({"task": "nosuchmodule:Cart-v0"}, "no environment 'nosuchmodule:Cart-v0': No module"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists() or changes == {"object": "pan"}  # of which the environment alone can tell


def test_seeds(tmp_path: Path) -> None:
    assert parse_seeds("3-5") == [3, 4, 5] and parse_seeds("7,3") == [7, 3]
    (tmp_path / "seeds.txt").write_text("# held out\n5\n\n9 # hard\n")
    assert parse_seeds(str(tmp_path / "seeds.txt")) == [5, 9]
    for bad in ("", "1,1", "a", "-4"):
        with pytest.raises(ValueError, match="seed"):
            parse_seeds(bad)


def test_pages_escape_and_align() -> None:
    page = Page("a <b>", "x & y").table(["name", "n"], [["<i>", "3"], ["j", "4.5 cm"]]).details("d", {"k": "</pre>"})
    html = page.html()
    assert "a &lt;b&gt;" in html and "x &amp; y" in html and "&lt;i&gt;" in html and "&lt;/pre&gt;" in html
    assert html.count('class="n"') == 3  # the column of numbers, its head included


def test_videos_refuse_what_players_would(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even sizes"):
        write_mp4(tmp_path / "a.mp4", [np.zeros((5, 4, 3), np.uint8)], 4)
    with pytest.raises(ValueError, match="at least one"):
        write_mp4(tmp_path / "a.mp4", [], 4)


def test_models_made_for_two_cameras_need_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = {"a": "left", "b": "wrist"}

    def load(agent: str, name: str) -> SimpleNamespace:
        return SimpleNamespace(camera=cameras[name], image_size=(64, 64), step_seconds=0.25)

    monkeypatch.setattr("armworld.evaluation.setup.load_model", load)
    agents, setup = ["cem", "icem", "hold"], Setup(model="a", models="icem=b")
    with pytest.raises(ValueError, match=r"different cameras \('a' for left, 'b' for wrist\): give --camera"):
        resolve(setup, agents)
    assert resolve(replace(setup, camera="left"), agents).camera == "left"
    assert resolve(Setup(model="b"), agents).camera == "wrist"
