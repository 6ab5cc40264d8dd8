"""Camera sweeps on a point world: design, resume, page, verdict."""

import io
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
import evaluation_fake as fake  # noqa: E402
import worldmodel_small as small  # noqa: E402
from test_planners_turning import TurnedWorld, recorded  # noqa: E402

from armworld.envs.cameras import RIGS  # noqa: E402
from armworld.evaluation.agents import AGENTS, AgentSettings  # noqa: E402
from armworld.evaluation.camera_page import gallery  # noqa: E402
from armworld.evaluation.camera_picture import curves_figure, heat_figure, sky_figure  # noqa: E402
from armworld.evaluation.camera_sweep import (  # noqa: E402
    CameraSweep,
    Station,
    camera_record,
    camera_sweep,
    corrected_cell,
    told_seconds,
)
from armworld.evaluation.camera_verdict import axes_against_azimuth, verdict  # noqa: E402
from armworld.evaluation.cells import Cell  # noqa: E402
from armworld.evaluation.episodes import EpisodeResult  # noqa: E402
from armworld.evaluation.files import write_json  # noqa: E402
from armworld.evaluation.joining import ReportConfig, report  # noqa: E402
from armworld.evaluation.looking import HELD_OUT, Look  # noqa: E402
from armworld.evaluation.picture import figure_png  # noqa: E402
from armworld.evaluation.statistics import signed  # noqa: E402
from armworld.evaluation.views import NEUTRAL, Views, label, make_views, parse_axis, varying_axes  # noqa: E402
from armworld.planners.turning import fit_turn  # noqa: E402
from armworld.worldmodel.adapt import AdaptConfig  # noqa: E402
from armworld.worldmodel.checkpoint import save_world_model  # noqa: E402
from armworld.worldmodel.model import WorldModelConfig  # noqa: E402
from armworld.worldmodel.readout import HandReadout, ReadoutConfig  # noqa: E402

RIG = RIGS["lab1"]["left"]


