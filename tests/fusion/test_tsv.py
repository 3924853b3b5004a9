import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfusion.fusion import TsvM
from fedfusion.lora.product import CoreSpace, factors
from fedfusion.types import Evidence, FedfusionError, Layout, Pair


def run(matrices, coefficient=1.0, seed=0):
    """The rule on one module, `[T, p, q]` to `[p, q]`."""
    layout = Layout(("w",), (tuple(matrices.shape[1:]),))
    evidence = Evidence(torch.Generator().manual_seed(seed))
    return TsvM(coefficient)(matrices.flatten(1), layout, evidence).unflatten(0, layout.shapes[0])


def published(matrices, *kept):
    """The paper's formula by dense algebra, with a given number of singular vectors for each task."""
    u, s, v = [], [], []
    for matrix, r in zip(matrices.double(), kept * (len(matrices) // len(kept)), strict=True):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        u, s, v = [*u, left[:, :r]], [*s, values[:r]], [*v, right[:r].T]
    (p, _, q), (x, _, y) = (torch.linalg.svd(torch.cat(side, 1), full_matrices=False) for side in (u, v))
    return (p @ q) @ torch.diag(torch.cat(s)) @ (x @ y).T


def adapters(rng, tasks=4, r=3, m=50, n=40, shared=False):
    layout = Layout(("A", "B"), ((r, n), (m, r)), (Pair("w", 0, 1, 2.0),))
    vectors = torch.randn(tasks, layout.dim, generator=rng)
    if shared:
        layout.entry(vectors, 0).copy_(layout.entry(vectors[0], 0).clone())
    return layout, vectors


def dense(layout, vectors):
    b, a = factors(layout, layout.pairs[0], vectors)
    return b @ a


def in_core_space(layout, vectors):
    """The rule on adapters, from factors to the fused product."""
    core = CoreSpace.of(layout, vectors, torch.zeros(layout.dim))
    fused = TsvM()(core.project(layout, vectors), core.layout, Evidence(torch.Generator()))
    wide = Layout(("A", "B"), ((core.rank, layout.shapes[0][1]), (layout.shapes[1][0], core.rank)), layout.pairs)
    return dense(wide, core.embed(fused, wide))


@pytest.mark.parametrize("shape", [(24, 24), (30, 18), (18, 31)])
@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
def test_matrices_of_full_rank_are_merged_as_published(shape, tasks, rng):
    matrices = torch.randn(tasks, *shape, generator=rng)
    expected = published(matrices, min(shape) // tasks)
    torch.testing.assert_close(run(matrices).double(), expected, rtol=1e-5, atol=1e-5)


def test_oracle_fusion_bench(rng):
    utils = pytest.importorskip("fusion_bench.method.task_singular_vector.utils.TSVM_utils")
    matrices = torch.randn(4, 48, 32, generator=rng).double()
    theirs = utils.compute_and_sum_svd_mem_reduction([{"w": m.clone()} for m in matrices], accelerator="cpu")["w"]
    torch.testing.assert_close(run(matrices), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tasks, r", [(4, 3), (2, 7), (8, 5)])
def test_matrices_of_low_rank_keep_all_their_singular_vectors(tasks, r, rng):
    matrices = dense(*adapters(rng, tasks, r)).double()
    torch.testing.assert_close(run(matrices), published(matrices, r), rtol=1e-5, atol=1e-5)


def test_ranks_may_differ(rng):
    """A task whose rank is above its share keeps it where there is room."""
    matrices = torch.cat([dense(*adapters(rng, tasks=3, r=2)), dense(*adapters(rng, tasks=1, r=17))]).double()
    torch.testing.assert_close(run(matrices), published(matrices, 2, 2, 2, 17), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_noise_of_a_millionth_changes_a_millionth(shared, rng):
    matrices = dense(*adapters(rng, shared=shared)).double()
    noise = torch.randn(matrices.shape, generator=rng).double()
    noisy = matrices + 1e-6 * noise * matrices.norm(dim=(1, 2), keepdim=True) / noise.norm(dim=(1, 2), keepdim=True)
    clean = run(matrices)
    assert (run(noisy) - clean).norm() < 2e-6 * clean.norm()
    share = min(matrices.shape[1:]) // len(matrices)
    ill = published(noisy, share) - published(matrices, share)
    assert ill.norm() > 0.1 * clean.norm()  # what the rule is here to prevent


@pytest.mark.parametrize("tasks, r", [(4, 3), (3, 16), (6, 9)])
def test_coordinates_do_not_matter(tasks, r, rng):
    """Core space gives what the dense products do, also where the stacked ranks are more than a side."""
    layout, vectors = adapters(rng, tasks, r)
    expected = run(dense(layout, vectors))
    assert (in_core_space(layout, vectors) - expected).norm() < 1e-5 * expected.norm()


def test_other_factors_of_the_same_products_do_not_matter(rng):
    layout, vectors = adapters(rng)
    other = vectors.clone()
    change = torch.randn(4, 3, 3, generator=rng) + 3 * torch.eye(3)
    layout.entry(other, 0).copy_(torch.linalg.solve(change, layout.entry(vectors, 0)))
    layout.entry(other, 1).copy_(layout.entry(vectors, 1) @ change)
    expected = in_core_space(layout, vectors)
    assert (in_core_space(layout, other) - expected).norm() < 1e-5 * expected.norm()


@given(st.permutations(range(4)), st.integers(1, 8))
@settings(max_examples=20)
def test_the_order_of_the_tasks_does_not_matter(order, r):
    matrices = dense(*adapters(torch.Generator().manual_seed(r), r=r)).double()
    torch.testing.assert_close(run(matrices[order]), run(matrices), rtol=1e-6, atol=1e-6)


def test_orthogonal_tasks_are_summed(rng):
    """Rows and columns of each task are orthogonal to those of the others."""
    u, v = (torch.linalg.qr(torch.randn(side, 12, generator=rng).double())[0] for side in (20, 30))
    blocks = torch.randn(3, 4, 4, generator=rng).double()
    matrices = torch.stack([u[:, 4 * k : 4 * k + 4] @ blocks[k] @ v[:, 4 * k : 4 * k + 4].T for k in range(3)])
    torch.testing.assert_close(run(matrices, 0.5), 0.5 * matrices.sum(0), rtol=1e-6, atol=1e-6)


def test_what_all_tasks_share_is_not_amplified(rng):
    """Twice the same task: as vectors in twice the same place cannot be orthogonal, each keeps half."""
    one = dense(*adapters(rng, tasks=1, r=5))[0].double()
    torch.testing.assert_close(run(torch.stack([one, one])), one, rtol=1e-5, atol=1e-5)


def test_clients_that_share_a_factor_have_a_finite_merge_of_full_rank(rng):
    layout, vectors = adapters(rng, tasks=6, r=2, shared=True)
    fused = in_core_space(layout, vectors)
    assert torch.isfinite(fused).all()
    assert torch.linalg.matrix_rank(fused.double(), rtol=1e-4) == 2


def test_nothing_stays_nothing_and_vectors_are_averaged(rng):
    layout = Layout(("w", "bias"), ((4, 5), (3,)))
    vectors = torch.zeros(3, layout.dim)
    vectors[:, 20:] = torch.randn(3, 3, generator=rng)
    before = vectors.clone()
    fused = TsvM(2.0)(vectors, layout, Evidence(rng))
    assert not fused[:20].any() and torch.equal(vectors, before)
    torch.testing.assert_close(fused[20:], 2 * vectors[:, 20:].mean(0))


@pytest.mark.parametrize("coefficient", [-0.1, float("nan"), float("inf")])
def test_a_coefficient_that_is_none_is_refused(coefficient):
    with pytest.raises(FedfusionError, match="fusion.coefficient must be at least 0"):
        TsvM(coefficient)
