from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.fusion import Breadcrumbs, stream
from fedfusion.types import Evidence, FedfusionError, Layout

LAYOUT = Layout(("a", "b", "c"), ((40, 25), (1,), (2, 5, 10)))


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 1024)


def fuse(rule, vectors, layout=LAYOUT):
    return rule(vectors, layout, Evidence(torch.Generator()))


def reference(entry, smallest, largest):
    """Entries `[R, n]` without the given numbers of smallest and largest of each row."""
    order = entry.abs().argsort(-1)
    kept = torch.zeros_like(entry)
    band = order[:, smallest : entry.shape[1] - largest]
    return kept.scatter(1, band, entry.gather(1, band))


def test_each_module_loses_its_smallest_and_largest(rng):
    vectors = torch.randn(3, LAYOUT.dim, generator=rng)
    fused = fuse(Breadcrumbs(0.7, 0.99, coefficient=0.5), vectors)
    for i, (smallest, largest) in enumerate([(700, 10), (0, 0), (70, 1)]):
        expected = 0.5 * reference(LAYOUT.entry(vectors, i).flatten(1), smallest, largest).sum(0)
        torch.testing.assert_close(LAYOUT.entry(fused, i).flatten(), expected)


def test_each_row_loses_them(rng):
    vectors = torch.randn(3, LAYOUT.dim, generator=rng)
    fused = fuse(Breadcrumbs(0.2, 0.9, per="row"), vectors)
    for i, (smallest, largest) in enumerate([(5, 2), (0, 0), (2, 1)]):
        entry = LAYOUT.entry(vectors, i)
        expected = reference(entry.reshape(-1, entry.shape[-1]), smallest, largest).view(entry.shape).sum(0)
        torch.testing.assert_close(LAYOUT.entry(fused, i), expected)


@given(st.integers(1, 60), st.floats(0.0, 0.98), st.floats(0.0, 1.0))
def test_exactly_the_shares_are_left_out_and_one_is_kept(n, beta, rest):
    gamma = beta + 0.01 + rest * (0.99 - beta)
    vector = torch.arange(1.0, n + 1)[torch.randperm(n, generator=torch.Generator().manual_seed(n))]
    fused = fuse(Breadcrumbs(beta, gamma), vector[None], Layout(("w",), ((n,),)))
    smallest, largest = floor(beta * n + 1e-6), floor((1 - gamma) * n + 1e-6)
    assert set(fused[fused != 0].tolist()) == set(range(smallest + 1, n - largest + 1)) != set()


@pytest.mark.parametrize(("beta", "gamma", "smallest", "largest"), [(0.29, 0.9, 29, 10), (0.55, 0.71, 55, 29)])
def test_shares_of_a_hundred_are_counted_as_written(beta, gamma, smallest, largest):
    vector = torch.arange(1.0, 101.0)
    fused = fuse(Breadcrumbs(beta, gamma), vector[None], Layout(("w",), ((100,),)))
    assert fused[fused != 0].tolist() == list(range(smallest + 1, 101 - largest))


def test_all_entries_are_task_arithmetic(rng):
    vectors = torch.randn(3, LAYOUT.dim, generator=rng)
    torch.testing.assert_close(fuse(Breadcrumbs(0.0, 1.0, coefficient=0.3), vectors), 0.3 * vectors.sum(0))


def test_entries_that_equal_a_bound_are_kept():
    vector = torch.tensor([[1.0, -1.0, 1.0, 2.0, -2.0, 2.0, 3.0, -3.0]])
    fused = fuse(Breadcrumbs(0.5, 0.75), vector, Layout(("w",), ((8,),)))
    assert fused.tolist() == [0, 0, 0, 2, -2, 2, 0, 0]


def test_spikes_change_nothing(rng):
    vectors = torch.randn(3, 1000, generator=rng)
    largest = vectors.abs().topk(7).indices
    spiked = vectors.scatter(1, largest, 1e6)
    layout = Layout(("w",), ((1000,),))
    torch.testing.assert_close(fuse(Breadcrumbs(), spiked, layout), fuse(Breadcrumbs(), vectors, layout))


def test_the_order_of_the_tasks_and_the_scale_do_not_matter(rng):
    vectors = torch.randn(3, LAYOUT.dim, generator=rng)
    before = vectors.clone()
    fused = fuse(Breadcrumbs(), vectors)
    torch.testing.assert_close(fuse(Breadcrumbs(), vectors[[2, 0, 1]]), fused)
    torch.testing.assert_close(fuse(Breadcrumbs(), 8 * vectors), 8 * fused)
    assert torch.equal(vectors, before)


@pytest.mark.parametrize(("beta", "gamma"), [(-0.1, 0.5), (0.5, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_a_band_that_is_none_is_refused(beta, gamma):
    with pytest.raises(FedfusionError, match="fusion.beta and fusion.gamma must be 0 <= beta < gamma <= 1"):
        Breadcrumbs(beta, gamma)


@pytest.mark.parametrize("coefficient", [-1.0, float("inf"), float("nan")])
def test_a_coefficient_that_is_none_is_refused(coefficient):
    with pytest.raises(FedfusionError, match="fusion.coefficient must be finite and at least 0"):
        Breadcrumbs(coefficient=coefficient)
