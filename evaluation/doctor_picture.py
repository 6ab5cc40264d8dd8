"""The doctor's picture: one panel per examination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from armworld.evaluation.picture import GOOD, GRID, INK, MUTED, tidy
from armworld.evaluation.statistics import signed

BLUE, ORANGE, GREY = "#0b62a8", "#d97706", "#9ca3af"
AXIS_COLOURS = {"x": "#b91c1c", "y": "#15803d", "z": "#0b62a8"}


def doctor_figure(findings: Mapping[str, Any]) -> Figure:
    """Eight panels over `armworld.evaluation.doctor.examine`'s findings."""
    figure = Figure(figsize=(17.6, 7.6), layout="constrained")
    panels = figure.subplots(2, 4).reshape(-1)
    draw = {
        "probe": _probe,
        "sensitivity": _sensitivity,
        "axes": _axes,
        "ranking": _ranking,
        "latent_distance": _latent,
        "drift": _drift,
    }
    for panel, (name, function) in zip(panels, draw.items(), strict=False):
        function(panel, findings[name])
    _object(panels[6], findings["stills"])
    _state(panels[7], findings["stills"])
    return figure


def _probe(axes: Axes, finding: Mapping[str, Any]) -> None:
    tidy(axes, f"Seeing: position read within {100 * finding['position_error_m']:.1f} cm")
    true, read = 100 * np.asarray(finding["true_m"]), 100 * np.asarray(finding["read_m"])
    _read_against_true(axes, [(n, c, true[:, i], read[:, i]) for i, (n, c) in enumerate(AXIS_COLOURS.items())])
    _labels(axes, "true (cm)", "read (cm)")


