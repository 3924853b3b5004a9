import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.fusion.groups import Groups
from fedfusion.types import Layout

LAYOUT = Layout(("x", "bias", "y"), ((5, 4), (3,), (2, 6)))
GRANULARITIES = ("task", "layer", "block", "row", "element")


@pytest.mark.parametrize(
    "granularity, sizes",
    [
        ("task", [35]),
        ("layer", [20, 3, 12]),
        ("block", [8, 8, 4, 3, 6, 6]),
        ("row", [4] * 5 + [3] + [6] * 2),
        ("element", [1] * 35),
    ],
)
def test_groups_are_runs_of_coordinates_of_known_sizes(granularity, sizes):
    groups = Groups.split(LAYOUT, granularity, blocks=3)
    assert groups.count == len(sizes) and (groups.of.diff() >= 0).all()
    assert groups.of.bincount().tolist() == sizes


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
def test_blocks_are_of_nearly_the_same_number_of_rows(rows, blocks, columns):
    sizes = Groups.split(Layout(("x",), ((rows, columns),)), "block", blocks).of.bincount()
    assert len(sizes) == min(rows, blocks) and (sizes % columns == 0).all()
    assert sizes.max() - sizes.min() <= columns


@given(st.sampled_from(GRANULARITIES), st.integers(1, 5), st.integers(1, 7))
def test_the_sum_and_its_slopes_are_those_of_autograd(granularity, tasks, blocks):
    rng = torch.Generator().manual_seed(tasks)
    groups = Groups.split(LAYOUT, granularity, blocks)
    vectors = torch.randn(tasks, LAYOUT.dim, generator=rng, dtype=torch.float64)
    coefficients = torch.randn(tasks, groups.count, generator=rng, dtype=torch.float64, requires_grad=True)
    expected = (coefficients[:, groups.of] * vectors).sum(0)
    torch.testing.assert_close(groups.combine(coefficients.detach(), vectors), expected.detach())
    gradient = torch.randn(LAYOUT.dim, generator=rng, dtype=torch.float64)
    expected.backward(gradient)
    torch.testing.assert_close(groups.slopes(gradient, vectors), coefficients.grad)


def test_slopes_of_long_groups_keep_their_small_terms():
    vectors = torch.full((1, 300_000), 0.1)
    vectors[0, 0] = 1e6
    slopes = Groups.split(Layout(("w",), ((300_000,),)), "task").slopes(torch.ones(300_000), vectors)
    assert float(slopes) == pytest.approx(1e6 + 29_999.9, rel=1e-6)
