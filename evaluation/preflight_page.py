"""The page of a preflight: live view over reference, jogs as executed and as read, turn of the axes, verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from armworld.evaluation.files import commit, plain, versions, write_bytes, write_json
from armworld.evaluation.jogging import Reading
from armworld.evaluation.picture import GRID, INK, METHODS, MUTED, figure_png, tidy
from armworld.evaluation.report import Page, provenance
from armworld.evaluation.statistics import signed
from armworld.real.cameras import load_image

AXIS_COLOURS = ("#dc2626", "#16a34a", "#2563eb")
MARK_COLOURS = {"good": "green", "weak": "yellow", "bad": "red"}


@dataclass(frozen=True)
class Live:
    """What the camera shows before the jogs, and where the base frame's axes at the flange lie in it.

    Attributes:
        frame: uint8 [H, W, 3].
        arrows: Pixels [4, 2] (column, row) of the flange and of 12 cm further along x, y, z; None where the camera's
            pose is not known.
    """

    frame: np.ndarray
    arrows: np.ndarray | None


def read_picture(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The picture in a file, brought to (height, width) where that is given: uint8 [H, W, 3].

    Raises:
        ValueError: It is not a picture.
    """
    picture = load_image(path)
    return picture if size is None else np.asarray(Image.fromarray(picture).resize((size[1], size[0])))


def preflight_record(reading: Reading, where: str, config: dict[str, Any]) -> dict[str, Any]:
    """What preflight.json holds.

    Args:
        reading: What the model makes of the jogs.
        where: Which camera was looked through, in words.
        config: The settings, with the key `model`.
    """
    verdicts = [{"title": title, "marks": [list(mark) for mark in marks]} for title, marks in reading.verdicts()]
    return {
        "verdict": [f"{mark.upper()}: {text}" for mark, text in verdicts[0]["marks"]],
        "mark": reading.mark,
        "where": where,
        "findings": plain(reading.findings),
        "before": None if reading.adapted is None else plain(reading.before),
        "moves": reading.moves,
        "verdicts": verdicts,
        "config": plain(config),
        "commit": commit(),
        "versions": versions(),
    }


def print_marks(marks: list[tuple[str, str]], console: Console) -> None:
    """One line per mark."""
    for mark, text in marks:
        console.print(f"[{MARK_COLOURS[mark]}]{mark:>4}[/]  {text}", highlight=False, soft_wrap=True)


def write_page(out: Path, record: dict[str, Any], live: Live, reference: np.ndarray | None) -> None:
    """preflight.json, preflight.png and index.html; without a reference nothing is laid over the live picture."""
    png = figure_png(preflight_figure(record["findings"], live, reference))
    page = Page("Preflight of a camera", f"model {record['config']['model']}; {record['where']}.")
    for told in record["verdicts"]:
        page.heading(told["title"] or "Verdict").table(["mark", "finding"], told["marks"], first=True)
    page.picture(
        png, "live view with the base frame, reference, both laid over each other, jogs as executed and as read"
    )
    if record["before"] is not None:
        before = figure_png(preflight_figure(record["before"], live, reference))
        page.picture(before, "the same, as the model read the jogs before it was adapted")
    page.heading("Jogs: executed, and as the model reads them from the pictures (cm)")
    rows = [
        [one["name"], *(signed(100 * value, 1) for key in ("executed_m", "read_m") for value in one[key])]
        for one in record["findings"]["jogs"]
    ]
    page.table(("jog", "x", "y", "z", "read x", "read y", "read z"), rows)
    provenance(page, record)
    write_bytes(out / "preflight.png", png)
    page.write(out / "index.html")
    write_json(out / "preflight.json", record)


def preflight_figure(findings: dict[str, Any], live: Live, reference: np.ndarray | None) -> Figure:
    """Live view, reference, overlay; jogs in the horizontal plane; energy over the turn."""
    figure = Figure(figsize=(13.6, 7.6), layout="constrained")
    panels = figure.subplot_mosaic([["live", "reference", "overlay"], ["plane", "height", "turn"]])
    overlay = None if reference is None else (0.5 * live.frame + 0.5 * reference).astype(np.uint8)
    for name, image, title in (
        ("live", live.frame, "Live" + (", with the base frame at the flange" if live.arrows is not None else "")),
        ("reference", reference, "Reference: what the model was trained on"),
        ("overlay", overlay, "Both: move the camera until they agree"),
    ):
        panels[name].set_axis_off()
        if image is not None:
            panels[name].imshow(image)
            panels[name].set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
    if live.arrows is not None:
        _arrows(panels["live"], live.arrows)
    _plane(panels["plane"], findings)
    _height(panels["height"], findings)
    _turn(panels["turn"], findings["turn"])
    return figure


def _arrows(axes: Axes, arrows: np.ndarray) -> None:
    for name, colour, end in zip("xyz", AXIS_COLOURS, arrows[1:], strict=True):
        axes.annotate("", end, arrows[0], arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.4})
        axes.annotate(name, end, color="white", fontsize=10, fontweight="bold",
                      bbox={"boxstyle": "round,pad=0.15", "fc": colour, "ec": "none"})  # fmt: skip


def _plane(axes: Axes, findings: dict[str, Any]) -> None:
    tidy(axes, "Seen from above (cm): executed, read")
    for one in findings["jogs"][:4]:
        executed, read = 100 * np.array(one["executed_m"]), 100 * np.array(one["read_m"])
        for end, colour, width in ((executed, "#9ca3af", 5), (read, METHODS[0], 2)):
            axes.annotate("", (-end[1], end[0]), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": width})
        axes.annotate(one["name"], (-1.25 * executed[1], 1.25 * executed[0]), ha="center", va="center", color=MUTED)
    axes.set_xlim(-9, 9)
    axes.set_ylim(-9, 9)
    axes.set_aspect("equal")
    axes.set_xlabel("−y (to the robot's right)", color=MUTED, fontsize=9)
    axes.set_ylabel("x (away from the robot)", color=MUTED, fontsize=9)
    axes.grid(color=GRID, lw=0.8)


def _height(axes: Axes, findings: dict[str, Any]) -> None:
    tidy(axes, "Along its own axis (cm): executed, read")
    names = [one["name"] for one in findings["jogs"]]
    own = [
        [100 * one[key][index // 2] for index, one in enumerate(findings["jogs"])] for key in ("executed_m", "read_m")
    ]
    place = np.arange(len(names))
    axes.bar(place - 0.2, own[0], 0.38, color="#9ca3af", label="executed")
    axes.bar(place + 0.2, own[1], 0.38, color=METHODS[0], label="read by the model")
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xticks(place, names)
    axes.set_ylim(-7, 9)
    axes.legend(fontsize=9, frameon=False, loc="upper left", ncols=2)


def _turn(axes: Axes, turn: dict[str, Any]) -> None:
    tidy(axes, "Error of imagination over the turn assumed (°)")
    axes.plot(turn["angles_deg"], turn["curve"], color=METHODS[0], lw=2)
    axes.axvline(0, color=GRID, lw=1.2)
    axes.axvline(turn["yaw_deg"], color=METHODS[1], lw=1.6, ls=(0, (4, 3)), label=f"best {signed(turn['yaw_deg'], 1)}°")
    axes.set_xlabel("turn about the vertical (°)", color=MUTED, fontsize=9)
    axes.legend(fontsize=9, frameon=False)
