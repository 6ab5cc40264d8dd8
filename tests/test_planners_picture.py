"""The picture of samples collapsing: the slice is the energy, and the figure has a panel per iteration."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from armworld.evaluation.picture import figure_png
from armworld.evaluation.planner_picture import collapse_figure, energy_slice
from armworld.planners.objectives import FinalL1, LatentGoal
from armworld.planners.plans import ActionSpace
from armworld.planners.registry import make_planner

sys.path.insert(0, str(Path(__file__).parent))

from planners_fake import PointWorld

Z, STATE = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 7)
GOAL = LatentGoal(torch.tensor([[[0.5, -0.2, 0.0, 0.0]]]))
SPACE = ActionSpace(max_position=0.1)


def plan_with(name: str, record: bool = True):
    planner = make_planner(name, space=SPACE, record=record)
    return planner.plan(PointWorld(), FinalL1(), Z, STATE, GOAL, generator=torch.Generator().manual_seed(0))


def test_slice_is_the_energy() -> None:
    plan = plan_with("gradient")
    energy = energy_slice(PointWorld(), FinalL1(), Z, STATE, GOAL, plan, SPACE, points=21)
    row, column = np.unravel_index(energy.cost.argmin(), energy.cost.shape)
    assert energy.first[row] == pytest.approx(0.05, abs=1e-6)
    assert energy.second[column] == pytest.approx(-0.02, abs=1e-6)
    assert energy.cost[row + 4, column] - energy.cost[row, column] == pytest.approx(0.4 / 4, abs=1e-3)
    with pytest.raises(ValueError, match="dimension 5 is not planned"):
        energy_slice(PointWorld(), FinalL1(), Z, STATE, GOAL, plan, SPACE, (0, 5))


@pytest.mark.parametrize("name", ["cem", "cem_adam", "mppi", "random_shooting"])
def test_figure(name: str) -> None:
    plan = plan_with(name)
    energy = energy_slice(PointWorld(), FinalL1(), Z, STATE, GOAL, plan, SPACE, points=5)
    figure = collapse_figure(plan, energy, title="a point world")
    assert 3 <= len(figure.axes) <= 8
    samples, *_, bar = figure.axes
    assert (samples.get_xlabel(), samples.get_ylabel()) == ("Δx (cm)", "Δy (cm)")
    assert bar.get_ylabel() == "energy: dark is low"
    assert [text.get_text() for text in figure.legends[0].texts][-1] == "the plan chosen"
    points, ground = samples.collections[-1], samples.collections[0]
    assert points.norm.vmin == ground.norm.vmin and points.get_cmap() == ground.get_cmap()  # one meaning of a colour
    assert np.abs(points.get_offsets()).max() == pytest.approx(10, abs=4)  # centimetres
    assert figure_png(figure, dpi=40).startswith(b"\x89PNG")


def test_unrecorded_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="record=True"):
        collapse_figure(plan_with("cem", record=False))
