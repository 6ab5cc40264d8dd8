"""One MP4 per episode: camera views and goal side by side, distance and energy below, the verdict at the end."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from armworld.evaluation.episodes import EpisodeResult
from armworld.types import Agent, Goal, Observation

MARGIN, HEADER, CHART, LABEL = 16, 44, 168, 22  # pixels
PANEL = 384
FINAL_SECONDS = 2.0  # the last frame stays, so that the verdict can be read
INK, MUTED, GRID, PAPER = "#1b1f24", "#6b7280", "#e5e7eb", "#ffffff"
DISTANCE, ENERGY, GOOD, BAD = "#0b62a8", "#d97706", "#15803d", "#b91c1c"
SHARP = 2  # the chart is drawn this much larger and scaled down: PIL's lines are jagged


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def camera_names(observation: Observation) -> list[str]:
    """The observation's cameras (its uint8 [H, W, 3] entries), in its order."""
    return [name for name, value in observation.items() if value.dtype == np.uint8 and value.ndim == 3]


@dataclass
class _Moment:
    observation: Observation
    distance: float
    action: np.ndarray | None = None
    energy: float | None = None  # latent distance of this view to the goal
    imagined: float | None = None  # what the plan that led here expected it to be
    sub_goal: int | None = None


@dataclass
class VideoRecorder:
    """A `Recorder` that writes an H.264 MP4 when the episode is judged.

    Attributes:
        path: The file; written whole or not at all.
        title: Shown in the header, usually the agent's name.
        step_seconds: Length of a step, so that the video runs in real time.
        threshold_m: Success distance, drawn as a line; None for no line.
    """

    path: Path
    title: str = ""
    step_seconds: float = 0.25
    threshold_m: float | None = 0.04
    _moments: list[_Moment] = field(default_factory=list)
    _goal: Goal | None = None

    def start(self, observation: Observation, goal: Goal, info: dict[str, Any]) -> None:
        """Keep the first view and the goal."""
        self._goal = goal
        self._moments = [_Moment(observation, float(info["distance_m"]))]

    def step(self, observation: Observation, action: np.ndarray, info: dict[str, Any], agent: Agent) -> None:
        """Keep the view that the action led to."""
        moment = _Moment(observation, float(info["distance_m"]), np.array(action))
        record = getattr(agent, "last_step", None)  # planning agents keep one (planners.mpc.StepRecord)
        if record is not None:
            self._moments[-1].energy = record.energy
            self._moments[-1].sub_goal = moment.sub_goal = record.image
            moment.imagined = record.cost
        self._moments.append(moment)

    def finish(self, result: EpisodeResult) -> None:
        """Draw and encode all frames."""
        if self._goal is None or not camera_names(self._moments[0].observation):
            return  # the reset failed or there is no camera: nothing to show
        sheet = _Sheet(self._moments, self._goal, self.title, self.threshold_m, result)
        frames = [sheet.frame(i) for i in range(len(self._moments))]
        rate = 1 / self.step_seconds
        frames += [frames[-1]] * round(FINAL_SECONDS * rate)
        write_mp4(self.path, frames, rate)
        self._moments, self._goal = [], None


