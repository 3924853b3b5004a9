"""What repeated draws say of a mean: one-sided tests by level, with Holm's correction, and tests of a trend."""

import numpy as np
from scipy import stats

ALPHA = 0.05


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p-values: the i-th smallest of m times m - i + 1, none below one that is smaller, at most 1.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979,
    https://www.jstor.org/stable/4615733
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def above_zero(increments: np.ndarray) -> dict[str, float]:
    """One-sided p-values of `increments [n]`: t test of their mean, Wilcoxon's test of their ranks.

    Increments of zero, which counts have, are split between the signs; if all are, nothing is rejected. Where all are
    alike there is no t.
    """
    p = {"t": 1.0, "wilcoxon": 1.0}
    if np.ptp(increments) > 0:
        p["t"] = float(stats.ttest_1samp(increments, 0, alternative="greater").pvalue)
    if increments.any():
        p["wilcoxon"] = float(stats.wilcoxon(increments, alternative="greater", zero_method="zsplit").pvalue)
    return p


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % t interval of the mean of `values [n]`."""
    half = stats.t.ppf(1 - ALPHA / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def by_level(increments: np.ndarray) -> list[dict[str, float]]:
    """Mean, interval and p-values of each level of `increments [L, n]`; Holm's correction is over the levels."""
    tests = [above_zero(row) for row in increments]
    adjusted = {name: holm([test[name] for test in tests]) for name in tests[0]}
    rows = []
    for i, row in enumerate(increments):
        low, high = interval(row)
        figures = {"increment": float(row.mean()), "low": low, "high": high}
        figures |= {f"p_{name}": p for name, p in tests[i].items()}
        rows.append(figures | {f"p_{name}_holm": adjusted[name][i] for name in adjusted})
    return rows


def jonckheere(increments: np.ndarray) -> dict[str, float]:
    """One-sided test of a trend over the independent groups `increments [L, n]`, in their order.

    Jonckheere and Terpstra's statistic counts, over pairs of groups, how often the later one is larger: it is Kendall's
    of value and group, with the ties of the group in its variance.
    """
    group = np.repeat(np.arange(len(increments)), increments.shape[1])
    found = stats.kendalltau(group, increments.ravel(), alternative="greater", method="asymptotic")
    return {"tau": float(found.statistic), "p": float(found.pvalue)}


def page(means: np.ndarray) -> dict[str, float]:
    """Page's test of a trend over the levels of `means [seeds, L]`: a seed is a block, and the unit."""
    found = stats.page_trend_test(means)
    return {"L": float(found.statistic), "p": float(found.pvalue)}


def analyse(increments: np.ndarray) -> dict:
    """All that is said of `increments [seeds, L, pairs]`, each the mean of a mirrored pair less the clean error.

    `levels` has the pairs of all seeds together; what it infers is of other noise on these trained models. `page` is
    of other training seeds, and knows the order of the levels only.
    """
    seeds, levels, _ = increments.shape
    return {
        "levels": by_level(increments.transpose(1, 0, 2).reshape(levels, -1)),
        "page": page(increments.mean(2)) if seeds > 1 else None,
        "by_seed": [{"levels": by_level(seed), "jonckheere": jonckheere(seed)} for seed in increments],
    }
