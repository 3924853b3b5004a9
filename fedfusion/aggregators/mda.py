"""Minimum-diameter averaging."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.aggregators.gram import mean_of, refuse_negative, screen_gram, squared_distances


@dataclass(frozen=True)
class MDA:
    r"""The mean of the :math:`n-f` of `vectors [n, d]` whose largest distance from each other is least; result `[d]`.

    .. math:: \frac{1}{n-f} \sum_{i \in S} x_i,
              \qquad S = \arg\min_{|S| = n-f} \max_{i,j \in S} \lVert x_i - x_j \rVert.

    Exact: for a given diameter it looks for `f` rows without which no two are farther apart, and bisects the diameter.
    That takes time exponential in `f` at worst, whatever `n`. Of equal diameters the subset with the smallest indices
    wins. `f=0` is the mean.

    Parameters
    ----------
    f
        Number of Byzantine rows.

    Raises
    ------
    FedfusionError
        If fewer than :math:`2f+1` rows are finite, with `f` lowered by the number of those that are not.

    References
    ----------
    El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, "Genuinely Distributed Byzantine Machine Learning", PODC 2020,
    https://arxiv.org/abs/1905.03853
    """

    linear: ClassVar[bool] = False
    needs_root: ClassVar[bool] = False
    inequality: ClassVar[str] = "n >= 2f + 1"

    f: int = 1

    def __post_init__(self) -> None:
        refuse_negative(self.f)

    @property
    def min_rows(self) -> int:
        """The smallest `n` that satisfies the inequality."""
        return 2 * self.f + 1

    def __call__(self, vectors: Tensor, weights: Tensor, rng: torch.Generator, trusted: Tensor | None = None) -> Tensor:
        """Return the mean of the closest of `vectors [n, d]`."""
        rule, rows, g = screen_gram(self, vectors)
        return mean_of(vectors, rows, torch.tensor(closest(squared_distances(g), rule.f), device=g.device))


def closest(distances: Tensor, f: int) -> list[int]:
    """The first of the subsets of `n - f` rows with the least diameter, of the `distances [n, n]`."""
    n, everyone = len(distances), (1 << len(distances)) - 1
    diameters = distances.unique().tolist()
    least = bisect_left(diameters, True, key=lambda diameter: separable(beyond(distances, diameter), everyone, f))
    far, alive, chosen = beyond(distances, diameters[least]), everyone, []
    for i in range(n):
        excluded = far[i] & alive
        budget = f - (everyone ^ alive).bit_count() - excluded.bit_count()
        if alive >> i & 1 and separable(far, alive & ~excluded, budget):
            alive &= ~excluded
            chosen.append(i)
        else:
            alive &= ~(1 << i)
    return chosen[: n - f]


def beyond(distances: Tensor, diameter: float) -> list[int]:
    """For each row those that are farther than `diameter`, as the bits of an integer."""
    return [sum(1 << j for j, far in enumerate(row) if far) for row in (distances > diameter).tolist()]


def separable(far: list[int], alive: int, budget: int) -> bool:
    """Whether no two rows `alive` are `far` from each other once `budget` of them are gone: the right ones."""
    conflicts = {i: (far[i] & alive).bit_count() for i in range(len(far)) if alive >> i & 1 and far[i] & alive}
    if not conflicts or budget < 0:
        return budget >= 0
    worst = max(conflicts, key=lambda i: conflicts[i])
    if sum(conflicts.values()) > 2 * budget * conflicts[worst]:
        return False
    gone = far[worst] & alive  # either it goes, or all that are far from it
    return separable(far, alive & ~(1 << worst), budget - 1) or separable(far, alive & ~gone, budget - gone.bit_count())
