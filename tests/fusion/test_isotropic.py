import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfusion.fusion import Isotropic
from fedfusion.lora.product import CoreSpace, factors
from fedfusion.types import Evidence, FedfusionError, Layout, Pair


def run(matrices, fraction=1.0, coefficient=1.0, seed=0):
    """The rule on one module, `[T, p, q]` to `[p, q]`."""
    layout = Layout(("w",), (tuple(matrices.shape[1:]),))
    evidence = Evidence(torch.Generator().manual_seed(seed))
    return Isotropic(coefficient, fraction)(matrices.flatten(1), layout, evidence).unflatten(0, layout.shapes[0])


def iso_c(matrices, rank):
    """The paper's formula by dense algebra, over the first `rank` singular values."""
    u, s, vt = torch.linalg.svd(matrices.double().sum(0), full_matrices=False)
    return s[:rank].mean() * u[:, :rank] @ vt[:rank]


def iso_cts(matrices, fraction, rank):
    """The paper's formula by dense algebra, with shares of `rank`."""
    matrices, tasks = matrices.double(), len(matrices)
    u, s, vt = torch.linalg.svd(matrices.sum(0), full_matrices=False)
    own = round((rank - int(rank * fraction)) / tasks)
    common = rank - own * tasks
    us, ss, vs = [u[:, :common]], [s[:common]], [vt[:common].T]
    for matrix in matrices:
        left, values, right = torch.linalg.svd(matrix - us[0] @ us[0].T @ matrix, full_matrices=False)
        us, ss, vs = [*us, left[:, :own]], [*ss, values[:own]], [*vs, right[:own].T]
    (p, _, q), (x, _, y) = (torch.linalg.svd(torch.cat(side, 1), full_matrices=False) for side in (us, vs))
    return torch.cat(ss).mean() * (p @ q) @ (x @ y).T


def adapters(rng, tasks=4, r=5, m=50, n=40):
    layout = Layout(("A", "B"), ((r, n), (m, r)), (Pair("w", 0, 1, 2.0),))
    return layout, torch.randn(tasks, layout.dim, generator=rng)


def dense(layout, vectors):
    b, a = factors(layout, layout.pairs[0], vectors)
    return b.double() @ a.double()


def in_core_space(layout, vectors, fraction):
    """The rule on adapters, from factors to the fused product."""
    core = CoreSpace.of(layout, vectors, torch.zeros(layout.dim))
    fused = Isotropic(1.0, fraction)(core.project(layout, vectors), core.layout, Evidence(torch.Generator()))
    wide = Layout(("A", "B"), ((core.rank, layout.shapes[0][1]), (layout.shapes[1][0], core.rank)), layout.pairs)
    return dense(wide, core.embed(fused, wide))


@pytest.mark.parametrize("shape", [(24, 24), (30, 18), (18, 31)])
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_sum_of_full_rank_is_merged_as_published(shape, tasks, rng):
    matrices = torch.randn(tasks, *shape, generator=rng)
    expected = iso_c(matrices, min(shape)).float()
    torch.testing.assert_close(run(matrices), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (30, 18), (18, 31)])
