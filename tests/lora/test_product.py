import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfusion.lora import product
from fedfusion.types import Layout, Pair


def dense(layout, vector):
    """All products `scale * B A` of an adapter, flattened into one vector: what product.py never forms."""
    parts = [p.scale * layout.entry(vector, p.b) @ layout.entry(vector, p.a) for p in layout.pairs]
    return torch.cat([part.flatten() for part in parts]).double()


def test_gram_is_that_of_the_dense_products(layout, rng):
    vectors = torch.randn(5, layout.dim, generator=rng)
    products = torch.stack([dense(layout, v) for v in vectors])
    torch.testing.assert_close(product.gram(layout, vectors), products @ products.T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(product.norms(layout, vectors), products.norm(dim=1), rtol=1e-6, atol=1e-6)


def test_gram_of_a_wild_row_stays_finite(layout):
    vectors = torch.full((1, layout.dim), 1e30)
    assert torch.isfinite(product.gram(layout, vectors)).all()


def test_rescaled_factors_have_the_same_products(layout, rng):
    vector = torch.randn(layout.dim, generator=rng)
    rescaled = vector.clone()
    for pair in layout.pairs:
        layout.entry(rescaled, pair.a).mul_(8.0)
        layout.entry(rescaled, pair.b).div_(8.0)
    both = torch.stack([vector, rescaled])
    gram = product.gram(layout, both)
    torch.testing.assert_close(gram, gram[0, 0].expand(2, 2), rtol=1e-5, atol=1e-5)


@given(st.floats(0.0, 1.5))
@settings(max_examples=20)
def test_change_of_a_scaled_upload(t):
    rng = torch.Generator().manual_seed(3)
    layout = Layout(("A", "B"), ((2, 5), (7, 2)), (Pair("x", 0, 1, 0.5),))
    start, update = torch.randn(2, 1, layout.dim, generator=rng)
    c2, c3, c4 = product.change_coefficients(layout, start, update)[0]
    change = dense(layout, (start + t * update)[0].double()) - dense(layout, start[0].double())
    expected = change.square().sum()
    torch.testing.assert_close(c2 * t**2 + c3 * t**3 + c4 * t**4, expected, rtol=1e-6, atol=1e-9)


def test_restricting_keeps_the_first_rows_and_columns(layout, rng):
    vectors = torch.randn(4, layout.dim, generator=rng)
    before = vectors.clone()
    ranks = torch.tensor([0, 1, 2, 5])
    cut = product.restrict(layout, vectors, ranks)
    assert torch.equal(vectors, before)
    for pair in layout.pairs:
        for k, rank in enumerate(ranks.tolist()):
            a, b = layout.entry(cut[k], pair.a), layout.entry(cut[k], pair.b)
            assert torch.equal(a[:rank], layout.entry(vectors[k], pair.a)[:rank]) and not a[rank:].any()
            assert torch.equal(b[:, :rank], layout.entry(vectors[k], pair.b)[:, :rank]) and not b[:, rank:].any()
    assert torch.equal(cut[3], vectors[3])


def test_stack_adds_products_of_any_rank(rng):
    pairs = [(torch.randn(7, r, generator=rng), torch.randn(r, 5, generator=rng)) for r in (1, 3, 2)]
    b, a = product.stack(pairs)
    assert b.shape == (7, 6)
    torch.testing.assert_close(b @ a, sum(x @ y for x, y in pairs))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 9))
@settings(max_examples=60)
def test_truncation_is_the_best_of_its_rank(m, n, inner, rank):
    rng = torch.Generator().manual_seed(m + 10 * n + 100 * inner)
    b, a = torch.randn(m, inner, generator=rng), torch.randn(inner, n, generator=rng)
    (left, right), discarded = product.truncate((b, a), rank)
    s = torch.linalg.svdvals((b @ a).double())
    error = (left @ right - b @ a).double().square().sum()
    assert left.shape == (m, rank) and right.shape == (rank, n)
    torch.testing.assert_close(error, s[rank:].square().sum(), rtol=1e-3, atol=1e-6)
    assert abs(discarded - float(s[rank:].square().sum() / s.square().sum())) < 1e-6


def test_truncation_of_nothing_discards_nothing():
    (left, right), discarded = product.truncate((torch.zeros(4, 2), torch.ones(2, 3)), 2)
    assert discarded == 0.0 and not (left @ right).any()


def test_core_space_keeps_inner_products(layout, rng):
    vectors = torch.randn(4, layout.dim, generator=rng)
    core = product.CoreSpace.of(layout, vectors, vectors[0])
    coordinates = core.project(layout, vectors).double()
    torch.testing.assert_close(coordinates @ coordinates.T, product.gram(layout, vectors), rtol=1e-4, atol=1e-4)


def test_core_space_sums_products_not_factors(layout, rng):
    vectors = torch.randn(3, layout.dim, generator=rng)
    core = product.CoreSpace.of(layout, vectors, vectors[0])
    weights = torch.tensor([0.5, -1.0, 2.0])
    wide = Layout(layout.names, ((6, 5), (7, 6), (9, 6), (4, 9)), (Pair("x", 0, 1, 3.0), Pair("y", 2, 3, 0.25)))
    adapter, discarded = core.to_adapter(weights @ core.project(layout, vectors), wide)
    expected = sum(w * dense(layout, v) for w, v in zip(weights, vectors, strict=True))
    torch.testing.assert_close(dense(wide, adapter), expected, rtol=1e-4, atol=1e-4)
    assert max(discarded.values()) < 1e-10


