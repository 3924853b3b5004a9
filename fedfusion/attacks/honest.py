"""Nobody attacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedfusion.types import Updates


@dataclass(frozen=True)
class Honest:
    """Every client sends what it trained: the reference, and the setting on real devices."""

    f: ClassVar[int] = 0

    def __call__(self, updates: Updates, byzantine: Sequence[int], rng: torch.Generator) -> Updates:
        """Return `updates` unchanged."""
        return updates
