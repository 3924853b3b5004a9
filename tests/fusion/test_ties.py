import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.utils import merge_utils

from fedfusion.fusion import Ties, stream
from fedfusion.types import Evidence, FedfusionError, Layout

LAYOUT = Layout(("a", "b", "c"), ((30, 40), (50,), (10, 75)))  # 2000 entries


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 1024)


def fuse(rule, vectors, layout=None):
    layout = layout or Layout(("w",), ((vectors.shape[1],),))
    return rule(vectors, layout, Evidence(torch.Generator()))


def reference(vectors, k, merge, majority=None):
    """TIES as the paper says it, with all task vectors in memory several times."""
    threshold = vectors.abs().topk(k).values[:, -1:]
    kept = torch.where(vectors.abs() >= threshold, vectors, 0.0)
    elected = kept.sum(0).sign()
    elected[elected == 0] = majority or (1.0 if elected.sum() >= 0 else -1.0)
    agree = kept.sign() == elected
    total = (kept * agree).sum(0)
    return total / agree.sum(0).clamp_min(1) if merge == "mean" else total


@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("density", [0.001, 0.2, 1.0])
def test_it_is_the_published_rule(rng, merge, tasks, density):
    vectors = torch.randn(tasks, LAYOUT.dim, generator=rng)
    fused = fuse(Ties(density, coefficient=0.3, merge=merge), vectors, LAYOUT)
    torch.testing.assert_close(fused, 0.3 * reference(vectors, round(density * LAYOUT.dim), merge))


def test_so_it_is_with_one_threshold_per_module(rng):
    vectors = torch.randn(4, LAYOUT.dim, generator=rng) * torch.linspace(1, 9, LAYOUT.dim)
    fused = fuse(Ties(0.1, threshold="tensor"), vectors, LAYOUT)
    for i, k in enumerate([120, 5, 75]):
        part = LAYOUT.entry(vectors, i).flatten(1)
        torch.testing.assert_close(LAYOUT.entry(fused, i).flatten(), reference(part, k, "mean"))


def test_peft_trims_by_module_and_averages(rng):
    vectors = torch.randn(4, LAYOUT.dim, generator=rng)
    fused = fuse(Ties(0.2, threshold="tensor"), vectors, LAYOUT)
    for i in range(3):
        expected = merge_utils.ties(list(LAYOUT.entry(vectors, i)), torch.ones(4), density=0.2)
        torch.testing.assert_close(LAYOUT.entry(fused, i), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_fusion_bench_trims_the_whole_vector(rng, merge):
    bench = pytest.importorskip("fusion_bench.method.ties_merging.ties_merging_utils")
    vectors = torch.randn(4, LAYOUT.dim, generator=rng)
    vectors[:, :100] = torch.randint(-2, 3, (4, 100), generator=rng) * 3.0  # some sums are zero
    kept = 0.2 - 0.5 / LAYOUT.dim  # it keeps one entry more than it says
    expected = bench.ties_merging(vectors.clone(), reset_thresh=kept, merge_func=f"dis-{merge}")
    torch.testing.assert_close(fuse(Ties(0.2, merge=merge), vectors), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("majority", [1.0, -1.0])
@pytest.mark.parametrize("threshold", ["global", "tensor"])
def test_a_sum_of_zero_takes_the_sign_of_most_entries(majority, threshold):
    vectors = majority * torch.tensor([[2.0, -3.0, 1.0, 4.0, 0.0], [-2.0, 3.0, 1.0, 1.0, 0.0]])
    layout = Layout(("a", "b"), ((2,), (3,)))
    fused = fuse(Ties(1.0, coefficient=0.5, threshold=threshold), vectors, layout)
    assert fused.tolist() == [majority * 1.0, majority * 1.5, majority * 0.5, majority * 1.25, 0.0]


@pytest.mark.parametrize("majority", [1.0, -1.0])
def test_most_entries_are_not_most_mass_and_vote_across_modules_and_blocks(rng, majority):
    vectors = torch.randint(-4, 4, (4, LAYOUT.dim), generator=rng).float()
    vectors[:, :10] = 1000.0
    vectors *= majority
    assert (vectors.sum(0) == 0).sum() > 100
    vectors[:, 1200:1250] *= 10  # another threshold
    fused = fuse(Ties(0.5, threshold="tensor"), vectors, LAYOUT)
    parts = [LAYOUT.entry(vectors, i).flatten(1) for i in range(3)]
    expected = [reference(part, part.shape[1] // 2, "mean", -majority) for part in parts]
    torch.testing.assert_close(fused, torch.cat(expected))


def test_it_is_positive_where_neither_has_the_majority():
    assert fuse(Ties(1.0), torch.tensor([[2.0, -3.0], [-2.0, 3.0]])).tolist() == [2.0, 3.0]


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.sampled_from(["global", "tensor"]))
def test_exactly_the_share_is_kept_and_at_least_one(n, density, threshold):
    vector = torch.arange(1.0, n + 1)[torch.randperm(n, generator=torch.Generator().manual_seed(n))]
    fused = fuse(Ties(density, threshold=threshold), vector[None])
    assert set(fused[fused != 0].tolist()) == set(range(n - max(1, round(density * n)) + 1, n + 1))


def test_entries_that_equal_the_threshold_are_kept():
    assert fuse(Ties(0.5), torch.tensor([[1.0, 2.0, -2.0, 3.0, 2.0, 1.0]])).tolist() == [0.0, 2.0, -2.0, 3.0, 2.0, 0.0]


INTEGERS = st.lists(st.lists(st.integers(-4, 4), min_size=7, max_size=7), min_size=1, max_size=5)


@given(INTEGERS, st.sampled_from([0.2, 0.5, 1.0]), st.sampled_from(["mean", "sum"]), st.randoms())
def test_it_does_not_depend_on_the_order_of_the_tasks(rows, density, merge, random):
    vectors = torch.tensor(rows, dtype=torch.float32)
    shuffled = vectors[random.sample(range(len(rows)), len(rows))]
    rule = Ties(density, merge=merge)
    torch.testing.assert_close(fuse(rule, shuffled), fuse(rule, vectors))
    torch.testing.assert_close(fuse(rule, 4 * vectors), 4 * fuse(rule, vectors))


@given(INTEGERS)
def test_equal_task_vectors_at_full_density_are_given_back(rows):
    vector = torch.tensor(rows[0], dtype=torch.float32)
    torch.testing.assert_close(fuse(Ties(1.0), vector.expand(len(rows), -1)), vector)


def test_task_vectors_stay_as_they_are(rng):
    vectors = torch.randn(3, 5000, generator=rng)
    before = vectors.clone()
    fuse(Ties(), vectors)
    assert torch.equal(vectors, before)


@pytest.mark.parametrize("density", [0.0, 1.1, float("nan")])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(FedfusionError, match=r"fusion.density must be in \(0, 1\]"):
        Ties(density)


@pytest.mark.parametrize("coefficient", [-1.0, float("inf"), float("nan")])
def test_a_coefficient_that_is_none_is_refused(coefficient):
    with pytest.raises(FedfusionError, match="fusion.coefficient must be finite and at least 0"):
        Ties(coefficient=coefficient)
