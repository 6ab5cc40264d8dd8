"""The guide's table of faults names tests that exist, the reactions that they note, and every fault of the matrix."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "real_robot.md").read_text()
TABLE = GUIDE.split("## Fault matrix")[1].split("\n\n")[1].splitlines()[2:]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE]
MATRIX = (
    "frozen frame", "repeated frame", "black frame", "wrong size", "camera lost", "server frozen", "server killed",
    "reflex", "NaN", "wrong shape", "degrees", "target outside the box", "path through a box's edge",
    "planner slower", "planner crash", "gripper stall", "Ctrl-C once", "Ctrl-C twice", "disk full",
    "SIGKILL of the loop",
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_a_test_its_reaction_and_its_times(row: list[str]) -> None:
    fault, reaction, decided, rest, cited = row
    file, name = re.findall(r"`(test_\w+)::(test_\w+)`", cited)[0]
    source = (ROOT / "tests" / f"{file}.py").read_text()
    assert f"def {name}(" in source
    assert reaction and all(re.fullmatch(r"\d+\.\d\d s|–", time) for time in (decided, rest)), fault
    if file in ("test_real_matrix", "test_real_reflex"):
        assert f'"{reaction}"' in source, f"{fault}: the test notes another reaction"


def test_every_fault_of_the_matrix_has_a_row() -> None:
    named = " ".join(row[0] for row in ROWS)
    assert [fault for fault in MATRIX if fault not in named] == []


def test_every_extra_of_the_guide_exists_and_ci_installs_those_that_its_tests_use() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"armworld\[(\w+)\]", GUIDE)) <= set(extras)
    (everything,) = extras["all"]
    assert {"sim", "robotiq", "opencv"} <= set(re.findall(r"\w+", everything))
    assert "-e '.[all,dev]'" in (ROOT / "Makefile").read_text() and "make test" in (ROOT / ".ci" / "run").read_text()


def test_what_must_run_in_ci_is_not_among_the_slow_tests() -> None:
    """Five goals with the expert, and a reach with the shipped weights."""
    source = (ROOT / "tests" / "test_real_simulated.py").read_text()
    for name in (
        "test_the_expert_reaches_five_goals_within_a_centimetre",
        "test_the_shipped_world_model_reaches_a_goal_image",
    ):
        before = source.split(f"def {name}(")[0].rstrip().splitlines()[-1]
        assert "slow" not in before and "pytestmark" not in source
