"""Coordinates that share a coefficient."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from fedfusion.types import Layout

Granularity = Literal["task", "layer", "block", "row", "element"]


@dataclass(frozen=True)
class Groups:
    """A partition of the coordinates `[D]` of a task vector into `G` groups.

    Attributes
    ----------
    count
        How many there are, `G`.
    of : [D]
        The group of each coordinate; groups are numbered in the order of the coordinates.
    """

    count: int
    of: Tensor

    @classmethod
    def split(cls, layout: Layout, granularity: Granularity, blocks: int = 1) -> "Groups":
        """One group in all (`task`), or groups of each entry of the layout.

        `layer` is one group for an entry, `row` one for each row of its matrix, `block` one for each of `blocks` runs
        of rows whose lengths differ by one at most (each row where there are fewer), `element` one for each number.
        An entry that is no matrix is one group, except by `element`.
        """
        if granularity == "task":
            return cls(1, torch.zeros(layout.dim, dtype=torch.long))
        parts, count = [], 0
        for shape in layout.shapes:
            rows = shape[0] if len(shape) == 2 else 1
            number = {"layer": 1, "block": min(blocks, rows), "row": rows, "element": prod(shape)}[granularity]
            units = prod(shape) if granularity == "element" else rows
            parts.append(count + (torch.arange(units) * number // units).repeat_interleave(prod(shape) // units))
            count += number
        return cls(count, torch.cat(parts))

    def combine(self, coefficients: Tensor, vectors: Tensor) -> Tensor:
        """Sum `[D]` of `vectors [T, D]`, each coordinate times its group's one of `coefficients [T, G]`."""
        total = torch.zeros_like(vectors[0])
        for own, vector in zip(coefficients, vectors, strict=True):  # one at a time: T x D coefficients are never there
            total.addcmul_(own[self.of], vector)
        return total

    def slopes(self, gradient: Tensor, vectors: Tensor) -> Tensor:
        """How a loss changes with each coefficient: inner products `[T, G]` of `gradient [D]` and `vectors [T, D]`."""
        total = torch.zeros(len(vectors), self.count, dtype=torch.float64)
        for own, vector in zip(total, vectors, strict=True):
            own.index_add_(0, self.of, (gradient * vector).double())
        return total.to(vectors.dtype)
