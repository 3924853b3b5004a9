"""Merging with flat spectra."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedfusion.fusion.spectral import each, polar, svd
from fedfusion.types import Evidence, FedfusionError, Layout


@dataclass(frozen=True)
class Isotropic:
    r"""Iso-C and Iso-CTS at the numerical rank: common and task-specific directions, all equally strong.

    .. math:: \sum_t \tau_t = U S V^\top, \qquad (I - U_c U_c^\top) \tau_t = U_t S_t V_t^\top, \qquad
              \tau = \lambda \bar s \, \mathcal{O}(U_c, U_1 \dots U_T) \, \mathcal{O}(V_c, V_1 \dots V_T)^\top

    per matrix, with :math:`\mathcal{O}` the nearest matrix with orthonormal columns (the polar factor) and
    :math:`\bar s` the mean of the singular values that belong to them. Of the `R` nonzero singular values of the sum,
    each task takes the place of about `(1 - fraction) R / T`, a whole number, and the sum itself, `c`, all others.
    With a fraction of 1 there are only these: :math:`\tau = \lambda \bar s U V^\top` is Iso-C, and a sum whose spectrum
    is flat stays as it is. Other entries are averaged.

    As published, shares and the mean are over `min(p, q)` singular values, zero or not: on LoRA products directions
    that only rounding has put into the sum would become as strong as all others, and take the common part. Where the
    matrices have full rank, both are the same. The further a spectrum decays, the smaller is its mean, and the larger
    a coefficient it wants.

    Parameters
    ----------
    coefficient
        The scale :math:`\lambda`.
    fraction
        Share of the rank that the common directions have, in `[0, 1]`.

    Raises
    ------
    FedfusionError
        If the coefficient is negative or not finite, or the fraction not in `[0, 1]`.

    References
    ----------
    Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
    ICML 2025, https://arxiv.org/abs/2502.04959
    """

    space: ClassVar[Literal["core"]] = "core"
    data: ClassVar[Literal["none"]] = "none"

    coefficient: float = 1.0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient < math.inf:
            raise FedfusionError(f"fusion.coefficient must be at least 0 and finite, got {self.coefficient}")
        if not 0 <= self.fraction <= 1:
            raise FedfusionError(f"fusion.fraction must be in [0, 1], got {self.fraction}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""

        def fuse(matrices: Tensor) -> Tensor:
            tasks = len(matrices)
            u, s, v = (x[0] for x in svd(matrices.sum(0, keepdim=True), evidence.rng))
            own = min(round((len(s) - int(self.fraction * len(s))) / tasks), len(s) // tasks)
            if own:
                u, s, v = (x[..., : len(s) - own * tasks] for x in (u, s, v))
                beside = svd(matrices - u @ (u.T @ matrices), evidence.rng, matrices.flatten(1).norm(dim=1))
                left, spectrum, right = (x[..., :own] for x in beside)
                u = polar(torch.cat([u, left.transpose(0, 1).flatten(1)], 1))[0]
                v = polar(torch.cat([v, right.transpose(0, 1).flatten(1)], 1))[0]
                s = torch.cat([s, spectrum.flatten()])
            return u @ v.T * (s.sum() / s.count_nonzero().clamp_min(1))

        return self.coefficient * each(fuse, task_vectors, layout)
