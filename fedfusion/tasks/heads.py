"""What turns features into labels: prototypes, class names, or the model's own output embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfusion.lora.model import LoraModel, Model
from fedfusion.types import FedfusionError, Samples, TaskSuite


class Head(Protocol):
    """Turns features `[n, h]` into logits `[n, C]`."""

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[n, C]` of `features [n, h]`."""
        ...

    def trainable(self) -> "Head":
        """A copy that a client may train, where there is something to train."""
        ...

    def parameters(self) -> Sequence[nn.Parameter]:
        """What is trained of it."""
        ...

    def detach(self) -> "Head":
        """The head as it is now, frozen."""
        ...


@dataclass(frozen=True)
class PrototypeHead:
    r"""Cosine classifier on class means of a few labelled samples, centred on their common mean.

    .. math:: \text{logit}_c(x) = \kappa \, \cos(x - \bar p,\; p_c - \bar p),
              \qquad p_c = \text{mean of the class-}c\text{ features}, \; \bar p = \text{mean}_c\, p_c

    Attributes
    ----------
    weight : [C, h]
        Centred prototypes, each of length :math:`\kappa`, the inverse temperature.
    centre : [h]
        Their common mean. Without it every cosine is close to one and fusion gains little.

    References
    ----------
    Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
    https://arxiv.org/abs/1703.05175
    """

    weight: Tensor
    centre: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, num_classes: int, scale: float = 16.0) -> "PrototypeHead":
        """The head of `features [n, h]` with `labels [n]`; every class must occur."""
        prototypes = torch.stack([features[labels == c].mean(0) for c in range(num_classes)])
        centre = prototypes.mean(0)
        return cls(scale * F.normalize(prototypes - centre, dim=-1), centre)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "PrototypeHead":
        """The inverse of :meth:`to_tensor`."""
        return cls(tensor[:-1], tensor[-1])

    def to_tensor(self) -> Tensor:
        """Weight and centre, one below the other: `[C + 1, h]`."""
        return torch.cat([self.weight, self.centre[None]])

    def trainable(self) -> "PrototypeHead":
        """A copy whose weight and centre are trained."""
        return replace(self, weight=nn.Parameter(self.weight.clone()), centre=nn.Parameter(self.centre.clone()))

    def parameters(self) -> list[nn.Parameter]:
        """Weight and centre, if they are trained."""
        return [tensor for tensor in (self.weight, self.centre) if isinstance(tensor, nn.Parameter)]

    def detach(self) -> "PrototypeHead":
        """The head as it is now, frozen."""
        return replace(self, weight=self.weight.detach(), centre=self.centre.detach())

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[n, C]` of `features [n, h]`."""
        return F.normalize(features - self.centre, dim=-1) @ self.weight.T


@dataclass(frozen=True)
class LanguageHead:
    """The output embeddings `[V, h]` of a causal language model: logits over its vocabulary, never trained."""

    weight: Tensor

    def trainable(self) -> "LanguageHead":
        """The same head: it belongs to the base."""
        return self

    def parameters(self) -> list[nn.Parameter]:
        """Nothing."""
        return []

    def detach(self) -> "LanguageHead":
        """The same head."""
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[n, V]` of `features [n, h]`."""
        return (features.to(self.weight.dtype) @ self.weight.T).float()


class HeadSource(Protocol):
    """Where the frozen head of a classification task comes from."""

    def check(self, model: Model, suite: TaskSuite) -> None:
        """Raise a FedfusionError if there is none for this model and suite, without loading the model."""
        ...

    def __call__(self, model: LoraModel, suite: TaskSuite, task: str, root: Samples) -> Head:
        """The head of `task`, of which the server holds the samples `root`."""
        ...


@dataclass(frozen=True)
class Prototypes:
    """A :class:`PrototypeHead` on the base's features of the root set.

    Parameters
    ----------
    scale
        Its inverse temperature: the smaller, the longer samples that are right already still pull.
    """

    scale: float = 16.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise FedfusionError(f"head.scale must be positive, got {self.scale}")

    def check(self, model: Model, suite: TaskSuite) -> None:
        """Every model and suite will do."""

    @torch.no_grad()
    def __call__(self, model: LoraModel, suite: TaskSuite, task: str, root: Samples) -> PrototypeHead:
        """The head of `task`, of which the server holds the samples `root`."""
        parts = [
            model.features(model.initial[None], root.take(rows), torch.zeros(len(rows), dtype=torch.long))[0]
            for rows in torch.arange(len(root)).split(64)  # B = 0: the base model itself
        ]
        return PrototypeHead.fit(torch.cat(parts), root.labels, suite.num_classes(task), self.scale)
