"""Linear fusion of task vectors."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedfusion.types import Evidence, FedfusionError, Layout


@dataclass(frozen=True)
class TaskArithmetic:
    r"""One coefficient for every task: :math:`\tau = \lambda \sum_t \tau_t`, on products, so exact for LoRA.

    Parameters
    ----------
    coefficient
        The scale :math:`\lambda`; null is `1/T`, the average of the task vectors, and `0` the base model. The norm
        of the sum grows with the number of tasks, so more tasks want a smaller coefficient.

    References
    ----------
    Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, https://arxiv.org/abs/2212.04089
    """

    space: ClassVar[Literal["core"]] = "core"
    data: ClassVar[Literal["none"]] = "none"

    coefficient: float | None = 0.3

    def __post_init__(self) -> None:
        if self.coefficient is not None and not self.coefficient >= 0:
            raise FedfusionError(f"fusion.coefficient must be at least 0, got {self.coefficient}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[d]` of `task_vectors [T, d]`."""
        coefficient = 1 / len(task_vectors) if self.coefficient is None else self.coefficient
        return coefficient * task_vectors.sum(0)
