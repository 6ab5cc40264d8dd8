"""Summary pictures of a run: success with intervals, final distances, distance over the steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.statistics import wilson_interval

INK, MUTED, GRID, GOOD = "#1b1f24", "#6b7280", "#e5e7eb", "#15803d"
FLOORS = {"hold": "#9ca3af", "random": "#6b7280", "expert": "#15803d"}
PAPER_LINE: dict[str, Any] = {"color": "#b91c1c", "lw": 1.6, "ls": (0, (2, 1.2))}
METHODS = ("#0b62a8", "#d97706", "#7c3aed", "#0d9488", "#be185d", "#4d7c0f", "#1e40af", "#92400e")
Results = Mapping[str, Sequence[EpisodeResult]]


def method_colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per method: greys for the floors, green for the expert, strong colours for the others."""
    others = iter(METHODS * (1 + len(names) // len(METHODS)))
    return {name: FLOORS.get(name) or next(others) for name in names}


def figure_png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def tidy(axes: Axes, title: str) -> None:
    """The house style of a panel."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)


def summary_figure(results: Results, threshold_m: float | None = 0.04, title: str = "") -> Figure:
    """Three panels over the methods, the first being the one asked for.

    Args:
        results: Method name -> its episodes.
        threshold_m: Success distance, drawn as a line; None where the task has none.
        title: Of the whole picture.
    """
    colours = method_colours(list(results))
    figure = Figure(figsize=(13.6, 1.9 + 0.42 * max(4, len(results))), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1.0, 1.1, 1.4))
    success_bars(panels[0], results, colours)
    final_distances(panels[1], results, colours, threshold_m)
    distance_curves(panels[2], results, colours, threshold_m)
    if title:
        figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left", fontweight="bold")
    return figure


def success_bars(axes: Axes, results: Results, colours: Mapping[str, str]) -> None:
    """Success rate per method with its 95 % Wilson interval."""
    tidy(axes, "Success at the end (95 % Wilson)")
    rows = np.arange(len(results))[::-1]
    for row, (name, episodes) in zip(rows, results.items(), strict=True):
        wins, n = sum(e.success for e in episodes), len(episodes)
        rate = 100 * wins / max(n, 1)
        low, high = (100 * end for end in wilson_interval(wins, n))
        axes.barh(row, rate, color=colours[name], height=0.62, alpha=0.85)
        axes.plot([low, high], [row, row], color=INK, lw=1.6, solid_capstyle="butt")
        axes.plot(
            [low, low, np.nan, high, high], [row - 0.13, row + 0.13, np.nan, row - 0.13, row + 0.13], color=INK, lw=1.6
        )
        axes.annotate(
            f"{wins}/{n}", (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK
        )
    axes.set_yticks(rows, list(results))
    axes.set_xlim(0, 100)
    axes.set_xlabel("%", color=MUTED, fontsize=9)


def final_distances(axes: Axes, results: Results, colours: Mapping[str, str], threshold_m: float | None) -> None:
    """Every episode's final distance (cm) as a dot, the median as a bar."""
    tidy(axes, "Final distance (cm), every seed")
    rng = np.random.default_rng(0)  # jitter of the dots only
    rows = np.arange(len(results))[::-1]
    for row, (name, episodes) in zip(rows, results.items(), strict=True):
        values = np.array([100 * e.final_distance_m for e in episodes if e.final_distance_m is not None])
        if not values.size:
            continue
        height = row + rng.uniform(-0.2, 0.2, values.size)
        axes.scatter(values, height, s=16, color=colours[name], alpha=0.65, linewidths=0)
        median = float(np.median(values))
        axes.plot([median, median], [row - 0.34, row + 0.34], color=INK, lw=2)
        axes.annotate(
            f"{median:.1f}", (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK
        )
    axes.set_yticks(rows, list(results))
    axes.set_ylim(-0.6, len(results) - 0.4)
    axes.set_xlim(left=-0.015 * axes.get_xlim()[1])  # so that dots at 0 are whole
    axes.set_xlabel("cm (bar and number: median)", color=MUTED, fontsize=9)
    _threshold(axes, threshold_m, vertical=True)


def distance_curves(axes: Axes, results: Results, colours: Mapping[str, str], threshold_m: float | None) -> None:
    """Median distance over the steps per method; the first method's episodes as thin lines."""
    tidy(axes, "Distance to the goal over the steps (cm)")
    longest = 0
    for index, (name, episodes) in enumerate(results.items()):
        curves = [100 * np.array(e.distances_m, float) for e in episodes]  # NaN where none was measured
        curves = [curve for curve in curves if np.isfinite(curve).any()]
        if not curves:
            continue
        steps = max(len(curve) for curve in curves)
        longest = max(longest, steps - 1)
        table = np.full((len(curves), steps), np.nan)
        for row, curve in zip(table, curves, strict=True):
            row[: len(curve)] = curve
        if index == 0:
            axes.plot(np.arange(steps), table.T, color=colours[name], lw=0.8, alpha=max(0.12, 0.5 / len(curves) ** 0.5))
        known = np.isfinite(table).any(0)
        median = np.nanmedian(table[:, known], axis=0)
        axes.plot(np.flatnonzero(known), median, color=colours[name], lw=2.4, label=name)
    axes.set_xlim(0, max(longest, 1))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step (thick: median over seeds)", color=MUTED, fontsize=9)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    _threshold(axes, threshold_m, vertical=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _threshold(axes: Axes, threshold_m: float | None, vertical: bool) -> None:
    if threshold_m is None:
        return
    line: Any = axes.axvline if vertical else axes.axhline
    line(100 * threshold_m, color=GOOD, lw=1.2, ls=(0, (5, 3)))


def suite_figure(places: Mapping[str, Results], paper: Mapping[str, float | None]) -> Figure:
    """Success per place and method as grouped bars with Wilson whiskers.

    Args:
        places: Place -> method -> its episodes.
        paper: Place -> success (%) that the paper reports on real arms, drawn as a dotted line; None for no mark.
    """
    names = list(dict.fromkeys(name for results in places.values() for name in results))
    colours, width = method_colours(names), 0.8 / max(len(names), 1)
    figure = Figure(figsize=(max(7.0, 1.6 + len(places) * (0.5 + 0.24 * len(names))), 4.6), layout="constrained")
    axes = figure.subplots()
    tidy(axes, "Success at the end, % (whiskers: 95 % Wilson)")
    for column, (place, results) in enumerate(places.items()):
        for index, name in enumerate(names):
            if name in results:
                _bar(axes, column - 0.4 + (index + 0.5) * width, width, results[name], colours[name])
        mark = paper.get(place)
        if mark is not None:
            axes.plot([column - 0.44, column + 0.44], [mark, mark], **PAPER_LINE)
    handles: list[Artist] = [Patch(color=colours[name], label=name) for name in names]
    if any(value is not None for value in paper.values()):
        handles.append(Line2D([], [], label="paper, real arm", **PAPER_LINE))
    axes.legend(handles=handles, fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_xticks(range(len(places)), [_wrapped(place) for place in places], fontsize=9)
    axes.set_ylim(0, 103)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    return figure


def _wrapped(place: str) -> str:
    return place.replace("reach_with_object", "reach with\nobject").replace("_", " ").replace(" · ", "\n")


def _bar(axes: Axes, x: float, width: float, episodes: Sequence[EpisodeResult], colour: str) -> None:
    wins, n = sum(e.success for e in episodes), len(episodes)
    low, high = (100 * end for end in wilson_interval(wins, n))
    axes.bar(x, max(100 * wins / max(n, 1), 0.8), width=0.9 * width, color=colour, alpha=0.9)
    axes.plot([x, x], [low, high], color=INK, lw=1.2, solid_capstyle="butt")
