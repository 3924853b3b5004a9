import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.fusion import Byom
from fedfusion.types import Evidence, FedfusionError, Layout, Serving

LAYOUT = Layout(("w", "bias", "v"), ((7, 9), (4,), (5, 3)))


def task_vectors(rng):
    return torch.randn(3, LAYOUT.dim, generator=rng)


@given(st.integers(1, 10))
def test_each_task_is_served_the_best_of_the_rank(rank):
    rng = torch.Generator().manual_seed(rank)
    vectors = task_vectors(rng)
    served = Byom(rank).served(vectors, LAYOUT, Evidence(rng))
    for i in (0, 2):
        u, s, vt = torch.linalg.svd(LAYOUT.entry(vectors, i), full_matrices=False)
        best = (u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank]
        torch.testing.assert_close(LAYOUT.entry(served, i), best, rtol=1e-4, atol=1e-5)
    assert torch.equal(LAYOUT.entry(served, 1), LAYOUT.entry(vectors, 1))


def test_who_does_not_know_its_task_gets_the_average(rng):
    vectors = task_vectors(rng)
    before = vectors.clone()
    rule = Byom(1)
    torch.testing.assert_close(rule(vectors, LAYOUT, Evidence(rng)), vectors.mean(0))
    rule.served(vectors, LAYOUT, Evidence(rng))
    assert torch.equal(vectors, before) and isinstance(rule, Serving)


def test_a_task_without_a_change_is_served_none(rng):
    vectors = task_vectors(rng)
    vectors[1] = 0
    served = Byom(2).served(vectors, LAYOUT, Evidence(rng))
    assert not served[1].any() and served[0].any()


def test_a_rank_below_one_is_refused():
    with pytest.raises(FedfusionError, match="fusion.rank must be at least 1, got 0"):
        Byom(0)
