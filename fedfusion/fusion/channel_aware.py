"""Any rule, on task vectors weighted by what the receiver says of their noise."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fedfusion.fusion.linear import TaskArithmetic
from fedfusion.types import Evidence, FedfusionError, Fusion, Layout


@dataclass(frozen=True)
class ChannelAware:
    r"""A rule on :math:`w_t \tau_t`, so that what arrived in noise counts for less.

    .. math:: w_t = \frac{1}{1 + e_t / e_0}

    with the NMSE `e_t` of the mean upload of task `t` as the receiver reports it, and the NMSE `e_0` at which a task
    vector counts half. `tolerance_db=0` is LMMSE shrinkage, which makes the error of each task vector least; but
    models forgive white noise far stronger than the task vector, and shrunk ones do less. Infinite tolerance, an ideal
    channel, or a receiver that reports nothing: the rule as it is. A receiver that does not know of the jammer reports
    too little noise.

    Parameters
    ----------
    rule
        What is applied to the weighted task vectors.
    tolerance_db
        The NMSE :math:`10 \log_{10} e_0` at which a task vector counts half, in dB.

    References
    ----------
    LMMSE estimation: Kay, "Fundamentals of Statistical Signal Processing: Estimation Theory", Prentice Hall 1993,
    chapter 12, https://dl.acm.org/doi/10.5555/151045; the tolerance is ours
    """

    rule: Fusion = field(default_factory=TaskArithmetic)
    tolerance_db: float = 14.0

    def __post_init__(self) -> None:
        if not self.tolerance_db >= 0:
            raise FedfusionError(f"fusion.tolerance_db must be at least 0, got {self.tolerance_db}")

    @property
    def space(self) -> Literal["core", "left", "right", "dense"]:
        """The coordinates of the rule."""
        return self.rule.space

    @property
    def data(self) -> Literal["none", "unlabelled", "few labels", "client statistics"]:
        """What the rule needs."""
        return self.rule.data

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """Return the fused vector `[D]` of `task_vectors [T, D]`."""
        if evidence.nmse is not None:
            weights = 1 / (1 + evidence.nmse.to(task_vectors) / 10 ** (self.tolerance_db / 10))
            task_vectors = weights[:, None] * task_vectors
        return self.rule(task_vectors, layout, evidence)
