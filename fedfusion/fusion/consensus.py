"""Consensus task arithmetic: only what several tasks need."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

from torch import Tensor

from fedfusion.fusion.stream import blank, blocks, width
from fedfusion.types import Evidence, FedfusionError, Layout


@dataclass(frozen=True)
class Consensus:
    r"""Of the sum of the task vectors the entries that matter to several tasks.

    .. math:: \tau_\Sigma = \sum_t \tau_t, \qquad m_t = [\,|\tau_t| > \mu\,|\tau_\Sigma - \tau_t|\,], \qquad
              \tau = \lambda\,\Big[\sum_t m_t \ge a\Big]\,\tau_\Sigma

    The TALL mask :math:`m_t` says where the sum is mostly task `t`'s own, so that :math:`m_t \tau_\Sigma`, which is
    served to a device that knows its task, comes close to :math:`\tau_t`. What serves one task alone is left out of
    the fused vector; `agree=0` is task arithmetic.

    Parameters
    ----------
    threshold
        The factor :math:`\mu`: the larger, the fewer entries are in a mask. The authors choose it among 0.2 to 0.6
        for each task on validation data.
    agree
        The number `a` of tasks, or all where fewer were heard.
    coefficient
        The scale :math:`\lambda`; masked vectors are served without it.
    space
        Coordinates whose entries are compared.

    References
    ----------
    Wang et al., "Localizing Task Information for Improved Model Merging and Compression", ICML 2024,
    https://arxiv.org/abs/2405.07813
    """

    data: ClassVar[Literal["none"]] = "none"

    threshold: float = 0.4
    agree: int = 2
    coefficient: float = 0.7
    space: Literal["core", "left", "dense"] = "core"

    def __post_init__(self) -> None:
        for key in ("threshold", "agree", "coefficient"):
            if not 0 <= getattr(self, key) < inf:
                raise FedfusionError(f"fusion.{key} must be finite and at least 0, got {getattr(self, key)}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""
        fused = blank(task_vectors, layout.dim)
        for part, total, masks in self._masks(task_vectors):
            fused[part] = masks.sum(0).ge_(min(self.agree, len(task_vectors))).mul_(total).mul_(self.coefficient)
        return fused

    def served(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the sum under the TALL mask of each task, `[T, D]`."""
        served = blank(task_vectors, *task_vectors.shape)
        for part, total, masks in self._masks(task_vectors):
            served[:, part] = masks.mul_(total)
        return served

    def _masks(self, task_vectors: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Per block, the sum `[c]` of `task_vectors [T, D]` and the TALL masks `[T, c]`."""
        tasks, dim = task_vectors.shape
        for _, part in blocks((0, dim), width(tasks)):
            x = task_vectors[:, part]
            total = x.sum(0)
            yield part, total, x.abs().gt_((total - x).abs_().mul_(self.threshold))
