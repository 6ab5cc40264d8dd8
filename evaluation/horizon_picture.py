"""Pictures of the horizon study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.picture import GRID, INK, METHODS, MUTED, tidy
from armworld.evaluation.statistics import wilson_interval


def horizon_figure(
    ahead: Mapping[str, Any], step_seconds: float, plans: Mapping[int, Sequence[EpisodeResult]]
) -> Figure:
    """Feature error and position error against the horizon (s), and planning success against the planner's."""
    figure = Figure(figsize=(13.6 if plans else 11.0, 3.9), layout="constrained")
    panels = figure.subplots(1, 3 if plans else 2)
    time = step_seconds * np.arange(1, len(ahead["l1"]) + 1)
    lines = (
        ("l1", "imagined", METHODS[0], 2.4),
        ("stepwise_l1", "imagined step by step", METHODS[2], 2.0),
        ("copy_l1", "first frame kept", MUTED, 1.6),
    )
    _curves(
        panels[0],
        "Features: mean |ẑ − z|",
        [(time, ahead[key], name, colour, width) for key, name, colour, width in lines]
        + [(time, ahead["stranger_l1"], "another episode's frame", METHODS[1], 1.6)],
    )
    hand = (
        ("position_error_m", "imagined", METHODS[0], 2.4),
        ("stepwise_position_error_m", "imagined step by step", METHODS[2], 2.0),
        ("moved_m", "guessing it stays", MUTED, 1.6),
        ("probe_error_m", "the probe on true frames", METHODS[3], 1.6),
    )
    _curves(
        panels[1],
        "Hand's position: error (cm)",
        [(time, 100 * np.asarray(ahead[key]), name, colour, width) for key, name, colour, width in hand],
    )
    if plans:
        _planning(panels[2], plans)
    return figure


def _curves(axes: Axes, title: str, lines: Sequence[tuple[np.ndarray, Any, str, str, float]]) -> None:
    tidy(axes, title)
    for time, values, name, colour, width in lines:
        axes.plot(time, values, color=colour, lw=width, label=name, marker="o" if len(time) < 12 else None, ms=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds ahead", color=MUTED, fontsize=9)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(fontsize=9, frameon=False)


def _planning(axes: Axes, plans: Mapping[int, Sequence[EpisodeResult]]) -> None:
    tidy(axes, "Planning success, % (95 % Wilson)")
    for index, run in enumerate(plans.values()):
        wins = sum(e.success for e in run)
        low, high = wilson_interval(wins, len(run))
        axes.bar(index, max(100 * wins / len(run), 0.8), width=0.6, color=METHODS[0], alpha=0.9)
        axes.plot([index, index], [100 * low, 100 * high], color=INK, lw=1.4)
        axes.text(index, 3, f"{wins}/{len(run)}", ha="center", color="white" if wins else INK, fontsize=9)
    axes.set_xticks(range(len(plans)), [str(steps) for steps in plans])
    axes.set_xlabel("steps the planner looks ahead", color=MUTED, fontsize=9)
    axes.set_ylim(0, 103)
