"""Mirror descent to the worst covariance, where no closed form holds."""

from math import log

import torch
from torch import Tensor

from fedfusion.channels.worst_case import Objective, diagonal, hermitian, inner, slopes


def exponentiated_gradient(objective: Objective, tolerance: float = 1e-6, max_steps: int = 500) -> Tensor:
    r"""The worst `Z [B, N_J, N_J]` behind any path, by mirror descent on the spectrahedron `{Z >= 0, tr Z = P}`.

    .. math:: Z \leftarrow P \frac{\exp L}{\operatorname{tr} \exp L},
              \qquad L \leftarrow L + (\eta^{-1} + \mathcal H \mathcal J)^{-1} (M - \operatorname{tr}(M Z) / P\; I)

    The plain step `eta M` of the first reference zigzags where the curvature :math:`\mathcal H` of the objective
    spans decades, as it does under a strong jammer with more antennas than there are streams. It is at hand,

    .. math:: \mathcal H[D] = M D Y + Y D M, \qquad Y_\text{rate} = G^H \tfrac{R^{-1} + (R + S)^{-1}}{2} G,
              \quad Y_\text{mse} = G^H (R + S)^{-1} G,

    and the derivative :math:`\mathcal J` of the exponential is diagonal in the eigenbasis of `Z`: a few steps of
    conjugate gradients yield the damped Newton step. `eta` follows the slope that is left at its end.

    Each member of the batch stops at a :func:`duality_gap` of `tolerance` (nat, or the unit of the MSE), mostly after
    10 to 40 steps, or after `max_steps`: :meth:`Objective.gap` of the result tells.

    References
    ----------
    Tsuda, Raetsch, Warmuth, "Matrix Exponentiated Gradient Updates for On-line Learning and Bregman Projection",
    JMLR 2005, https://www.jmlr.org/papers/v6/tsuda05a.html; the damping: Marquardt, "An Algorithm for Least-Squares
    Estimation of Nonlinear Parameters", J. SIAM 1963, https://doi.org/10.1137/0111030
    """
    signal, background, budget = objective.signal, objective.background, objective.budget
    path, span = torch.eye(signal.shape[1], dtype=signal.dtype) if objective.path is None else objective.path, None
    path = path * budget.sqrt()[:, None, None]  # from here on tr Z = 1
    if path.shape[2] > path.shape[1]:  # antennas beyond N_r add power, but no direction
        span, path = torch.linalg.qr(path.mH)
        path = path.mH
    count, _, n = path.shape
    floor = -log(1e3 * n * n / tolerance)  # of log Z: what it leaves in useless directions does not show in the gap
    one = torch.eye(n, dtype=signal.dtype)
    result, rows, basis = torch.empty(count, n, n, dtype=signal.dtype), torch.arange(count), one.repeat(count, 1, 1)
    levels = torch.zeros(count, n, dtype=torch.float64)  # eigenvalues of L

    def look(basis: Tensor, levels: Tensor) -> tuple[Tensor, ...]:
        """Eigenvalues of `Z`, `tr(M Z)`, `M - tr(M Z)` and `Y`, in the eigenbasis of `Z`."""
        z, g = levels.softmax(1), path @ basis
        m, y = slopes(background + (g * z[:, None, :]) @ g.mH, signal, objective.criterion)
        m, y = hermitian(g.mH @ m @ g), hermitian(g.mH @ y @ g)
        mean = (z * diagonal(m)).sum(1)
        return z, mean, m - mean[:, None, None] * one, y

    state = (basis, levels, *look(basis, levels))
    damping = state[3]  # 1 / eta
    for step in range(max_steps + 1):
        basis, levels, z, mean, excess, y = state
        gap = torch.linalg.eigvalsh(excess)[:, -1]
        going = (gap > tolerance) & (step < max_steps)
        if not going.all():
            result[rows[~going]] = ((basis * z[:, None, :]) @ basis.mH)[~going]
            if not going.any():
                break
            rows, damping, gap, path, signal, background = (
                t[going] for t in (rows, damping, gap, path, signal, background)
            )
            basis, levels, z, mean, excess, y = state = tuple(t[going] for t in state)
        ahead = torch.diag_embed(levels) + _newton(z, levels, excess + mean[:, None, None] * one, y, excess, damping)
        new_levels, turn = torch.linalg.eigh(ahead)
        new_levels = (new_levels - new_levels[:, -1:]).clamp_min(floor)
        new_basis = basis @ turn
        new_z, new_mean, new_excess, new_y = look(new_basis, new_levels)
        moved = (turn * new_z[:, None, :]) @ turn.mH - torch.diag_embed(z)
        slope_left = inner(turn @ new_excess @ turn.mH, moved) / inner(excess, moved).clamp_min(1e-300)
        # no level moves by more than 40 at once, and a step that is refused is at least halved
        damping = torch.maximum(damping * (1 - slope_left).clamp(0.25, 10), (mean + gap) / 40)
        new = (new_basis, new_levels, new_z, new_mean, new_excess, new_y)
        kept = slope_left > -1
        state = tuple(torch.where(kept.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, state, strict=True))
    return (result if span is None else span @ result @ span.mH) * budget[:, None, None]


def _newton(z: Tensor, levels: Tensor, m: Tensor, y: Tensor, excess: Tensor, damping: Tensor) -> Tensor:
    """The step of `L`: conjugate gradients for `damping V + r (M (r V) Y + Y (r V) M) = r excess`, and `V / r`.

    `r^2 = (z_i - z_j) / (log z_i - log z_j)` is the derivative of the exponential.
    """
    rise, run = z[:, :, None] - z[:, None, :], levels[:, :, None] - levels[:, None, :]
    flat = run.abs() < 1e-6
    r = torch.where(flat, (z[:, :, None] + z[:, None, :]) / 2, rise / torch.where(flat, 1.0, run)).sqrt()
    curvature = diagonal(m)[:, :, None] * diagonal(y)[:, None, :]
    ridge = damping[:, None, None]
    scale = 1 / (ridge + r.square() * (curvature + curvature.mT))
    v, residual = torch.zeros_like(m), r * excess
    along = scale * residual
    rest = inner(along, residual)
    enough = 1e-4 * rest
    for _ in range(20):
        half = m @ (r * along) @ y
        image = ridge * along + r * (half + half.mH)
        # a member that is done stays as it is, whoever else is in the batch
        size = torch.where(rest > enough, rest / inner(along, image), 0.0)[:, None, None]
        v, residual = v + size * along, residual - size * image
        rest, last = inner(scale * residual, residual), rest
        if not (rest > enough).any():
            break
        along = scale * residual + (rest / last)[:, None, None] * along
    return hermitian(v / r)
