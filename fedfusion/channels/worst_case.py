"""The covariance with which a jammer of limited power does the most harm to one receiver."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedfusion.types import FedfusionError


def require_psd(covariance: Tensor, name: str) -> None:
    """Refuse matrices `[..., n, n]` that are no covariances, up to `1e-9` of their trace.

    Raises
    ------
    FedfusionError
        If one of them is not finite, not Hermitian or not positive semidefinite.
    """
    trace, skew = diagonal(covariance).sum(-1), (covariance - covariance.mH).abs().amax((-2, -1))
    slack = 1e-9 * trace.abs()
    if not (skew <= slack).all():  # nan is not either
        raise FedfusionError(
            f"{name} must be Hermitian, but differs from its conjugate transpose by {float(skew.max()):.4g} "
            f"at a trace of {float(trace.flatten()[skew.argmax()]):.4g} (pass a covariance such as F F^H)"
        )
    if not torch.linalg.cholesky_ex(covariance + torch.diag_embed(slack[..., None].expand(covariance.shape[:-1])))[
        1
    ].any():
        return  # ten times cheaper than the eigenvalues
    smallest = torch.linalg.eigvalsh(covariance)[..., 0]
    if not (smallest >= -slack).all():
        worst = (smallest + slack).argmin()
        raise FedfusionError(
            f"{name} must be positive semidefinite, but its smallest eigenvalue is "
            f"{float(smallest.flatten()[worst]):.4g} at a trace of {float(trace.flatten()[worst]):.4g} "
            "(pass a covariance such as F F^H)"
        )


def duality_gap(ascent: Tensor, z: Tensor, budget: Tensor) -> Tensor:
    r"""By how much at most a convex `f` at `z [B, n, n]` exceeds its minimum over `Z >= 0, tr Z = P`, `budget [B]`.

    .. math:: f(Z) - f^* \le P\,\lambda_{\max}(M) - \operatorname{tr}(M Z), \qquad M = -\nabla f(Z)

    with `ascent [B, n, n]` the matrix `M`. Zero iff `Z` is optimal: the condition of Karush, Kuhn and Tucker.
    """
    return budget * torch.linalg.eigvalsh(ascent)[:, -1] - inner(ascent, z)


@dataclass(frozen=True)
class Objective:
    r"""What a jammer of covariance `Z` behind its path `G` leaves of a signal; the jammer minimises it.

    .. math:: f_\text{rate} = \log\det(R + S) - \log\det R, \qquad f_\text{mse} = \operatorname{tr}((R + S)^{-1} S),
              \qquad R = \Sigma + G Z G^H

    The rate is in nat per channel use; `L - f_mse` is the total MSE of `L` unit-power streams behind a linear receiver
    that knows `R`. Both are convex in `Z`, with the ascent matrix :math:`M = -\nabla f`

    .. math:: M_\text{rate} = G^H (R^{-1} - (R + S)^{-1}) G,
              \qquad M_\text{mse} = G^H (R + S)^{-1} S (R + S)^{-1} G

    Attributes
    ----------
    signal, background : [B, N_r, N_r]
        Covariance `S` of what is jammed, and :math:`\Sigma > 0` of all else that is received: noise, other users.
    budget : [B]
        The jammer's power `P = tr Z`.
    path : [B, N_r, N_J]
        Channel `G` from the jammer's antennas; None counts its power at the receiver, `G = I`.

    Raises
    ------
    FedfusionError
        If `signal` or `background` is no covariance.

    References
    ----------
    Diggavi, Cover, "The Worst Additive Noise under a Covariance Constraint", IEEE Trans. Inf. Theory 2001,
    https://doi.org/10.1109/18.959289
    """

    signal: Tensor
    background: Tensor
    budget: Tensor
    path: Tensor | None = None
    criterion: Literal["rate", "mse"] = "rate"

    def __post_init__(self) -> None:
        require_psd(self.signal, "the covariance of the signal")
        require_psd(self.background, "the covariance of the background")

    def received(self, z: Tensor) -> Tensor:
        """The noise `R [B, N_r, N_r]` that the jammer makes of the background with `z [B, N_J, N_J]`."""
        return self.background + (z if self.path is None else self.path @ z @ self.path.mH)

    def value(self, z: Tensor) -> Tensor:
        """The objective `[B]` at `z [B, N_J, N_J]`."""
        r = self.received(z)
        if self.criterion == "mse":
            return diagonal(torch.linalg.solve(r + self.signal, self.signal)).sum(1)
        return torch.linalg.slogdet(r + self.signal)[1] - torch.linalg.slogdet(r)[1]

    def ascent(self, z: Tensor) -> Tensor:
        """The matrix `M [B, N_J, N_J]` at `z [B, N_J, N_J]`."""
        m = slopes(self.received(z), self.signal, self.criterion)[0]
        return hermitian(m if self.path is None else self.path.mH @ m @ self.path)

    def gap(self, z: Tensor) -> Tensor:
        """The :func:`duality_gap` `[B]` at `z [B, N_J, N_J]`."""
        return duality_gap(self.ascent(z), z, self.budget)


def sum_rate_levels(s: Tensor, noise: float, budget: Tensor) -> Tensor:
    r"""Worst jamming power `z [B, n]` per eigenvalue `s [B, n]` of the signal, for the sum rate and `G = I`.

    .. math:: z_i = \Bigl[\tfrac{s_i}{2}\Bigl(\sqrt{1 + \tfrac{4}{\mu s_i}} - 1\Bigr) - \sigma^2\Bigr]^+,
              \qquad \textstyle\sum_i z_i = P

    `noise > 0` is the thermal noise :math:`\sigma^2`, `budget [B]` the power `P`. Strong directions get more: all of
    it for a small `P`, in proportion to :math:`\sqrt{s_i}` for a large one. Equal eigenvalues are barrage. Nothing
    goes where `s_i = 0`, unless all are: then no power does harm, and it is spread evenly.
    """
    s = _positive(s)
    # direction i is jammed once t = 1/mu, from where the strongest one begins, exceeds its threshold
    threshold = noise**2 * (1 / s - 1 / s.amax(1, keepdim=True))
    b = 2 * noise + s

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        above = (t - threshold).clamp_min(0)
        root = (b.square() + 4 * s * above).sqrt()
        return 2 * s * above / (b + root), s / root

    affordable = torch.stack([levels(t)[0].sum(1) <= budget for t in threshold.split(1, 1)], 1)
    t = torch.where(affordable, threshold, 0.0).amax(1, keepdim=True)
    for _ in range(100):  # concave up to the next threshold: Newton's method approaches the root from below
        z, slope = levels(t)
        step = (budget[:, None] - z.sum(1, keepdim=True)) / (slope * (t >= threshold)).sum(1, keepdim=True)
        t = t + step.clamp_min(0)
        if (step <= 1e-14 * t).all():
            break
    z = levels(t)[0]
    return z * (budget / z.sum(1))[:, None]


def mse_levels(s: Tensor, noise: float, budget: Tensor) -> Tensor:
    r"""Worst jamming power `z [B, n]` per eigenvalue `s [B, n]` of the signal, for the total MSE and `G = I`.

    .. math:: z_i = \Bigl[\sqrt{s_i / \mu} - s_i - \sigma^2\Bigr]^+, \qquad \textstyle\sum_i z_i = P

    Arguments as for :func:`sum_rate_levels`. A small `P` spares the strongest directions as well as the useless ones:
    all of it goes where :math:`s_i / (s_i + \sigma^2)^2` is largest, near :math:`s_i = \sigma^2`.
    """
    s = _positive(s)
    root = s.sqrt()
    threshold = root + noise / root  # of 1 / sqrt(mu), in which z is linear
    threshold, order = (threshold - threshold.amin(1, keepdim=True)).sort(1)
    root = root.gather(1, order)
    covered = torch.where(root > 0, root * threshold, torch.inf).cumsum(1)
    level = ((budget[:, None] + covered) / root.cumsum(1)).amin(1, keepdim=True)  # over the number of directions
    z = torch.zeros_like(s).scatter(1, order, root * (level - threshold).clamp_min(0))
    return z * (budget / z.sum(1))[:, None]


def single_target(h: Tensor, sigma: Tensor, budget: Tensor, path: Tensor | None = None) -> Tensor:
    r"""The worst `Z [B, N_J, N_J]` for one stream received as `h [B, N_r]` in noise of covariance `sigma`: rank one.

    .. math:: \min_{Z \ge 0,\, \operatorname{tr} Z = P} h^H (\Sigma + G Z G^H)^{-1} h = h^H (\Sigma + P G G^H)^{-1} h,
              \qquad Z = P \frac{u u^H}{\lVert u \rVert^2}, \quad u = G^H (\Sigma + P G G^H)^{-1} h

    by minimax: it acts like a barrage jammer of `N_J` times the power. SINR, rate and `f_mse` of that stream are
    minimal at once. `sigma [B, N_r, N_r]`, `budget [B]` and `path [B, N_r, N_J]` as in :class:`Objective`.

    Raises
    ------
    FedfusionError
        If `sigma` is no covariance.
    """
    require_psd(sigma, "the covariance of the background")
    g = torch.eye(h.shape[1], dtype=h.dtype) if path is None else path
    return _rank_one(g.mH @ torch.linalg.solve(sigma + budget[:, None, None] * (g @ g.mH), h[:, :, None]), budget)


def fixed_filter(w: Tensor, budget: Tensor, path: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""The worst `Z [B, N_J, N_J]` for a receiver that keeps its filter `w [B, L, N_r]`: rank one; and its `M`.

    .. math:: \max_{Z \ge 0,\, \operatorname{tr} Z = P} \operatorname{tr}(W G Z G^H W^H) = P\,\lambda_{\max}(M),
              \qquad M = G^H W^H W G

    where barrage adds `P / N_J tr(M)` to the MSE. `budget [B]` and `path [B, N_r, N_J]` as in :class:`Objective`.
    """
    seen = w if path is None else w @ path
    m = hermitian(seen.mH @ seen)
    return _rank_one(torch.linalg.eigh(m)[1][:, :, -1:], budget), m