def test_what_is_accumulated_is_the_weighted_sum_of_products(layout, rng):
    vectors, weights = torch.randn(3, layout.dim, generator=rng), torch.tensor([0.5, 0.3, 0.2])
    wide = Layout(
        ("x.A", "x.B", "y.A", "y.B"), ((5, 5), (7, 5), (4, 6), (4, 4)), (Pair("x", 0, 1, 1.0), Pair("y", 2, 3, 1.0))
    )
    total = torch.randn(wide.dim, generator=rng)
    result, discarded = product.accumulate(total, wide, vectors, weights, layout)
    assert discarded < 1e-10  # full rank holds everything
    for goal, pair in zip(wide.pairs, layout.pairs, strict=True):
        b, a = product.factors(layout, pair, vectors)
        expected = torch.einsum("n,nij->ij", weights, b @ a) + torch.matmul(*product.factors(wide, goal, total))
        torch.testing.assert_close(torch.matmul(*product.factors(wide, goal, result)), expected, rtol=1e-4, atol=1e-4)


def test_parameters_outside_every_pair_are_part_of_norms_and_of_the_core_space(rng):
    layout = Layout(("A", "B", "bias"), ((2, 5), (7, 2), (7,)), (Pair("x", 0, 1, 1.0),))
    start, vectors = torch.randn(2, layout.dim, generator=rng), torch.randn(2, layout.dim, generator=rng)
    bare = Layout(layout.names[:2], layout.shapes[:2], layout.pairs)
    c = product.change_coefficients(layout, start, vectors) - product.change_coefficients(
        bare, start[:, : bare.dim], vectors[:, : bare.dim]
    )
    torch.testing.assert_close(c[:, 0], vectors[:, bare.dim :].double().square().sum(1))
    core = product.CoreSpace.of(layout, vectors, start[0])
    back, _ = core.to_adapter(core.project(layout, vectors)[1], layout)
    torch.testing.assert_close(back[bare.dim :], vectors[1, bare.dim :])


def test_what_is_zero_in_both_factors_gets_its_first_a_again(layout, rng):
    vectors, initial = torch.randn(2, layout.dim, generator=rng), torch.randn(layout.dim, generator=rng)
    cut = product.restrict(layout, vectors, torch.tensor([1, 3]))
    revived = cut.clone()
    product.revive(layout, revived, initial)
    torch.testing.assert_close(product.gram(layout, revived), product.gram(layout, cut))
    assert torch.equal(revived[1], cut[1]) and torch.equal(
        layout.entry(revived, 2)[0, 1:], layout.entry(initial, 2)[1:]
    )


def test_the_mean_by_stacking_is_the_mean_of_the_products(layout, rng):
    vectors, weights = torch.randn(4, layout.dim, generator=rng), torch.tensor([0.1, 0.2, 0.3, 0.4])
    core = product.CoreSpace.of(layout, vectors, vectors[0])
    expected = weights @ core.project(layout, vectors)
    torch.testing.assert_close(core.mean(layout, vectors, weights), expected, rtol=1e-4, atol=1e-4)


def test_distances_are_those_of_the_products(layout, rng):
    first, second = torch.randn(2, 3, layout.dim, generator=rng)
    expected = torch.stack(
        [(dense(layout, v) - dense(layout, w)).square().sum() for v, w in zip(first, second, strict=True)]
    )
    torch.testing.assert_close(product.distances(layout, first, second), expected, rtol=1e-6, atol=1e-6)
    assert (product.distances(layout, first, first) < 1e-9).all()


@pytest.mark.parametrize("e", [0.01, 0.3])
def test_kappa_predicts_the_error_of_the_product_under_noise_on_the_factors(e, rng):
    layout = Layout(("x.A", "x.B"), ((4, 60), (50, 4)), (Pair("x", 0, 1, 0.5),))
    random = torch.randn(1, layout.dim, generator=rng)
    strong = random.clone()
    layout.entry(strong, 0)[:, 1:] *= 0.01  # one direction dominates both factors
    layout.entry(strong, 1)[:, :, 1:] *= 0.01
    for vector, expected in ((random, 1.0), (strong, 0.25)):
        k = float(product.kappa(layout, vector)[0, 0])
        assert k == pytest.approx(expected, rel=0.15)
        noisy = vector.repeat(300, 1)
        for entry in (0, 1):
            part = layout.entry(noisy, entry)
            rms = layout.entry(vector, entry).square().mean().sqrt()
            part += e**0.5 * rms * torch.randn(part.shape, generator=rng)
        power = product.distances(layout, vector, torch.zeros_like(vector))
        measured = float(product.distances(layout, noisy, vector.repeat(300, 1)).mean() / power)
        assert measured == pytest.approx(k * (2 * e + e * e), rel=0.05)
