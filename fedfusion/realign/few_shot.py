"""A short supervised tune of the fused adapter on a few labelled samples."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedfusion.types import FedfusionError, Probe


@dataclass(frozen=True)
class FewShot:
    """AdamW on the fused adapter over the root set of all tasks together, learning rate decaying to zero.

    Only the adapter moves: embeddings, heads and every other weight of the base stay frozen, which is the
    realignment of R-MTLLMF as far as it is known. `steps=0` is no realignment. Whether fusion earned anything is
    seen beside the control: the same tune from the base alone, without task vectors.

    Parameters
    ----------
    steps, lr, batch_size
        Of AdamW without weight decay; batches are drawn over the root sets of all tasks.

    References
    ----------
    Djuhera et al., "R-MTLLMF: Resilient Multi-Task Large Language Model Fusion at the Wireless Edge", 2024,
    https://arxiv.org/abs/2411.18220 (its step counts and rates are not published; these are ours)
    """

    needs_tasks: ClassVar[bool] = False

    steps: int = 30
    lr: float = 3e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise FedfusionError(f"realign.lr must be positive, got {self.lr}")
        if self.steps < 0 or self.batch_size < 1:
            raise FedfusionError(
                "realign.steps must be at least 0 and realign.batch_size at least 1, "
                f"got {self.steps}, {self.batch_size}"
            )

    def __call__(self, fused: Tensor, tasks: Tensor, probe: Probe, rng: torch.Generator) -> Tensor:
        """Return the tuned adapter `[d]`."""
        adapter = fused.clone().requires_grad_()
        optimizer = torch.optim.AdamW([adapter], lr=self.lr, weight_decay=0.0)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            rows = torch.randperm(len(probe), generator=rng)[: self.batch_size]
            optimizer.zero_grad(set_to_none=True)
            probe.loss(adapter, rows).backward()
            optimizer.step()
        return adapter.detach()
