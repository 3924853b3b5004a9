"""How much of a vector survived."""

from collections.abc import Sequence

import torch
from torch import Tensor


def fidelity(sent: Tensor, received: Tensor, sizes: Sequence[int] = ()) -> dict[str, tuple[float, ...]]:
    r"""Compare the rows of `received [n, d]` with those of `sent [n, d]`, of which the first `sizes [n]` entries count.

    .. math:: \mathrm{NMSE} = \lVert\hat w - w\rVert^2 / \lVert w\rVert^2, \qquad
              \cos = \langle\hat w, w\rangle / (\lVert\hat w\rVert \lVert w\rVert)

    and the share of entries whose sign is right. Under white noise on an unscaled Gaussian `w` that share is
    `1 - arccos(1 / sqrt(1 + NMSE)) / pi`. A row of zeros that stays one is without error.

    Returns
    -------
    dict
        `nmse`, `cosine` and `sign_agreement`, one figure per row, summed in float64.
    """
    columns: dict[str, list[float]] = {"nmse": [], "cosine": [], "sign_agreement": []}
    tiny = torch.finfo(torch.float64).tiny
    for row, (was, came) in enumerate(zip(sent, received, strict=True)):
        size = sizes[row] if sizes else len(was)
        agreement = (
            (torch.signbit(was[:size]) == torch.signbit(came[:size])).double().mean() if size else was.new_ones(())
        )
        w, w_hat = (
            was[:size].double(),
            came[:size].double(),
        )  # a wild upload must not overflow, the guard wants to see it
        power, seen = w.dot(w).clamp_min(tiny), w_hat.dot(w_hat).clamp_min(tiny)
        error = w_hat - w
        columns["nmse"].append(float(error.dot(error) / power))
        columns["cosine"].append(float(w.dot(w_hat) / power.sqrt() / seen.sqrt()))
        columns["sign_agreement"].append(float(agreement))
    return {name: tuple(values) for name, values in columns.items()}
