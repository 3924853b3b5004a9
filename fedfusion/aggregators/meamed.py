"""MeaMed: the mean around the median."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.aggregators.gram import refuse_negative, screen, squared_norms
from fedfusion.aggregators.network import nearest_mean


@dataclass(frozen=True)
class MeaMed:
    r"""Mean, in each coordinate, of the `n - f` values that are nearest to its median.

    .. math:: F(x)_j = \frac1{n - f} \sum_{i \in N_j} x_{ij},
              \qquad N_j = \operatorname*{arg\,min}_{|N| = n - f} \sum_{i \in N} |x_{ij} - \operatorname{med}_k x_{kj}|

    With `f = 0` it is the mean.

    Parameters
    ----------
    f
        How many rows may be Byzantine.

    Raises
    ------
    FedfusionError
        If `f` is negative, or there are fewer than `2f + 1` rows.

    References
    ----------
    Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018, https://arxiv.org/abs/1802.10116
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
        """Return the mean `[d]` around the median of `vectors [n, d]`."""
        rule, rows = screen(self, squared_norms(vectors), vectors.dtype)
        return nearest_mean(vectors, rows.tolist(), len(rows) - rule.f)
