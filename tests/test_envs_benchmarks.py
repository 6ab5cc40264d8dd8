"""The experts' benchmark: resumable, exact with remembered steps; and the contact sheet's layout."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from armworld.envs.base import ArmEnv
from armworld.envs.experts import make_expert
from armworld.envs.gallery import CAPTION, CELL, COLUMNS, GAP, HEADING, Section, sheet

sys.path.insert(0, str(Path(__file__).parent))
from benchmarks_helpers import load_benchmark


@pytest.fixture(scope="module")
def experts() -> ModuleType:
    return load_benchmark("experts")


def test_a_run_goes_on_where_it_was_cut(experts: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "experts.jsonl"
    settings = {"tasks": ("armworld/Reach-v0",), "objects": ("cup",), "labs": ("lab1",), "first": 5, "out": out}
    (first,) = experts.measure(experts.Config(seeds=1, **settings))
    assert first["success"] and first["seed"] == 5
    out.write_text(out.read_text() + '{"task": "cut sho')
    rows = experts.measure(experts.Config(seeds=2, **settings))
    assert [row["seed"] for row in rows] == [5, 6] and rows[0] == first
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [5, 6]
    assert experts.measure(experts.Config(seeds=2, minutes=0, **settings)) == rows
    assert "| Reach | cup | lab1 | 2/2 |" in experts.table(rows)
    out.write_text('{"seed": 5}\n')
    with pytest.raises(ValueError, match=r"an episode without .*success"):
        experts.read(out)


def test_failed_demonstrations_count_against_the_expert(experts: ModuleType) -> None:
    row = {"seed": 1, "success": True, "expert_failures": 1, "first_success_step": 9, "cpu_seconds": 0.1}
    numbers = experts.summary([row, {**row, "seed": 2, "success": False, "expert_failures": 0}])
    assert (numbers["successes"], numbers["episodes"], numbers["starts"]) == (1, 2, 3)
    assert numbers["failed_seeds"] == [2]


def test_remembered_steps_change_nothing(experts: ModuleType) -> None:
    ends = []
    for remember in (False, True):
        env = ArmEnv("grasp", object="box", cameras=())
        memory = experts.Memory(env.simulator) if remember else None
        _, info = env.reset(seed=3)
        simulated = len(memory.known) if memory else 0
        expert, truncated = make_expert(env), False
        expert.reset(info["goal"])
        while not truncated:
            *_, truncated, info = env.step(expert.act({}))
        ends.append((env.simulator.save().physics.tobytes(), info["success"], info["distance_m"]))
        if memory:
            assert len(memory.known) < simulated + env.max_steps, "the demonstration's steps were not simulated again"
        env.close()
    assert ends[0] == ends[1]


def test_the_sheet_has_a_place_for_every_picture() -> None:
    frame = np.full((CELL, CELL, 3), 200, np.uint8)
    parts = [Section("one", [[("a", frame)] * COLUMNS, [("b", frame)]]), Section("two", [[("c", frame)]])]
    picture = np.asarray(sheet(parts))
    assert picture.shape == (2 * HEADING + 3 * (CELL + CAPTION), COLUMNS * (CELL + GAP) - GAP, 3)
    first = HEADING
    second = HEADING + CELL + CAPTION
    third = 2 * HEADING + 2 * (CELL + CAPTION)
    for top, columns in ((first, COLUMNS), (second, 1), (third, 1)):
        row = picture[top : top + CELL]
        for column in range(COLUMNS):
            left = column * (CELL + GAP)
            assert (row[:, left : left + CELL] == (200 if column < columns else 255)).all()
