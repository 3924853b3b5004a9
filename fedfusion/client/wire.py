"""The numbers of an upload as bytes between a device and the server."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

Wire = Literal["float32", "float16", "int8"]
BLOCK = 64  # values that share one scale


def encode(vectors: np.ndarray, wire: Wire) -> dict[str, np.ndarray]:
    r"""Uploads `[k, d]` as the arrays of a message.

    - `float32`: as they are; the server drops those of another type.
    - `float16`: rounded; what exceeds 65,504 becomes infinite, and the server drops it.
    - `int8`: in blocks of 64 values :math:`q = \mathrm{round}(127 x / \max |x|)`, with a float32 scale for each block:
      8.5 bits per value, and an error of at most half a step, :math:`\max |x| / 254`. Blocks of zeros are exact.

    Rounding is to the nearest value and draws nothing, so that equal uploads are equal bytes.
    """
    if wire == "float32":
        return {"vectors": vectors}
    with np.errstate(all="ignore"):  # what is not finite stays so, and is judged by the server
        if wire == "float16":
            return {"vectors": vectors.astype(np.float16)}
        k, d = vectors.shape
        count = -(-d // BLOCK)
        blocks = np.zeros((k, count, BLOCK), np.float32)
        blocks.reshape(k, count * BLOCK)[:, :d] = vectors
        scales = np.abs(blocks).max(2, initial=0) / np.float32(127)
        steps = np.divide(blocks, scales[:, :, None], out=np.zeros_like(blocks), where=scales[:, :, None] > 0)
        quantised = np.rint(np.nan_to_num(steps)).clip(-127, 127).astype(np.int8)
        return {"vectors": quantised.reshape(k, count * BLOCK)[:, :d], "scales": scales}


def decode(arrays: Mapping[str, np.ndarray], wire: Wire, shape: tuple[int, int]) -> np.ndarray:
    """Uploads `[k, d]` in float32, from the arrays of a message.

    Raises
    ------
    ValueError
        If they are not of the type or the shape that `wire` and `shape` ask for.
    """
    k, d = shape
    vectors = _checked(arrays["vectors"], wire, shape)
    if wire == "float32":
        return vectors
    if wire == "float16":
        return vectors.astype(np.float32)
    scales = _checked(arrays["scales"], "float32", (k, -(-d // BLOCK)))
    with np.errstate(invalid="ignore"):
        return vectors.astype(np.float32) * np.repeat(scales, BLOCK, axis=1)[:, :d]


def _checked(array: np.ndarray, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise ValueError(f"sent {array.dtype} {array.shape}, expected {dtype} {shape}")
    return array
