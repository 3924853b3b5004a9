"""PCB-Merging: entries compete within their task and across tasks."""

from dataclasses import dataclass
from math import inf, log, sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedfusion.fusion.stream import LONG, blank, blocks, magnitudes, order_statistics, weighted_sum
from fedfusion.types import Evidence, FedfusionError, Layout

TINY = 1e-30


@dataclass(frozen=True)
class Pcb:
    r"""A mean whose weights are won in competition: entries that are large in their task and of the sign of the sum.

    .. math:: \beta_t = \exp(T \bar a_t^2) \tanh\Big(\tau_t \sum_s \tau_s\Big),
              \qquad w_t = \frac{(\beta_t - \theta_t)_+}{\max \beta_t - \theta_t}, \qquad
              \tau = \lambda\, \frac{\sum_t w_t c_t}{\sum_t w_t}

    Here :math:`c_t` is :math:`\tau_t` with its magnitudes clipped to all but the shares `tail` of smallest and largest
    ones, :math:`\bar a_t` is :math:`|c_t|` scaled to [0, 1], and :math:`\theta_t` is the quantile of :math:`\beta_t`
    above which there is the share `density`. All extremes and quantiles are over the whole vector of a task. An entry
    that no task wins is zero. One task is cut to its `density` largest entries, and `density=1` cuts only the smallest.

    This is the stand-alone script of the authors; that of their vision experiments takes the sum over the
    :math:`\bar a_s` with their signs, and `tail=0.01`. The tanh makes the rule depend on scale, though hardly where
    entries are far below one and it is linear. Its argument is a product of two entries, for which half precision is
    too narrow.

    Parameters
    ----------
    density
        Share of the entries of each task that have a weight.
    coefficient
        The scale :math:`\lambda`.
    tail
        Share of the magnitudes clipped at either end.
    space
        Coordinates whose entries compete.

    References
    ----------
    Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024, https://arxiv.org/abs/2410.02396
    """

    data: ClassVar[Literal["none"]] = "none"

    density: float = 0.1
    coefficient: float = 1.2
    tail: float = 1e-4
    space: Literal["core", "left", "dense"] = "core"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise FedfusionError(f"fusion.density must be in (0, 1], got {self.density}")
        if not 0 <= self.tail < 0.5:
            raise FedfusionError(f"fusion.tail must be in [0, 0.5), got {self.tail}")
        if not 0 <= self.coefficient < inf:
            raise FedfusionError(f"fusion.coefficient must be finite and at least 0, got {self.coefficient}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""
        tasks, dim = task_vectors.shape
        total = weighted_sum(torch.ones(tasks), task_vectors)
        low_rank = int(dim * self.tail)
        clips = magnitudes(task_vectors, (0, dim), lambda n: [low_rank, max(low_rank, int(n * (1 - self.tail) - 1))])
        score, weights, fused = blank(total, dim), torch.zeros_like(total), torch.zeros_like(total)
        for x, (low, high) in zip(task_vectors, clips[:, 0].tolist(), strict=True):
            sharpness, best = sqrt(tasks / log(2)) / max(high - low, TINY), -inf
            for _, part in blocks((0, dim), LONG):
                intra = x[part].abs().clamp_(low, high).sub_(low).mul_(sharpness).square_().exp2_()
                inter = x[part] * total[part]
                np.tanh(inter.numpy(), out=inter.numpy())  # torch's is ten times slower
                best = max(best, float(torch.mul(intra, inter, out=score[part]).max()))
            (threshold,) = order_statistics(lambda s: score.numpy()[s], dim, [int(dim * (1 - self.density))])
            scale = 1 / max(best - threshold, TINY)
            for _, part in blocks((0, dim), LONG):
                won = (score[part] - threshold).clamp_min_(0)
                weights[part].add_(won, alpha=scale)
                clipped = x[part].abs().clamp_(low, high).mul_(x[part].sign())
                fused[part].addcmul_(won, clipped, value=scale)
        return fused.div_(weights.clamp_min_(1e-12)).mul_(self.coefficient)
