"""Named randomness: every random draw comes from a generator with a name."""

import hashlib

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
