"""Pictures of a camera sweep: the sky over the scene, heat maps, and curves against every axis that varies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from armworld.evaluation.camera_verdict import corrected_rows, correction_of, is_rig
from armworld.evaluation.picture import GRID, INK, METHODS, MUTED, tidy
from armworld.evaluation.statistics import signed, wilson_interval
from armworld.evaluation.views import UNITS

TRAFFIC = LinearSegmentedColormap.from_list("traffic", ["#b42318", "#f4b740", "#15803d"])
ERRORS = LinearSegmentedColormap.from_list("errors", ["#15803d", "#f4b740", "#b42318"])
TURNS = LinearSegmentedColormap.from_list("turns", ["#1d4ed8", "#e5e7eb", "#c2410c"])
AXIS_TITLES = {
    "azimuth": "azimuth from the rig (°)",
    "elevation": "elevation from the rig (°)",
    "distance": "distance (× the rig's)",
    "fov": "field of view from the rig (°)",
    "look_x": "look-at point, x (m)",
    "look_y": "look-at point, y (m)",
    "look_z": "look-at point, z (m)",
}
HOLE, RIM = 34.0, 12.0  # degrees of elevation left free inside the steepest and outside the flattest view
DOME_POINTS, LEGIBLE = 112.0, 19.0  # a dome's radius on paper; the smallest dot that a number fits in
Row = Mapping[str, Any]


class Measure(NamedTuple):
    """What is drawn: title, number of a camera (None where there is none), text of it, colours and their range."""

    title: str
    value: Callable[[Row], float | None]
    text: Callable[[Row], str]
    colours: LinearSegmentedColormap
    limits: Callable[[Sequence[float]], tuple[float, float]]


def wins(row: Row) -> str:
    """Successes of episodes."""
    return f"{sum(e['success'] for e in row['episodes'])}/{len(row['episodes'])}"


def final_cm(row: Row) -> float | None:
    """Median final distance in cm; None where no episode has one."""
    value = row["summary"]["final_distance_median_m"]
    return None if value is None else 100 * value


def yaw(row: Row) -> float | None:
    """Turn of the model's axes in degrees."""
    return None if row["turn"] is None else row["turn"]["yaw_deg"]


def _symmetric(values: Sequence[float]) -> tuple[float, float]:
    most = max([45.0, *(abs(v) for v in values)])
    return -most, most


SUCCESS = Measure("Success", lambda r: 100 * r["success_rate"], wins, TRAFFIC, lambda _: (0.0, 100.0))
ERROR = Measure(
    "Median final distance (cm)",
    final_cm,
    lambda r: (
        "–" if final_cm(r) is None else f"{final_cm(r):.0f}" if (final_cm(r) or 0) >= 9.95 else f"{final_cm(r):.1f}"
    ),
    ERRORS,
    lambda values: (0.0, max([8.0, *values])),
)
TURN = Measure(
    "Turn of the model's axes (°)", yaw, lambda r: "–" if yaw(r) is None else signed(yaw(r) or 0.0), TURNS, _symmetric
)


def measures(rows: Sequence[Row]) -> list[Measure]:
    """What this sweep has numbers of."""
    return [SUCCESS, ERROR, *([TURN] if any(r["turn"] is not None for r in rows) else [])]


def sky_figure(rows: Sequence[Row]) -> Figure:
    """The cameras seen from above, one dome per measure: angle is the azimuth, the centre is straight overhead.

    Where the episodes were run a second time, that is the second line.
    """
    lines = [("", rows)]
    if (again := correction_of(rows)) is not None:
        lines.append((f"\n{again}", corrected_rows(rows)))
    shown, everything = measures(rows), [row for _, part in lines for row in part]
    figure = Figure(figsize=(4.0 * len(shown), 4.8 * len(lines)), layout="constrained")
    for line, (suffix, part) in enumerate(lines):
        for index, measure in enumerate(measures(part)):
            scale = measure.limits([v for row in everything if (v := measure.value(row)) is not None])
            axes = figure.add_subplot(len(lines), len(shown), line * len(shown) + index + 1, projection="polar")
            assert isinstance(axes, PolarAxes)
            _dome(figure, axes, part, measure._replace(title=measure.title + suffix), scale)
    return figure


