"""Named randomness: every random draw comes from a generator with a name."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(seed: int, *labels: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every label, and on nothing else.

    Examples
    --------
    >>> seed_of(0, "dropout", 1, 3) == seed_of(0, "dropout", 1, 3)
    True
    >>> seed_of(0, "dropout", 1, 3) == seed_of(0, "dropout", 13)
    False
    """
    digest = hashlib.sha256(repr((seed, *labels)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """A torch generator named `(seed, stage, round, client)`; the same name gives the same bits anywhere."""
    return torch.Generator().manual_seed(seed_of(seed, *labels))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and numpy, from which Flower draws, and give them back as they were."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
