import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.fusion import TaskArithmetic
from fedfusion.types import FedfusionError, Layout


@given(st.floats(0.0, 2.0), st.integers(1, 9))
def test_it_is_the_scaled_sum(coefficient, tasks):
    vectors = torch.randn(tasks, 4, generator=torch.Generator().manual_seed(tasks))
    fused = TaskArithmetic(coefficient)(vectors, Layout(("w",), ((4,),)))
    torch.testing.assert_close(fused, coefficient * vectors.sum(0))


def test_one_over_t_is_the_average(rng):
    vectors = torch.randn(4, 3, generator=rng)
    torch.testing.assert_close(TaskArithmetic(0.25)(vectors, Layout(("w",), ((3,),))), vectors.mean(0))


def test_a_negative_coefficient_is_refused():
    with pytest.raises(FedfusionError, match="fusion.coefficient"):
        TaskArithmetic(-0.1)