def _dome(figure: Figure, axes: PolarAxes, rows: Sequence[Row], measure: Measure, scale: tuple[float, float]) -> None:
    axes.set_title(measure.title, fontsize=11.5, color=INK, fontweight="bold", pad=14)
    axes.set_theta_zero_location("S")  # the front of the robot is towards the reader
    heights = sorted({round(row["placement"]["elevation"], 1) for row in rows}, reverse=True)
    centre, edge = 90 - heights[0] - HOLE, 90 - heights[-1] + RIM  # the hole keeps steep views apart
    axes.set_ylim(centre, edge)
    rings = heights if len(heights) <= 6 else [h for h in (80, 60, 40, 20, 0) if heights[-1] <= h <= heights[0]]
    axes.set_rgrids([90 - h for h in rings], [f"{h:g}°" for h in rings], color=MUTED, fontsize=8.5, angle=180)
    axes.set_thetagrids([0, 90, 180, 270], ["front", "left", "behind", "right"])
    axes.tick_params(axis="x", colors=MUTED, labelsize=9, pad=0)
    axes.grid(color=GRID)
    axes.spines["polar"].set_color(GRID)
    axes.plot([np.pi, 0], [centre + 12, centre + 14], color="#9ca3af", lw=6, solid_capstyle="round", zorder=1)
    axes.plot([np.pi], [centre + 12], "s", color="#6b7280", ms=13, zorder=2)  # the robot's base; the arm points ahead
    norm = Normalize(*scale)
    diameter = _dot(rows, heights, edge - centre)
    for row in rows:
        angle, radius = np.radians(row["placement"]["azimuth"]), 90 - row["placement"]["elevation"]
        value = measure.value(row)
        colour = measure.colours(norm(value)) if value is not None else "#f3f4f6"
        edge_colour, width = (INK, 2.4) if is_rig(row) else ("white", 0.8)
        axes.plot(
            [angle], [radius], "o", ms=diameter, color=colour, mec=edge_colour, mew=width, zorder=3, clip_on=False
        )
        if diameter < LEGIBLE:
            continue
        ink = INK if value is None or _light(colour) else "white"
        axes.text(angle, radius, measure.text(row), ha="center", va="center", fontsize=8, color=ink, zorder=4)
    bar = figure.colorbar(
        ScalarMappable(norm, measure.colours), ax=axes, orientation="horizontal", shrink=0.6, aspect=30, pad=0.03
    )
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(colors=MUTED, labelsize=8)


def _dot(rows: Sequence[Row], heights: Sequence[float], span: float) -> float:
    """Diameter (points) of a camera's dot, so that neighbours on a ring and on neighbouring rings stay apart."""
    gap = min((a - b for a, b in itertools.pairwise(heights)), default=40.0)
    around = 2 * np.pi * 0.6 * DOME_POINTS / max(len({round(r["placement"]["azimuth"]) for r in rows}), 8)
    return float(np.clip(min(0.95 * gap / span * DOME_POINTS, around), 7, 27))


def _light(colour: Any) -> bool:
    red, green, blue = colour[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue > 0.55


def heat_figure(rows: Sequence[Row], across: str, down: str) -> Figure:
    """Heat maps over two axes that vary, one per measure; the mean where other axes vary too."""
    shown = measures(rows)
    columns, lines = (sorted({row["offsets"][axis] for row in rows}) for axis in (across, down))
    height = 1.5 + 0.42 * len(lines)
    figure = Figure(figsize=(max(3.6, 1.4 + 0.55 * len(columns)) * len(shown), max(2.6, height)), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, measure in zip(panels, shown, strict=True):
        _heat(axes, rows, measure, (across, columns), (down, lines))
    return figure


def _heat(axes: Axes, rows: Sequence[Row], measure: Measure, across: tuple[str, list], down: tuple[str, list]) -> None:
    table, texts = np.full((len(down[1]), len(across[1])), np.nan), {}
    for i, line in enumerate(down[1]):
        for j, column in enumerate(across[1]):
            here = [r for r in rows if r["offsets"][across[0]] == column and r["offsets"][down[0]] == line]
            values = [v for r in here if (v := measure.value(r)) is not None]
            if values:
                table[i, j] = np.mean(values)
                texts[i, j] = measure.text(here[0]) if len(here) == 1 else f"{round(table[i, j]) + 0.0:.0f}"
    norm = Normalize(*measure.limits(table[np.isfinite(table)].tolist()))
    axes.imshow(table, cmap=measure.colours, norm=norm, origin="lower", aspect="auto")
    for (i, j), text in texts.items():
        ink = INK if _light(measure.colours(norm(table[i, j]))) else "white"
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color=ink)
    tidy(axes, measure.title)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(across[1])), [_offset(across[0], v) for v in across[1]])
    axes.set_yticks(range(len(down[1])), [_offset(down[0], v) for v in down[1]])
    axes.set_xlabel(AXIS_TITLES[across[0]], color=MUTED, fontsize=9)
    axes.set_ylabel(AXIS_TITLES[down[0]], color=MUTED, fontsize=9)
    if 0.0 in across[1] and 0.0 in down[1]:
        where = across[1].index(0.0) - 0.5, down[1].index(0.0) - 0.5
        axes.add_patch(_frame(where))


