"""Intervals and tests against scipy and published values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from armworld.evaluation.statistics import bootstrap_interval, mcnemar_exact, wilson_interval


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.99))
def test_wilson_agrees_with_scipy(counts: tuple[int, int], confidence: float) -> None:
    wins, n = counts
    expected = stats.binomtest(wins, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(wins, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_known_values() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert wilson_interval(80, 100) == pytest.approx((0.711, 0.867), abs=5e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(5, 5)[1] == 1.0 and wilson_interval(0, 5)[0] == 0.0


@pytest.mark.parametrize("arguments", [(3, 2), (-1, 2), (0, -1), (1, 2, 1.0)])
def test_wilson_refuses_nonsense(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r"got"):
        wilson_interval(*arguments)


def test_mcnemar_counts_discordant_pairs_only() -> None:
    first = [True] * 9 + [False] * 2 + [True] * 30 + [False] * 5
    second = [False] * 9 + [True] * 2 + [True] * 30 + [False] * 5
    test = mcnemar_exact(first, second)
    assert (test.only_first, test.only_second) == (9, 2)
    assert test.p_value == pytest.approx(2 * stats.binom.cdf(2, 11, 0.5))
    assert mcnemar_exact(second, first).p_value == pytest.approx(test.p_value)
    assert mcnemar_exact(first, first).p_value == 1.0
    with pytest.raises(ValueError, match="1 and 2"):
        mcnemar_exact([True], [True, False])


def test_bootstrap_covers_the_mean_and_repeats() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 200)
    low, high = bootstrap_interval(values, np.random.default_rng(2))
    half = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap_interval(values, np.random.default_rng(2)) == (low, high)
    median = bootstrap_interval(values, np.random.default_rng(2), np.median)
    assert median[0] <= np.median(values) <= median[1]
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap_interval([], np.random.default_rng(0))
