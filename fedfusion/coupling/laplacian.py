"""MIRA's server step: personal adapters pulled towards their relatives."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedfusion.coupling.adjacency import Adjacency
from fedfusion.types import Clients, FedfusionError

SPARSE = 512  # from this many clients on, a sparse product is worth it where fewer than one weight in ten is positive


@dataclass(frozen=True)
class Laplacian:
    r"""A gradient step on the disagreement of related clients, on the factors as they are.

    .. math:: w_k \leftarrow w_k - \eta\lambda \sum_l a_{kl} (w_k - w_l),
              \qquad W_S \leftarrow W_S - \eta\lambda\, (L W)_S, \quad L = \operatorname{diag}(\delta) - a,
              \quad \delta_k = \sum_l a_{kl}

    for the clients `S` that were heard; all others keep what they have. `strength=0` is local training only;
    :math:`\eta\lambda a_{kl} = 1/n` replaces the `n` heard by their mean. With symmetric weights the sum of the rows
    of `W` is preserved (with `normalise="row"`: their sum weighted by `delta`) if all rows of the sum are heard.

    With :math:`\mu` the eigenvalues of the block :math:`L_{SS}`, the step does not diverge iff
    :math:`\eta\lambda \le \min_{\mu \ne 0} 2 \operatorname{Re}\mu / |\mu|^2`, which is :math:`2/\mu_\text{max}` for
    symmetric weights; up to :math:`1 / \max_k \delta_k` it is a convex combination. Both shrink as clients are
    added, unless rows are normalised: then :math:`|\mu - 1| \le 1`, the step is convex up to 1, and stable up to
    between 1 (two clients, any bipartite graph) and :math:`2(n-1)/n` (all alike), or 2 (`stored`, no relative heard).

    Parameters
    ----------
    adjacency
        The weights `a [N, N]`.
    strength, server_lr
        :math:`\lambda` and :math:`\eta`; only their product matters. It absorbs the 2 of the gradient.
    normalise
        `row`: divide each row of `a` by its sum (a row of zeros stays zero).
    others
        Which `l` are in the sum; the letter leaves it open. `sampled`: those heard in this round. `stored`: all `N`,
        with the last adapter that the server knows of each.

    Raises
    ------
    FedfusionError
        If the step diverges.

    References
    ----------
    Elbakary et al., "MIRA: A Method of Federated Multi-Task Learning for Large Language Models", IEEE
    Networking Letters 2025, https://doi.org/10.1109/LNET.2025.3539810
    """

    into_base: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = True
    averages_factors: ClassVar[bool] = True

    adjacency: Adjacency
    strength: float
    server_lr: float = 1.0
    normalise: Literal["none", "row"] = "none"
    others: Literal["sampled", "stored"] = "sampled"

    def __post_init__(self) -> None:
        if not 0 <= self.strength < inf:
            raise FedfusionError(f"coupling.strength must be finite and at least 0, got {self.strength}")
        if not 0 < self.server_lr < inf:
            raise FedfusionError(f"coupling.server_lr must be finite and positive, got {self.server_lr}")
        if self.normalise == "row" and self.strength * self.server_lr >= 2:
            raise FedfusionError(
                "coupling.strength x coupling.server_lr must be below 2 with coupling.normalise=row, where no graph is "
                f"stable beyond, got {self.strength} x {self.server_lr} (lower one of them)"
            )

    def __call__(
        self, adapters: Tensor, heard: Tensor, weights: Tensor, clients: Clients, rng: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Adapters `[N, d]` after the step; the step, its `bound` and its `convex_bound` (inf: none is related)."""
        sampled = self.others == "sampled"
        others, own = (heard, torch.arange(len(heard))) if sampled else (slice(None), heard)
        a = self.adjacency(clients, adapters, rng)[heard][:, others]
        degree = a.sum(1)
        if self.normalise == "row":
            a = torch.where(degree[:, None] > 0, a / degree[:, None], 0.0)
            degree = a.sum(1)
        laplacian = -a
        laplacian[torch.arange(len(heard)), own] += degree
        step, bound = self.strength * self.server_lr, _stable(laplacian[:, own])
        if step > bound * (1 + 1e-9):
            remedy = (
                "lower one of them" if self.normalise == "row" else "lower one of them, or set coupling.normalise=row"
            )
            raise FedfusionError(
                f"coupling.strength x coupling.server_lr = {step:.4g} diverges, the {len(heard)} clients heard are "
                f"stable up to {bound:.4g} ({remedy})"
            )
        pull = (-step * laplacian).to(adapters.dtype)
        if pull.shape[1] >= SPARSE and pull.count_nonzero() < 0.1 * pull.numel():
            pull = pull.to_sparse()
        convex_bound = 1 / float(degree.max()) if degree.any() else inf
        coupled = adapters.index_add(0, heard, pull @ adapters[others])
        return coupled, {"step": step, "bound": bound, "convex_bound": convex_bound}


def _stable(block: Tensor) -> float:
    """The largest step `s` at which no eigenvalue of `1 - s block` is outside the unit circle."""
    mu = torch.linalg.eigvalsh(block) if torch.equal(block, block.T) else torch.linalg.eigvals(block)
    mu = mu[mu.abs() > 1e-6 * block.diagonal().max()]  # the zeros, to rounding
    return float((2 * mu.real / mu.abs().square()).min()) if len(mu) else inf
