"""Bulyan: Krum selects, then each coordinate is averaged around its median."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedfusion.aggregators.gram import refuse_negative, screen_gram, squared_distances
from fedfusion.aggregators.network import nearest_mean


@dataclass(frozen=True)
class Bulyan:
    r"""Mean, in each coordinate, of the values nearest to its median, of rows that Krum has selected one by one.

    Krum selects :math:`\theta = n - 2f` rows :math:`S`; each is taken away before the next is selected, so that the
    scores are those of the rows that are left. Then

    .. math:: F(x)_j = \frac1\beta \sum_{i \in N_j} x_{ij}, \qquad \beta = \theta - 2f,
              \qquad N_j = \operatorname*{arg\,min}_{N \subset S,\ |N| = \beta} \sum_{i \in N}
              |x_{ij} - \operatorname{med}_{k \in S} x_{kj}|.

    The score of one of `m` rows is the sum of its squared distances to the `m - f - 2` nearest others. The last
    selections are among fewer rows than Krum itself demands, and scores may be equal, as of two rows that are each
    other's only neighbour: then the distances to all others decide. With `f = 0` it is the mean.

    Parameters
    ----------
    f
        How many rows may be Byzantine.

    Raises
    ------
    FedfusionError
        If `f` is negative, or there are fewer than `4f + 3` rows.

    References
    ----------
    El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018,
    https://arxiv.org/abs/1802.07927
    """

    linear: ClassVar[bool] = False
    needs_root: ClassVar[bool] = False
    inequality: ClassVar[str] = "n >= 4f + 3"

    f: int = 1

    def __post_init__(self) -> None:
        refuse_negative(self.f)

    @property
    def min_rows(self) -> int:
        """The smallest `n` that satisfies the inequality."""
        return 4 * self.f + 3

    def __call__(self, vectors: Tensor, weights: Tensor, rng: torch.Generator, trusted: Tensor | None = None) -> Tensor:
        """Return one vector `[d]` of `vectors [n, d]`."""
        rule, rows, g = screen_gram(self, vectors)
        chosen = rows[select(squared_distances(g), rule.f)]
        return nearest_mean(vectors, chosen.tolist(), len(chosen) - 2 * rule.f)


def select(distances: Tensor, f: int) -> Tensor:
    """Indices, in order, of the `n - 2f` rows that Krum selects by their squared `distances [n, n]`, one by one."""
    left, squares = np.arange(len(distances)), distances.numpy()
    for m in range(len(distances), 2 * f, -1):
        ranked = np.sort(squares[np.ix_(left, left)], axis=1)  # the first is zero, that from itself
        scores = ranked[:, : m - f - 1].sum(1)
        left = np.delete(left, np.lexsort((ranked.sum(1), scores))[0])
    return torch.from_numpy(np.setdiff1d(np.arange(len(distances)), left))
