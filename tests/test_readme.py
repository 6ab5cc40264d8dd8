"""The README's commands and its Python run as written, with budgets cut down."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from armworld.evaluation.suite import PAPER

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
SHORTER = {  # what a reader would run for minutes or hours
    "--agent cem --episodes 100 ": "--agent cem --episodes 2 ",
    "--episodes 10 ": "--episodes 1 ",
    "--episodes 100 ": "--episodes 40 ",
    "--objects cup,box": "--objects cup",
    "--agents cem,servo,hold,random,expert": "--agents cem,servo",
    "--minutes 30": "--steps 2",
    "--minutes 5 ": "--steps 2 ",
    "--out runs/doctor": "--episodes 8 --out runs/doctor",
    "--out runs/recipe": "--scale 0.006 --pretrain-minutes 0.02 --sharpen-minutes 0.02 --posttrain-minutes 0.02 "
    "--align-minutes 0.02 --out runs/recipe",
    "--episodes 2 --out runs/cameras": "--episodes 1 --max-steps 2 --moves 4 --out runs/cameras",
    "--seconds 4 --rollouts 4": "--seconds 1 --rollouts 4 --max-steps 2",
    "--out runs/mine": "--episodes 1 --baselines none --out runs/mine",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("armworld ")]


def test_the_readme_shows_every_job():
    assert {"plan", "doctor", "collect", "deploy"} <= {line.split()[1] for line in commands()}


def test_the_papers_successes_are_those_of_the_table_that_evaluate_writes():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line[:2] == "| "]
    head = next(row for row in rows if row[-1] == "V-JEPA 2-AC on real arms")
    told = {row[0]: row[-1] for row in rows if len(row) == len(head) and row[-1].endswith(" %")}
    paper = {(task, name): f"{rate} %" for (task, name), rate in PAPER.items()}
    for (task, name), rate in paper.items():
        words = task.replace("_", " ").replace("pick place", "pick and place")
        assert told[words if task == "reach" else f"{words}, {name}"] == rate
    assert len(told) == len(paper)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readmes_commands_run(tmp_path):
    for command in commands():
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        command = re.sub(r"--seeds (\d+)-\d+", r"--seeds \1-\1", command)
        arguments = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert list(tmp_path.glob("runs/reach/**/*.mp4"))


@pytest.mark.parametrize("block", blocks("python"))
def test_the_readmes_python_runs(block):
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True")
