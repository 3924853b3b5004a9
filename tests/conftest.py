import os

os.environ |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

import pytest
import torch
from hypothesis import settings

from fedfusion.types import Layout, Pair, Updates

settings.register_profile("fedfusion", deadline=None, derandomize=True)  # a slow first call is no failure
settings.load_profile("fedfusion")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def layout() -> Layout:
    """Two modules of different shape and scale: 7x5 at rank 2 and 4x6 at rank 3."""
    return Layout(
        names=("x.A", "x.B", "y.A", "y.B"),
        shapes=((2, 5), (7, 2), (3, 6), (4, 3)),
        pairs=(Pair("x", 0, 1, 0.5), Pair("y", 2, 3, 2.0)),
    )


@pytest.fixture
def updates(layout: Layout, rng: torch.Generator) -> Updates:
    """Six uploads of three tasks, on adapters whose B is zero."""
    n = 6
    start = torch.randn(1, layout.dim, generator=rng).repeat(n, 1)
    for pair in layout.pairs:
        layout.entry(start, pair.b).zero_()
    return Updates(
        layout=layout,
        vectors=0.1 * torch.randn(n, layout.dim, generator=rng),
        start=start,
        clients=tuple(range(n)),
        tasks=("a", "a", "b", "b", "c", "c"),
        num_examples=(10,) * n,
        metrics=({"train_loss": 0.5, "accuracy": 0.9, "loss": 0.4},) * n,
    )
