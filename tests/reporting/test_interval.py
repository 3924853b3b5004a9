from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedfusion.reporting.interval import interval, mean, of_scores, paired, quantile

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)


@pytest.mark.parametrize("df", [*range(1, 60), 200, 999])
def test_the_quantile_is_that_of_scipy(df):
    assert quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-12)


@given(VALUES)
def test_the_interval_is_that_of_scipy(values):
    n, scale = len(values), stats.sem(values)
    if scale > 1e-6:
        expected = stats.t.interval(0.95, n - 1, sum(values) / n, scale)
        assert interval(values) == pytest.approx(list(expected), rel=1e-9, abs=1e-9)


def test_by_hand():
    """Two values 0.02 apart: the standard error of the mean is 0.01, and t(1) is 12.7062."""
    assert interval([0.70, 0.72]) == pytest.approx([0.71 - 0.127062, 0.71 + 0.127062], abs=1e-6)
    assert interval([0.5, 0.5, 0.5]) == [0.5, 0.5]
    assert interval([1.0, 2.0, 3.0, 4.0])[1] - 2.5 == pytest.approx(3.182446 * sqrt(5 / 3) / 2, rel=1e-6)


@pytest.mark.parametrize("values", [[], [0.7]])
def test_of_fewer_than_two_there_is_none(values):
    assert interval(values) is None


@given(VALUES, st.floats(-10, 10))
def test_what_all_are_shifted_by_shifts_the_interval(values, shift):
    low, high = interval(values)
    moved = interval([value + shift for value in values])
    assert moved == pytest.approx([low + shift, high + shift], rel=1e-6, abs=1e-6)
    assert low <= sum(values) / len(values) + 1e-9 and sum(values) / len(values) <= high + 1e-9


def test_pairs_are_those_of_the_same_name():
    differences, sure = paired({"0": 0.9, "1": 0.7, "2": 0.5}, {"1": 0.6, "0": 0.5, "7": 0.0})
    assert differences == pytest.approx([0.4, 0.1])
    assert sure == pytest.approx(list(stats.t.interval(0.95, 1, 0.25, 0.15)))
    assert paired({"0": 0.9}, {"1": 0.6}) == ([], None)


def test_what_is_common_to_both_leaves_no_doubt():
    """Seeds that differ by more than the methods do: together they overlap, paired they do not."""
    ours, theirs = {str(s): 0.5 + 0.1 * s + 0.01 for s in range(4)}, {str(s): 0.5 + 0.1 * s for s in range(4)}
    assert interval(list(ours.values()))[0] < interval(list(theirs.values()))[1]
    assert paired(ours, theirs)[1] == pytest.approx([0.01, 0.01])


def test_an_interval_of_scores_ends_where_scores_end():
    assert of_scores([-0.2, 1.02]) == [0.0, 1.0] and of_scores([0.3, 0.4]) == [0.3, 0.4]


def test_the_mean_is_of_what_is_known():
    assert mean([0.5, None, 0.25]) == 0.375 and mean([None]) is None
