import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from fedfusion.lora import product
from fedfusion.types import FedfusionError, Layout, Pair

SPACES = ("core", "left", "right", "dense")


def dense(layout, vector):
    """All products `scale * B A` of an adapter, flattened into one vector: what product.py never forms."""
    parts = [p.scale * layout.entry(vector, p.b) @ layout.entry(vector, p.a) for p in layout.pairs]
    return torch.cat([part.flatten() for part in parts]).double()


def with_rank(layout, rank):
    """The same modules at another rank, with another scale, and the factors the other way round."""
    names, shapes, pairs = [], [], []
    for k, pair in enumerate(layout.pairs):
        names += [f"{pair.module}.B", f"{pair.module}.A"]
        shapes += [(layout.shapes[pair.b][0], rank), (rank, layout.shapes[pair.a][1])]
        pairs.append(Pair(pair.module, 2 * k + 1, 2 * k, 0.5 + k))
    return Layout(tuple(names), tuple(shapes), tuple(pairs))


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


@pytest.mark.parametrize("m, n, inner", [(60, 40, 12), (30, 50, 80), (20, 80, 40)])
def test_truncation_does_not_depend_on_the_factors(m, n, inner, rng):
    """Whatever invertible matrix is between them, and where they are wider than the product."""
    b, a = torch.randn(m, inner, generator=rng).double(), torch.randn(inner, n, generator=rng).double()
    u, s, vt = torch.linalg.svd(b @ a)
    best = (u[:, :9] * s[:9]) @ vt[:9]
    q, _ = torch.linalg.qr(torch.randn(inner, inner, generator=rng).double())
    change = q * torch.logspace(-3, 3, inner, dtype=torch.float64)
    for pair in ((b, a), (b @ change, torch.linalg.solve(change, a))):
        (left, right), discarded = product.truncate(pair, 9)
        assert (left @ right - best).norm() < 1e-9 * best.norm()
        assert discarded == pytest.approx(float(s[9:].square().sum() / s.square().sum()), abs=1e-12)
    single, _ = product.truncate((b.float(), a.float()), 9)
    assert (single[0] @ single[1] - best).norm() < 1e-6 * best.norm()


def balanced(b, a):
    """Whether both factors have orthogonal directions of the same length, the longest first."""
    power = (b.T @ b).diag()
    torch.testing.assert_close(b.T @ b, power.diag(), rtol=1e-4, atol=1e-4 * float(power[0]))
    torch.testing.assert_close(a @ a.T, b.T @ b, rtol=1e-4, atol=1e-4 * float(power[0]))
    assert (power[:-1] >= power[1:] - 1e-5 * power[0]).all()


def test_what_is_truncated_is_balanced_and_has_no_noise_beyond_its_rank(rng):
    b, a = torch.randn(30, 4, generator=rng), torch.randn(4, 20, generator=rng)
    (left, right), discarded = product.truncate((torch.cat([b, 2 * b], 1), torch.cat([a, a])), 7)
    balanced(left, right)
    assert not left[:, 4:].any() and not right[4:].any() and left[:, :4].any(0).all()
    assert discarded < 1e-12


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


