"""A picture of a planner at work: its samples collapsing over the energy, iteration by iteration.

Each panel is a slice of the energy through the plan that was chosen: two of its action's dimensions vary, all else
stays as in the plan. Give the planner `record=True`, so that its candidates are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from armworld.evaluation.picture import GOOD, INK, MUTED, tidy
from armworld.planners.objectives import LatentGoal, Objective
from armworld.planners.plans import ActionSpace, Iteration, Plan
from armworld.planners.sampling import PlannerConfig, Search

if TYPE_CHECKING:
    from armworld.worldmodel.model import WorldModel

DIMENSIONS = ("Δx (cm)", "Δy (cm)", "Δz (cm)", "Δroll (°)", "Δpitch (°)", "Δyaw (°)", "Δclosedness")
SCALES = (*(100.0,) * 3, *(float(np.degrees(1)),) * 3, 1.0)  # from m, rad and closedness
CHOSEN = "#f43f5e"
MAX_PANELS = 6


@dataclass(frozen=True)
class EnergySlice:
    """Energy over two dimensions of a plan's first action.

    Attributes:
        dimensions: Which places of the action [7] vary.
        first, second: Their values, [P] and [Q] (m, rad or closedness).
        cost: Energy [P, Q], rows along the first dimension.
    """

    dimensions: tuple[int, int]
    first: np.ndarray
    second: np.ndarray
    cost: np.ndarray


def energy_slice(
    model: WorldModel,
    objective: Objective,
    z: Tensor,
    state: Tensor,
    goal: LatentGoal,
    plan: Plan,
    space: ActionSpace,
    dimensions: tuple[int, int] = (0, 1),
    points: int = 15,
) -> EnergySlice:
    """The energy around `plan`, over the space's bounds: points^2 rollouts of one episode.

    Args:
        z: Features of the present frame(s) [1, T, N, D].
        state: Robot states [1, T, 7].
        goal: The latent goal planned for.
        dimensions: Two planned places of the action, e.g. (0, 1) for Δx and Δy.

    Raises:
        ValueError: A dimension that is not planned.
    """
    for dimension in dimensions:
        if dimension not in space.columns:
            raise ValueError(f"dimension {dimension} is not planned; planned are {space.columns}")
    limits = dict(zip(space.columns, space.limits, strict=True))
    first, second = (torch.linspace(-limits[d], limits[d], points, dtype=z.dtype) for d in dimensions)
    actions = plan.actions[:1].repeat(points * points, 1, 1)
    actions[:, 0, dimensions[0]] = first.repeat_interleave(points).to(actions)
    actions[:, 0, dimensions[1]] = second.repeat(points).to(actions)
    config = PlannerConfig(horizon=plan.actions.shape[1], space=space)
    cost = Search(model, objective, z, state, goal, config).evaluate(space.compress(actions)[None])
    return EnergySlice(dimensions, first.numpy(), second.numpy(), cost[0].view(points, points).cpu().numpy())


def collapse_figure(plan: Plan, energy: EnergySlice | None = None, episode: int = 0, title: str = "") -> Figure:
    """One panel per iteration with its samples (of the first action), one with the costs.

    Args:
        plan: From a planner with `record=True`.
        energy: Drawn under the samples, in the same colours: what lies off the slice may differ from its ground.
        episode: Which of the batch.
        title: Of the whole picture.

    Raises:
        ValueError: The plan kept no candidates.
    """
    iterations = [i for i in plan.statistics.iterations if i.samples > 2]
    if not iterations or any(i.actions is None for i in iterations):
        raise ValueError("this plan kept no candidates; plan with record=True")
    shown = [iterations[i] for i in _spread(len(iterations), MAX_PANELS)]
    figure = Figure(figsize=(2.6 * len(shown) + 4.2, 3.9), layout="constrained")
    panels = figure.subplots(1, len(shown) + 1, width_ratios=[1] * len(shown) + [1.3])
    colours = Normalize(*_range(iterations, energy, episode))
    for number, (axes, iteration) in enumerate(zip(panels[:-1], shown, strict=True)):
        _samples(axes, iteration, plan, energy, episode, colours)
        tidy(axes, f"{iterations.index(iteration) + 1} of {len(iterations)}: {iteration.samples} samples")
        if number:
            axes.set_ylabel("")
    bar = figure.colorbar(ScalarMappable(colours, "viridis"), ax=panels[-2], shrink=0.85, ticks=MaxNLocator(4))
    bar.set_label("energy: dark is low", color=MUTED, fontsize=9)
    bar.ax.tick_params(colors=MUTED, labelsize=8)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    _costs(panels[-1], iterations, plan, episode)
    if title:
        figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left", fontweight="bold")
    return figure


def _range(iterations: list[Iteration], energy: EnergySlice | None, episode: int) -> tuple[float, float]:
    """Lowest and highest finite energy of the samples and of the slice."""
    costs = [i.cost[episode].numpy().reshape(-1) for i in iterations if i.cost is not None]
    costs += [] if energy is None else [energy.cost.reshape(-1)]
    together = np.concatenate(costs)
    together = together[np.isfinite(together)]
    return float(together.min()), float(together.max())


def _samples(
    axes: Axes, iteration: Iteration, plan: Plan, energy: EnergySlice | None, episode: int, colours: Normalize
) -> None:
    across, up = energy.dimensions if energy is not None else (0, 1)
    wide, high = SCALES[across], SCALES[up]
    if energy is not None:
        first, second = wide * energy.first, high * energy.second
        axes.contourf(first, second, energy.cost.T, levels=24, cmap="viridis", norm=colours)
    assert iteration.actions is not None
    assert iteration.cost is not None
    action, cost = iteration.actions[episode, :, 0].numpy(), iteration.cost[episode].numpy()
    finite = np.isfinite(cost)
    axes.scatter(
        wide * action[finite, across], high * action[finite, up], c=cost[finite], s=16, cmap="viridis", norm=colours,
        edgecolors="white", linewidths=0.6, clip_on=False, zorder=3, label="a sample's first action, in its own energy",
    )  # fmt: skip
    chosen = plan.actions[episode, 0].cpu().numpy()
    axes.plot(
        wide * chosen[across], high * chosen[up], "+", ms=14, mew=2.4, color=CHOSEN, zorder=4, label="the plan chosen"
    )
    axes.set_xlabel(DIMENSIONS[across], color=MUTED, fontsize=9)
    axes.set_ylabel(DIMENSIONS[up], color=MUTED, fontsize=9)


def _costs(axes: Axes, iterations: list[Iteration], plan: Plan, episode: int) -> None:
    tidy(axes, "Energy, iteration by iteration")
    steps = np.arange(1, len(iterations) + 1)
    axes.plot(steps, [i.mean for i in iterations], color=MUTED, marker="o", ms=3, label="mean of samples")
    axes.plot(steps, [i.best_so_far for i in iterations], color=GOOD, marker="o", ms=3, label="best so far")
    if plan.statistics.hold_cost is not None:
        axes.axhline(float(plan.statistics.hold_cost[episode]), color=INK, ls=":", lw=1, label="hold still")
    axes.set_xlabel("iteration", color=MUTED, fontsize=9)
    axes.set_xticks(steps[:: max(1, len(steps) // 6)])
    axes.legend(frameon=False, fontsize=8)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` indices of `count`, first and last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
