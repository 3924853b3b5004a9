"""No coupling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.types import Clients


@dataclass(frozen=True)
class Isolated:
    r"""Each client continues from its own adapter: MIRA with :math:`\lambda = 0`, local training only.

    References
    ----------
    Elbakary et al., "MIRA: A Method of Federated Multi-Task Learning for Large Language Models", IEEE
    Networking Letters 2025, https://doi.org/10.1109/LNET.2025.3539810
    """

    into_base: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False
    averages_factors: ClassVar[bool] = False

    def __call__(
        self, adapters: Tensor, heard: Tensor, weights: Tensor, clients: Clients, rng: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Return `adapters [N, d]` unchanged."""
        return adapters, {}
