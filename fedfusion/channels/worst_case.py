"""The covariance with which a jammer of limited power does the most harm to one receiver."""

from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

from fedfusion.types import FedfusionError


def require_psd(covariance: Tensor, name: str) -> None:
    """Refuse matrices `[..., n, n]` that are no covariances, up to `1e-9` of their trace.

    Raises
    ------
    FedfusionError
        If one of them is not Hermitian, not positive semidefinite or not finite.
    """
    trace = covariance.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    slack = 1e-9 * trace.abs()
    skew = (covariance - covariance.mH).abs().amax((-2, -1))
    if not (skew <= slack).all():  # nan is not either
        raise FedfusionError(
            f"{name} must be Hermitian, but differs from its conjugate transpose by {float(skew.max()):.4g} at a trace "
            f"of {float(trace.flatten()[skew.argmax()]):.4g} (pass (C + C^H) / 2)"
        )
    shifted = covariance + slack[..., None, None] * torch.eye(covariance.shape[-1])
    if not torch.linalg.cholesky_ex(shifted).info.any():
        return  # ten times cheaper than the eigenvalues
    smallest = torch.linalg.eigvalsh(covariance)[..., 0]
    worst = (smallest + slack).argmin()
    if not (smallest >= -slack).all():
        raise FedfusionError(
            f"{name} must be positive semidefinite, but its smallest eigenvalue is {float(smallest.flatten()[worst]):.4g} "
            f"at a trace of {float(trace.flatten()[worst]):.4g} (pass a covariance, F F^H)"
        )


def duality_gap(ascent: Tensor, z: Tensor, budget: Tensor) -> Tensor:
    r"""By how much at most a convex objective at `z [B, n, n]` exceeds its minimum over `Z >= 0, tr Z = budget [B]`.

    .. math:: f(Z) - f^* \le P\,\lambda_{\max}(M) - \operatorname{tr}(M Z), \qquad M = -\nabla f(Z)

    with `ascent [B, n, n]` the matrix `M`. Zero iff `Z` is optimal: the condition of Karush, Kuhn and Tucker.
    """
    return budget * torch.linalg.eigvalsh(ascent)[:, -1] - _inner(ascent, z)