@pytest.mark.parametrize("space", SPACES)
def test_every_space_has_the_products(layout, space, rng):
    vectors = torch.randn(3, layout.dim, generator=rng)
    core = product.CoreSpace.of(layout, vectors, vectors[0], space)
    coordinates = core.project(layout, vectors)
    torch.testing.assert_close(
        coordinates.double() @ coordinates.T.double(), product.gram(layout, vectors), rtol=1e-4, atol=1e-4
    )
    weights = torch.tensor([0.1, 0.2, 0.7])
    torch.testing.assert_close(core.mean(layout, vectors, weights), weights @ coordinates, rtol=1e-4, atol=1e-4)
    assert [u is None for u in core.left] == [space in ("right", "dense")] * 2
    assert [v is None for v in core.right] == [space in ("left", "dense")] * 2
    wide = with_rank(layout, 9)
    for row, vector in zip(coordinates, vectors, strict=True):
        adapter, discarded = core.to_adapter(row, wide)
        assert max(discarded.values()) < 1e-10
        for back in (adapter, core.embed(row, wide)):
            torch.testing.assert_close(dense(wide, back), dense(layout, vector), rtol=1e-4, atol=1e-4)
    if space == "dense":
        torch.testing.assert_close(coordinates[1].double(), dense(layout, vectors[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_the_adapter_is_the_best_of_its_rank_and_balanced(layout, space, rng):
    vectors = torch.randn(3, layout.dim, generator=rng)
    core = product.CoreSpace.of(layout, vectors, vectors[0], space)
    narrow = with_rank(layout, 3)
    adapter, discarded = core.to_adapter(core.project(layout, vectors).sum(0), narrow)
    for pair, own in zip(layout.pairs, narrow.pairs, strict=True):
        total = sum(torch.matmul(*product.factors(layout, pair, v)) for v in vectors).double()
        b, a = product.factors(narrow, own, adapter)
        balanced(b, a)  # the scale is in one of them
        s = torch.linalg.svdvals(total)
        lost = s[3:].square().sum()
        torch.testing.assert_close((b @ a - total).square().sum(), lost, rtol=1e-3, atol=1e-5)
        assert discarded[pair.module] == pytest.approx(float(lost / s.square().sum()), abs=1e-6)


@pytest.mark.parametrize("space", ["core", "left", "right"])
@pytest.mark.parametrize("n", [3, 9])
def test_the_bases_are_singular_vectors_the_strongest_first(space, n, rng):
    """Of adapters whose ranks together are less than the sides, and more."""
    layout = Layout(("A", "B"), ((4, 20), (30, 4)), (Pair("w", 0, 1, 2.0),))
    vectors = torch.randn(n, layout.dim, generator=rng)
    b, a = product.factors(layout, layout.pairs[0], vectors)
    core = product.CoreSpace.of(layout, vectors, vectors[0], space)
    stacked, products = (core.right[0], torch.cat(list(a)).T), torch.cat(list(b @ a), 1)
    stacks = {"core": [(core.left[0], torch.cat(list(b), 1)), stacked], "left": [(core.left[0], products)]}
    for basis, columns in stacks.get(space, [stacked]):
        p = min(len(columns), 4 * n)
        assert basis.shape[1] == p
        torch.testing.assert_close(basis.T @ basis, torch.eye(p), rtol=0, atol=1e-5)
        along = basis.T @ columns  # orthogonal rows, whose lengths are the singular values
        expected = torch.linalg.svdvals(columns)[:p].square().diag()
        torch.testing.assert_close(along @ along.T, expected, rtol=1e-4, atol=1e-4 * float(expected[0, 0]))


@pytest.mark.parametrize("share, kept", [(1e-2, 6), (1e-5, 6), (1e-9, 3), (0.0, 3)])
@pytest.mark.parametrize("r, n", [(3, 40), (3, 5)])
def test_what_clients_share_is_in_the_basis_once(share, kept, r, n, rng):
    """Clients that train from one `A` differ from it by a share: what single precision cannot hold is no direction."""
    layout = Layout(("A", "B"), ((r, n), (20, r)), (Pair("w", 0, 1, 1.0),))
    vectors = torch.randn(3, layout.dim, generator=rng, dtype=torch.float64)
    a = layout.entry(vectors, 0)
    a[1], a[2] = a[0] + share * a[1], a[0] + 1e-10 * a[2]
    core = product.CoreSpace.of(layout, vectors, vectors[0])
    v = core.right[0]
    assert core.layout.shapes == ((9, min(kept, n)),) and core.rank == min(kept, n)
    torch.testing.assert_close(v.T @ v, torch.eye(v.shape[1], dtype=v.dtype), rtol=0, atol=1e-8)
    assert (a - a @ v @ v.T).norm() < 1e-7 * a.norm()


def test_a_stack_of_nothing_has_a_basis(layout):
    core = product.CoreSpace.of(layout, torch.zeros(2, layout.dim), torch.zeros(layout.dim))
    assert core.rank == 1 and not core.project(layout, torch.zeros(2, layout.dim)).any()


@pytest.mark.parametrize("space", SPACES)
def test_embedding_is_linear_and_its_gradient_exact(space, rng):
    layout = Layout(("A", "B", "bias"), ((2, 5), (7, 2), (3,)), (Pair("x", 0, 1, 0.5),))
    vectors, initial = torch.randn(2, layout.dim, generator=rng), torch.randn(layout.dim, generator=rng)
    core = product.CoreSpace.of(layout, vectors, initial, space)
    wide = Layout(("bias", "B", "A"), ((3,), (7, 8), (8, 5)), (Pair("x", 2, 1, 4.0),))
    coordinates = core.project(layout, vectors)
    torch.testing.assert_close(wide.entry(core.embed(coordinates[1], wide), 0), layout.entry(vectors[1], 2))
    weights = torch.randn(7, 5, generator=rng)
    coefficients = torch.tensor([0.3, -0.8], requires_grad=True)
    b, a = product.factors(wide, wide.pairs[0], core.embed(coefficients @ coordinates, wide))
    ((b @ a) * weights).sum().backward()
    products = torch.matmul(*product.factors(layout, layout.pairs[0], vectors))
    torch.testing.assert_close(coefficients.grad, (products * weights).sum((1, 2)), rtol=1e-4, atol=1e-4)


def test_embedding_cuts_nothing_off(layout, rng):
    vectors = torch.randn(2, layout.dim, generator=rng)
    core = product.CoreSpace.of(layout, vectors, vectors[0])
    coordinates = core.project(layout, vectors)[0]
    assert core.rank == 4
    assert core.embed(coordinates, with_rank(layout, 4)).isfinite().all()
    with pytest.raises(FedfusionError, match="rank 3 at 'x', the coordinates need 4 .raise its rank to 4"):
        core.embed(coordinates, with_rank(layout, 3))


@given(st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6), st.floats(0.01, 1.0))
def test_the_rank_of_an_energy_is_the_smallest_that_keeps_it_in_every_module(values, energy):
    rng = torch.Generator().manual_seed(0)
    layout = Layout(("x", "y"), ((4, 6), (5, 4)))
    parts = []
    for shape, s in zip(layout.shapes, (values[:4], values[2:]), strict=True):
        u, v = (torch.linalg.qr(torch.randn(side, 4, generator=rng).double())[0] for side in shape)
        parts.append(((u * torch.tensor(s, dtype=torch.float64)) @ v.T).flatten())
    rank = product.CoreSpace(layout, (None, None), (None, None), torch.zeros(0)).rank_of(torch.cat(parts), energy)
    shares = []
    for s in (values[:4], values[2:]):
        power = torch.tensor(sorted(s, reverse=True), dtype=torch.float64).square()
        total = float(power.sum())
        shares.append((power.cumsum(0) / total).tolist() if total > 0 else [1.0] * 4)
    slack = 1e-9
    assert all(share[rank - 1] >= energy - slack for share in shares)
    assert rank == 1 or any(share[rank - 2] < energy + slack for share in shares)


def test_all_of_the_energy_is_the_rank_of_the_coordinates(rng):
    layout = Layout(("A", "B"), ((3, 30), (40, 3)), (Pair("x", 0, 1, 1.0),))
    vectors = torch.randn(4, layout.dim, generator=rng)
    core = product.CoreSpace.of(layout, vectors, vectors[0])
    coordinates = core.project(layout, vectors)
    assert core.rank_of(coordinates[0], 1.0) == 3 and core.rank_of(coordinates.sum(0), 1.0) == 12
    for energy in (0.0, 1.01, float("nan")):
        with pytest.raises(FedfusionError, match="energy to keep must be in"):
            core.rank_of(coordinates[0], energy)


@pytest.mark.parametrize("space", SPACES)
def test_second_moments_are_those_of_what_goes_through_the_bases(layout, space, rng):
    vectors = torch.randn(2, layout.dim, generator=rng)
    core = product.CoreSpace.of(layout, vectors, vectors[0], space)
    x, g = torch.randn(3, 11, 5, generator=rng), torch.randn(3, 11, 7, generator=rng)
    moments = core.curvature({"x": (x.mT @ x, g.mT @ g)})
    assert set(moments) == {"x"} and core.curvature({}) == {}
    u, v = core.left[0], core.right[0]
    inside, out = x if v is None else x @ v, g if u is None else g @ u
    torch.testing.assert_close(moments["x"][0], inside.mT @ inside, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments["x"][1], out.mT @ out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind, rank", [("cat", 9), ("svd", 9), ("svd", 4)])
def test_oracle_peft_merges(kind, rank, rng):
    """peft's own exact merge of weighted adapters, by stacking and by a dense decomposition."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(12, 10)), config, "0")
    for name in ("1", "2"):
        model.add_adapter(name, config)
    layer, weights = model.base_model.model[0], [0.5, 0.2, 1.5]
    layout = Layout(("A", "B"), ((3, 12), (10, 3)), (Pair("0", 0, 1, 2.0),))
    with torch.no_grad():
        vectors = torch.stack(
            [layout.flatten({"A": layer.lora_A[k].weight, "B": layer.lora_B[k].weight}) for k in ("0", "1", "2")]
        )
    ranks = {"svd_rank": rank} if kind == "svd" else {}
    model.add_weighted_adapter(["0", "1", "2"], weights, "merged", combination_type=kind, **ranks)
    core = product.CoreSpace.of(layout, vectors, torch.zeros(layout.dim))
    target = with_rank(layout, rank)
    adapter, _ = core.to_adapter(core.mean(layout, vectors, torch.tensor(weights)), target)
    b, a = product.factors(target, target.pairs[0], adapter)
    torch.testing.assert_close(b @ a, layer.get_delta_weight("merged").detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [1e-30, 1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("broadcast", [0.0, 1.0])
def test_changes_are_shortened_to_the_limit_however_tiny_it_is(layout, limit, broadcast, rng):
    """Relative to the limit: near zero a change of `B = 0` is linear in the update, so that `t` may be tiny too."""
    start, update = torch.randn(2, 4, layout.dim, generator=rng, dtype=torch.float64)
    for pair in layout.pairs:
        layout.entry(start, pair.b).mul_(broadcast)
    coefficients = product.change_coefficients(layout, start, update)
    t = product.shortening(coefficients, torch.tensor(limit, dtype=torch.float64))
    powers = torch.stack([t**2, t**3, t**4], 1)
    assert ((t > 0) & (t < 1)).all()
    torch.testing.assert_close((coefficients * powers).sum(1).sqrt(), torch.full_like(t, limit), rtol=1e-6, atol=0.0)


def test_changes_within_the_limit_stay_as_they_are_and_a_limit_of_zero_leaves_nothing(layout, rng):
    start, update = torch.randn(2, 4, layout.dim, generator=rng, dtype=torch.float64)
    coefficients = product.change_coefficients(layout, start, update)
    norms = coefficients.sum(1).sqrt()
    assert torch.equal(product.shortening(coefficients, norms), torch.ones_like(norms))
    half = product.shortening(coefficients, torch.stack([norms[0] / 2, *norms[1:]]))
    assert half[0] < 1 and torch.equal(half[1:], torch.ones(3, dtype=torch.float64))
    nothing = product.shortening(coefficients, torch.tensor(0.0, dtype=torch.float64))
    assert float(nothing.max()) < 1e-100
    assert torch.equal(
        product.shortening(torch.zeros(1, 3).double(), torch.tensor(0.0).double()), torch.ones(1).double()
    )


@pytest.mark.parametrize("c", [1e-9, 1e4, 1e9])
@pytest.mark.parametrize("space", SPACES)
def test_factors_of_any_size_leave_the_others_in_the_common_basis(layout, space, c, rng):
    """One client sends `c A` and `B / c`: the products are what they were."""
    vectors = torch.randn(4, layout.dim, generator=rng)
    expected = torch.stack([dense(layout, v) for v in vectors])
    for pair in layout.pairs:
        layout.entry(vectors, pair.a)[1] *= c
        layout.entry(vectors, pair.b)[1] /= c
    core = product.CoreSpace.of(layout, vectors, torch.zeros(layout.dim), space)
    inner = core.project(layout, vectors).double()
    torch.testing.assert_close(
        inner @ inner.T, expected @ expected.T, rtol=1e-4, atol=1e-4 * float(expected.norm() ** 2)
    )


def test_the_spectrum_is_that_of_the_dense_mean_product(layout, rng):
    vectors, weights = torch.randn(3, layout.dim, generator=rng), torch.tensor([0.5, 0.2, 0.3])
    found = product.spectrum(layout, vectors, weights)
    total = torch.zeros_like(found)
    for pair in layout.pairs:
        b, a = product.factors(layout, pair, vectors.double())
        power = torch.linalg.svdvals(torch.einsum("k,kmr,krn->mn", weights.double(), b, a)).square()[: len(found)]
        total[: len(power)] += power / power.sum() / len(layout.pairs)
    torch.testing.assert_close(found, total, rtol=1e-6, atol=1e-9)
    assert float(found.sum()) == pytest.approx(1)


def test_the_spectrum_of_one_direction_is_one_and_of_nothing_empty(layout):
    single = torch.zeros(1, layout.dim)
    pair = layout.pairs[0]
    layout.entry(single, pair.b)[:, :, 0] = 1.0
    layout.entry(single, pair.a)[:, 0] = 1.0
    shares = product.spectrum(layout, single, torch.ones(1))
    assert float(shares[0]) == pytest.approx(1) and float(shares[1:].abs().sum()) < 1e-9
    assert len(product.spectrum(layout, torch.zeros(2, layout.dim), torch.ones(2))) == 0
