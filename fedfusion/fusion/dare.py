"""DARE: drop entries at random and rescale the rest."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedfusion.fusion.stream import blank, blocks, width
from fedfusion.fusion.ties import disjoint
from fedfusion.types import Evidence, FedfusionError, Layout

LEVELS = 1 << 16  # sixteen random bits decide on an entry


@dataclass(frozen=True)
class Dare:
    r"""Of each task vector a random part, rescaled so that its mean stays, and then the scaled sum.

    .. math:: \tau = \lambda \sum_t \frac{m_t \tau_t}{1 - p}, \qquad m_t \sim \operatorname{Bernoulli}(1 - p)

    independently for each task and entry. `drop=0` is task arithmetic. The result is that in expectation, with an
    error of :math:`\lambda^2 \frac{p}{1-p} \sum_t \lVert\tau_t\rVert^2`, in whatever orthonormal coordinates. They
    differ in where it lies: in the core space, which is the default, the result is a pair of the rank of all tasks
    together. On the entries of the products it is spread over all directions, so each of them gets little of it, but
    no low rank is left, and what an adapter can hold of the result is cut from that.

    Parameters
    ----------
    drop
        Probability `p`, in steps of 2^-16. The paper takes 0.9 for fully fine-tuned models; adapters, in their few
        coordinates, bear less.
    coefficient
        The scale :math:`\lambda`.
    merge
        `sum`, or as in TIES: of each entry the `mean` of what agrees with the sign of the sum.
    space
        Coordinates whose entries are dropped.

    References
    ----------
    Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", ICML
    2024, https://arxiv.org/abs/2311.03099
    """

    data: ClassVar[Literal["none"]] = "none"

    drop: float = 0.5
    coefficient: float = 0.7
    merge: Literal["sum", "mean"] = "sum"
    space: Literal["core", "left", "dense"] = "core"

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1 - 0.5 / LEVELS:
            raise FedfusionError(f"fusion.drop must be in [0, 1), got {self.drop}")
        if not 0 <= self.coefficient < inf:
            raise FedfusionError(f"fusion.coefficient must be finite and at least 0, got {self.coefficient}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`, drawn by the evidence's generator."""
        tasks, dropped = len(task_vectors), round(self.drop * LEVELS)
        seed = int(torch.randint(2**63 - 1, (), generator=evidence.rng))
        rng = np.random.Generator(np.random.SFC64(seed))  # torch draws more slowly
        scale = self.coefficient * LEVELS / (LEVELS - dropped)
        fused = blank(task_vectors, layout.dim)
        for _, part in blocks((0, layout.dim), width(tasks)):
            x = task_vectors[:, part]
            words = rng.integers(2**64, size=-(-x.numel() // 4), dtype=np.uint64)
            kept = torch.from_numpy((words.view(np.uint16)[: x.numel()] >= dropped).view(np.uint8)).view(x.shape)
            kept = kept.to(x.dtype).mul_(x)
            total = kept.sum(0)
            fused[part] = (total if self.merge == "sum" else disjoint(kept, total, mean=True)).mul_(scale)
        return fused