def slopes(r: Tensor, signal: Tensor, criterion: str) -> tuple[Tensor, Tensor]:
    """`M` and `Y` of an objective in noise `r [B, N_r, N_r]`, before the path."""
    both = torch.linalg.inv(r + signal)
    if criterion == "mse":
        return both @ signal @ both, both
    alone = torch.linalg.inv(r)
    return alone @ signal @ both, (alone + both) / 2  # the difference alone - both, without its cancellation


def _rank_one(u: Tensor, budget: Tensor) -> Tensor:
    """`P u u^H / ||u||^2` for `u [B, n, 1]`; instead of a zero vector any other is as good."""
    u = torch.where(u.abs().amax(1, keepdim=True) > 0, u, 1.0)
    u = u / torch.linalg.vector_norm(u, dim=1, keepdim=True)
    return budget[:, None, None] * (u @ u.mH)


def _positive(s: Tensor) -> Tensor:
    """Eigenvalues without the rounding below zero, and alike where all are zero."""
    s = s.clamp_min(0)
    return torch.where(s.amax(1, keepdim=True) > 0, s, 1.0)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """`tr(a b) [B]` of Hermitian matrices."""
    return (a * b.conj()).real.sum((-2, -1))


def diagonal(matrix: Tensor) -> Tensor:
    """Diagonal `[B, n]` of Hermitian matrices `[B, n, n]`."""
    return matrix.diagonal(dim1=-2, dim2=-1).real


def hermitian(matrix: Tensor) -> Tensor:
    """The nearest Hermitian matrices: without rounding, the same."""
    return (matrix + matrix.mH) / 2
