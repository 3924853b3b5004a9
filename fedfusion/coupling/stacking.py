"""FLoRA: what was learnt goes into everybody's base."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.types import Clients


@dataclass(frozen=True)
class Stacking:
    r"""The exact mean of the products of those heard is added to the base of all clients, who begin afresh.

    .. math:: W \leftarrow W + \sum_{k \in S} p_k B_k A_k = W + [p_1 B_1, \dots, p_n B_n] [A_1; \dots; A_n]

    No cross terms and no cut of a client's rank; the ranks of the clients may differ. The sum of all rounds is sent as
    one adapter of rank `fused_rank`, which has to hold it: `discarded` tells what it could not.

    References
    ----------
    Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
    NeurIPS 2024, https://arxiv.org/abs/2409.05976
    """

    into_base: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = True
    averages_factors: ClassVar[bool] = False

    def __call__(
        self, adapters: Tensor, heard: Tensor, weights: Tensor, clients: Clients, rng: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The initial adapter, `N` times `[N, d]`."""
        return clients.initial.repeat(len(adapters), 1), {}