class _Sheet:
    """Draws the frames of one episode."""

    def __init__(
        self, moments: list[_Moment], goal: Goal, title: str, threshold_m: float | None, result: EpisodeResult
    ) -> None:
        self.moments, self.goal, self.title, self.result = moments, goal, title, result
        self.cameras = [name for name in camera_names(moments[0].observation) if name in goal.observations[0]][:2]
        self.cameras = self.cameras or camera_names(moments[0].observation)[:1]
        height, width = moments[0].observation[self.cameras[0]].shape[:2]
        self.panel = (PANEL, 2 * round(PANEL * height / width / 2))
        columns = len(self.cameras) + 1
        self.size = (
            columns * PANEL + (columns + 1) * MARGIN,
            HEADER + LABEL + self.panel[1] + CHART + 2 * MARGIN,
        )
        self.chart = _Chart((self.size[0] - 2 * MARGIN, CHART), moments, threshold_m)
        self.ends = np.cumsum(goal.budgets)

    def frame(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3] of step `index`."""
        moment = self.moments[index]
        canvas = Image.new("RGB", self.size, PAPER)
        draw = ImageDraw.Draw(canvas)
        self._header(draw, index)
        sub_goal = moment.sub_goal
        if sub_goal is None:
            sub_goal = min(int(np.searchsorted(self.ends, index, side="right")), len(self.ends) - 1)
        goal_label = "goal" if len(self.ends) == 1 else f"goal {sub_goal + 1} of {len(self.ends)}"
        goal_view = self.goal.observations[sub_goal].get(self.cameras[0])
        views = [(name, moment.observation[name]) for name in self.cameras] + [(goal_label, goal_view)]
        for column, (label, view) in enumerate(views):
            x, y = MARGIN + column * (PANEL + MARGIN), HEADER
            draw.text((x, y), label, font=_font(14), fill=MUTED)
            if view is not None:
                picture = Image.fromarray(view).resize(self.panel, Image.Resampling.BICUBIC)
                canvas.paste(picture, (x, y + LABEL))
        canvas.paste(self.chart.until(index), (MARGIN, HEADER + LABEL + self.panel[1] + MARGIN))
        return np.asarray(canvas)

    def _header(self, draw: ImageDraw.ImageDraw, index: int) -> None:
        last, moment = len(self.moments) - 1, self.moments[index]
        head = f"{self.title}   seed {self.result.seed}" if self.title else f"seed {self.result.seed}"
        draw.text((MARGIN, 12), head, font=_font(17, bold=True), fill=INK)
        x = MARGIN + draw.textlength(head, font=_font(17, bold=True)) + 20
        told = f"step {index} of {last}"
        if math.isfinite(moment.distance):
            told += f"   {100 * moment.distance:.1f} cm"
        draw.text((x, 14), told, font=_font(15), fill=INK)
        if index == last:
            colour = GOOD if self.result.success else BAD
            words = self.result.reason.split(":")[0].replace("_", " ")
            draw.text((self.size[0] - MARGIN, 12), words, font=_font(17, bold=True), fill=colour, anchor="ra")
        elif moment.action is not None:
            text = _action_text(moment.action)
            draw.text((self.size[0] - MARGIN, 16), text, font=_font(13), fill=MUTED, anchor="ra")


def _action_text(action: np.ndarray) -> str:
    x, y, z = 100 * action[:3]
    return f"Δ {x:+.1f} {y:+.1f} {z:+.1f} cm  grip {action[6]:+.2f}".replace("-", "−")


class _Chart:
    """Distance (cm) where it is measured and, for planners, energy over the steps; drawn once, revealed by steps."""

    LEFT, RIGHT, TOP, BOTTOM = 44, 48, 24, 24

    def __init__(self, size: tuple[int, int], moments: list[_Moment], threshold_m: float | None) -> None:
        self.size = size
        self.steps = len(moments) - 1
        self.distances = [(i, 100 * m.distance) for i, m in enumerate(moments) if math.isfinite(m.distance)]
        self.energies = [(i, m.energy) for i, m in enumerate(moments) if m.energy is not None]
        self.imagined = [(i, m.imagined) for i, m in enumerate(moments) if m.imagined is not None]
        self.threshold = None if threshold_m is None else 100 * threshold_m
        self.top = max([*(value for _, value in self.distances), 1.25 * (self.threshold or 0), 1e-6]) * 1.08
        self.energy_top = max([value for _, value in self.energies], default=0.0) * 1.15 + 1e-12
        self.paper = self._paper()

    def _x(self, step: float) -> float:
        return SHARP * (self.LEFT + step / max(self.steps, 1) * (self.size[0] - self.LEFT - self.RIGHT))

    def _y(self, fraction: float) -> float:
        return SHARP * (self.size[1] - self.BOTTOM - fraction * (self.size[1] - self.TOP - self.BOTTOM))

    def _paper(self) -> Image.Image:
        paper = Image.new("RGB", (SHARP * self.size[0], SHARP * self.size[1]), PAPER)
        draw = ImageDraw.Draw(paper)
        small = _font(SHARP * 12)
        right = self._x(self.steps or 1)
        for tick in _ticks(self.top) if self.distances else []:
            y = self._y(tick / self.top)
            draw.line([(self._x(0), y), (right, y)], fill=GRID, width=SHARP)
            draw.text((self._x(0) - 8 * SHARP, y), f"{tick:g}", font=small, fill=MUTED, anchor="rm")
        for step in _step_ticks(self.steps):
            draw.text((self._x(step), self._y(0) + 5 * SHARP), f"{step}", font=small, fill=MUTED, anchor="ma")
        if self.threshold is not None and self.distances:
            y = self._y(self.threshold / self.top)
            _dashed(draw, self._x(0), right, y)
            draw.text((right + 8 * SHARP, y), f"{self.threshold:g} cm", font=small, fill=GOOD, anchor="lm")
        told = "distance to goal (cm)" if self.distances else "distance not measured"
        draw.text((self._x(0), 2 * SHARP), told, font=small, fill=DISTANCE)
        if self.energies:
            label = "latent distance (line) and what the plan imagined (rings)"
            draw.text((self._x(0) + 170 * SHARP, 2 * SHARP), label, font=small, fill=ENERGY)
        return paper

    def until(self, index: int) -> Image.Image:
        """The chart with the curves up to step `index`."""
        picture = self.paper.copy()
        draw = ImageDraw.Draw(picture)
        energy = [(self._x(i), self._y(e / self.energy_top)) for i, e in self.energies if i <= index]
        rings = [(self._x(i), self._y(e / self.energy_top)) for i, e in self.imagined if i <= index]
        distance = [(self._x(i), self._y(d / self.top)) for i, d in self.distances if i <= index]
        for x, y in rings:
            _dot(draw, x, y, outline=ENERGY)
        for points, colour, width in ((energy, ENERGY, 2), (distance, DISTANCE, 3)):
            if len(points) > 1:
                draw.line(points, fill=colour, width=SHARP * width, joint="curve")
            if points:
                _dot(draw, *points[-1], fill=colour)
        return picture.resize(self.size, Image.Resampling.BOX)


def _ticks(top: float) -> list[float]:
    """About four round numbers from 0 to `top`."""
    raw = top / 4
    power = 10 ** np.floor(np.log10(raw))
    step = next(step for step in (1, 2, 5, 10) if step * power >= raw) * power
    return [float(tick) for tick in np.arange(0, top, step)]


def _step_ticks(last: int) -> list[int]:
    stride = max(1, -(-last // 10))
    return list(range(0, last + 1, stride))


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, fill: str | None = None, outline: str | None = None) -> None:
    r = 4 * SHARP
    draw.ellipse([x - r, y - r, x + r, y + r], fill=fill, outline=outline, width=SHARP)


def _dashed(draw: ImageDraw.ImageDraw, left: float, right: float, y: float) -> None:
    for x in np.arange(left, right, 12 * SHARP):
        draw.line([(x, y), (min(x + 7 * SHARP, right), y)], fill=GOOD, width=SHARP)


def write_mp4(path: Path, frames: Sequence[np.ndarray], rate: float) -> None:
    """H.264, yuv420p, index at the front: plays in every browser. Frames uint8 [H, W, 3], even sizes; rate in Hz."""
    if not frames:
        raise ValueError("a video needs at least one frame")
    height, width = frames[0].shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 with yuv420p needs even sizes, got {width}×{height}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "20"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    os.replace(temporary, path)


def read_mp4(path: Path) -> np.ndarray:
    """All frames, uint8 [T, H, W, 3] RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
