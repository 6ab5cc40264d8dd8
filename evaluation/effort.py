"""Methods at several efforts over the same seeds, compared at equal time per action and at equal success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from armworld.evaluation.episodes import EpisodeResult
from armworld.evaluation.picture import GRID, MUTED, method_colours, tidy
from armworld.evaluation.statistics import mcnemar_exact, wilson_interval


@dataclass(frozen=True)
class Effort:
    """A search's size."""

    samples: int
    iterations: int

    def __str__(self) -> str:
        return f"{self.samples}x{self.iterations}"


@dataclass(frozen=True)
class Point:
    """A method at one effort: its episodes, on seeds shared by all."""

    agent: str
    effort: Effort
    results: Sequence[EpisodeResult]

    @property
    def wins(self) -> int:
        """Episodes that succeeded."""
        return sum(result.success for result in self.results)

    @property
    def seconds(self) -> float:
        """CPU seconds per action, median over the episodes that acted; infinite where none did.

        CPU time, as the wall clock of a shared machine says little; on an accelerator it is the host's alone.
        """
        times = [result.cpu_seconds_per_action for result in self.results if result.steps]
        return float(np.median(times)) if times else float("inf")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able summary."""
        return {
            "agent": self.agent,
            "effort": str(self.effort),
            "wins": self.wins,
            "episodes": len(self.results),
            "cpu_seconds_per_action": self.seconds,
        }


def parse_ladder(text: str) -> tuple[Effort, ...]:
    """Efforts of `SAMPLESxITERATIONS,...`, each once.

    Raises:
        ValueError: Not of that form, or not positive.
    """
    efforts = []
    for part in text.split(","):
        samples, _, iterations = part.strip().partition("x")
        if not (samples.isdecimal() and iterations.isdecimal() and int(samples) and int(iterations)):
            raise ValueError(f"ladder {text!r}: expected SAMPLESxITERATIONS, separated by commas, such as 16x2,64x4")
        efforts.append(Effort(int(samples), int(iterations)))
    return tuple(dict.fromkeys(efforts))


Lines = Mapping[str, Sequence[Point]]  # method -> its points


def at_equal_time(lines: Lines) -> list[dict[str, Any]]:
    """What each method achieves within the same time per action.

    The times are those of the points at which every method can act already. Of a method's points within a time the
    slowest counts, its largest search that fits: were the most successful one taken, its rate and McNemar's exact test
    of the first method against each other one would be flattered by the choice. A time at which nothing has changed
    since the one before is left out.

    Returns:
        Rows: seconds; best, method -> its point; mcnemar, other method -> test.
    """
    starts = max(min(point.seconds for point in line) for line in lines.values())
    times = sorted({point.seconds for line in lines.values() for point in line if starts <= point.seconds < np.inf})
    rows, before = [], None
    for seconds in times:
        best = {
            name: max((p for p in line if p.seconds <= seconds), key=lambda p: p.seconds)
            for name, line in lines.items()
        }
        chosen = [point.effort for point in best.values()]
        if chosen != before:
            rows.append({"seconds": seconds, **_compared(best)})
        before = chosen
    return rows


def at_equal_success(lines: Lines) -> list[dict[str, Any]]:
    """The time per action that each method takes to succeed in at least so many episodes, for every count they share.

    Returns:
        Rows: wins; best, method -> its quickest such point; ratio, other method -> its seconds over the first one's.
    """
    most = min(max(point.wins for point in line) for line in lines.values())
    counts = sorted({min(point.wins, most) for line in lines.values() for point in line} - {0}, reverse=True)
    rows = []
    for wins in counts:
        best = {name: min((p for p in line if p.wins >= wins), key=lambda p: p.seconds) for name, line in lines.items()}
        first, *others = best.values()
        ratio = {other.agent: other.seconds / first.seconds if first.seconds > 0 else None for other in others}
        rows.append({"wins": wins, "best": {name: p.to_json() for name, p in best.items()}, "ratio": ratio})
    return rows


def _compared(best: Mapping[str, Point]) -> dict[str, Any]:
    first, *others = best.values()
    outcomes = [result.success for result in first.results]
    tests = {other.agent: asdict(mcnemar_exact(outcomes, [r.success for r in other.results])) for other in others}
    return {"best": {name: point.to_json() for name, point in best.items()}, "mcnemar": tests}


def effort_figure(places: Mapping[str, Lines]) -> Figure:
    """Success over CPU seconds per action: a panel per place, a line per method, Wilson's 95 % intervals."""
    names = list(dict.fromkeys(name for lines in places.values() for name in lines))
    colours = method_colours(names)
    columns = min(3, len(places))
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(1.0 + 4.6 * columns, 3.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (place, lines) in zip(panels, places.items(), strict=False):
        tidy(axes, place)
        for name, line in lines.items():
            ordered = sorted((point for point in line if np.isfinite(point.seconds)), key=lambda point: point.seconds)
            seconds = [point.seconds for point in ordered]
            rate = draw_success(axes, seconds, ordered, colours[name])
            for point, height in zip(ordered, rate, strict=True):
                axes.annotate(str(point.effort), (point.seconds, height), (4, 4), textcoords="offset points",
                              fontsize=7, color=MUTED)  # fmt: skip
        log_axis(axes, "CPU seconds per action")
        axes.set_ylim(-3, 103)
        axes.set_ylabel("success, % (95 % Wilson)", color=MUTED, fontsize=9)
    panels[0].legend(frameon=False, fontsize=9, loc="upper left")
    for axes in panels[len(places) :]:
        axes.set_axis_off()
    return figure


def draw_success(axes: Axes, x: Sequence[float], points: Sequence[Point], colour: str) -> np.ndarray:
    """A method's points at `x` as a line with Wilson's 95 % intervals; returns the success rates [points] (%)."""
    rate = np.array([100 * point.wins / max(1, len(point.results)) for point in points])
    ends = np.array([wilson_interval(point.wins, len(point.results)) for point in points]).reshape(-1, 2)
    away = np.abs(100 * ends.T - rate)
    axes.errorbar(x, rate, away, fmt="o-", color=colour, capsize=3, lw=1.8, label=points[0].agent if points else None)
    return rate


def log_axis(axes: Axes, label: str) -> None:
    """A logarithmic horizontal axis with plain numbers, and a grid."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=GRID, lw=0.8)
    axes.set_xlabel(label, color=MUTED, fontsize=9)