def _offset(axis: str, value: float) -> str:
    """A tick's text: a shift has a sign, a factor none."""
    return f"{value:g}" if UNITS[axis] == "×" or not value else f"{value:+g}"


def _frame(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor=INK, lw=2)


def curves_figure(rows: Sequence[Row], varying: Sequence[str]) -> Figure:
    """Success and turn of the axes against every axis that varies (other axes differ too where several vary)."""
    kinds = [_success_curve, *([_turn_curve] if any(row["turn"] is not None for row in rows) else [])]
    side_by_side = len(varying) == 1
    shape = (1, len(kinds)) if side_by_side else (len(kinds), len(varying))
    figure = Figure(figsize=(5.6 * shape[1], 3.4 * shape[0]), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False)
    for index, axis in enumerate(varying):
        for line, draw in enumerate(kinds):
            draw(panels[0][line] if side_by_side else panels[line][index], rows, axis)
    return figure


def _success_curve(axes: Axes, rows: Sequence[Row], axis: str) -> None:
    tidy(axes, "Success, % (whiskers: 95 % Wilson)")
    for key, colour, name, shift in (
        (None, METHODS[0], "as it is", -1),
        ("corrected", METHODS[1], correction_of(rows) or "", 1),
    ):
        parts = [(row["offsets"][axis], row[key] if key else row) for row in rows if key is None or key in row]
        if not parts:
            continue
        places = sorted({place for place, _ in parts})
        offset = shift * 0.006 * (places[-1] - places[0]) if any("corrected" in row for row in rows) else 0.0
        pooled = [[e["success"] for at, part in parts if at == place for e in part["episodes"]] for place in places]
        rates = [100 * float(np.mean(won)) for won in pooled]
        x = [place + offset for place in places]
        for at, won in zip(x, pooled, strict=True):
            low, high = wilson_interval(sum(won), len(won))
            axes.plot([at, at], [100 * low, 100 * high], color=colour, lw=1.4, alpha=0.6)
        axes.plot(x, rates, "o-", color=colour, lw=1.8, ms=5, label=name)
    axes.set_ylim(-3, 103)
    _against(axes, axis)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=9, frameon=False)


def _turn_curve(axes: Axes, rows: Sequence[Row], axis: str) -> None:
    tidy(axes, "Turn of the model's axes, ° (± standard error)")
    told = [(row["offsets"][axis], row["turn"]) for row in rows if row["turn"] is not None]
    x = np.array([at for at, _ in told])
    y = np.array([turn["yaw_deg"] for _, turn in told])
    if axis == "azimuth":
        y = x + (y - x + 180) % 360 - 180
        ends = [float(x.min()), float(x.max())]
        axes.plot(ends, ends, color=MUTED, lw=1.2, ls=(0, (4, 3)), label="as far as the camera")
    spread = [turn["spread_deg"] for _, turn in told]
    axes.errorbar(x, y, yerr=spread, fmt="o", color=METHODS[0], ms=5, lw=1.2, capsize=2, label="fitted from moves")
    axes.axhline(0, color=GRID, lw=1, zorder=0)
    _against(axes, axis)
    axes.legend(fontsize=9, frameon=False)


def _against(axes: Axes, axis: str) -> None:
    axes.set_xlabel(AXIS_TITLES[axis], color=MUTED, fontsize=9)
    axes.axvline(1.0 if UNITS[axis] == "×" else 0.0, color=GRID, lw=1, zorder=0)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