@pytest.mark.parametrize("tasks, fraction", [(1, 0.8), (3, 0.8), (4, 0.3), (2, 0.0)])
def test_common_and_own_directions_of_full_rank_are_merged_as_published(shape, tasks, fraction, rng):
    matrices = torch.randn(tasks, *shape, generator=rng)
    expected = iso_cts(matrices, fraction, min(shape)).float()
    torch.testing.assert_close(run(matrices, fraction), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fraction", [1.0, 0.8, 0.4])
def test_oracle_fusion_bench(fraction, rng):
    utils = pytest.importorskip("fusion_bench.method.isotropic_merging.iso_utils")
    states = [{"w": m} for m in torch.randn(4, 48, 32, generator=rng).double()]
    if fraction == 1:
        theirs = utils.iso_c(states, accelerator="cpu")["w"]
    else:
        theirs = utils.iso_cts(states, fraction, accelerator="cpu")["w"]
    ours = run(torch.stack([state["w"] for state in states]), fraction)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fraction", [0.8, 0.5])
def test_shares_are_those_of_the_rank(fraction, rng):
    matrices = dense(*adapters(rng))
    torch.testing.assert_close(run(matrices), iso_c(matrices, 20), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(run(matrices, fraction), iso_cts(matrices, fraction, 20), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fraction", [1.0, 0.8])
def test_noise_of_a_millionth_changes_a_millionth(fraction, rng):
    matrices = dense(*adapters(rng))
    noise = torch.randn(matrices.shape, generator=rng).double()
    noisy = matrices + 1e-6 * noise * matrices.norm(dim=(1, 2), keepdim=True) / noise.norm(dim=(1, 2), keepdim=True)
    clean = run(matrices, fraction)
    assert (run(noisy, fraction) - clean).norm() < 1e-5 * clean.norm()
    ill = iso_cts(noisy, fraction, 40) - iso_cts(matrices, fraction, 40)
    assert ill.norm() > 0.1 * clean.norm()  # what the rule is here to prevent


@pytest.mark.parametrize("fraction", [1.0, 0.8])
@pytest.mark.parametrize("tasks, r", [(4, 3), (3, 16)])
def test_coordinates_do_not_matter(fraction, tasks, r, rng):
    """Core space gives what the dense products do, also where the stacked ranks are more than a side."""
    layout, vectors = adapters(rng, tasks, r)
    expected = run(dense(layout, vectors), fraction)
    assert (in_core_space(layout, vectors, fraction) - expected).norm() < 1e-4 * expected.norm()


@given(st.permutations(range(4)), st.integers(1, 8), st.sampled_from([1.0, 0.8, 0.5]))
@settings(max_examples=20)
def test_the_order_of_the_tasks_does_not_matter(order, r, fraction):
    matrices = dense(*adapters(torch.Generator().manual_seed(r), r=r))
    torch.testing.assert_close(run(matrices[order], fraction), run(matrices, fraction), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fraction", [1.0, 0.8, 0.5, 0.0])
def test_a_flat_sum_of_orthogonal_tasks_stays_as_it_is(fraction, rng):
    u, v = (torch.linalg.qr(torch.randn(side, 12, generator=rng).double())[0] for side in (20, 30))
    matrices = torch.stack([3 * u[:, 4 * k : 4 * k + 4] @ v[:, 4 * k : 4 * k + 4].T for k in range(3)])
    fused = run(matrices, fraction, coefficient=0.5)
    if fraction == 1:  # with less the choice among equal directions is arbitrary, but not their strength
        torch.testing.assert_close(fused, 0.5 * matrices.sum(0), rtol=1e-6, atol=1e-6)
    s = torch.linalg.svdvals(fused)
    assert s[0] == pytest.approx(float(s[s > 1e-6 * s[0]][-1]), rel=1e-6)


def test_a_task_within_the_common_part_has_nothing_beside_it(rng):
    """What is left of it is rounding, which must not become a direction."""
    u, v = (torch.linalg.qr(torch.randn(side, 8, generator=rng).double())[0] for side in (20, 30))
    s = torch.tensor([9.0, 8.0, 7.0, 6.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    strong, weak = ((u[:, part] * s[part]) @ v[:, part].T for part in (slice(0, 4), slice(4, 8)))
    fused = run(torch.stack([strong, weak]), 0.5)  # four common directions, two of each task
    torch.testing.assert_close(fused, s[:6].mean() * u[:, :6] @ v[:, :6].T, rtol=1e-6, atol=1e-6)


def test_a_rank_too_small_to_share_is_all_common(rng):
    matrices = dense(*adapters(rng, tasks=1, r=3)).repeat(5, 1, 1)
    torch.testing.assert_close(run(matrices, 0.0), iso_c(matrices, 3), rtol=1e-6, atol=1e-6)


def test_nothing_stays_nothing_and_vectors_are_averaged(rng):
    layout = Layout(("w", "bias"), ((4, 5), (3,)))
    vectors = torch.zeros(3, layout.dim)
    vectors[:, 20:] = torch.randn(3, 3, generator=rng)
    before = vectors.clone()
    for fraction in (1.0, 0.5):
        fused = Isotropic(2.0, fraction)(vectors, layout, Evidence(rng))
        assert not fused[:20].any() and torch.equal(vectors, before)
        torch.testing.assert_close(fused[20:], 2 * vectors[:, 20:].mean(0))


@pytest.mark.parametrize("key, values", [("coefficient", (-0.1, float("nan"))), ("fraction", (-0.1, 1.1))])
def test_parameters_that_make_no_sense_are_refused(key, values):
    for value in values:
        with pytest.raises(FedfusionError, match=f"fusion.{key} must be"):
            Isotropic(**{key: value})
