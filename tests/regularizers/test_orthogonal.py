import pytest
import torch

from fedfusion.regularizers import Orthogonal
from fedfusion.types import FedfusionError

OWN = torch.tensor([2, 0, 2, 1])


@pytest.fixture
def params(layout, rng):
    return torch.randn(4, layout.dim, dtype=torch.float64, generator=rng)


@pytest.fixture
def tasks(layout, rng):
    return torch.randn(3, layout.dim, dtype=torch.float64, generator=rng)


def test_it_is_the_published_sum_over_the_other_tasks(params, tasks, layout):
    penalty = Orthogonal(0.7)(params, params, tasks, OWN, layout)
    for k, own in enumerate(OWN.tolist()):
        expected = 0.0
        for t in {0, 1, 2} - {own}:
            for pair in layout.pairs:
                expected += 0.7 * (layout.entry(params[k], pair.a) @ layout.entry(tasks[t], pair.a).T).square().sum()
        torch.testing.assert_close(penalty[k], expected)


def test_its_gradient_is_that_of_finite_differences(params, tasks, layout):
    params.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: Orthogonal()(p, p, tasks, OWN, layout), (params,))
    (gradient,) = torch.autograd.grad(Orthogonal()(params, params, tasks, OWN, layout).sum(), params)
    for pair in layout.pairs:  # 2 lambda A_k sum_t A_t^T A_t; B is free
        for k, own in enumerate(OWN.tolist()):
            others = [layout.entry(tasks[t], pair.a) for t in {0, 1, 2} - {own}]
            expected = layout.entry(params[k], pair.a) @ sum(a.T @ a for a in others)
            torch.testing.assert_close(layout.entry(gradient[k], pair.a), expected)
        assert not layout.entry(gradient, pair.b).any()


def test_orthogonal_directions_and_a_single_task_cost_nothing(layout, params, tasks):
    assert Orthogonal.needs_tasks
    assert not Orthogonal()(params, params, tasks[:1], torch.zeros(4, dtype=torch.long), layout).any()
    apart = torch.zeros(2, layout.dim)
    for pair in layout.pairs:
        layout.entry(apart[0], pair.a)[:, 0] = 1.0
        layout.entry(apart[1], pair.a)[:, 1] = 1.0
    assert not Orthogonal()(apart, apart, apart, torch.tensor([0, 1]), layout).any()


@pytest.mark.parametrize("strength", [-1.0, float("inf"), float("nan")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(FedfusionError, match="client.regularizer.strength must be"):
        Orthogonal(strength)
