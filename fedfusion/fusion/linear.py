"""Linear fusion of task vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedfusion.fusion.stream import weighted_sum
from fedfusion.types import Evidence, FedfusionError, Layout


@dataclass(frozen=True)
class TaskArithmetic:
    r"""A weighted sum of the task vectors: :math:`\tau = \sum_t \lambda_t \tau_t`, on products, so exact for LoRA.

    Parameters
    ----------
    coefficient
        The scale :math:`\lambda` of all tasks; null is `1/T`, the average of the task vectors, and `0` the base
        model. The norm of the sum grows with the number of tasks, so more tasks want a smaller coefficient. A
        sequence has one coefficient for each task, in the order of the tasks. A mapping has one for each part of a
        module's name, as in `{query: 0.3, default: 0.5}`: the first part that the name contains counts, and
        `default` where it contains none.

    Raises
    ------
    FedfusionError
        If a task has no coefficient, or a mapping no default.

    References
    ----------
    Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, https://arxiv.org/abs/2212.04089
    """

    space: ClassVar[Literal["core"]] = "core"
    data: ClassVar[Literal["none"]] = "none"

    coefficient: float | Sequence[float] | Mapping[str, float] | None = 0.3

    def __post_init__(self) -> None:
        given = list(self.coefficient.values()) if isinstance(self.coefficient, Mapping) else self.coefficient
        if isinstance(self.coefficient, Mapping) and "default" not in self.coefficient:
            raise FedfusionError(
                f"fusion.coefficient={dict(self.coefficient)} needs a 'default' for modules that no part of a name fits"
            )
        for value in given if isinstance(given, Sequence) else [given]:
            if value is not None and not 0 <= value < inf:
                raise FedfusionError(f"fusion.coefficient must be finite and at least 0, got {value}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""
        tasks = len(task_vectors)
        if isinstance(self.coefficient, Mapping):
            fused = weighted_sum(torch.ones(tasks), task_vectors)
            for i, name in enumerate(layout.names):
                layout.entry(fused, i).mul_(_coefficient(self.coefficient, name))
            return fused
        if isinstance(self.coefficient, Sequence):
            if not evidence.tasks and len(self.coefficient) != tasks:
                raise FedfusionError(
                    f"fusion.coefficient must have a number for each of the {tasks} tasks, got {len(self.coefficient)}"
                )
            rows = evidence.tasks or range(tasks)
            if max(rows) >= len(self.coefficient):
                raise FedfusionError(f"fusion.coefficient={list(self.coefficient)} has no number for task {max(rows)}")
            return weighted_sum(torch.tensor([self.coefficient[row] for row in rows]), task_vectors)
        coefficient = 1 / tasks if self.coefficient is None else self.coefficient
        return weighted_sum(torch.full((tasks,), float(coefficient)), task_vectors)


def _coefficient(coefficients: Mapping[str, float], name: str) -> float:
    parts = [part for part in coefficients if part != "default" and part in name]
    return coefficients[parts[0] if parts else "default"]
