import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfusion.fusion.spectral import each, polar, svd
from fedfusion.types import Layout


def low_rank(p, q, ranks, rng):
    """One matrix of each rank, float64."""
    factors = [(torch.randn(p, r, generator=rng).double(), torch.randn(r, q, generator=rng).double()) for r in ranks]
    return torch.stack([b @ a for b, a in factors])


@given(st.integers(1, 60), st.integers(1, 60), st.lists(st.integers(0, 25), min_size=1, max_size=4))
@settings(max_examples=60)
def test_the_decomposition_is_that_of_the_matrices_and_ends_at_their_ranks(p, q, ranks):
    rng = torch.Generator().manual_seed(p + 100 * q)
    matrices = low_rank(p, q, ranks, rng)
    u, s, v = svd(matrices, rng)
    torch.testing.assert_close((u * s[:, None]) @ v.mT, matrices, rtol=1e-9, atol=1e-9)
    assert (s > 0).sum(1).tolist() == [min(r, p, q) for r in ranks]
    for k, matrix in enumerate(matrices):
        own = (s[k] > 0).sum()
        torch.testing.assert_close(s[k, :own], torch.linalg.svdvals(matrix)[:own], rtol=1e-7, atol=1e-9)
        for basis in (u[k], v[k]):
            assert not basis[:, own:].any()
            torch.testing.assert_close(basis.T @ basis, torch.diag((s[k] > 0).double()), rtol=0, atol=1e-7)


@pytest.mark.parametrize("largest", [9, 70, 150])
@pytest.mark.parametrize("p, q", [(200, 220), (220, 200)])
def test_what_is_drawn_does_not_matter(p, q, largest, rng):
    """Within the first sketch, beyond it, and beyond every sketch."""
    matrices = low_rank(p, q, (3, 3, 3, 3, 3), rng)
    matrices[3] += 1e-3 * low_rank(p, q, (largest,), rng)[0]  # a weak tail of one of them
    products = []
    for seed in (1, 2):
        u, s, v = svd(matrices, torch.Generator().manual_seed(seed))
        products.append((u @ v.mT, s))
        torch.testing.assert_close((u * s[:, None]) @ v.mT, matrices, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(*products, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("p, q", [(120, 100), (30, 300)])
def test_single_precision_has_no_rank_of_its_own(p, q, rng):
    """Rounding to float32, and noise of the size of its last digit but one, leave the rank and the vectors."""
    ranks = (5, 2, 1, 4)
    exact = low_rank(p, q, ranks, rng)
    noise = torch.randn(exact.shape, generator=rng).double()
    noisy = exact + 1e-6 * noise * exact.norm(dim=(1, 2), keepdim=True) / noise.norm(dim=(1, 2), keepdim=True)
    expected = svd(exact, rng)
    for matrices in (exact.float().double(), noisy):
        u, s, v = svd(matrices, rng)
        assert (s > 0).sum(1).tolist() == list(ranks)
        torch.testing.assert_close(u @ v.mT, expected[0] @ expected[2].mT, rtol=0, atol=1e-5)


def test_zero_is_judged_against_the_scale_where_one_is_given(rng):
    matrix = low_rank(9, 30, (3,), rng)
    last = svd(matrix, rng)[1][:, 2]
    assert svd(matrix, rng, last / 0.9e-5)[1].count_nonzero() == 2  # at nine tenths of what counts as zero
    assert svd(matrix, rng, last / 1.1e-5)[1].count_nonzero() == 3


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12))
@settings(max_examples=40)
def test_the_polar_factor_is_that_of_the_nonzero_part(p, k, rank):
    rng = torch.Generator().manual_seed(p + 20 * k)
    matrix = low_rank(p, k, (rank,), rng)[0]
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    rank = min(p, k, rank)
    isometry, values = polar(matrix)
    torch.testing.assert_close(isometry, u[:, :rank] @ vt[:rank], rtol=0, atol=1e-6)
    torch.testing.assert_close(values.sort(descending=True)[0], s[:rank], rtol=1e-6, atol=1e-9)


def test_only_matrices_are_fused_and_the_rest_is_averaged(rng):
    layout = Layout(("m", "bias", "t"), ((2, 3), (4,), (2, 2, 2)))
    vectors = torch.randn(3, layout.dim, generator=rng)
    fused = each(lambda matrices: matrices[0] + 7, vectors, layout)
    torch.testing.assert_close(fused[:6], vectors[0, :6] + 7)
    torch.testing.assert_close(fused[6:], vectors[:, 6:].mean(0))
    assert fused.dtype == vectors.dtype
