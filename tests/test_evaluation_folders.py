"""`--out`: a folder that holds another command's results is refused, and so is a file, before anything is done."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import armworld.evaluation.joining as joining
from armworld.evaluation.doctor import DoctorConfig, doctor
from armworld.evaluation.files import write_json
from armworld.evaluation.folders import check_out, held_by
from armworld.evaluation.horizon import HorizonSweep, horizon_sweep
from armworld.evaluation.joining import ReportConfig
from armworld.evaluation.landscape import LandscapeConfig, landscape
from armworld.evaluation.plan import PlanConfig, plan
from armworld.evaluation.preflight import PreflightConfig, preflight
from armworld.evaluation.suite import EvaluateConfig, evaluate
from armworld.evaluation.sweep import CameraSweep, camera_sweep
from armworld.real.deploy import DeployConfig, deploy
from armworld.real.goal import GoalConfig
from armworld.real.replay import ReplayConfig, replay

HELD = {
    "results.json": "results of plan",
    "cells/cem/cell.json": "results of plan",
    "table.md": "results of evaluate",
    "cells/reach/cup/lab1/cem/cell.json": "results of evaluate",
    "cells/reach/cup/lab1/cem/16x2/cell.json": "results of evaluate",
    "cells/horizon_2/cell.json": "results of sweep horizon",
    "views/rig/look.json": "results of sweep camera",
    "doctor.json": "results of doctor",
    "planner/agent/cell.json": "results of doctor",
    "landscape.json": "results of landscape",
    "preflight.json": "results of preflight",
    "report.json": "results of report",
    "card.json": "a dataset",
    "lab1/success/2026-01-01/t/trajectory.h5": "a dataset",
    "meta/info.json": "a dataset",
    "model.safetensors": "a checkpoint",
    "state.json": "a goal",
    "notes.txt": None,
}


@pytest.mark.parametrize(("name", "what"), HELD.items())
def test_what_a_folder_holds_is_told_by_its_files(name: str, what: str | None, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    assert held_by(tmp_path) == what
    for verb in ("plan", "evaluate", "doctor", "report"):
        if what in (None, f"results of {verb}"):
            check_out(tmp_path, verb)
            continue
        with pytest.raises(ValueError, match=rf"^--out .* holds {what}, which {verb} would write over; give another"):
            check_out(tmp_path, verb)


@pytest.mark.parametrize("study", ["camera", "horizon"])
def test_studies_are_told_apart(study: str, tmp_path: Path) -> None:
    write_json(tmp_path / "sweep.json", {"study": study})
    assert held_by(tmp_path) == f"results of sweep {study}"


VERBS: dict[str, Any] = {
    "plan": lambda out: plan(PlanConfig(agent="hold", out=out)),
    "evaluate": lambda out: evaluate(EvaluateConfig(agents="hold", out=out)),
    "sweep camera": lambda out: camera_sweep(CameraSweep(agent="hold", out=out)),
    "sweep horizon": lambda out: horizon_sweep(HorizonSweep(out=out)),
    "doctor": lambda out: doctor(DoctorConfig("default", out=out)),
    "landscape": lambda out: landscape(LandscapeConfig("default", out=out)),
    "preflight": lambda out: preflight(PreflightConfig(out=out)),
    "report": lambda out: joining.report(ReportConfig((out.parent,), out=out), Console(file=io.StringIO())),
}
OTHERS: dict[str, Any] = {
    "deploy": lambda out: deploy(DeployConfig(sim=True, out=out)),
    "goal": lambda out: GoalConfig(sim=True, out=out),
    "replay": lambda out: replay(ReplayConfig(out.parent, sim=True, out=out)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_the_results_of_another(verb: str, tmp_path: Path) -> None:
    held = "doctor.json" if verb != "doctor" else "landscape.json"
    (tmp_path / held).write_text("{}")
    with pytest.raises(ValueError, match=f"holds results of {held.split('.')[0]}, which {verb} would write over"):
        VERBS[verb](tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [held]


@pytest.mark.parametrize("verb", [*VERBS, *OTHERS])
def test_every_verb_refuses_to_write_into_a_file(verb: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"out must be a folder, but .*file is a file"):
        (VERBS | OTHERS)[verb](tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"
