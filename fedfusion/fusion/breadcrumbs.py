"""Model Breadcrumbs: neither the small entries nor the outliers."""

from dataclasses import dataclass
from math import floor, inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedfusion.fusion.stream import blank, blocks, magnitudes, width
from fedfusion.types import Evidence, FedfusionError, Layout

ROUNDING = 1e-6  # 0.1 x 10 is one entry, though 1 - 0.9 is less than 0.1


@dataclass(frozen=True)
class Breadcrumbs:
    r"""The sum of the entries of middling magnitude.

    .. math:: \tau = \lambda \sum_t m_t \tau_t, \qquad m_t = [q_\beta(|\tau_t|) \le |\tau_t| \le q_\gamma(|\tau_t|)]

    with quantiles of each module's entries: of `n`, the :math:`\lfloor \beta n \rfloor` smallest and the
    :math:`\lfloor (1 - \gamma) n \rfloor` largest are left out. Entries that equal a bound are kept, and so is at
    least one; of small modules none is too large. `beta=0`, `gamma=1` is task arithmetic. A few spikes, however
    large, change nothing.

    Parameters
    ----------
    beta, gamma
        The shares of the entries below the band and below its upper end.
    coefficient
        The scale :math:`\lambda`.
    per
        `tensor`: a band per task and module, as the paper says; `row`: per task and row, as its code does it.
    space
        Coordinates whose entries are compared.

    References
    ----------
    Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", ECCV 2024,
    https://arxiv.org/abs/2312.06795
    """

    data: ClassVar[Literal["none"]] = "none"

    beta: float = 0.85
    gamma: float = 0.993
    coefficient: float = 1.0
    per: Literal["tensor", "row"] = "tensor"
    space: Literal["core", "left", "dense"] = "core"

    def __post_init__(self) -> None:
        if not 0 <= self.beta < self.gamma <= 1:
            raise FedfusionError(
                f"fusion.beta and fusion.gamma must be 0 <= beta < gamma <= 1, got {self.beta} and {self.gamma}"
            )
        if not 0 <= self.coefficient < inf:
            raise FedfusionError(f"fusion.coefficient must be finite and at least 0, got {self.coefficient}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""
        bounds = layout.offsets if self.per == "tensor" else rows(layout)
        band = magnitudes(task_vectors, bounds, self._band)
        fused = blank(task_vectors, layout.dim)
        for i, part in blocks(bounds, width(len(task_vectors))):
            x = task_vectors[:, part]
            size = x.abs()
            kept = torch.ge(size, band[:, i, :1], out=torch.empty_like(size)).mul_(size.le_(band[:, i, 1:])).mul_(x)
            torch.mul(kept.sum(0), self.coefficient, out=fused[part])
        return fused

    def _band(self, n: int) -> tuple[int, int]:
        """Ranks of the smallest and the largest magnitude that is kept of `n`."""
        smallest, largest = floor(self.beta * n + ROUNDING), floor((1 - self.gamma) * n + ROUNDING)
        return smallest, n - 1 - largest


def rows(layout: Layout) -> list[int]:
    """Where each row of each entry starts, and `D`."""
    starts = zip(layout.offsets, layout.offsets[1:], layout.shapes, strict=False)
    return [row for start, stop, shape in starts for row in range(start, stop, shape[-1])] + [layout.dim]
