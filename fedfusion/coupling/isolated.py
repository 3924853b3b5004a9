"""No coupling."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Isolated:
    r"""Each client continues from its own adapter: MIRA with :math:`\lambda = 0`, local training only.

    References
    ----------
    Elbakary et al., "MIRA: A Method of Federated Multi-Task Learning for Large Language Models", IEEE
    Networking Letters 2025, https://doi.org/10.1109/LNET.2025.3539810
    """

    def __call__(self, vectors: Tensor, adjacency: Tensor) -> Tensor:
        """Return `vectors [n, d]` unchanged."""
        return vectors
