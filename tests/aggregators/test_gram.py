"""The core, and what all rules on it have in common."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfusion.aggregators import (
    CAF,
    CGE,
    MDA,
    CenteredClipping,
    FLTrust,
    GeometricMedian,
    Krum,
    MoNNA,
    MultiKrum,
    gram,
)
from fedfusion.types import FedfusionError

COUNTING = [Krum(2), MultiKrum(2), MultiKrum(2, m=3), MDA(2), MoNNA(2), CGE(2), CAF(2)]
RULES = [*COUNTING, GeometricMedian(), CenteredClipping(), CenteredClipping(tau=0.7, rounds=4), FLTrust()]
MEANS = [MultiKrum(0), MDA(0), MoNNA(0), CGE(0), CAF(0), CenteredClipping(tau=torch.inf), GeometricMedian(1e9)]
MOVING = [rule for rule in RULES if not isinstance(rule, CGE | FLTrust)]  # with the origin of the coordinates

rules = pytest.mark.parametrize("rule", RULES, ids=str)
seeds = st.integers(0, 10_000)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(gram, "WIDTH", 4)


def aggregate(rule, vectors, trusted=None):
    weights = torch.full((len(vectors),), 1 / len(vectors))
    return rule(vectors, weights, torch.Generator(), vectors[0] if trusted is None else trusted)


def draw(seed, n=9, d=11):
    """Rows around a common point, two of them elsewhere, and a vector to be trusted."""
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, d, generator=rng, dtype=torch.float64) + torch.randn(d, generator=rng, dtype=torch.float64)
    vectors[:2] *= 4
    return vectors, vectors[-7:].mean(0) + 0.1 * torch.randn(d, generator=rng, dtype=torch.float64)


@given(seeds, st.integers(1, 6), st.integers(1, 13))
def test_the_gram_matrix_and_norms_are_those_of_the_rows(seed, n, d):
    vectors, origin = draw(seed, n, d)
    torch.testing.assert_close(gram.gram(vectors), vectors @ vectors.T)
    torch.testing.assert_close(gram.squared_norms(vectors), vectors.square().sum(1))
    torch.testing.assert_close(gram.squared_norms(vectors, origin), (vectors - origin).square().sum(1))
    torch.testing.assert_close(gram.inner(vectors, vectors[:1]), vectors @ vectors[:1].T)


@given(seeds, st.integers(1, 6), st.integers(1, 13))
def test_distances_are_those_of_the_rows(seed, n, d):
    vectors, _ = draw(seed, n, d)
    weights = torch.linspace(-1, 2, n, dtype=torch.float64)
    g = gram.gram(vectors)
    exact = (vectors[:, None] - vectors).square().sum(2)
    torch.testing.assert_close(gram.squared_distances(g), exact)
    torch.testing.assert_close(gram.distances_to_sum(g, weights), (vectors - weights @ vectors).norm(dim=1))
    torch.testing.assert_close(gram.reach(g), exact.sort(1).values[:, n // 2].sqrt(), atol=1e-6, rtol=1e-6)


def test_float32_is_enough_for_small_deltas_of_many_clients(rng, monkeypatch):
    monkeypatch.setattr(gram, "WIDTH", 1 << 15)
    deltas = 1e-3 * (torch.randn(40, 70_000, generator=rng) + 3 * torch.randn(70_000, generator=rng))
    g = gram.gram(deltas)
    assert g.dtype == torch.float64 and torch.equal(g, g.T)
    squares = gram.squared_distances(g)
    exact = torch.cdist(deltas.double(), deltas.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    assert not squares.diagonal().any()
    torch.testing.assert_close(squares, exact, rtol=2e-5, atol=0)


@pytest.mark.parametrize("n", range(2, 12))
def test_the_gram_matrix_is_symmetric_to_the_last_bit(rng, n, monkeypatch):
    monkeypatch.setattr(gram, "WIDTH", 1 << 15)
    g = gram.gram(torch.randn(n, 17, generator=rng))
    assert torch.equal(g, g.T)


def test_rows_too_near_for_float32_are_no_trouble(rng):
    vectors = 100 + 1e-4 * torch.randn(40, 300, generator=rng)
    g = gram.gram(vectors)
    squares = g.diagonal()
    assert torch.equal(g, g.T) and (squares[:, None] + squares < 2 * g).any()
    assert (gram.squared_distances(g) >= 0).all() and gram.reach(g).isfinite().all()
    assert gram.distances_to_sum(g, torch.full((40,), 1 / 40).double()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_square_needs_room_in_the_dtype(dtype):
    largest = torch.finfo(dtype).max
    squares = torch.tensor([1.0, 0.0, largest / 2**17, largest / 2**15, 1.0, largest], dtype=torch.float64)
    rule, rows = gram.screen(CGE(2), squares, dtype)
    assert rows.tolist() == [0, 1, 2, 4] and rule == CGE(0)


@given(seeds, st.integers(1, 9))
def test_a_sum_reads_its_rows_and_no_other(seed, m):
    vectors, _ = draw(seed)
    rows = torch.randperm(9, generator=torch.Generator().manual_seed(seed))[:m].sort().values
    weights = torch.randn(3, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = weights @ vectors[rows]
    others = torch.ones(9, dtype=torch.bool).index_fill(0, rows, False)
    vectors[others] = torch.nan
    torch.testing.assert_close(gram.combine(vectors, rows, weights), expected)
    torch.testing.assert_close(gram.combine(vectors, rows, weights[0]), expected[0])


@rules
@given(seed=seeds, random=st.randoms())
@settings(max_examples=20)
def test_the_order_of_the_rows_does_not_matter(rule, seed, random):
    vectors, trusted = draw(seed)
    shuffled = vectors[random.sample(range(9), 9)]
    torch.testing.assert_close(aggregate(rule, shuffled, trusted), aggregate(rule, vectors, trusted))


@rules
@given(seed=seeds)
@settings(max_examples=10)
def test_it_turns_with_the_rows(rule, seed):
    vectors, trusted = draw(seed)
    turn = torch.linalg.qr(torch.randn(11, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    torch.testing.assert_close(
        aggregate(rule, vectors @ turn, trusted @ turn), aggregate(rule, vectors, trusted) @ turn
    )


@rules
@given(seed=seeds, scale=st.sampled_from([1e-9, 1e-3, 1e6]))
@settings(max_examples=20)
def test_it_scales_with_the_rows(rule, seed, scale):
    vectors, trusted = draw(seed)
    expected = scale * aggregate(rule, vectors, trusted)
    if isinstance(rule, CenteredClipping) and rule.tau is not None:
        rule = replace(rule, tau=scale * rule.tau)
    torch.testing.assert_close(aggregate(rule, scale * vectors, scale * trusted), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", MOVING, ids=str)
@given(seed=seeds)
@settings(max_examples=10)
def test_it_moves_with_the_rows(rule, seed):
    vectors, trusted = draw(seed)
    moved = aggregate(rule, vectors + 5, trusted + 5)
    torch.testing.assert_close(moved, aggregate(rule, vectors, trusted) + 5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", MEANS, ids=str)
@pytest.mark.parametrize("n", [3, 4, 9])
def test_it_is_the_mean_in_the_limit(rule, n):
    vectors, _ = draw(1, n)
    torch.testing.assert_close(aggregate(rule, vectors), vectors.mean(0))


@pytest.mark.parametrize("rule", [*RULES, *MEANS], ids=str)
def test_of_equal_rows_it_is_the_row(rule):
    row = draw(2)[1]
    torch.testing.assert_close(aggregate(rule, row.expand(9, -1)), row)
    torch.testing.assert_close(aggregate(rule, row.float().expand(9, -1)), row.float())


@rules
def test_rows_of_zeros_are_no_trouble(rule):
    assert not aggregate(rule, torch.zeros(9, 5)).any()


@rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_it_is_given_stays_as_it_is_and_keeps_its_dtype(rule, dtype):
    vectors, trusted = (tensor.to(dtype) for tensor in draw(3))
    vectors[4] = torch.nan
    weights, before, own, rng = torch.eye(9)[4], vectors.clone(), trusted.clone(), torch.Generator()
    result = rule(vectors, weights, rng, trusted)
    assert result.dtype == dtype and result.shape == (11,)
    result += 1
    torch.testing.assert_close(vectors, before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(trusted, own) and torch.equal(weights, torch.eye(9)[4])


@rules
def test_what_clients_claim_does_not_count(rule):
    vectors, trusted = draw(4)
    claimed = rule(vectors, torch.eye(9)[0], torch.Generator(), trusted)
    assert torch.equal(claimed, aggregate(rule, vectors, trusted))


SPOILT = st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30, -3e38])


@rules
@given(seed=seeds, values=st.lists(SPOILT, min_size=1, max_size=3), whole=st.booleans(), random=st.randoms())
@settings(max_examples=30)
def test_rows_that_are_not_finite_are_as_if_they_had_not_come(rule, seed, values, whole, random):
    vectors, trusted = (tensor.float() for tensor in draw(seed, 9 + len(values)))
    spoilt = sorted(random.sample(range(len(vectors)), len(values)))
    for i, value in zip(spoilt, values, strict=True):
        vectors[i, slice(None) if whole else random.randrange(11)] = value
    rest = vectors[[i for i in range(len(vectors)) if i not in spoilt]]
    left = replace(rule, f=max(0, rule.f - len(values))) if rule.f else rule
    expected = aggregate(left, rest, trusted)
    assert expected.isfinite().all()
    torch.testing.assert_close(aggregate(rule, vectors, trusted), expected)


@rules
@pytest.mark.parametrize("size", [1e3, 1e8, 1e14, 1e150])
def test_two_finite_rows_of_any_size_do_not_carry_the_others_off(rule, size):
    vectors = draw(5)[0].to(torch.float32 if size < 1e30 else torch.float64)
    honest = vectors[2:].mean(0)
    for directions in [(1, 1), (1, -1), (-1, -1)]:
        vectors[:2] = size * torch.tensor(directions)[:, None] * torch.linspace(-1, 1, 11).to(vectors.dtype)
        assert (aggregate(rule, vectors, honest) - honest).norm() < 10


MAJORITY = [rule for rule in RULES if not isinstance(rule, FLTrust)]


@pytest.mark.parametrize("rule", MAJORITY, ids=str)
def test_a_majority_does(rule):
    n = rule.min_rows if rule.f else 5
    if isinstance(rule, CenteredClipping):
        rule = CenteredClipping()  # one of a given radius moves from an honest row, if there are most, and no farther
    vectors, trusted = draw(6, n)
    vectors[: n // 2 + 1] = 1e6
    assert (aggregate(rule, vectors, trusted) - trusted).norm() > 1e5


@pytest.mark.parametrize("rule", COUNTING, ids=str)
def test_too_few_rows_are_refused(rule):
    vectors, _ = draw(7, rule.min_rows)
    aggregate(rule, vectors)
    name, few = type(rule).__name__, rule.min_rows - 1
    told = rf"{name} needs n >= 2f \+ \d rows: n={few}, f=2 \(lower aggregator.f or raise suite.clients_per_task\)"
    with pytest.raises(FedfusionError, match=told):
        aggregate(rule, vectors[1:])
    assert rule.min_rows == 4 + int(rule.inequality[-1])


def test_the_rows_that_are_left_must_be_enough_for_what_is_left_of_f():
    vectors, _ = draw(8, 7)
    vectors[0] = torch.nan
    aggregate(Krum(2), vectors)  # six rows and one Byzantine
    with pytest.raises(FedfusionError, match=r"Krum needs n >= 2f \+ 3 rows: n=6, f=2 without 1 not finite \(lower"):
        aggregate(Krum(3), vectors)
    vectors[1:5] = torch.nan
    with pytest.raises(FedfusionError, match="n=2, f=0 without 5 not finite"):
        aggregate(Krum(3), vectors)


@rules
def test_no_finite_row_is_an_error_and_not_zero(rule):
    with pytest.raises(FedfusionError, match=f"{type(rule).__name__} needs a finite row: n=9, and none is"):
        aggregate(rule, torch.full((9, 5), torch.nan), torch.ones(5))


@pytest.mark.parametrize("kind", dict.fromkeys(type(rule) for rule in COUNTING))
def test_a_negative_f_is_refused(kind):
    assert kind(0).f == 0
    with pytest.raises(FedfusionError, match="^aggregator.f must be at least 0, got -1$"):
        kind(-1)


@pytest.mark.parametrize("rule", [MoNNA(1), FLTrust()], ids=str)
def test_what_compares_with_the_server_needs_something_of_it(rule):
    assert rule.needs_root and not any(other.needs_root for other in RULES if not isinstance(other, MoNNA | FLTrust))
    with pytest.raises(FedfusionError, match="compares with an update of the server's own, and was given none"):
        rule(torch.ones(3, 2), torch.ones(3), torch.Generator())


@rules
def test_it_is_no_weighted_mean_and_needs_the_rows(rule):
    assert rule.linear is False and rule.min_rows >= 1
