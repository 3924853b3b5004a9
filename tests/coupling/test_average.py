import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfusion.coupling import Average, ProductAverage
from fedfusion.lora.product import restrict
from fedfusion.types import Clients, Layout, Pair

HEARD = torch.tensor([4, 0, 3])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])


@pytest.fixture
def clients(layout) -> Clients:
    return Clients(layout, ("a",) * 6, torch.zeros(layout.dim), torch.ones(6, 6))


@pytest.fixture
def adapters(layout, rng):
    return torch.randn(6, layout.dim, generator=rng)


def products(layout, vector):
    """The product `B A` of each pair, dense, without its scale."""
    return [layout.entry(vector, p.b).double() @ layout.entry(vector, p.a).double() for p in layout.pairs]


def best(matrix, rank):
    u, s, vt = torch.linalg.svd(matrix)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def test_average_is_the_mean_of_the_factors_for_all(clients, adapters, rng):
    result, report = Average()(adapters, HEARD, WEIGHTS.double(), clients, rng)
    expected = 0.5 * adapters[4] + 0.3 * adapters[0] + 0.2 * adapters[3]
    torch.testing.assert_close(result, expected.expand_as(adapters))
    assert report == {} and result.is_contiguous()


def test_the_mean_of_factors_misses_the_cross_terms(clients, adapters, layout, rng):
    mean = Average()(adapters, HEARD, WEIGHTS, clients, rng)[0][0]
    exact = [
        sum(w * p for w, p in zip(WEIGHTS, ps, strict=True))
        for ps in zip(*(products(layout, adapters[k]) for k in HEARD), strict=True)
    ]
    around = [products(layout, adapters[k] - mean) for k in HEARD]
    cross = [sum(w * p for w, p in zip(WEIGHTS, ps, strict=True)) for ps in zip(*around, strict=True)]
    for got, want, missing in zip(products(layout, mean), exact, cross, strict=True):
        torch.testing.assert_close(got, want - missing, rtol=1e-4, atol=1e-4)
        assert missing.norm() > 0.1 * want.norm()


def test_product_average_is_the_best_of_its_rank_for_all(clients, adapters, layout, rng):
    result, report = ProductAverage()(adapters, HEARD, WEIGHTS, clients, rng)
    assert torch.equal(result, result[:1].expand_as(result))
    lost = []
    for i, pair in enumerate(layout.pairs):
        dense = sum(w * products(layout, adapters[k])[i] for w, k in zip(WEIGHTS, HEARD, strict=True))
        rank = layout.shapes[pair.a][0]
        torch.testing.assert_close(products(layout, result[0])[i], best(dense, rank), rtol=1e-4, atol=1e-4)
        s = torch.linalg.svdvals(dense).square()
        lost.append(float(s[rank:].sum() / s.sum()))
        for r in range(rank):  # and so are its first rows and columns of theirs
            cut = restrict(layout, result[:1], torch.tensor([r]))[0]
            torch.testing.assert_close(products(layout, cut)[i], best(dense, r), rtol=1e-4, atol=1e-4)
    assert report["discarded"] == pytest.approx(max(lost), rel=1e-4)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10))
@settings(max_examples=30)
def test_clients_who_agree_keep_their_product(n, rank, seed):
    rng = torch.Generator().manual_seed(seed)
    layout = Layout(("A", "B", "bias"), ((rank, 6), (5, rank), (3,)), (Pair("x", 0, 1, 0.5),))
    adapters = torch.randn(1, layout.dim, generator=rng).repeat(n, 1)
    clients = Clients(layout, ("a",) * n, torch.zeros(layout.dim), torch.ones(n, n))
    weights = torch.full((n,), 1 / n)
    result, report = ProductAverage()(adapters, torch.arange(n), weights, clients, rng)
    torch.testing.assert_close(products(layout, result[0]), products(layout, adapters[0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layout.entry(result, 2), layout.entry(adapters, 2))
    assert report["discarded"] < 1e-9


def test_what_nobody_has_learnt_can_still_be_learnt(layout, rng):
    """Where both factors were zero there would be no gradient, in this round and in all that follow."""
    clients = Clients(layout, ("a",) * 3, torch.zeros(layout.dim), torch.ones(3, 3))
    adapters = torch.randn(1, layout.dim, generator=rng).repeat(3, 1)
    fresh = restrict(layout, adapters, torch.tensor([0, 0, 0]))
    for pair in layout.pairs:
        layout.entry(fresh, pair.a).copy_(layout.entry(adapters, pair.a))
    everyone, weights = torch.arange(3), torch.full((3,), 1 / 3)
    torch.testing.assert_close(ProductAverage()(fresh, everyone, weights, clients, rng)[0], fresh)

    learnt = fresh.clone()
    for pair in layout.pairs:  # one direction each, the same for all
        layout.entry(learnt, pair.b)[:, :, 0] = layout.entry(adapters, pair.b)[:, :, 0]
    result, _ = ProductAverage()(learnt, everyone, weights, clients, rng)
    torch.testing.assert_close(products(layout, result[0]), products(layout, learnt[0]), rtol=1e-4, atol=1e-5)
    for pair in layout.pairs:
        assert not layout.entry(result, pair.b)[:, :, 1:].any()
        assert (layout.entry(result, pair.a).norm(dim=2) > 1e-3).all()
