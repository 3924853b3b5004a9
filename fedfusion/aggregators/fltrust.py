"""FLTrust: the server's own update says whom to trust."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.aggregators.gram import combine, given, inner, screen_norms


@dataclass(frozen=True)
class FLTrust:
    r"""The mean of `vectors [n, d]` weighted by likeness to the server's own update `g`; result `[d]`.

    .. math:: \frac{\lVert g \rVert}{\sum_i s_i} \sum_i s_i \frac{x_i}{\lVert x_i \rVert},
              \qquad s_i = \max\Bigl(0, \frac{\langle x_i, g \rangle}{\lVert x_i \rVert \lVert g \rVert}\Bigr).

    Each row is brought to the norm of `g`, that is `trusted [d]`, so the result is no longer than it, whatever the
    number of Byzantine rows. Where no row points its way, the result is zero; a row whose norm is zero in its dtype, or
    next to it, points nowhere.

    Raises
    ------
    FedfusionError
        If no row is finite, or nothing is trusted.

    References
    ----------
    Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021,
    https://arxiv.org/abs/2012.13995
    """

    linear: ClassVar[bool] = False
    needs_root: ClassVar[bool] = True
    f: ClassVar[int] = 0
    inequality: ClassVar[str] = "n >= 1"
    min_rows: ClassVar[int] = 1

    def __call__(self, vectors: Tensor, weights: Tensor, rng: torch.Generator, trusted: Tensor | None = None) -> Tensor:
        """Return the mean of `vectors [n, d]` as far as they agree with `trusted [d]`."""
        own = given(self, trusted, vectors)
        _, rows, norms = screen_norms(self, vectors)
        known = norms.square() > vectors.shape[1] * torch.finfo(vectors.dtype).tiny  # squares of others may be lost
        agreement = torch.where(known, inner(vectors, own[None])[rows, 0].relu() / norms, 0.0)  # |g| s
        length = inner(own[None], own[None])[0, 0].sqrt()
        total = agreement.sum()
        shares = torch.where(agreement > 0, length * agreement / total / norms, 0.0)
        return combine(vectors, rows, shares)
