"""Frozen prototype heads: what turns features into labels without being trained."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PrototypeHead:
    r"""Cosine classifier on class means of a few labelled samples, centred on their common mean.

    .. math:: \text{logit}_c(x) = \kappa \, \cos(x - \bar p,\; p_c - \bar p), \qquad
              p_c = \text{mean of the class-}c\text{ features}, \; \bar p = \text{mean}_c\, p_c

    Attributes
    ----------
    weight : [C, h]
        Centred, normalised prototypes.
    centre : [h]
        Their common mean. Without it every cosine is close to one and fusion gains little.
    scale
        The inverse temperature :math:`\kappa`.

    References
    ----------
    Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
    https://arxiv.org/abs/1703.05175
    """

    weight: Tensor
    centre: Tensor
    scale: float = 16.0

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, num_classes: int) -> "PrototypeHead":
        """The head of `features [n, h]` with `labels [n]`; every class must occur."""
        prototypes = torch.stack([features[labels == c].mean(0) for c in range(num_classes)])
        centre = prototypes.mean(0)
        return cls(F.normalize(prototypes - centre, dim=-1), centre)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "PrototypeHead":
        """The inverse of :meth:`to_tensor`."""
        return cls(tensor[:-1], tensor[-1])

    def to_tensor(self) -> Tensor:
        """Weight and centre, one below the other: `[C + 1, h]`."""
        return torch.cat([self.weight, self.centre[None]])

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[n, C]` of `features [n, h]`."""
        return self.scale * F.normalize(features - self.centre, dim=-1) @ self.weight.T
