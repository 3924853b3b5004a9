"""Serving of compressed adapters, one per task."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedfusion.fusion.spectral import svd
from fedfusion.types import Evidence, FedfusionError, Layout


@dataclass(frozen=True)
class Byom:
    r"""BYOM: a device that knows its task gets that task's own product, cut to a small rank.

    .. math:: \tau_t = U \operatorname{diag}(s) V^\top \;\mapsto\; \sum_{i \le q} s_i u_i v_i^\top

    per matrix, the best approximation of rank `q`. Nothing is lost where `q` is at least the rank of the task vectors.
    Other entries are served as they are. A device that does not know its task gets the average.

    Parameters
    ----------
    rank
        What is served has at most this rank per matrix, `q`.

    Raises
    ------
    FedfusionError
        If the rank is below 1.

    References
    ----------
    Jiang et al., "BYOM: Building Your Own Multi-Task Model For Free", 2023, https://arxiv.org/abs/2310.01886
    """

    space: ClassVar[Literal["core"]] = "core"
    data: ClassVar[Literal["none"]] = "none"

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise FedfusionError(f"fusion.rank must be at least 1, got {self.rank}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the average `[D]` of `task_vectors [T, D]`."""
        return task_vectors.mean(0)

    def served(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """One vector per task, `[T, D]`."""
        served = task_vectors.clone()
        for i, shape in enumerate(layout.shapes):
            if len(shape) == 2:
                u, s, v = svd(layout.entry(task_vectors, i).double(), evidence.rng)
                best = (u * s[:, None])[..., : self.rank] @ v[..., : self.rank].mT
                layout.entry(served, i).copy_(best)
        return served
