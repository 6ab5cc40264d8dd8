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

# Lines that may lie on one another: the later ones are thinner or broken, so that those below them show.
IMAGINED: Mapping[str, Any] = {"color": METHODS[0], "lw": 5.0, "alpha": 0.55, "solid_capstyle": "round"}
STEPWISE: Mapping[str, Any] = {"color": METHODS[2], "lw": 2.0, "ls": (0, (4, 3))}
PROBED: Mapping[str, Any] = {"color": METHODS[3], "lw": 1.4, "marker": "o", "ms": 4, "mfc": "white", "markevery": 0.08}
COPIED: Mapping[str, Any] = {"color": MUTED, "lw": 1.6}
STRANGE: Mapping[str, Any] = {"color": METHODS[1], "lw": 1.6}


def horizon_figure(
    ahead: Mapping[str, Any], step_seconds: float, plans: Mapping[int, Sequence[EpisodeResult]]
) -> Figure:
    """Feature error and position error against the horizon (s), and planning success against the planner's."""
    figure = Figure(figsize=(13.6 if plans else 11.0, 3.9), layout="constrained")
    panels = figure.subplots(1, 3 if plans else 2)
    time = step_seconds * np.arange(1, len(ahead["l1"]) + 1)
    features = {
        "copy_l1": ("first frame kept", COPIED),
        "stranger_l1": ("another episode's frame", STRANGE),
        "l1": ("imagined", IMAGINED),
        "stepwise_l1": ("imagined step by step", STEPWISE),
    }
    hand = {
        "moved_m": ("guessing it stays", COPIED),
        "position_error_m": ("imagined", IMAGINED),
        "stepwise_position_error_m": ("imagined step by step", STEPWISE),
        "probe_error_m": ("the probe on true frames", PROBED),
    }
    _curves(panels[0], "Features: mean |ẑ − z|", time, [(ahead[key], *told) for key, told in features.items()])
    lines = [(100 * np.asarray(ahead[key]), *told) for key, told in hand.items()]
    _curves(panels[1], "Hand's position: error (cm)", time, lines)
    if plans:
        _planning(panels[2], plans)
    return figure


def _curves(axes: Axes, title: str, time: np.ndarray, lines: Sequence[tuple[Any, str, Mapping[str, Any]]]) -> None:
    tidy(axes, title)
    for values, name, style in lines:
        axes.plot(time, values, label=name, **style)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
    axes.set_xlabel("seconds ahead", color=MUTED, fontsize=9)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(fontsize=9, frameon=False, ncols=2, loc="upper left")


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
