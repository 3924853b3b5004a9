"""Byzantine clients send the opposite of what they trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedfusion.types import FedfusionError, Updates


@dataclass(frozen=True)
class SignFlipping:
    r"""Each Byzantine client uploads :math:`-c\,\tau_k` instead of its task vector :math:`\tau_k`.

    Parameters
    ----------
    f
        Number of Byzantine clients, drawn once per run by the seed. `f=0` is no attack.
    scale
        The factor `c`; above one the norm of the upload grows with it.

    References
    ----------
    Li et al., "RSA: Byzantine-Robust Stochastic Aggregation Methods", AAAI 2019,
    https://arxiv.org/abs/1811.03761
    """

    f: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.f < 0:
            raise FedfusionError(f"attack.f must be at least 0, got {self.f}")
        if not self.scale > 0:
            raise FedfusionError(f"attack.scale must be positive, got {self.scale}")

    def __call__(self, updates: Updates, byzantine: Sequence[int], rng: torch.Generator) -> Updates:
        """Flip the rows of `updates.vectors [n, d]` whose client is in `byzantine`."""
        hostile = torch.tensor([client in byzantine for client in updates.clients], dtype=torch.bool)
        return updates.with_vectors(torch.where(hostile[:, None], -self.scale * updates.vectors, updates.vectors))