def run(out: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    values: dict[str, Any] = {"task": fake.ID, "agent": "walk", "episodes": 2, "azimuth": "-40,0,40", "moves": 2}
    printed = io.StringIO()
    config = CameraSweep(out=out, max_steps=8, **(values | changes))
    return camera_sweep(config, Console(file=printed, width=200)), printed.getvalue()


def row(azimuth: float, wins: int, yaw: float, contrast: float = 0.5, fixed: int | None = None) -> dict[str, Any]:
    def part(won: int) -> dict[str, Any]:
        episodes = [{"seed": i, "success": i < won} for i in range(10)]
        return {
            "episodes": episodes,
            "success_rate": won / 10,
            "wilson_95": [0.1, 0.9],
            "summary": {"final_distance_median_m": 0.02},
        }

    turn = {"yaw_deg": yaw, "spread_deg": 1.0, "contrast": contrast, "energy": 0.1, "copy_energy": 0.2}
    record = {
        "name": "rig" if azimuth == 0 else f"az{azimuth:+g}",
        "offsets": NEUTRAL | {"azimuth": azimuth},
        "placement": {"azimuth": 50 + azimuth, "elevation": 31.0, "distance": 1.0},
        "turn": turn,
        **part(wins),
    }
    return record if fixed is None else record | {"corrected": part(fixed) | {"against_plain": {"p_value": 0.5}}}


def test_axes_are_lists_ranges_or_one_value() -> None:
    assert parse_axis("azimuth", "-90:90:7") == [-90, -60, -30, 0, 30, 60, 90]
    assert parse_axis("azimuth", "3,1,3") == [3, 1] and parse_axis("azimuth", "2.5") == [2.5]
    for text in ("", "a", "1:2", "1:2:0", "nan"):
        with pytest.raises(ValueError, match="azimuth"):
            parse_axis("azimuth", text)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"moves": 1}, "moves must be at least 2, got 1"),
        ({"task": "CartPole-v1"}, "not of armworld's interface"),
        ({"camera": "wrist"}, "unknown camera to place 'wrist'"),
        ({"elevation": "80"}, "camera placement needs elevation"),
        ({"execute": 0}, "execute must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named_beforehand(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CameraSweep(**changes)


def test_no_number_of_a_sweep_is_minus_zero() -> None:
    assert [signed(value, 1) for value in (-0.04, 0.0, -0.06)] == ["+0.0", "+0.0", "-0.1"]
    assert [f"{value:g}" for value in parse_axis("azimuth", "-0,3")] == ["0", "3"]
    rows = [row(azimuth, 5, -0.3) for azimuth in (-30, 0, 30)]
    for line in rows:
        line["offsets"] = line["offsets"] | {"distance": 1.2}
    figures = [sky_figure(rows), heat_figure(rows, "azimuth", "distance")]
    texts = [text.get_text() for figure in figures for axes in figure.axes for text in axes.texts]
    assert "+0" in texts and "-0" not in texts
    panel = figures[1].axes[0]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["-30", "0", "+30"]
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["1.2"]  # a factor has no sign


def test_a_grid_holds_every_combination_and_the_rig() -> None:
    views = make_views(Views(azimuth="-30,30", elevation="0,20", distance="1.2"), RIG)
    assert len(views) == 5 and views[0].is_rig and views[0].placement == RIG
    assert [view.name for view in views[1:]] == [
        "az-30_el+0_d1.2",
        "az-30_el+20_d1.2",
        "az+30_el+0_d1.2",
        "az+30_el+20_d1.2",
    ]
    placed = views[2].placement
    assert (placed.azimuth, placed.elevation, placed.distance) == (20.0, 51.0, 1.2)
    assert varying_axes(views) == ["azimuth", "elevation", "distance"]
    assert label(views[1], ["azimuth", "distance"]) == "az -30°, d ×1.2"
    assert len(make_views(Views(), RIG)) == 7


def test_a_sobol_design_fills_the_box_and_repeats() -> None:
    config = Views(azimuth="-60,60", elevation="-10,30", look_z="-0.05,0.05", design="sobol", points=20)
    views, again = (make_views(config, RIG, seed=3) for _ in range(2))
    assert views == again and len(views) == 21 and len({view.name for view in views}) == 21
    drawn = np.array([[view.offsets[axis] for axis in ("azimuth", "elevation", "look_z")] for view in views[1:]])
    assert (drawn >= [-60, -10, -0.05]).all() and (drawn <= [60, 30, 0.05]).all() and (np.ptp(drawn[:, 0]) > 90)
    with pytest.raises(ValueError, match="more than one value"):
        make_views(Views(azimuth="0", design="sobol"), RIG)


def test_an_impossible_camera_is_named() -> None:
    with pytest.raises(ValueError, match="elevation"):
        make_views(Views(elevation="80"), RIG)


def test_a_sweep_writes_everything_and_resumes(tmp_path: Path) -> None:
    record, printed = run(tmp_path)
    assert "3 cameras, 2 episodes each; 6 to run: about" in printed
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert stored == record and stored["varying"] == ["azimuth"] and stored["model"] is None
    assert [view["name"] for view in stored["views"]] == ["az-40", "rig", "az+40"]
    assert all(view["success_rate"] == 1.0 and view["turn"] is None for view in stored["views"])
    assert "2 of 2 other cameras" in stored["verdict"][0] and "-40° to +40°" in stored["verdict"][0]
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "From where may I look?" in page
    assert Image.open(tmp_path / "views" / "rig" / "view.jpg").size == (224, 224)
    episode = tmp_path / "views" / "az+40" / "walk" / "episodes" / "2000001.json"
    before = episode.read_bytes()
    episode.unlink()
    again, printed = run(tmp_path)
    assert "1 to run" in printed and again["views"][0] == stored["views"][0]
    timeless = [
        {**json.loads(text), "seconds_per_action": 0, "cpu_seconds_per_action": 0}
        for text in (before, episode.read_bytes())
    ]
    assert timeless[0] == timeless[1]
    assert "all done before" in run(tmp_path)[1]


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_evaluation_sweep import run
if __name__ == "__main__":
    run(Path(sys.argv[2]), agent="walk_slowly", episodes=10)
"""


def test_a_killed_sweep_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    child = subprocess.Popen([sys.executable, str(script), str(TESTS), str(tmp_path / "a")], stderr=subprocess.PIPE)
    try:
        while len(list(tmp_path.glob("a/views/*/walk_slowly/episodes/*.json"))) < 13:  # into the second camera
            assert child.poll() is None, child.stderr and child.stderr.read().decode()
            time.sleep(0.02)
    finally:
        child.kill()
        child.communicate()
    assert not (tmp_path / "a" / "sweep.json").exists()
    resumed, undisturbed = (run(tmp_path / name, agent="walk_slowly", episodes=10)[0] for name in "ab")
    assert [timeless(view) for view in resumed["views"]] == [timeless(view) for view in undisturbed["views"]]


def timeless(view: dict[str, Any]) -> dict[str, Any]:
    """A camera's part of sweep.json without what depends on the machine's speed."""
    episodes = [{key: value for key, value in e.items() if key != "seconds_per_action"} for e in view["episodes"]]
    summary = {key: value for key, value in view["summary"].items() if "seconds" not in key}
    return {**view, "episodes": episodes, "summary": summary}


def test_sweeps_are_joined_and_compared_camera_by_camera(tmp_path: Path) -> None:
    """Two runs over the same cameras and seeds: each camera against itself, never against another camera."""
    first, second = (run(tmp_path / name, azimuth="0,40")[0] for name in "ab")
    second["views"][1]["corrected"] = {key: first["views"][1][key] for key in ("episodes", "wilson_95", "summary")}
    write_json(tmp_path / "b" / "sweep.json", second)
    joined = report(ReportConfig((tmp_path / "a", tmp_path / "b"), tmp_path / "joined"), Console(file=io.StringIO()))
    pairs = [(pair["task"].split(" · ")[-1], pair["first"][:8], pair["second"][:15]) for pair in joined["comparisons"]]
    assert [view for view, *_ in pairs] == ["rig", "az+40", "az+40", "az+40"]
    assert any("axes put right" in pair["second"] for pair in joined["comparisons"])
    page = (tmp_path / "joined" / "index.html").read_text()
    assert "lab1 · az+40" in page and page.count("data:image/png;base64,") == 2


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    run(tmp_path, azimuth="0")
    with pytest.raises(ValueError, match="choose another --out"):
        run(tmp_path, azimuth="0", moves=3)


def test_correcting_needs_a_model() -> None:
    with pytest.raises(ValueError, match="expert"):
        CameraSweep(agent="expert", correct="turn")
    for agent in ("oracle", "octo", "sac"):
        with pytest.raises(ValueError, match=f"is for planners on a learned world model, not for '{agent}'"):
            CameraSweep(agent=agent, correct="turn")
    with pytest.raises(ValueError, match="not for 'oracle'"):
        CameraSweep(agent="oracle", correct="adapt")
    with pytest.raises(ValueError, match="valid for it: --correct adapt"):
        CameraSweep(agent="servo", correct="turn")


def test_a_model_is_adapted_at_every_camera_and_plays_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in the simulated cell: learned, stored, used, told; resumed without learning again."""
    short = AdaptConfig(predictor_steps=2, readout_steps=2, clips=2, frames=4)
    monkeypatch.setattr(AdaptConfig, "for_moves", staticmethod(lambda moves: short))
    torch.manual_seed(0)
    encoder = small.encoder()
    width = encoder.config.width
    predictor = small.ac_predictor(features=width, image_size=(64, 64))
    usage = WorldModelConfig(image_size=(64, 64))
    readout = HandReadout(ReadoutConfig(width, 16, 4, 16))
    save_world_model(tmp_path / "small", encoder, predictor, usage, readout=readout)
    settings = {"task": "reach", "agent": "cem", "model": str(tmp_path / "small"), "azimuth": "0", "episodes": 1}
    config = CameraSweep(
        out=tmp_path / "out", max_steps=2, samples=8, iterations=1, moves=15, correct="adapt", **settings
    )
    record = camera_sweep(config, Console(quiet=True))
    (view,) = record["views"]
    assert view["corrected"]["by"] == "adapt" and view["corrected"]["turn"]["yaw_deg"] != view["turn"]["yaw_deg"]
    assert view["turn"]["moves"] <= HELD_OUT and len(view["corrected"]["episodes"]) == 1
    adapted = tmp_path / "out" / "views" / "rig" / "adapted"
    learned = json.loads((adapted / "config.json").read_text())["about"]["adapted"]
    assert learned["moves"] == 15 and learned["from"] == str(tmp_path / "small")
    stamp = (adapted / "model.safetensors").stat().st_mtime_ns
    printed = io.StringIO()
    again = camera_sweep(config, Console(file=printed, width=200))
    assert "all done before" in printed.getvalue() and again["views"][0]["corrected"] == view["corrected"]
    assert (adapted / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="asked with other moves; choose another --out"):
        camera_sweep(replace(config, moves=16), Console(quiet=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent": "cem", "moves": 10}, "moves must be at least 15, got 10"),
        ({"agent": "octo"}, "planners on a world model of features, not for 'octo'"),
    ],
)
def test_what_cannot_be_adapted_is_said_beforehand(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CameraSweep(correct="adapt", **settings)
    assert CameraSweep(correct="adapt").moves_there == 128 and CameraSweep().moves_there == 24


def test_the_verdict_names_the_range_and_follows_the_axes() -> None:
    rows = [row(-60, 0, -50), row(-30, 8, -25), row(0, 9, 1), row(30, 8, -27), row(60, 1, 40)]
    lines = verdict(rows, ["azimuth"])
    assert "2 of 4 other cameras" in lines[0] and "azimuths from -30° to +30°" in lines[0]
    assert "but not monotonically" in lines[1]
    rising = axes_against_azimuth([row(a, 5, 0.9 * a) for a in (-170, -60, 0, 60, 170)])
    assert rising is not None and rising["monotone"] and rising["slope"] == pytest.approx(0.9)


def test_axes_that_stay_where_they_are_are_said_to() -> None:
    line = verdict([row(-30, 8, 2.5), row(0, 9, 2.4), row(30, 8, 0.5)], ["azimuth"])[1]
    assert "at most 2.5° in any: they do not turn with the camera." in line and "monotonically" not in line


def test_the_verdict_is_honest_where_nothing_works() -> None:
    assert "From nowhere" in verdict([row(0, 0, 0), row(30, 0, 20)], ["azimuth"])[0]
    assert "trained view only" in verdict([row(0, 9, 0), row(30, 2, 20)], ["azimuth"])[0]
    deaf = verdict([row(-30, 1, -80, 0.01), row(0, 9, 0), row(30, 2, 20)], ["azimuth"])[1]
    assert "az-30 it hardly responds" in deaf
    fixed = verdict([row(0, 10, 0, fixed=10), row(30, 2, 20, fixed=6)], ["azimuth"])[-1]
    assert "from 20 to 60 %, 50 % of the gap" in fixed and "0 of 1 then keep" in fixed
    adapted = [row(0, 10, 0, fixed=10), row(30, 2, 20, fixed=9)]
    adapted[1]["corrected"] |= {"by": "adapt", "turn": None}
    assert verdict(adapted[1:] + adapted[:1], ["azimuth"])[-1].startswith("Adapted by the moves, success")
    assert "1 of 1 then keep" in verdict(adapted, ["azimuth"])[-1]


def test_pictures_of_every_kind_are_drawn() -> None:
    rows = [row(a, 5, a, fixed=6) for a in (-30, 0, 30)]
    rows += [
        {**r, "name": r["name"] + "_el+20", "offsets": r["offsets"] | {"elevation": 20.0}, "turn": None} for r in rows
    ]
    for figure in (
        sky_figure(rows),
        sky_figure(rows[:1]),
        heat_figure(rows, "azimuth", "elevation"),
        curves_figure(rows, ["azimuth", "elevation"]),
        curves_figure(rows[3:], ["azimuth"]),
    ):
        assert figure_png(figure, dpi=40)[:4] == b"\x89PNG"
    assert gallery(rows, ["azimuth"], {r["name"]: b"x" for r in rows}).count("<figure") == 6


def test_times_are_told_in_people_s_units() -> None:
    assert (told_seconds(40), told_seconds(600), told_seconds(7200)) == ("40 s", "10 min", "2.0 h")


def test_a_sweep_over_ray_runs_the_same_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def local(function: Any, jobs: list[Any], workers: int, address: str) -> Any:
        asked.append((len(jobs), workers, address))
        for job in jobs:
            yield job, function(job)

    monkeypatch.setattr("armworld.datasets.ray_jobs.run_ray_jobs", local)
    record, _ = run(tmp_path / "ray", ray="auto")
    assert asked == [(3, 1, "auto"), (6, 1, "auto")]
    assert [view["success_rate"] for view in record["views"]] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("turn", [35.0, -120.0])
def test_the_turn_that_was_found_is_taken_out_of_what_the_planner_imagines(tmp_path: Path, turn: float) -> None:
    model, upright = TurnedWorld(turn), TurnedWorld(0.0)
    found = {"turn": asdict(fit_turn(model, recorded(model)))}
    cell = Cell(fake.ID, {}, "cem", tmp_path / "cem", "some", AgentSettings())
    station = Station(make_views(Views(azimuth="0"), RIG)[0], cell, Look(cell, 8, 0, tmp_path))
    config = CameraSweep(model="some", correct="turn", out=tmp_path)
    settings = corrected_cell(config, station, found).settings
    agent: Any = AGENTS["cem"].build(fake.PointEnv(), model, 0, settings)
    moves = recorded(upright)
    asked = moves.z[:, None], moves.state[:, None], moves.action[:, None, None]
    torch.testing.assert_close(agent.model.rollout(*asked).z[:, 0, 0], moves.after, atol=5e-3, rtol=0)


def test_the_corrected_runs_are_the_first_of_each_pair() -> None:
    def episodes(*won: bool) -> list[EpisodeResult]:
        return [EpisodeResult(seed, success, 0.1, 3, 0.1, 0.1, "x") for seed, success in enumerate(won)]

    plain, better = episodes(True, False, False, False), episodes(False, True, True, False)
    view = make_views(Views(azimuth="0"), RIG)[0]
    record = camera_record(view, plain, {"turn": None}, better, "turn")
    against = record["corrected"]["against_plain"]
    assert (against["only_first"], against["only_second"]) == (2, 1)
    assert (record["success_rate"], record["corrected"]["success_rate"]) == (0.25, 0.5)
