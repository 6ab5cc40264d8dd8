"""Intervals and tests against scipy and published values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from armworld.evaluation.statistics import mcnemar_exact, wilson_interval


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
