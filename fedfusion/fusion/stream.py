"""The kernel of the element-wise rules: blocks of all task vectors that stay in cache, and exact order statistics.

A rule reads its task vectors `[T, D]` block by block, and what it makes of a block `[T, c]` is gone before the next:
it needs the memory of its result and little more. In a block, masks are floats, zero or one: torch multiplies by
those several times faster than by booleans.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil, floor, inf, sqrt

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 18  # entries of all tasks: what is made of them stays in cache, and calls are few
LONG = 1 << 17  # entries of one row, likewise
SMALL = 1 << 18  # values of which a sample would save nothing
THIN = 0.01  # share of the values

Read = Callable[[slice], np.ndarray]


def blocks(bounds: Sequence[int], width: int) -> Iterator[tuple[int, slice]]:
    """Slices of at most `width`, none across one of the `bounds`, each with the index of the bound below it.

    Examples
    --------
    >>> [(i, part.start, part.stop) for i, part in blocks((0, 5, 7), 3)]
    [(0, 0, 3), (0, 3, 5), (1, 5, 7)]
    """
    for i, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        for begin in range(start, stop, width):
            yield i, slice(begin, min(begin + width, stop))


def width(tasks: int) -> int:
    """How many columns of a matrix of `tasks` rows are a block."""
    return max(BLOCK // tasks, 1024)


def blank(like: Tensor, *shape: int) -> Tensor:
    """A tensor of the dtype of `like` to be filled; NumPy asks for huge pages, which are four times faster to get."""
    return torch.from_numpy(np.empty(shape, dtype=like[..., :0].numpy().dtype))


def weighted_sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """The sum `[D]` of `vectors [T, D]` times `weights [T]`."""
    result = blank(vectors, vectors.shape[1])
    for _, part in blocks((0, len(result)), 2 * LONG):
        torch.mv(vectors[:, part].T, weights.to(vectors.dtype), out=result[part])
    return result


def magnitudes(vectors: Tensor, bounds: Sequence[int], ranks: Callable[[int], Sequence[int]]) -> Tensor:
    """Magnitudes `[T, E, R]` of the R `ranks(n)` among the `n` entries of each row between one bound and the next."""

    def row(vector: np.ndarray) -> list[list[float]]:
        parts = [vector[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
        return [order_statistics(partial(_magnitudes, part), len(part), ranks(len(part))) for part in parts]

    return torch.tensor([row(vector) for vector in vectors.numpy()], dtype=vectors.dtype)


def _magnitudes(values: np.ndarray, part: slice) -> np.ndarray:
    return np.abs(values[part])


def order_statistics(read: Read, n: int, ranks: Sequence[int]) -> list[float]:
    """The values of the given ascending `ranks` among `n`, exactly; rank 0 is the smallest.

    A sample brackets each of them, three standard deviations wide on either side; one pass counts what is below the
    bracket and collects what is in it. Where the sample has misled, all values are partitioned.

    Parameters
    ----------
    read
        The values in a slice, which may have a step.
    """
    if n <= SMALL:
        return _select(read(slice(0, n)), ranks)
    sample = read(slice(0, n, int(n ** (1 / 3) / 4)))
    brackets = [_bracket(sample, rank / n) for rank in ranks]
    below = [0] * len(ranks)
    within: list[list[np.ndarray]] = [[] for _ in ranks]
    for _, part in blocks((0, n), LONG):
        values = read(part)
        for i, bracket in enumerate(brackets):
            count, inside = _within(values, *bracket)
            below[i] += count
            within[i].append(inside)
    found = []
    for rank, count, parts in zip(ranks, below, within, strict=True):
        values = np.concatenate(parts)
        hit = count <= rank < count + len(values)
        found += _select(values, [rank - count]) if hit else _select(read(slice(0, n)), [rank])
    return found


def _bracket(sample: np.ndarray, share: float) -> tuple[float, float]:
    """Two values of the `sample` between which the quantile `share` of all values is expected.

    One is infinite where hardly any value is beyond it: what is there is sooner collected than counted.
    """
    m = len(sample)
    deviation = 3 * sqrt(m * share * (1 - share)) + 2
    low, high = floor(m * share - deviation), ceil(m * share + deviation)
    return (
        _select(sample, [low])[0] if low > m * THIN else -inf,
        _select(sample, [high])[0] if m - high > m * THIN else inf,
    )


def _within(values: np.ndarray, low: float, high: float) -> tuple[int, np.ndarray]:
    """How many `values` are below the bracket, and those in it."""
    if high == inf:
        inside = values[np.flatnonzero(values >= low)]
        return len(values) - len(inside), inside
    if low == -inf:
        return 0, values[np.flatnonzero(values <= high)]
    lower = values < low
    return int(np.count_nonzero(lower)), values[np.flatnonzero(lower == (values > high))]


def _select(values: np.ndarray, ranks: Sequence[int]) -> list[float]:
    """The values of the ascending `ranks`, one after another: for a single rank, NumPy has vector instructions."""
    found, below = [], 0
    for rank in ranks:
        values = np.partition(values, rank - below)[rank - below :]
        below = rank
        found.append(float(values[0]))
    return found
