import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.fusion import stream


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 4))
def test_blocks_cover_everything_once_and_cross_no_bound(sizes, width):
    bounds = [0, *np.cumsum(sizes, dtype=int).tolist()]
    covered = []
    for i, part in stream.blocks(bounds, width):
        assert bounds[i] <= part.start < part.stop <= bounds[i + 1]
        assert part.stop - part.start <= width
        covered += range(part.start, part.stop)
    assert covered == list(range(bounds[-1]))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_order_statistics_are_those_of_the_sorted_values(values, data):
    ranks = sorted(data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3)))
    array = np.array(values, np.float32)
    found = stream.order_statistics(lambda part: array[part], len(values), ranks)
    assert found == [sorted(values)[rank] for rank in ranks]


@pytest.mark.parametrize(
    "values",
    [
        lambda rng, n: rng.standard_normal(n),
        lambda rng, n: np.abs(rng.standard_normal(n)) * (rng.random(n) < 0.1),  # nearly all are equal
        lambda rng, n: np.sort(rng.standard_normal(n)),
        lambda rng, n: np.where(np.arange(n) % int(n ** (1 / 3) / 4), rng.random(n), 5),  # each that is sampled is 5
        lambda rng, n: np.where(np.arange(n) % int(n ** (1 / 3) / 4), rng.random(n), -5),
        lambda rng, n: np.zeros(n),
    ],
)
def test_order_statistics_of_many_values_are_exact_whatever_the_sample_says(values):
    n = 2 * stream.SMALL + 7
    array = values(np.random.default_rng(0), n).astype(np.float32)
    ranks = [0, 3, n // 1000, n // 4, n // 2, n - n // 1000, n - 3, n - 1]
    found = stream.order_statistics(lambda part: array[part], n, ranks)
    assert found == np.sort(array)[ranks].tolist()


def test_one_pass_reads_each_value_once_and_a_sample():
    n = 2 * stream.SMALL
    array, read = np.random.default_rng(0).random(n, np.float32), []

    def values(part):
        read.append(len(array[part]))
        return array[part]

    stream.order_statistics(values, n, [n // 10, n // 2, n - n // 1000])
    assert n <= sum(read) < 1.1 * n
    assert max(read) <= stream.LONG


def test_magnitudes_are_of_each_row_between_bounds(rng):
    vectors = torch.randn(3, 10, generator=rng)
    found = stream.magnitudes(vectors, (0, 4, 10), lambda n: [0, n - 1])
    parts = [vectors[:, :4].abs(), vectors[:, 4:].abs()]
    expected = torch.stack([torch.stack([part.amin(1), part.amax(1)], 1) for part in parts], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weighted_sum_of_more_than_a_block(rng, dtype):
    vectors = torch.randn(3, 2 * stream.LONG + 5, generator=rng, dtype=dtype)
    weights = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    total = stream.weighted_sum(weights, vectors)
    assert total.dtype == dtype
    torch.testing.assert_close(total, (weights[:, None] * vectors).sum(0).to(dtype))
