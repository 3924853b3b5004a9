"""Merging of task singular vectors."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedfusion.fusion.spectral import each, polar, svd
from fedfusion.types import Evidence, FedfusionError, Layout


@dataclass(frozen=True)
class TsvM:
    r"""TSV-M at the numerical rank: the singular vectors of all tasks, made orthogonal to each other.

    .. math:: \tau_t = U_t S_t V_t^\top, \qquad
              \tau = \lambda \, \mathcal{O}(U_1 \dots U_T) \operatorname{diag}(S_1 \dots S_T) \,
              \mathcal{O}(V_1 \dots V_T)^\top

    per matrix `[p, q]`, with :math:`\mathcal{O}` the nearest matrix with orthonormal columns (the polar factor). All
    singular vectors of nonzero singular values are used where those of all tasks fit into `min(p, q)` dimensions, and
    otherwise the first `floor(min(p, q) / T)` of each task, at least one. One task, or tasks whose rows and columns
    are orthogonal to those of all others, give the plain sum. Other entries are averaged.

    As published, every task has `floor(min(p, q) / T)` of them, whatever its rank: on LoRA products all beyond that
    rank are arbitrary vectors of the null space, which nonetheless turn the others when they are made orthogonal
    together. Noise of a millionth then changes most of the result; here it changes a millionth. Where the task
    matrices have full rank, both are the same. In core space, clients that share one factor leave few dimensions on
    its side, and so to each task.

    Parameters
    ----------
    coefficient
        The scale :math:`\lambda`.

    Raises
    ------
    FedfusionError
        If the coefficient is negative or not finite.

    References
    ----------
    Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging", CVPR 2025,
    https://arxiv.org/abs/2412.00081
    """

    space: ClassVar[Literal["core"]] = "core"
    data: ClassVar[Literal["none"]] = "none"

    coefficient: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient < math.inf:
            raise FedfusionError(f"fusion.coefficient must be at least 0 and finite, got {self.coefficient}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""

        def fuse(matrices: Tensor) -> Tensor:
            u, s, v = svd(matrices, evidence.rng)
            room = min(matrices.shape[1:])
            if int((s > 0).sum()) > room:
                share = max(room // len(matrices), 1)
                u, s, v = u[..., :share], s[:, :share], v[..., :share]
            left, right = (polar(x.transpose(0, 1).flatten(1))[0] for x in (u, v))
            return (left * s.flatten()) @ right.T

        return self.coefficient * each(fuse, task_vectors, layout)
