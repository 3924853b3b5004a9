import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.optimizers import FedAvgM
from fedfusion.types import FedfusionError


@given(st.floats(0.1, 2.0), st.floats(0.0, 0.9), st.integers(1, 5))
def test_it_is_the_geometric_sum_of_all_changes(lr, momentum, rounds):
    changes = torch.randn(rounds, 2, 3, generator=torch.Generator().manual_seed(rounds))
    moments = torch.zeros(1, 2, 3)
    for change in changes:
        before = moments.clone()
        step, after = FedAvgM(lr, momentum)(change, moments)
        assert torch.equal(moments, before)  # state goes in and comes out
        moments = after
    expected = lr * sum(momentum ** (rounds - 1 - t) * change for t, change in enumerate(changes))
    torch.testing.assert_close(step, expected)


def test_without_momentum_it_is_plain(rng):
    change, moments = torch.randn(2, 3, generator=rng), torch.randn(1, 2, 3, generator=rng)
    assert torch.equal(FedAvgM(1.0, 0.0)(change, moments)[0], change)


@pytest.mark.parametrize("values, key", [((0.0, 0.5), "lr"), ((float("inf"), 0.5), "lr"), ((1.0, 1.0), "momentum")])
def test_values_out_of_range_are_refused(values, key):
    with pytest.raises(FedfusionError, match=f"server_optimizer.{key} must be"):
        FedAvgM(*values)