@dataclass(frozen=True)
class Objective:
    r"""What a jammer with covariance `Z` behind its path `G` leaves to the receiver of a signal; lower is worse.

    .. math:: f_\text{rate} = \log\det(R + S) - \log\det R, \qquad f_\text{mse} = \operatorname{tr}((R + S)^{-1} S),
              \qquad R = \Sigma + G Z G^H

    The rate is in nat per channel use. The total MSE of `L` unit-power streams behind a linear receiver that knows
    `R` is `L - f_mse`. Both are convex in `Z`, and with the `ascent` matrix :math:`M = -\nabla f`

    .. math:: M_\text{rate} = G^H (R^{-1} - (R + S)^{-1}) G, \qquad
              M_\text{mse} = G^H (R + S)^{-1} S (R + S)^{-1} G

    Attributes
    ----------
    signal, background : [B, N_r, N_r]
        Covariance `S` of what is jammed and :math:`\Sigma > 0` of all else that is received: noise, other users.
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

    def value(self, z: Tensor) -> Tensor:
        """The objective `[B]` at `z [B, N_J, N_J]`."""
        r = self.background + (z if self.path is None else self.path @ z @ self.path.mH)
        if self.criterion == "mse":
            return torch.linalg.solve(r + self.signal, self.signal).diagonal(dim1=-2, dim2=-1).real.sum(-1)
        return torch.linalg.slogdet(r + self.signal).logabsdet - torch.linalg.slogdet(r).logabsdet

    def ascent(self, z: Tensor) -> Tensor:
        """The matrix `M [B, N_J, N_J]` at `z [B, N_J, N_J]`."""
        r = self.background + (z if self.path is None else self.path @ z @ self.path.mH)
        m = _slope(r, self.signal, self.criterion)[0]
        return _hermitian(m if self.path is None else self.path.mH @ m @ self.path)

    def gap(self, z: Tensor) -> Tensor:
        """The :func:`duality_gap` `[B]` at `z [B, N_J, N_J]`."""
        return duality_gap(self.ascent(z), z, self.budget)


def sum_rate_levels(s: Tensor, noise: float, budget: Tensor) -> Tensor:
    r"""Worst jamming power `z [B, n]` per eigenvalue `s [B, n]` of the signal, for the sum rate and `G = I`.

    .. math:: z_i = \Bigl[\tfrac{s_i}{2}\Bigl(\sqrt{1 + \tfrac{4}{\mu s_i}} - 1\Bigr) - \sigma^2\Bigr]^+,
              \qquad \textstyle\sum_i z_i = P

    `noise > 0` is the thermal noise :math:`\sigma^2`, `budget [B]` the power `P`. Strong directions get more; with
    `P` large in proportion to :math:`\sqrt{s_i}`, with `P` small only the strongest gets any. Equal eigenvalues get
    equal powers: barrage. Nothing goes where `s_i = 0`, unless all are: then no power does harm, and it is spread.
    """
    s = _positive(s)
    top = s.amax(1, keepdim=True)
    # z_i > 0 from t = 1/mu - (its value where the strongest direction starts) = threshold_i on: no difference is lost
    threshold = noise**2 * (1 / s - 1 / top)
    b = 2 * noise + s

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        above = (t - threshold).clamp_min(0)
        root = (b.square() + 4 * s * above).sqrt()
        return 2 * s * above / (b + root), s / root

    active = torch.stack([levels(start)[0].sum(1) <= budget for start in threshold.split(1, 1)], 1)
    t = torch.where(active, threshold, 0.0).amax(1, keepdim=True)
    for _ in range(100):  # concave between two thresholds: Newton's steps approach the root from below
        z, slope = levels(t)
        step = (budget[:, None] - z.sum(1, keepdim=True)) / (slope * (t >= threshold)).sum(1, keepdim=True)
        t = t + step.clamp_min(0)
        if (step <= 1e-14 * t).all():
            break
    return _spend(levels(t)[0], budget)


def mse_levels(s: Tensor, noise: float, budget: Tensor) -> Tensor:
    r"""Worst jamming power `z [B, n]` per eigenvalue `s [B, n]` of the signal, for the total MSE and `G = I`.

    .. math:: z_i = \Bigl[\sqrt{s_i / \mu} - s_i - \sigma^2\Bigr]^+, \qquad \textstyle\sum_i z_i = P

    As in :func:`sum_rate_levels`, but little power skips the strongest directions as well as the useless ones: with
    :math:`P \to 0` all of it goes where :math:`s_i` is nearest to :math:`\sigma^2`.
    """
    s = _positive(s)
    root = s.sqrt()
    threshold = root + noise / root  # of 1 / sqrt(mu)
    threshold, order = (threshold - threshold.amin(1, keepdim=True)).sort(1)
    sorted_root = root.gather(1, order)
    weight = sorted_root.cumsum(1)
    # the level if the first k directions were active; it is the smallest of them
    spent = torch.where(threshold.isfinite(), sorted_root * threshold, torch.inf).cumsum(1)
    level = ((budget[:, None] + spent) / weight).amin(1, keepdim=True)
    z = torch.zeros_like(s).scatter(1, order, sorted_root * (level - threshold).clamp_min(0))
    return _spend(z, budget)


def single_target(h: Tensor, sigma: Tensor, budget: Tensor, path: Tensor | None = None) -> Tensor:
    r"""The worst `Z [B, N_J, N_J]` for one stream received as `h [B, N_r]` in noise of covariance `sigma`: rank one.

    .. math:: \min_{Z \ge 0,\, \operatorname{tr} Z = P} h^H (\Sigma + G Z G^H)^{-1} h = h^H (\Sigma + P G G^H)^{-1} h,
              \qquad Z = P \frac{u u^H}{\lVert u \rVert^2}, \quad u = G^H (\Sigma + P G G^H)^{-1} h

    by minimax: it acts like a barrage jammer with `N_J` times the power. Minimal are the rate, the SINR and, for
    that stream, `f_mse` of :class:`Objective`. `sigma [B, N_r, N_r]`, `budget [B]`, `path [B, N_r, N_J]` as there.

    Raises
    ------
    FedfusionError
        If `sigma` is no covariance.
    """
    require_psd(sigma, "the covariance of the background")
    power = budget[:, None, None]
    if path is None:
        u = torch.linalg.solve(sigma + power * torch.eye(h.shape[1]), h)
    else:
        u = (path.mH @ torch.linalg.solve(sigma + power * path @ path.mH, h)[..., None])[..., 0]
    return _rank_one(u, budget)


def fixed_filter(w: Tensor, budget: Tensor, path: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""The worst `Z [B, N_J, N_J]` for a receiver that keeps its filter `w [B, L, N_r]`: rank one; and its `M`.

    .. math:: \max_{Z \ge 0,\, \operatorname{tr} Z = P} \operatorname{tr}(W G Z G^H W^H) = P\,\lambda_{\max}(M),
              \qquad M = G^H W^H W G

    Barrage does `P / N_J tr(M)`. `budget [B]` and `path [B, N_r, N_J]` as in :class:`Objective`.
    """
    seen = w if path is None else w @ path
    m = _hermitian(seen.mH @ seen)
    return _rank_one(torch.linalg.eigh(m).eigenvectors[:, :, -1], budget), m


