import pytest
import torch

from fedfusion.optimizers import FedAdam
from fedfusion.types import FedfusionError


def test_it_is_the_published_recursion(rng):
    optimizer = FedAdam(lr=0.1, beta1=0.8, beta2=0.95, tau=0.01)
    moments, m, v = torch.zeros(2, 3, 4), torch.zeros(3, 4), torch.full((3, 4), 0.01**2)
    for _ in (1, 2, 3):
        change = torch.randn(3, 4, generator=rng)
        before = moments.clone()
        step, after = optimizer(change, moments)
        assert torch.equal(moments, before)
        m, v, moments = 0.8 * m + 0.2 * change, 0.95 * v + 0.05 * change**2, after
        torch.testing.assert_close(step, 0.1 * m / (v.sqrt() + 0.01))
        torch.testing.assert_close(after, torch.stack([m, v - 0.01**2]))


def test_small_and_large_changes_take_steps_of_one_size():
    change = torch.tensor([[1e-3, -1.0, 1e3, 0.0]])
    step, _ = FedAdam(lr=0.5, beta1=0.0, beta2=0.0, tau=1e-9)(change, torch.zeros(2, 1, 4))
    torch.testing.assert_close(step, torch.tensor([[0.5, -0.5, 0.5, 0.0]]))


def test_a_large_tau_is_not_adaptive(rng):
    change, moments, factors = torch.randn(2, 3, generator=rng), torch.zeros(2, 2, 3), []
    for _ in range(1, 800):
        step, moments = FedAdam(lr=1e6, beta1=0.0, beta2=0.99, tau=1e6)(change, moments)
        torch.testing.assert_close(step / change, (step / change)[0, 0].expand(2, 3), rtol=1e-4, atol=1e-4)
        factors.append(float((step / change)[0, 0]))
    assert factors[0] == pytest.approx(0.5, abs=0.01) and factors[-1] > 0.98 and factors == sorted(factors)


@pytest.mark.parametrize(
    "name, value", [("lr", 0.0), ("tau", 0.0), ("beta1", 1.0), ("beta2", -0.1), ("lr", float("nan"))]
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(FedfusionError, match=f"server_optimizer.{name} must be"):
        FedAdam(**{name: value})
