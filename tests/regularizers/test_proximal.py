import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.regularizers import Proximal
from fedfusion.types import FedfusionError, Layout

PLAIN = Layout(("w",), ((4,),))
OWN = torch.zeros(3, dtype=torch.long)


@given(st.floats(0.0, 10.0), st.integers(0, 20))
def test_its_gradient_pulls_back_to_what_was_broadcast(mu, seed):
    params, anchor = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
    params.requires_grad_()
    penalty = Proximal(mu)(params, anchor, torch.zeros(0, 4), OWN, PLAIN)
    (gradient,) = torch.autograd.grad(penalty.sum(), params)
    torch.testing.assert_close(gradient, mu * (params - anchor).detach())
    torch.testing.assert_close(penalty, mu / 2 * torch.linalg.vector_norm(params - anchor, dim=1) ** 2)


def test_it_is_zero_at_the_anchor(rng):
    anchor = torch.randn(3, 4, generator=rng)
    assert not Proximal(2.0)(anchor, anchor, torch.zeros(0, 4), OWN, PLAIN).any()
    assert not Proximal.needs_tasks


@pytest.mark.parametrize("mu", [-1.0, float("inf"), float("nan")])
def test_a_strength_out_of_range_is_refused(mu):
    with pytest.raises(FedfusionError, match="client.regularizer.mu must be"):
        Proximal(mu)
