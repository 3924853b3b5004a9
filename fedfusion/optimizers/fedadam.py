"""Adam on the server."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.types import FedfusionError


@dataclass(frozen=True)
class FedAdam:
    r"""Adam on the change of a round, coordinate by coordinate, without bias correction, as published.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) \Delta,
              \quad v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2, \quad
              w \leftarrow w + \eta \frac{m}{\sqrt v + \tau}

    with `m = 0` and :math:`v = \tau^2` before round one. Steps are of the order of `lr` in every coordinate that
    changes by more than `tau`. Adapters without a change are left alone by the server. Where `tau` is far above all
    changes, nothing is adaptive: `lr=tau, beta1=0` is then the change times a factor that grows from a half to one.

    Parameters
    ----------
    lr
        The server's step :math:`\eta`.
    beta1, beta2
        How much of the moments is kept, in [0, 1).
    tau
        Adaptivity: the smaller, the more equal the steps of all coordinates.

    Raises
    ------
    FedfusionError
        If one of them is out of its range.

    References
    ----------
    Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295
    """

    num_moments: ClassVar[int] = 2

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("lr", "tau"):
            if not 0 < getattr(self, name) < inf:
                raise FedfusionError(f"server_optimizer.{name} must be finite and positive, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise FedfusionError(f"server_optimizer.{name} must be in [0, 1), got {getattr(self, name)}")

    def __call__(self, change: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Step `[N, d]` and next moments `m, v - tau^2 [2, N, d]`, from `change [N, d]` and those before."""
        first, second = moments[0], moments[1] + self.tau**2
        first = self.beta1 * first + (1 - self.beta1) * change
        second = self.beta2 * second + (1 - self.beta2) * change.square()
        return self.lr * first / (second.sqrt() + self.tau), torch.stack([first, second - self.tau**2])
