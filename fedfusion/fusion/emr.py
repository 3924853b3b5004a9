"""EMR-Merging: one vector, and for each task a mask and a scale."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedfusion.fusion.stream import blank, blocks, width
from fedfusion.types import Evidence, Layout


@dataclass(frozen=True)
class Emr:
    r"""Elect, mask, rescale: the largest entries of the elected signs, and what of these a task can use.

    .. math:: \gamma = \operatorname{sgn}\sum_t \tau_t, \qquad
              \tau = \gamma \max_t\,(\gamma \tau_t)_+, \qquad
              m_t = [\tau_t \tau > 0], \qquad
              \lambda_t = \frac{\sum |\tau_t|}{\sum |m_t \tau|}

    The unified vector :math:`\tau` is for devices that do not know their task. One that does is served
    :math:`\lambda_t m_t \tau`, whose entries have the signs and the mean magnitude of :math:`\tau_t`: one bit per
    entry and one number on top of :math:`\tau`. The sums of :math:`\lambda_t` are over all modules together. A single
    task is returned as it is.

    Parameters
    ----------
    space
        Coordinates whose entries are elected.

    References
    ----------
    Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging", NeurIPS 2024,
    https://arxiv.org/abs/2405.17461
    """

    data: ClassVar[Literal["none"]] = "none"

    space: Literal["core", "left", "dense"] = "core"

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the unified vector `[D]` of `task_vectors [T, D]`."""
        fused = blank(task_vectors, layout.dim)
        for part, _, unified in self._elect(task_vectors):
            fused[part] = unified
        return fused

    def served(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the masked and rescaled vector of each task, `[T, D]`."""
        served = blank(task_vectors, *task_vectors.shape)
        own, masked = torch.zeros(2, len(task_vectors), 1, dtype=torch.float64)
        for part, masks, unified in self._elect(task_vectors):
            served[:, part] = masks.mul_(unified)
            own += task_vectors[:, part].abs().sum(1, keepdim=True)
            masked += masks.abs_().sum(1, keepdim=True)
        return served.mul_((own / masked.clamp_min(torch.finfo(torch.float64).tiny)).to(served.dtype))

    def _elect(self, task_vectors: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Per block, the masks `[T, c]` and the unified vector `[c]` of `task_vectors [T, D]`."""
        tasks, dim = task_vectors.shape
        for _, part in blocks((0, dim), width(tasks)):
            x = task_vectors[:, part]
            elected = x.sum(0).sign_()
            agreeing = (x * elected).relu_()
            unified = agreeing.amax(0).mul_(elected)
            yield part, agreeing.sign_(), unified
