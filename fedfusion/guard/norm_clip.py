"""Refuse what cannot be an upload, and clip what is too long."""

from dataclasses import dataclass

import torch

from fedfusion.lora.product import change_coefficients
from fedfusion.types import FedfusionError, GuardReport, Updates

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

    clip: float = 1.0
    refuse: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.clip <= self.refuse:
            raise FedfusionError(
                f"guard.clip must be positive and at most guard.refuse, got {self.clip}, {self.refuse}"
            )

    def __call__(self, updates: Updates) -> tuple[Updates, GuardReport]:
        """Return the rows of `updates` that are believed, and what was done to the others."""
        finite = torch.isfinite(updates.vectors).all(1)
        refused = {
            c: "sent values that are not finite" for c, ok in zip(updates.clients, finite, strict=True) if not ok
        }
        updates = updates.keep([i for i, ok in enumerate(finite) if ok])
        if not len(updates):
            return updates, GuardReport(refused)
        # c_4 t^4 + c_3 t^3 + c_2 t^2 is the squared norm of the change that t times the upload makes
        c2, c3, c4 = change_coefficients(updates.layout, updates.start, updates.vectors).unbind(1)
        norms = (c2 + c3 + c4).clamp_min(0).sqrt()
        speaking = norms[(norms > 0) & (norms < LARGEST)]
        median = speaking.median() if len(speaking) else norms.new_tensor(0.0)
        wild = (norms >= LARGEST) | (norms > self.refuse * median)
        for i in torch.nonzero(wild)[:, 0].tolist():
            refused[updates.clients[i]] = f"sent a norm of {norms[i]:.3g}, the median is {median:.3g}"
        target = self.clip * median if median > 0 else norms.new_tensor(0.0)
        low, high = torch.zeros_like(norms), torch.ones_like(norms)
        for _ in range(60):
            middle = (low + high) / 2
            fits = middle.square() * (c2 + middle * (c3 + middle * c4)) <= target.square()
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        long = norms > target * (1 + 1e-9)
        factor = torch.where(long, low, torch.ones_like(low)).to(updates.vectors.dtype)
        believed = [i for i in range(len(updates)) if not wild[i]]
        clipped = tuple(updates.clients[i] for i in believed if long[i])
        return updates.with_vectors(updates.vectors * factor[:, None]).keep(believed), GuardReport(refused, clipped)
