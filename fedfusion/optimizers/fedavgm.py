"""Momentum on the server."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor

from fedfusion.types import FedfusionError


@dataclass(frozen=True)
class FedAvgM:
    r"""Heavy-ball momentum on the change of a round.

    .. math:: m \leftarrow \beta m + \Delta, \qquad w \leftarrow w + \eta m

    A constant change is amplified to :math:`\eta / (1 - \beta)` times itself. Adapters without a change are left
    alone by the server. `lr=1, momentum=0` is :class:`~fedfusion.optimizers.Plain`.

    Parameters
    ----------
    lr
        The server's step :math:`\eta`.
    momentum
        :math:`\beta`, in [0, 1).

    Raises
    ------
    FedfusionError
        If one of them is out of its range.

    References
    ----------
    Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    2019, https://arxiv.org/abs/1909.06335
    """

    num_moments: ClassVar[int] = 1

    lr: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.lr < inf:
            raise FedfusionError(f"server_optimizer.lr must be finite and positive, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise FedfusionError(f"server_optimizer.momentum must be in [0, 1), got {self.momentum}")

    def __call__(self, change: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Step `[N, d]` and next moment `[1, N, d]`, from `change [N, d]` and the one before, zero at first."""
        moments = self.momentum * moments + change
        return self.lr * moments[0], moments
