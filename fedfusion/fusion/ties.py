"""TIES-Merging: trim, elect a sign, merge what agrees with it."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedfusion.fusion.stream import blank, blocks, magnitudes, width
from fedfusion.types import Evidence, FedfusionError, Layout


@dataclass(frozen=True)
class Ties:
    r"""Of each task vector the largest entries, and of these the mean of those whose sign has more mass.

    .. math:: \hat\tau_t = \tau_t\,[|\tau_t| \ge \theta_t], \qquad \gamma = \operatorname{sgn} \sum_t \hat\tau_t,
              \qquad \tau = \lambda \operatorname{mean}\{\hat\tau_t : \hat\tau_t \gamma > 0\},

    entry by entry, where :math:`\theta_t` is the `k`-th largest magnitude of `n` and `k` is `density n`, rounded;
    entries that equal it are kept. Where the sum is zero, the sign is that of most other entries, or positive. A single
    task is trimmed and no more; `density=1` and equal task vectors give these back.

    Large task vectors win every sign, and a mean over few tasks is several times larger than one over all, so a
    coefficient found for task arithmetic does not carry over. In space `left`, where all products share a basis on one
    side, this is KnOTS; in space `core` they do on both.

    Parameters
    ----------
    density
        Share of the entries that are kept.
    coefficient
        The scale :math:`\lambda`.
    threshold
        `global`: one threshold per task, as published. `tensor`: one per task and module, at least one entry each.
    merge
        The mean over the tasks that agree, or their sum.
    space
        Coordinates whose entries are compared: the core space, that of KnOTS, or the products as they are.

    References
    ----------
    Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
    https://arxiv.org/abs/2306.01708; in space `left`: Stoica et al., "Model Merging with SVD to Tie the Knots", ICLR
    2025, https://arxiv.org/abs/2410.19735; in space `core`: Panariello, Marczak et al., "Accurate and Efficient
    Low-Rank Model Merging in Core Space", NeurIPS 2025, https://arxiv.org/abs/2509.17786
    """

    data: ClassVar[Literal["none"]] = "none"

    density: float = 0.2
    coefficient: float = 1.0
    threshold: Literal["global", "tensor"] = "global"
    merge: Literal["mean", "sum"] = "mean"
    space: Literal["core", "left", "dense"] = "core"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise FedfusionError(f"fusion.density must be in (0, 1], got {self.density}")
        if not 0 <= self.coefficient < inf:
            raise FedfusionError(f"fusion.coefficient must be finite and at least 0, got {self.coefficient}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""
        bounds = layout.offsets if self.threshold == "tensor" else (0, layout.dim)
        thresholds = magnitudes(task_vectors, bounds, lambda n: [n - max(1, round(self.density * n))])
        fused, mean = blank(task_vectors, layout.dim), self.merge == "mean"
        votes, ties = 0.0, []
        for i, part in blocks(bounds, width(len(task_vectors))):
            kept = trim(task_vectors[:, part], thresholds[:, i])
            total = kept.sum(0)
            merged = disjoint(kept, total, mean)
            torch.mul(merged, self.coefficient, out=fused[part])
            votes += float(total.sign().sum())
            ties.append(part.start + np.flatnonzero((total.numpy() == 0) & (merged.numpy() != 0)))
        tied = torch.from_numpy(np.concatenate(ties))
        if votes < 0 and len(tied):
            entry = torch.bucketize(tied, torch.tensor(bounds), right=True) - 1
            kept = trim(task_vectors[:, tied], thresholds[:, entry, 0])
            fused[tied] = self.coefficient * disjoint(kept, kept.new_full((len(tied),), -1), mean)
        return fused


def trim(vectors: Tensor, threshold: Tensor) -> Tensor:
    """The entries of `vectors` whose magnitude is at least `threshold`, zero elsewhere."""
    return vectors.abs().ge_(threshold).mul_(vectors)


def disjoint(kept: Tensor, total: Tensor, mean: bool) -> Tensor:
    """Sum or mean `[c]` of the entries of `kept [T, c]` with the sign of `total [c]` (0: plus); overwrites `kept`."""
    elected = torch.ones_like(total).copysign_(total)
    agreeing = kept.mul_(elected).relu_()
    merged = agreeing.sum(0)
    if mean:
        merged /= agreeing.sign_().sum(0).clamp_min_(1)
    return merged.mul_(elected)
