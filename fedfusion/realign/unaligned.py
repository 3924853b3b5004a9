"""No realignment."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedfusion.types import Repair


@dataclass(frozen=True)
class Unaligned:
    """The fused adapter as it is: plain multi-task model fusion, the baseline of R-MTLLMF."""

    data: ClassVar[Literal["none"]] = "none"
    needs_tasks: ClassVar[bool] = False

    def __call__(self, fused: Tensor, repair: Repair) -> Tensor:
        """Return `fused` unchanged."""
        return fused
