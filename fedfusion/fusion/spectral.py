"""Spectra of task matrices, whose ranks are far below their sides, and polar factors, in float64.

Both tell what is zero from what is small: a direction that rounding alone has put into a matrix is none.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedfusion.types import Layout

ZERO = 1e-5  # singular values below this share of the largest are zero; single precision leaves up to 1e-6 there


def each(fuse: Callable[[Tensor], Tensor], task_vectors: Tensor, layout: Layout) -> Tensor:
    """The fused vector `[D]` of `task_vectors [T, D]`: `fuse` makes `[p, q]` of `[T, p, q]`, the rest is averaged."""
    parts = []
    for i, shape in enumerate(layout.shapes):
        entry = layout.entry(task_vectors, i).double()
        parts.append((fuse(entry) if len(shape) == 2 else entry.mean(0)).flatten())
    return torch.cat(parts).to(task_vectors.dtype)


def svd(matrices: Tensor, rng: torch.Generator, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    r"""Singular value decompositions :math:`M_t = U_t \operatorname{diag}(s_t) V_t^\top` at the numerical rank.

    A random sketch of `k` columns finds a basis `Q` of the range. Where :math:`Q^\top M` has all that is in `M`, its
    decomposition is that of `M`, whatever was drawn; otherwise `k` is doubled, up to a full decomposition.

    Parameters
    ----------
    matrices : [T, p, q]
        Float64.
    rng
        Draws the sketch.
    scale : [T]
        What singular values are zero against; None is the largest of each matrix.

    Returns
    -------
    u, s, v
        `[T, p, r]`, `[T, r]` and `[T, q, r]`: the largest singular value first, and `r` the largest rank among the
        matrices. What is beyond the rank of a matrix is zero in all three.

    References
    ----------
    Halko, Martinsson and Tropp, "Finding Structure with Randomness", SIAM Review 2011,
    https://arxiv.org/abs/0909.4061
    """
    tasks, p, q = matrices.shape
    if p > q:
        v, s, u = svd(matrices.mT, rng, scale)
        return u, s, v
    power, basis, core = matrices.square().sum((1, 2)), None, matrices
    tolerance = (0.1 * ZERO) ** 2 * (power if scale is None else scale.square())
    size = p // tasks + 8  # in a core space of T adapters the first is their rank
    while size < p / 2 and basis is None:
        found, _ = torch.linalg.qr(matrices @ torch.randn(q, size, dtype=matrices.dtype, generator=rng))
        rest = found.mT @ matrices
        if (power - rest.square().sum((1, 2)) <= tolerance).all():
            basis, core = found, rest
        size *= 2
    values, vectors = torch.linalg.eigh(core @ core.mT)  # squares are enough: zero is far above the root of rounding
    s, u = values.flip(1).clamp_min(0).sqrt(), vectors.flip(2)
    kept = s > ZERO * (s[:, :1] if scale is None else scale[:, None])
    rank = int(kept.sum(1).max())
    s, u, kept = s[:, :rank], u[..., :rank] * kept[:, None, :rank], kept[:, :rank]
    v = torch.where(kept[:, None], core.mT @ u / s[:, None], 0)
    return u if basis is None else basis @ u, s * kept, v


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    r"""The nearest partial isometry and the nonzero singular values `[r]` of `matrix [p, k]` (float64).

    .. math:: M = U \operatorname{diag}(s) V^\top \;\mapsto\; U V^\top = M (M^\top M)^{-1/2}

    over the nonzero singular values alone. Where all `k` are nonzero, its columns are orthonormal.
    """
    if matrix.shape[0] < matrix.shape[1]:
        isometry, s = polar(matrix.T)
        return isometry.T, s
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    kept = values > ZERO**2 * values[-1:]
    s, vectors = values[kept].sqrt(), vectors[:, kept]
    return matrix @ (vectors / s) @ vectors.T, s
