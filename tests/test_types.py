"""The checks that every folder's configurations share."""

from types import SimpleNamespace

import pytest

from armworld.types import check_name, check_numbers


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_number_outside_its_range_is_named_with_the_range(value: float):
    with pytest.raises(ValueError, match=f"rate must be above 0, got {value}"):
        check_numbers(SimpleNamespace(rate=value), "rate", above=0)


def test_both_ends_are_told_and_belong_to_the_range():
    share = SimpleNamespace(low=0.0, high=1.0, absent=None, wrong=1.5)
    check_numbers(share, "low", "high", "absent", least=0, most=1)
    with pytest.raises(ValueError, match=r"wrong must be at least 0 and at most 1, got 1\.5"):
        check_numbers(share, "low", "wrong", least=0, most=1)
    with pytest.raises(ValueError, match=r"high must be above 0 and below 1, got 1\.0"):
        check_numbers(share, "high", above=0, below=1)
    with pytest.raises(ValueError, match="wrong must be finite, got nan"):
        check_numbers(SimpleNamespace(wrong=float("nan")), "wrong")


def test_an_unknown_name_is_told_with_the_valid_ones():
    with pytest.raises(ValueError, match="unknown fruit 'fig'; valid: apple, pear"):
        check_name("fruit", "fig", ["apple", "pear"])
