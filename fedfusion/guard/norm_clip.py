"""Refuse what cannot be an upload, and clip what is too long."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedfusion.lora.product import change_coefficients, shortening
from fedfusion.types import FedfusionError, GuardReport, Root, Updates

LARGEST = torch.finfo(torch.float32).max ** 0.5  # the square of a longer one is no float32


@dataclass(frozen=True)
class NormClip:
    r"""Refuse uploads that are not finite or implausibly long; clip the rest to the median norm.

    The norm of an upload is that of the change it makes to the product,
    :math:`\lVert (B+\Delta B)(A+\Delta A) - BA \rVert_F` over all modules: factors may be rescaled without
    changing anything, products may not. An upload above the median is multiplied by a `t < 1` that
    brings its change down to the median of the uploads that are not zero (the lower one, where their number is even).

    Parameters
    ----------
    clip
        Uploads longer than `clip` times the median norm are shortened to it; `inf` clips nothing.
    refuse
        Uploads longer than `refuse` times the median norm are refused.

    References
    ----------
    Clipping to the median norm: Guerraoui, Gupta, Pinot, "Robust Machine Learning", Springer 2024, section 5.
    """

    needs_root: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False

    clip: float = 1.0
    refuse: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.clip <= self.refuse:
            raise FedfusionError(
                f"guard.clip must be positive and at most guard.refuse, got {self.clip}, {self.refuse}"
            )

    def __call__(self, updates: Updates, root: Root | None = None) -> tuple[Updates, GuardReport]:
        """Return the rows of `updates` that are believed, and what was done to the others."""
        finite = updates.vectors.sum(1, dtype=torch.float64).isfinite()  # a sum of finite float32 is finite
        refused = {
            c: "sent values that are not finite" for c, ok in zip(updates.clients, finite, strict=True) if not ok
        }
        updates = updates.keep([i for i, ok in enumerate(finite) if ok])
        if not len(updates):
            return updates, GuardReport(refused)
        changes = change_coefficients(updates.layout, updates.start, updates.vectors)
        norms = changes.sum(1).clamp_min(0).sqrt()
        speaking = norms[(norms > 0) & (norms < LARGEST)]
        median = speaking.median() if len(speaking) else norms.new_tensor(0.0)
        wild = (norms >= LARGEST) | (norms > self.refuse * median)
        for i in torch.nonzero(wild)[:, 0].tolist():
            refused[updates.clients[i]] = f"sent a norm of {norms[i]:.3g}, the median is {median:.3g}"
        target = self.clip * median if median > 0 else norms.new_tensor(0.0)
        factor = shortening(changes, target)
        believed = [i for i in range(len(updates)) if not wild[i]]
        clipped = tuple(updates.clients[i] for i in believed if factor[i] < 1)
        if clipped:
            updates = updates.with_vectors(updates.vectors * factor[:, None].to(updates.vectors.dtype))
        return updates.keep(believed), GuardReport(refused, clipped)
