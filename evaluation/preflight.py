"""`armworld preflight`: is the camera where the model understands it? Overlay, jogs, yaw error, a verdict, a page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from armworld.envs.cameras import EXTERIOR, RIGS, intrinsics, project
from armworld.evaluation.cells import env_id_of, open_env, single_thread
from armworld.evaluation.files import commit, plain, versions, write_bytes, write_json
from armworld.evaluation.jogging import Jogs, jog, judge, read_jogs
from armworld.evaluation.picture import GRID, INK, METHODS, MUTED, figure_png, tidy
from armworld.evaluation.report import Page, provenance
from armworld.evaluation.views import Views, make_views
from armworld.sim_assets.catalog import LABS
from armworld.types import check_name

AXIS_COLOURS = ("#dc2626", "#16a34a", "#2563eb")
AXIS_M = 0.12


@dataclass(frozen=True)
class Watch:
    """What is looked at.

    Attributes:
        model: Name of a shipped world model, or a checkpoint folder.
        lab: lab1 or lab2.
        camera: left or right; by default the model's.
        reference: The picture that the camera should see, e.g. a frame of the training data; by default the scene
            rendered from the rig that the shipped models were trained on.
        seed: Of the scene and the search (of the range for choosing settings).
        out: Folder for preflight.json, preflight.png and index.html.
    """

    model: str = "default"
    lab: str = "lab1"
    camera: str | None = None
    reference: Path | None = None
    seed: int = 1_000_000
    out: Path = Path("runs/preflight")


@dataclass(frozen=True)
class PreflightConfig(Views, Watch):
    """Look through a camera of the simulated cell, jog the arm by 5 cm along each axis, and say how the model reads it.

    The camera is given by its offsets from the lab's own place, one value each.
    """

    azimuth: str = "0"

    def __post_init__(self) -> None:
        check_name("lab", self.lab, LABS)
        if self.reference is not None and not self.reference.is_file():
            raise ValueError(f"reference {self.reference} is not a file")


def preflight(config: PreflightConfig, console: Console | None = None) -> int:
    """Look, jog, judge, write the page. Answers 0; 1 where the verdict is bad.

    Raises:
        ValueError: No such model, camera or reference picture; more than one camera asked for.
    """
    from armworld.worldmodel.checkpoint import load_world_model

    console = console or Console()
    model = load_world_model(config.model)
    camera = check_name("camera to place", config.camera or model.camera, EXTERIOR)
    view = make_views(config, RIGS[config.lab][camera])[-1]
    if len(make_views(config, RIGS[config.lab][camera])) > 2:
        raise ValueError("preflight looks through one camera: give one value per axis (armworld sweep takes many)")
    kwargs = {"lab": config.lab, "cameras": (camera,), "image_size": model.image_size[0]}
    kwargs |= {"step_seconds": model.step_seconds, "placements": {camera: view.placement.as_dict()}}
    env = open_env(env_id_of("reach"), kwargs)
    try:
        with single_thread():
            seen, live = jog_env(env, camera, config.seed)
            reference = _reference(config, env, camera)
            findings = read_jogs(model, seen, config.seed)
    finally:
        env.close()
    marks = judge(findings)
    record = {
        "verdict": [f"{mark.upper()}: {text}" for mark, text in marks],
        "mark": marks[0][0],
        "view": view.to_json(),
        "findings": plain(findings),
        "config": plain(asdict(config)),
        "commit": commit(),
        "versions": versions(),
    }
    write_page(config.out, record, marks, live, reference)
    colour = {"good": "green", "weak": "yellow", "bad": "red"}
    for mark, text in marks:
        console.print(f"[{colour[mark]}]{mark:>4}[/]  {text}", highlight=False, soft_wrap=True)
    console.print(f"Page: {config.out / 'index.html'}", soft_wrap=True)
    return 1 if marks[0][0] == "bad" else 0


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


def jog_env(env: gymnasium.Env, camera: str, seed: int) -> tuple[Jogs, Live]:
    """Jog in a simulated scene, from the middle of what the arm can reach."""
    observation, _ = env.reset(seed=seed)
    arm: Any = env.unwrapped
    flange = observation["state"][:3].astype(np.float64)
    points = flange + np.concatenate([np.zeros((1, 3)), AXIS_M * np.eye(3)])
    size = arm.image_size
    pixels = project(points, arm.extrinsics(camera), intrinsics(arm.simulator.model, camera, size, size))
    live = Live(observation[camera], pixels)
    return jog(lambda: observation, lambda action: env.step(action.astype(np.float32))[0], camera), live


def _reference(config: PreflightConfig, env: gymnasium.Env, camera: str) -> np.ndarray:
    """The picture that the model's training camera would show of the scene at its start."""
    arm: Any = env.unwrapped
    if config.reference is not None:
        picture = Image.open(config.reference).convert("RGB").resize((arm.image_size, arm.image_size))
        return np.asarray(picture, np.uint8)
    arm.place_camera(camera, RIGS["lab1"][camera])
    return env.reset(seed=config.seed)[0][camera]


def write_page(
    out: Path, record: dict[str, Any], marks: list[tuple[str, str]], live: Live, reference: np.ndarray
) -> None:
    """preflight.json, preflight.png and index.html."""
    png = figure_png(preflight_figure(record["findings"], live, reference))
    place = record["view"]["placement"]
    page = Page(
        "Preflight of a camera",
        f"model {record['config']['model']}; camera at azimuth {place['azimuth']:.0f}°, elevation "
        f"{place['elevation']:.0f}°, {place['distance']:.2f} m away, field of view {place['fovy']:.0f}°.",
    )
    page.heading("Verdict").table(["mark", "finding"], [list(mark) for mark in marks], first=True)
    page.picture(
        png, "live view with the base frame, reference, both laid over each other, jogs as executed and as read"
    )
    page.heading("Jogs: executed, and as the model reads them from the pictures (cm)")
    rows = [
        [one["name"], *(f"{100 * value:+.1f}" for key in ("executed_m", "read_m") for value in one[key])]
        for one in record["findings"]["jogs"]
    ]
    page.table(("jog", "x", "y", "z", "read x", "read y", "read z"), rows)
    provenance(page, record)
    write_bytes(out / "preflight.png", png)
    page.write(out / "index.html")
    write_json(out / "preflight.json", record)


def preflight_figure(findings: dict[str, Any], live: Live, reference: np.ndarray) -> Figure:
    """Live view, reference, overlay; jogs in the horizontal plane; energy over the turn."""
    figure = Figure(figsize=(13.6, 7.6), layout="constrained")
    panels = figure.subplot_mosaic([["live", "reference", "overlay"], ["plane", "height", "turn"]])
    overlay = (0.5 * live.frame + 0.5 * reference).astype(np.uint8)
    for name, image, title in (
        ("live", live.frame, "Live, with the base frame at the flange"),
        ("reference", reference, "Reference: what the model was trained on"),
        ("overlay", overlay, "Both: move the camera until they agree"),
    ):
        panels[name].imshow(image)
        panels[name].set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
        panels[name].set_axis_off()
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
    axes.axvline(turn["yaw_deg"], color=METHODS[1], lw=1.6, ls=(0, (4, 3)), label=f"best {turn['yaw_deg']:+.1f}°")
    axes.set_xlabel("turn about the vertical (°)", color=MUTED, fontsize=9)
    axes.legend(fontsize=9, frameon=False)
