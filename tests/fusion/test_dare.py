import pytest
import torch
from peft.utils import merge_utils

from fedfusion.fusion import Dare, Ties, stream
from fedfusion.types import Evidence, FedfusionError, Layout

N = 40_000


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 1 << 14)


def fuse(rule, vectors, seed=0):
    return rule(vectors, Layout(("w",), ((vectors.shape[1],),)), Evidence(torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_each_entry_of_each_task_is_dropped_for_itself(drop):
    """The sum of powers of two says which tasks are left in an entry; all subsets are as frequent as they should be."""
    kept = 1 - round(drop * 65536) / 65536
    fused = fuse(Dare(drop, coefficient=1.0), torch.tensor([1.0, 2.0, 4.0])[:, None].expand(3, N))
    subsets = fused * kept
    torch.testing.assert_close(subsets, subsets.round())
    for subset in range(8):
        size = subset.bit_count()
        share = kept**size * (1 - kept) ** (3 - size)
        found = (subsets.round() == subset).float().mean().item()
        assert abs(found - share) < 5 * (share * (1 - share) / N) ** 0.5
    mask = subsets.round() % 2
    for lag in (1, 2, 3, 4, stream.width(3)):  # one random word decides on four entries, and each block draws anew
        assert abs(torch.corrcoef(torch.stack([mask[:-lag], mask[lag:]]))[0, 1]) < 5 * N**-0.5


def test_its_mean_and_error_are_those_of_the_docstring(rng):
    vectors = torch.randn(3, 50, generator=rng)
    draws = torch.stack([fuse(Dare(0.75, coefficient=0.5), vectors, seed) for seed in range(2000)])
    expected, variance = 0.5 * vectors.sum(0), 0.25 * 3 * vectors.square().sum(0)
    assert ((draws.mean(0) - expected).abs() < 5 * (variance / 2000).sqrt()).all()
    torch.testing.assert_close((draws - expected).square().sum(1).mean(), variance.sum(), rtol=0.05, atol=0)


def test_nothing_dropped_is_task_arithmetic_or_ties_without_trimming(rng):
    vectors = torch.randn(3, 5000, generator=rng)
    torch.testing.assert_close(fuse(Dare(0.0, coefficient=0.3), vectors), 0.3 * vectors.sum(0))
    torch.testing.assert_close(fuse(Dare(0.0, coefficient=1.0, merge="mean"), vectors), fuse(Ties(1.0), vectors))


def test_the_mean_is_over_what_agrees_with_the_sign_of_the_sum():
    vectors = torch.tensor([4.0, -2.0, -1.0])[:, None].expand(3, N)
    fused = fuse(Dare(0.5, coefficient=0.5, merge="mean"), vectors)
    values, counts = fused.unique(return_counts=True)
    assert values.tolist() == [-2.0, -1.5, -1.0, 0.0, 4.0]  # {-2}, {-2, -1}, {-1}, nothing, and all with 4
    expected = torch.tensor([1, 1, 1, 1, 4]) / 8
    assert ((counts / N - expected).abs() < 5 * (expected * (1 - expected) / N).sqrt()).all()


def test_the_generator_of_the_evidence_draws(rng):
    vectors = torch.randn(2, 5000, generator=rng)
    assert torch.equal(fuse(Dare(), vectors, 1), fuse(Dare(), vectors, 1))
    assert not torch.equal(fuse(Dare(), vectors, 1), fuse(Dare(), vectors, 2))
    evidence = Evidence(torch.Generator().manual_seed(1))
    layout = Layout(("w",), ((5000,),))
    first = Dare()(vectors, layout, evidence)
    assert not torch.equal(first, Dare()(vectors, layout, evidence))


def test_peft_keeps_as_many_and_rescales_alike(rng):
    vectors = torch.randn(3, N, generator=rng)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = merge_utils.dare_linear(list(vectors), torch.full((3,), 0.7), density=0.25)
    fused = fuse(Dare(0.75, coefficient=0.7), vectors)
    torch.testing.assert_close(fused.square().mean(), expected.square().mean(), rtol=0.05, atol=0)
    torch.testing.assert_close((fused == 0).float().mean(), (expected == 0).float().mean(), rtol=0.03, atol=0)


def test_fusion_bench_leaves_the_same_values(rng):
    bench = pytest.importorskip("fusion_bench.method.dare.utils")
    vector = torch.randn(1, N, generator=rng)
    expected = torch.nn.Parameter(vector[0].clone())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        bench.param_random_drop_(expected, 0.75, rescale=True)
    fused = fuse(Dare(0.75, coefficient=1.0), vector)
    both = (fused != 0) & (expected != 0)
    assert both.sum() > N / 20
    torch.testing.assert_close(fused[both], expected.detach()[both], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((fused == 0).float().mean(), (expected == 0).float().mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize("drop", [-0.1, 1.0, 1.0 - 1e-7, float("nan"), float("inf")])
def test_a_probability_that_leaves_nothing_is_refused(drop):
    with pytest.raises(FedfusionError, match=r"fusion.drop must be in \[0, 1\)"):
        Dare(drop)


@pytest.mark.parametrize("coefficient", [-1.0, float("inf"), float("nan")])
def test_a_coefficient_that_is_none_is_refused(coefficient):
    with pytest.raises(FedfusionError, match="fusion.coefficient must be finite and at least 0"):
        Dare(coefficient=coefficient)
