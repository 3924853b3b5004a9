"""O-LoRA."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.types import FedfusionError, Layout


@dataclass(frozen=True)
class Orthogonal:
    r"""Each task learns in input directions that the other tasks do not use.

    .. math:: \lambda \sum_\text{modules} \sum_{t \ne t_k} \lVert A_k A_t^\top \rVert_F^2

    where the published sum is over the tasks learnt before, here over all others, as last broadcast. With a single
    task, or `strength=0`, it is nothing. Tasks that start from one common `A` start at its maximum.

    Parameters
    ----------
    strength
        :math:`\lambda`; the paper has 0.5.

    Raises
    ------
    FedfusionError
        If `strength` is negative or not finite.

    References
    ----------
    Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", Findings of EMNLP 2023,
    https://arxiv.org/abs/2310.14152
    """

    needs_tasks: ClassVar[bool] = True

    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.strength < inf:
            raise FedfusionError(f"client.regularizer.strength must be finite and at least 0, got {self.strength}")

    def __call__(self, params: Tensor, anchor: Tensor, tasks: Tensor, own: Tensor, layout: Layout) -> Tensor:
        """Penalty `[K]` of `params [K, d]` against the rows of `tasks [T, d]` other than `own [K]`."""
        overlap = params.new_zeros(len(params), len(tasks))
        for pair in layout.pairs:
            mine, theirs = layout.entry(params, pair.a), layout.entry(tasks, pair.a)
            overlap = overlap + torch.einsum("kri,tsi->ktrs", mine, theirs).square().sum((2, 3))
        others = torch.ones_like(overlap).scatter(1, own[:, None], 0.0)
        return self.strength * (overlap * others).sum(1)
