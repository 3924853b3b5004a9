"""Is what a stage made of the shape that it should be, and finite? One's own stages need not be."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedfusion.types import FedfusionError


def sound(key: str, stage: object, made: object, shape: Sequence[int]) -> Tensor:
    """What the `stage` chosen by `key` made, if it is a tensor of the shape that it should be, and finite.

    Raises
    ------
    FedfusionError
        If it is not.
    """
    name = f"{key}={type(stage).__name__}"
    if not isinstance(made, Tensor) or made.shape != tuple(shape):
        got = f"shape {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise FedfusionError(f"{name} returns {got}, expected a tensor of shape {list(shape)} (mend it)")
    if not made.sum(dtype=torch.float64).isfinite():  # without a copy of what may be large
        raise FedfusionError(f"{name} makes entries that are not finite (choose another, or other values for it)")
    return made
