"""FedProx."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor

from fedfusion.types import FedfusionError, Layout


@dataclass(frozen=True)
class Proximal:
    r"""A pull towards what was broadcast: :math:`\frac{\mu}{2} \lVert w_k - w_k^0 \rVert^2`, on the factors.

    Parameters
    ----------
    mu
        The strength :math:`\mu`. `0` is no penalty; the larger, the closer clients stay to where they started.

    Raises
    ------
    FedfusionError
        If `mu` is negative or not finite.

    References
    ----------
    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, https://arxiv.org/abs/1812.06127
    """

    needs_tasks: ClassVar[bool] = False

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.mu < inf:
            raise FedfusionError(f"client.regularizer.mu must be finite and at least 0, got {self.mu}")

    def __call__(self, params: Tensor, anchor: Tensor, tasks: Tensor, own: Tensor, layout: Layout) -> Tensor:
        """Penalty `[K]` of `params [K, d]` around `anchor [K, d]`."""
        return self.mu / 2 * (params - anchor).square().sum(1)
