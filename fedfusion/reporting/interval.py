"""A mean over a few seeds, and how sure it is: Student's t, without SciPy."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from math import cos, pi, sin, sqrt, tan
from statistics import fmean, stdev

CONFIDENCE = 0.95


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % confidence interval of the mean of normal `values` by Student's t; None of fewer than two.

    Example
    -------
    >>> [round(end, 3) for end in interval([0.70, 0.72, 0.74])]
    [0.67, 0.77]
    """
    n = len(values)
    if n < 2:
        return None
    middle, half = fmean(values), quantile(n - 1) * stdev(values) / sqrt(n)
    return [middle - half, middle + half]


def of_scores(ends: Sequence[float]) -> list[float]:
    """An interval of a mean score: no score is below 0 or above 1, though Student's t knows nothing of that."""
    return [min(max(end, 0.0), 1.0) for end in ends]


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[list[float], list[float] | None]:
    """Differences of what has the same name (a seed) in both, and the interval of their mean."""
    differences = [value - theirs[name] for name, value in ours.items() if name in theirs]
    return differences, interval(differences)


@cache
def quantile(df: int) -> float:
    r"""The `t` that `df` degrees of freedom leave with probability 0.95 between `-t` and `t`.

    With an integer `df` the probability is a finite sum in :math:`\theta = \arctan(t / \sqrt{df})`, which is bisected.

    References
    ----------
    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, df) < CONFIDENCE else (low, middle)
    return sqrt(df) * tan(low)


def _between(theta: float, df: int) -> float:
    """The probability that Student's t is between `-sqrt(df) tan(theta)` and the same without sign."""
    term, total = (cos(theta), 0.0) if df % 2 else (1.0, 0.0)
    for k in range(df % 2, df, 2):
        total += term
        term *= (k + 1) / (k + 2) * cos(theta) ** 2
    total *= sin(theta)
    return 2 / pi * (theta + total) if df % 2 else total