def _sensitivity(axes: Axes, finding: Mapping[str, Any]) -> None:
    tidy(axes, "Actions: one-step error, mean |ẑ − z|")
    names = {
        "true_l1": "true action",
        "zero_l1": "no action",
        "shuffled_l1": "shuffled action",
        "copy_l1": "copy frame",
    }
    values = [finding[key] for key in names]
    rows = np.arange(len(names))[::-1]
    axes.barh(rows, values, color=[BLUE, ORANGE, ORANGE, GREY], height=0.6)
    for row, value in zip(rows, values, strict=True):
        axes.annotate(f"{value:.3f}", (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(rows, list(names.values()))
    axes.set_xlim(0, 1.15 * max(values))


def _axes(axes: Axes, finding: Mapping[str, Any]) -> None:
    fit = finding["imagined"]
    tidy(axes, f"Axes: turned by {signed(fit['yaw_deg'])}°, gain {fit['gain']:.2f}")
    commanded, predicted, encoded = (
        100 * np.asarray(finding[f"{key}_m"]) for key in ("commanded", "predicted", "encoded")
    )
    for moves, colour, label in (
        (commanded, GREY, "commanded"),
        (encoded, GOOD, "seen"),
        (predicted, BLUE, "imagined"),
    ):
        flat = [i for i in range(len(moves)) if i % 3 != 2]
        zero = np.zeros(len(flat))
        axes.quiver(
            zero, zero, moves[flat, 0], moves[flat, 1],
            angles="xy", scale_units="xy", scale=1, color=colour, width=0.008, label=label,
        )  # fmt: skip
    limit = 1.15 * max(float(np.abs(moves[:, :2]).max()) for moves in (commanded, predicted, encoded))
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.set_aspect("equal")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    _labels(axes, "Δx of 5 cm jogs (cm)", "Δy (cm)")


def _ranking(axes: Axes, finding: Mapping[str, Any]) -> None:
    tidy(axes, f"Ranking of the right one among {finding['candidates']}")
    counts = np.asarray(finding["histogram"], float)
    share = 100 * counts / max(counts.sum(), 1)
    axes.bar(np.arange(1, len(share) + 1), share, color=[BLUE] + [GREY] * (len(share) - 1))
    axes.axhline(100 * finding["chance"], color=INK, lw=1, ls=(0, (4, 3)))
    axes.annotate("chance", (len(share), 100 * finding["chance"]), ha="right", va="bottom", fontsize=9, color=INK)
    _labels(axes, "rank (1 is right)", "% of outcomes")


def _latent(axes: Axes, finding: Mapping[str, Any]) -> None:
    tidy(axes, f"Cost: correlation {finding['spearman']:.2f}, near {finding['spearman_near']:.2f}")
    true = 100 * np.asarray(finding["true_m"])
    axes.scatter(true, finding["latent"], s=5, color=BLUE, alpha=0.35, lw=0)
    axes.axvspan(0, 100 * finding["near_m"], color=GRID, alpha=0.6, lw=0, zorder=0)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _labels(axes, "true distance (cm)", "mean |z − z′|")
    aligned = finding.get("aligned")
    if aligned:
        right = _right_axis(axes, "aligned energy")
        right.scatter(true, aligned["cost"], s=5, color=ORANGE, alpha=0.35, lw=0)
        right.set_ylim(bottom=0)
        tidy(axes, f"Cost: near {finding['spearman_near']:.2f}, aligned {aligned['spearman_near']:.2f}")


def _drift(axes: Axes, finding: Mapping[str, Any]) -> None:
    tidy(axes, "Horizon: open-loop error, seconds ahead")
    seconds = finding["step_seconds"] * np.asarray(finding["horizon"])
    axes.plot(seconds, finding["l1"], color=BLUE, lw=2, label="imagined, |ẑ − z|")
    axes.plot(seconds, finding["copy_l1"], color=GREY, lw=2, label="copied first frame")
    axes.set_ylim(bottom=0)
    right = _right_axis(axes, "position error read from ẑ (cm)")
    right.plot(seconds, 100 * np.asarray(finding["position_error_m"]), color=ORANGE, lw=1.5, ls="--")
    right.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _labels(axes, "seconds ahead", "mean |ẑ − z|")


def _object(axes: Axes, finding: Mapping[str, Any]) -> None:
    error, guess = 100 * finding["object_error_m"], 100 * finding["object_guessing_m"]
    tidy(axes, f"Object: read within {error:.1f} cm (guess {guess:.1f})")
    true, read = 100 * np.asarray(finding["object_true"]), 100 * np.asarray(finding["object_read"])
    _read_against_true(axes, [(name, AXIS_COLOURS[name], true[:, i], read[:, i]) for i, name in enumerate("xy")])
    _labels(axes, "true (cm)", "read (cm)")


def _state(axes: Axes, finding: Mapping[str, Any]) -> None:
    probe = finding["probe"]
    yaw = np.degrees(probe["yaw_rad"])
    tidy(axes, f"State: yaw within {yaw:.0f}°, fingers {100 * probe['closedness']:.0f} %")
    names = {"yaw": ("yaw (°)", BLUE, np.degrees(1)), "closedness": ("closedness (% of a stroke)", ORANGE, 100)}
    _read_against_true(
        axes,
        [
            (label, colour, *(scale * np.asarray(finding[f"{key}_{kind}"]) for kind in ("true", "read")))
            for key, (label, colour, scale) in names.items()
        ],
    )
    _labels(axes, "true (° or %)", "read (° or %)")


def _read_against_true(axes: Axes, series: list[tuple[str, str, np.ndarray, np.ndarray]]) -> None:
    """Scatter of (label, colour, true, read) with the diagonal."""
    for label, colour, true, read in series:
        axes.scatter(true, read, s=9, color=colour, alpha=0.6, lw=0, label=label)
    everything = np.concatenate([np.concatenate(pair[2:]) for pair in series])
    ends = [everything.min(), everything.max()]
    axes.plot(ends, ends, color=MUTED, lw=1)
    axes.legend(frameon=False, fontsize=9, markerscale=2, loc="upper left")


def _right_axis(axes: Axes, label: str) -> Axes:
    """A second vertical axis, in orange."""
    right = axes.twinx()
    right.set_ylabel(label, color=ORANGE, fontsize=9)
    right.tick_params(colors=ORANGE, labelsize=9)
    right.spines[["top"]].set_visible(False)
    return right


def _labels(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=MUTED)
    axes.set_ylabel(y, fontsize=9, color=MUTED)
