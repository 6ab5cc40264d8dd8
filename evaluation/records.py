"""The results file's records and the rows that tables show, made from episodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from armworld.evaluation.cells import Cell
from armworld.evaluation.episodes import EpisodeResult, reason_counts
from armworld.evaluation.files import commit, plain, versions
from armworld.evaluation.report import Page
from armworld.evaluation.statistics import wilson_interval

FILMS_ON_PAGE = 24
TABLE_HEAD = ("method", "success", "Wilson 95 %", "cm: mean", "median", "s/action", "CPU s", "failures")


def score(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The part of a results record that one method fills: episodes, the commits that ran them, success, interval."""
    wins = sum(result.success for result in results)
    return {
        "episodes": [
            {
                "seed": result.seed,
                "success": result.success,
                "final_distance_m": result.final_distance_m,
                "steps": result.steps,
                "seconds_per_action": result.seconds_per_action,
                "reason": result.reason,
            }
            for result in results
        ],
        "commits": commits_of(results),
        "success_rate": wins / len(results) if results else None,
        "wilson_95": list(wilson_interval(wins, len(results))),
    }


def commits_of(results: Iterable[EpisodeResult]) -> list[str]:
    """The commits that the episodes were run at, each once; more than one where a run went on after a change."""
    return sorted({result.commit for result in results})


def origin(config: Any, results: Iterable[EpisodeResult] | None = None) -> dict[str, Any]:
    """The part of a record that says where it came from.

    `commit` is that of the code that wrote the record, `commits` those of the code that ran its episodes, if given.
    """
    ran = {} if results is None else {"commits": commits_of(results)}
    return {"config": plain(asdict(config)), "commit": commit(), **ran, "versions": versions()}


def summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Means over the episodes that ran: distances (m), times (s), counts of the reasons."""
    finals = [result.final_distance_m for result in results if result.final_distance_m is not None]
    return {
        "final_distance_mean_m": float(np.mean(finals)) if finals else None,
        "final_distance_median_m": float(np.median(finals)) if finals else None,
        "seconds_per_action": _mean_time(results, "seconds_per_action"),
        "cpu_seconds_per_action": _mean_time(results, "cpu_seconds_per_action"),
        "reasons": reason_counts(results),
    }


def study_head(study: str, config: Any) -> dict[str, Any]:
    """The part of a study's record that says what ran where; `config` is a resolved `Setup` with one task and agent."""
    return {
        "study": study,
        "task": config.task,
        "object": config.object,
        "lab": config.lab,
        "agent": config.agent,
        "model": config.model_of(config.agent),
        "camera": config.camera,
        "step_seconds": config.step_seconds,
        **origin(config),
    }


def _mean_time(results: Sequence[EpisodeResult], key: str) -> float | None:
    times = [getattr(result, key) for result in results if result.steps]
    return float(np.mean(times)) if times else None


def table_row(name: str, results: Sequence[EpisodeResult]) -> list[str]:
    """The cells of `TABLE_HEAD` for one method."""
    wins, n = sum(result.success for result in results), len(results)
    low, high = wilson_interval(wins, n)
    means = summary(results)
    failures = ", ".join(f"{count} {reason}" for reason, count in means["reasons"].items() if reason != "success")
    return [
        name,
        f"{wins}/{n}",
        f"{100 * low:.0f}–{100 * high:.0f} %",
        _number(means["final_distance_mean_m"], 1, 100),
        _number(means["final_distance_median_m"], 1, 100),
        _number(means["seconds_per_action"], 3),
        _number(means["cpu_seconds_per_action"], 3),
        failures or "none",
    ]


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"


def add_films(page: Page, cell: Cell, results: Sequence[EpisodeResult], base: Path) -> None:
    """The filmed episodes, failures first, at most `FILMS_ON_PAGE`."""
    films = [(cell.video_file(r.seed), r) for r in results if cell.video_file(r.seed).exists()]
    films.sort(key=lambda film: film[1].success)
    if films:
        shown = films[:FILMS_ON_PAGE]
        rest = f" (failures first; {len(films) - len(shown)} more in the folder)" if len(films) > len(shown) else ""
        page.heading(f"Episodes of {cell.agent}{rest}")
        page.videos([(path, _caption(result), result.success) for path, result in shown], base)


def _caption(result: EpisodeResult) -> str:
    distance = "" if result.final_distance_m is None else f", {100 * result.final_distance_m:.1f} cm at the end"
    return f"seed {result.seed}: {result.reason}{distance}"


def parse_seeds(text: str) -> list[int]:
    """Seeds of `"A-B"` (both included), `"A,B,C"`, or a file with one integer per line (`#` starts a comment)."""
    path = Path(text)
    if path.is_file():
        lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
        return _distinct([_integer(line, str(path)) for line in lines if line], text)
    first, dash, last = text.partition("-")
    if dash:
        low, high = _integer(first, text), _integer(last, text)
        if low > high:
            raise ValueError(f"seeds {text!r}: the first is larger than the last")
        return list(range(low, high + 1))
    return _distinct([_integer(part, text) for part in text.split(",")], text)


def _integer(text: str, source: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(
            f"seeds {source!r}: {text!r} is no seed; give A-B, A,B,C or an existing file with one per line"
        )
    return int(text)


def _distinct(seeds: list[int], source: str) -> list[int]:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds {source!r}: expected at least one seed and none twice")
    return seeds


def names_of(text: str) -> list[str]:
    """The names of a comma-separated list, in order, each once; `"none"` or `""` is the empty list."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [] if names == ["none"] else list(dict.fromkeys(names))
