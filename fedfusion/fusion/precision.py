"""Fusion by what clients know of their loss around their own adapter: RegMean, Fisher merging, Laplace."""

import logging
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedfusion.types import Evidence, FedfusionError, Layout

_log = logging.getLogger("fedfusion")


@dataclass(frozen=True)
class PrecisionWeighted:
    r"""The mean weighted by matrices: a task vector counts where the loss of its clients is steep.

    .. math:: D = \arg\min_D \sum_k \langle D - D_k, P_k (D - D_k) \rangle
                = \bar D + \Big(\sum_k P_k\Big)^{-1} \sum_k P_k (D_k - \bar D)

    for the matrix `D_k [p, q]` of each module, with a precision `P_k` made of the second moments of the layer's
    inputs, `G_k [q, q]`, and of the loss gradients at its output, `S_k [p, p]`:

    - `inputs`: :math:`P_k D = D G_k`. The outputs of the layer on the inputs of each client are nearest to those of
      its own, :math:`\min \sum_k \lVert (D - D_k) X_k \rVert^2`. RegMean; where all share `A`, LoRM's step for `B`.
    - `diagonal`: :math:`(P_k D)_{ij} = (S_k)_{ii} D_{ij} (G_k)_{jj}`. Fisher merging, in the coordinates at hand.
    - `kronecker`: :math:`P_k D = S_k D G_k`. The mode of the product of the clients' Laplace approximations.

    One task keeps its vector; equal statistics, or a large `ridge`, give the mean; `S_k = I` makes `kronecker` the
    same as `inputs`, and diagonal `S_k, G_k` the same as `diagonal`. What is outside every module is averaged.

    Parameters
    ----------
    precision
        `inputs`, `diagonal` or `kronecker`.
    space
        `left` keeps the inputs of the layer as they are, so that RegMean is the published one, and solves with
        `[n, n]` matrices; `core` is cheaper, within the directions in which some task vector reads its inputs.
    alpha
        Scale of the entries of `G_k` off the diagonal.
    ridge
        Added to the diagonals of `G_k` and `S_k`, as a share of their mean over all `k`. It pulls towards the mean.
    normalise
        Give all `G_k` of a module the same trace, and all `S_k`, so that nobody wins by the size of its statistics.
    coefficient
        Scale of the result.
    tolerance, max_iterations
        Of the conjugate gradients for `kronecker`: the residual relative to the right side. A miss is logged.

    Raises
    ------
    FedfusionError
        If there are no statistics.

    References
    ----------
    Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models" (RegMean), ICLR 2023,
    https://arxiv.org/abs/2212.09849; Salami et al., "Closed-form Merging of Parameter-Efficient Modules for Federated
    Continual Learning" (LoRM), ICLR 2025, https://arxiv.org/abs/2410.17961; Matena, Raffel, "Merging Models with
    Fisher-Weighted Averaging", NeurIPS 2022, https://arxiv.org/abs/2111.09832; Tam et al., "Merging by Matching Models
    in Task Parameter Subspaces" (conjugate gradients), TMLR 2024, https://arxiv.org/abs/2312.04339
    """

    data: ClassVar[Literal["client statistics"]] = "client statistics"

    precision: Literal["inputs", "diagonal", "kronecker"] = "inputs"
    space: Literal["core", "left", "right", "dense"] = "left"
    alpha: float = 0.9
    ridge: float = 1e-3
    normalise: bool = False
    coefficient: float = 1.0
    tolerance: float = 1e-5
    max_iterations: int = 500

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise FedfusionError(f"fusion.alpha must be in [0, 1], got {self.alpha}")
        if not 0 <= self.coefficient < inf:
            raise FedfusionError(f"fusion.coefficient must be at least 0, got {self.coefficient}")
        for name in ("ridge", "tolerance", "max_iterations"):
            if not 0 < getattr(self, name) < inf:
                raise FedfusionError(f"fusion.{name} must be positive, got {getattr(self, name)}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[d]` of `task_vectors [T, d]`."""
        fused = task_vectors.mean(0)
        for i, (name, shape) in enumerate(zip(layout.names, layout.shapes, strict=True)):
            if len(shape) == 2:
                single = layout.entry(task_vectors, i).double()
                layout.entry(fused, i).add_(self._correction(name, single - single.mean(0), evidence))
        return self.coefficient * fused

    def _correction(self, name: str, apart: Tensor, evidence: Evidence) -> Tensor:
        """What the mean lacks, `[p, q]`, of task vectors that are `apart [T, p, q]` from it."""
        if name not in evidence.curvature:
            raise FedfusionError(
                f"fusion.precision={self.precision} needs client statistics, there are none of '{name}' (set "
                "client.statistics=curvature)"
            )
        inputs, gradients = (moments.double() for moments in evidence.curvature[name])
        if self.precision == "inputs":
            gradients = torch.ones(len(inputs), 1, 1, dtype=torch.float64)
        inputs = self.alpha * inputs + (1 - self.alpha) * torch.diag_embed(_diagonal(inputs))
        g, s = self._regular(inputs), self._regular(gradients)
        if self.precision == "diagonal":
            weights = _diagonal(s)[:, :, None] * _diagonal(g)[:, None, :]
            return (weights * apart).sum(0) / weights.sum(0)
        if self.precision == "kronecker":
            solution, missed = _solve(s, g, apart, self.tolerance, self.max_iterations)
            if not missed <= self.tolerance:
                _log.warning(
                    f"fusion: '{name}' misses its equation by {missed:.1e} of the right side, fusion.tolerance is "
                    f"{self.tolerance:g} (raise fusion.max_iterations={self.max_iterations}, or fusion.ridge)"
                )
            return solution
        factor, failed = torch.linalg.cholesky_ex(g.sum(0))
        if failed:
            _log.warning(
                f"fusion: the statistics of the inputs of '{name}' are not those of any inputs, its task vectors are "
                f"averaged (leave out the client that sent them, or raise fusion.ridge={self.ridge:g})"
            )
            return torch.zeros_like(apart[0])
        return torch.cholesky_solve((apart @ g).sum(0).T, factor).T

    def _regular(self, moments: Tensor) -> Tensor:
        """`moments [T, n, n]`, normalised if asked for, with the ridge."""
        if self.normalise:
            size = _diagonal(moments).mean(1)
            moments = moments / torch.where(size > 0, size, 1.0)[:, None, None]
        level = float(_diagonal(moments).mean()) or 1.0  # where all are zero, there is nothing to weigh by
        return moments + self.ridge * level * torch.eye(moments.shape[-1], dtype=torch.float64)


def _solve(s: Tensor, g: Tensor, d: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, float]:
    """`X [p, q]` of `sum_k S_k X G_k = sum_k S_k D_k G_k`, and the norm of the residual relative to the right side.

    Conjugate gradients in the eigenbases of the means of `S_k` and `G_k`, where the operator is close to its diagonal:
    it is diagonal if all `S_k`, or all `G_k`, are alike.
    """
    u, v = torch.linalg.eigh(s.mean(0))[1], torch.linalg.eigh(g.mean(0))[1]
    s, g = u.T @ s @ u, v.T @ g @ v
    right = (s @ (u.T @ d @ v) @ g).sum(0)
    scale = torch.einsum("kp,kq->pq", _diagonal(s), _diagonal(g))
    x, residual, direction = torch.zeros_like(right), right, right / scale
    energy = (residual * direction).sum()
    for _ in range(max_iterations):
        image = (s @ direction @ g).sum(0)
        bend = (direction * image).sum()
        if not bend > 0 or residual.norm() <= tolerance * right.norm():
            break
        x, residual = x + energy / bend * direction, residual - energy / bend * image
        before, energy = energy, (residual.square() / scale).sum()
        direction = residual / scale + energy / before * direction
    return u @ x @ v.T, float(residual.norm() / right.norm()) if right.any() else 0.0


def _diagonal(matrices: Tensor) -> Tensor:
    """Diagonals `[T, n]` of `matrices [T, n, n]`."""
    return matrices.diagonal(dim1=-2, dim2=-1)
