"""Task arithmetic whose coefficients follow from the norms of the task vectors."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedfusion.fusion.stream import weighted_sum
from fedfusion.types import Evidence, FedfusionError, Layout


@dataclass(frozen=True)
class MetaGpt:
    r"""A weighted sum with weights in closed form, on task vectors of bounded norm.

    .. math:: \tau = \sum_t \lambda_t \tau_t, \qquad
              \lambda_t = \lVert \tau_t \rVert^2 / \sum_s \lVert \tau_s \rVert^2,

    which minimises the sum of the tasks' losses where these are linear in the parameters and task vectors orthogonal.
    As the weight grows with the square of the norm, an upload ten times as large counts a thousandfold: noise, or one
    client, would take the whole model. So norms are clipped before: a longer :math:`\tau_t` is scaled down to `clip`
    times the median norm, and weighted as such. Task vectors of one norm are averaged.

    Parameters
    ----------
    clip
        Largest norm, in median norms of the task vectors (of two, in the smaller); null is the rule as published.

    References
    ----------
    Zhou et al., "MetaGPT: Merging Large Language Models Using Model Exclusive Task Arithmetic", EMNLP 2024,
    https://arxiv.org/abs/2406.11385
    """

    space: ClassVar[Literal["core"]] = "core"
    data: ClassVar[Literal["none"]] = "none"

    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise FedfusionError(f"fusion.clip must be positive or null, got {self.clip}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""
        norms = torch.stack([torch.linalg.vector_norm(vector) for vector in task_vectors]).double()
        alive = norms[norms > 0]  # the median of those that are there: zeros would clip all others away
        clipped = norms if self.clip is None or not len(alive) else norms.clamp_max(self.clip * float(alive.median()))
        tiny = torch.finfo(torch.float64).tiny  # where all of them are zero, so is the sum
        weights = clipped.square() / clipped.square().sum().clamp_min(tiny)
        return weighted_sum(weights * clipped / norms.clamp_min(tiny), task_vectors)
