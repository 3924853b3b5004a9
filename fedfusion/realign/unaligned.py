"""No realignment."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedfusion.types import Probe


@dataclass(frozen=True)
class Unaligned:
    """The fused adapter as it is: plain multi-task model fusion, the baseline of R-MTLLMF."""

    def __call__(self, fused: Tensor, task_vectors: Tensor, probe: Probe, rng: torch.Generator) -> Tensor:
        """Return `fused` unchanged."""
        return fused
