"""Intervals and tests for success rates: Wilson, McNemar, bootstrap. Plain functions over counts and arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion (Wilson 1927), both ends in [0, 1].

        (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n),   p = successes/n, z the normal quantile

    No trials say nothing: the interval is then (0, 1).
    """
    if trials < 0 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} successes of {trials} trials")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    if trials == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    p, n = successes / trials, trials
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale  # exact ends, free of rounding
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class McNemar:
    """Outcome of McNemar's exact test on paired successes.

    Attributes:
        only_first: Pairs in which only the first method succeeded.
        only_second: Pairs in which only the second one did.
        p_value: Two-sided exact binomial p-value; 1.0 when the methods never differ.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test: do two methods differ on the *same* seeds? Only the discordant pairs count."""
    if len(first) != len(second):
        raise ValueError(f"paired outcomes must be equally many, got {len(first)} and {len(second)}")
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    if discordant == 0:
        return McNemar(0, 0, 1.0)
    p_value = stats.binomtest(only_first, discordant, 0.5).pvalue
    return McNemar(only_first, only_second, float(p_value))


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few independent runs (training seeds) and Student's t interval of it: (mean, low, high).

    mean ± t sqrt(s² / n),   s² with n - 1 degrees of freedom, t the quantile for them
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all():
        raise ValueError(f"an interval of a mean needs at least 2 finite values, got {array.tolist()}")
    mean = float(array.mean())
    half = float(stats.t.ppf(0.5 + confidence / 2, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return mean, mean - half, mean + half


def signed(value: float, digits: int = 0) -> str:
    """A number with its sign, for people: what rounds to zero is +0, never -0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