def exponentiated_gradient(objective: Objective, tolerance: float = 1e-6, max_steps: int = 500) -> Tensor:
    r"""The worst `Z [B, N_J, N_J]` behind any path, by mirror descent on the spectrahedron `{Z >= 0, tr Z = P}`.

    .. math:: Z \leftarrow P \frac{\exp L}{\operatorname{tr} \exp L}, \qquad
              L \leftarrow L + (\eta^{-1} + \mathcal H \mathcal J)^{-1} (M - \operatorname{tr}(M Z) / P\; I)

    The matrix exponentiated gradient `L + eta M` of the first reference zigzags where the curvature of the objective
    spans decades, as with more jammer antennas than streams. Its inverse, damped by the step :math:`\eta`, is at hand:
    in the eigenbasis of `Z` the derivative of the exponential :math:`\mathcal J` is diagonal, and the Hessian is

    .. math:: \mathcal H[D] = M D Y + Y D M, \qquad Y_\text{rate} = G^H \tfrac{R^{-1} + (R + S)^{-1}}{2} G,
              \quad Y_\text{mse} = G^H (R + S)^{-1} G

    A few steps of conjugate gradients solve it. `eta` follows the slope left at the end of the step. Each member of
    the batch stops at a :func:`duality_gap` of `tolerance` (nat, or the unit of the MSE), which takes 5 to 50 steps,
    or after `max_steps`: :meth:`Objective.gap` of the result tells.

    References
    ----------
    Tsuda, Raetsch, Warmuth, "Matrix Exponentiated Gradient Updates for On-line Learning and Bregman Projection",
    JMLR 2005, https://www.jmlr.org/papers/v6/tsuda05a.html; the damping: Marquardt, "An Algorithm for Least-Squares
    Estimation of Nonlinear Parameters", SIAM J. Appl. Math. 1963, https://doi.org/10.1137/0111030
    """
    signal, background, budget, criterion = objective.signal, objective.background, objective.budget, objective.criterion
    count, num_rx = signal.shape[:2]
    path = torch.eye(num_rx, dtype=signal.dtype).expand_as(signal) if objective.path is None else objective.path
    path = path * budget.sqrt()[:, None, None]  # from here on tr Z = 1
    span = None
    if path.shape[2] > num_rx:  # antennas beyond N_r add power, but no direction
        span, path = torch.linalg.qr(path.mH)
        path = path.mH
    n = path.shape[2]
    floor = -log(1e3 * n * n / tolerance)  # of log Z: what is left on useless directions is not seen in the gap
    result = torch.empty(count, n, n, dtype=signal.dtype)
    rows, basis = torch.arange(count), torch.eye(n, dtype=signal.dtype).repeat(count, 1, 1)
    levels = torch.zeros(count, n, dtype=torch.float64)  # log of the eigenvalues of Z, the largest 0

    def slopes(basis: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        g = path @ basis
        m, y = _slope(background + (g * levels.softmax(1)[:, None, :]) @ g.mH, signal, criterion)
        return _hermitian(g.mH @ m @ g), _hermitian(g.mH @ y @ g)

    m, y = slopes(basis, levels)
    damping = (levels.softmax(1) * _diagonal(m)).sum(1)
    for step in range(max_steps + 1):
        z = levels.softmax(1)
        mean = (z * _diagonal(m)).sum(1)
        left = (torch.linalg.eigvalsh(m)[:, -1] - mean > tolerance) & (step < max_steps)
        if not left.all():
            result[rows[~left]] = ((basis * z[:, None, :]) @ basis.mH)[~left]
            if not left.any():
                break
            rows, basis, levels, m, y, damping, z, mean, path, signal, background = (
                t[left] for t in (rows, basis, levels, m, y, damping, z, mean, path, signal, background)
            )
        root = _log_mean(z, levels).sqrt()
        excess = m - torch.diag_embed(mean)[:, :1, :1] if False else m - mean[:, None, None] * torch.eye(n)
        ahead = _solve(m, y, root, damping, root * excess) / root
        ahead = _hermitian(ahead) + torch.diag_embed(levels)
        drop = _diagonal(ahead) - _diagonal(ahead).amax(1, keepdim=True)
        ahead = ahead - torch.diag_embed(_diagonal(ahead) - drop.clamp_min(floor))
        new_levels, turn = torch.linalg.eigh(ahead)
        new_levels = (new_levels - new_levels[:, -1:]).clamp_min(floor)
        new_basis = basis @ turn
        new_m, new_y = slopes(new_basis, new_levels)
        new_z = new_levels.softmax(1)
        before = (new_z * _diagonal(turn.mH @ m @ turn)).sum(1) - mean
        after = (new_z * _diagonal(new_m)).sum(1) - (z * _diagonal(turn @ new_m @ turn.mH)).sum(1)
        ratio = after / before
        damping = torch.maximum(damping * (1 - ratio).clamp(0.25, 10), mean / 20)
        keep = ratio > -0.5
        levels = torch.where(keep[:, None], new_levels, levels)
        basis, m, y = (
            torch.where(keep[:, None, None], new, old) for new, old in ((new_basis, basis), (new_m, m), (new_y, y))
        )
    result = result if span is None else span @ result @ span.mH
    return result * budget[:, None, None]


def _solve(m: Tensor, y: Tensor, root: Tensor, damping: Tensor, right: Tensor) -> Tensor:
    """Conjugate gradients for `damping V + root (M (root V) Y + Y (root V) M) = right`, to one percent."""
    ridge = damping[:, None, None]
    curvature = _diagonal(m)[:, :, None] * _diagonal(y)[:, None, :]
    scale = 1 / (ridge + root.square() * (curvature + curvature.mT))
    v, residual, ahead = torch.zeros_like(right), right, scale * right
    along, rest = ahead, _inner(ahead, right)
    enough = 1e-4 * rest
    for _ in range(20):
        half = m @ (root * along) @ y
        image = ridge * along + root * (half + half.mH)
        size = (rest / _inner(along, image).clamp_min(1e-300))[:, None, None]
        v, residual = v + size * along, residual - size * image
        ahead = scale * residual
        rest, last = _inner(ahead, residual), rest
        if (rest <= enough).all():
            break
        along = ahead + (rest / last.clamp_min(1e-300))[:, None, None] * along
    return v


def _slope(r: Tensor, signal: Tensor, criterion: str) -> tuple[Tensor, Tensor]:
    """`M` and `Y` of :class:`Objective` and its Hessian, before the path."""
    received = torch.linalg.inv(r + signal)
    if criterion == "mse":
        return received @ signal @ received, received
    alone = torch.linalg.inv(r)
    return alone - received, (alone + received) / 2


def _log_mean(z: Tensor, levels: Tensor) -> Tensor:
    """`(z_i - z_j) / (log z_i - log z_j) [B, n, n]`."""
    rise, run = z[:, :, None] - z[:, None, :], levels[:, :, None] - levels[:, None, :]
    flat = run.abs() < 1e-6
    return torch.where(flat, (z[:, :, None] + z[:, None, :]) / 2, rise / torch.where(flat, 1.0, run))


def _positive(s: Tensor) -> Tensor:
    """Eigenvalues without rounding below zero, and alike where all are zero."""
    s = s.clamp_min(0)
    return torch.where(s.amax(1, keepdim=True) > 0, s, 1.0)


def _spend(z: Tensor, budget: Tensor) -> Tensor:
    """The powers `z [B, n]` to the last digit of `budget [B]`."""
    return z * (budget / z.sum(1))[:, None]


def _rank_one(u: Tensor, budget: Tensor) -> Tensor:
    """`P u u^H / ||u||^2`; of a zero vector any direction is as good as another."""
    u = torch.where(u.abs().amax(1, keepdim=True) > 0, u, 1.0)
    u = u / u.norm(dim=1, keepdim=True)
    return budget[:, None, None] * u[:, :, None] * u[:, None, :].conj()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """`Re tr(a b^H) [B]`."""
    return (a * b.conj()).real.sum((-2, -1))


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).real


def _hermitian(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mH) / 2
