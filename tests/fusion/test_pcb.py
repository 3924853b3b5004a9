import pytest
import torch

from fedfusion.fusion import Pcb, pcb
from fedfusion.types import Evidence, FedfusionError, Layout


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(pcb, "LONG", 1000)


def fuse(rule, vectors):
    return rule(vectors, Layout(("w",), ((vectors.shape[1],),)), Evidence(torch.Generator()))


def scaled(x):
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return (x - low) / (high - low)


def between(x, below, above):
    """Rows of `x` clipped to their values of two ranks."""
    ordered = x.sort(1).values
    return x.clamp(ordered[:, below, None], ordered[:, above, None])


def reference(vectors, density, tail):
    """The rule with all intermediate matrices in memory."""
    tasks, d = vectors.shape
    size = between(vectors.abs(), int(d * tail), int(d * (1 - tail) - 1))
    score = torch.exp(tasks * scaled(size).square()) * torch.tanh(vectors * vectors.sum(0))
    weights = scaled(between(score, int(d * (1 - density)), d - 1))
    return (weights * vectors.sign() * size).sum(0) / weights.sum(0).clamp_min(1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("tail", [0.0, 1e-3, 0.1])
def test_it_is_the_published_rule(rng, scale, density, tail):
    vectors = scale * torch.randn(4, 3456, generator=rng)
    vectors[:, :50] = 0.0
    fused = fuse(Pcb(density, coefficient=1.2, tail=tail), vectors)
    torch.testing.assert_close(fused, 1.2 * reference(vectors, density, tail), rtol=1e-4, atol=1e-5 * scale)


def test_one_task_is_cut_to_its_largest_entries(rng):
    vector = torch.randn(1, 2000, generator=rng)
    fused = fuse(Pcb(0.1, coefficient=1.0, tail=0.0), vector)
    assert (fused != 0).sum() == 199  # the threshold itself wins nothing
    won = vector[0].abs() > vector[0].abs().topk(200).values[-1]
    torch.testing.assert_close(fused, torch.where(won, vector[0], 0.0))


def test_entries_against_the_sign_of_the_sum_win_nothing():
    vectors = torch.tensor([[3.0, 2.0, -1.0, 1.0], [-1.0, 2.0, -2.0, 1.5], [-1.0, 2.0, 4.0, 2.0]])
    fused = fuse(Pcb(0.75, coefficient=1.0, tail=0.0), vectors)
    assert fused[0] == 3.0
    assert fused[2] == 4.0


def test_a_task_against_all_others_is_weighed_among_itself(rng):
    vectors = torch.stack([3 + torch.rand(2000, generator=rng), -1 - torch.rand(2000, generator=rng)]) / 10
    fused = fuse(Pcb(0.5, coefficient=1.0), vectors)
    torch.testing.assert_close(fused, reference(vectors, 0.5, 1e-4), rtol=1e-4, atol=1e-5)


def test_tails_that_meet_leave_one_magnitude():
    fused = fuse(Pcb(1.0, coefficient=1.0, tail=0.4), torch.tensor([[1.0, -2.0, 3.0]]))
    assert fused.tolist() == [0.0, -2.0, 2.0]


def test_scale_matters_only_through_the_tanh(rng):
    vectors = 1e-3 * torch.randn(3, 2000, generator=rng)
    torch.testing.assert_close(fuse(Pcb(), vectors / 16), fuse(Pcb(), vectors) / 16)
    assert not torch.allclose(fuse(Pcb(), 1e3 * vectors), 1e3 * fuse(Pcb(), vectors))


def test_the_order_of_the_tasks_does_not_matter_and_they_stay_as_they_are(rng):
    vectors = torch.randn(3, 2000, generator=rng)
    before = vectors.clone()
    torch.testing.assert_close(fuse(Pcb(), vectors[[2, 0, 1]]), fuse(Pcb(), vectors))
    assert torch.equal(vectors, before)


@pytest.mark.parametrize("tasks", [1, 3, 12])
@pytest.mark.parametrize("vector", [torch.zeros(7), torch.ones(7), torch.ones(1), torch.tensor([1.0, 0.0, 0.0])])
def test_it_is_finite_where_magnitudes_are_equal(tasks, vector):
    for tail in (0.0, 0.4):
        assert fuse(Pcb(tail=tail), vector.repeat(tasks, 1)).isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"density": 0.0}, {"density": 1.1}, {"tail": -0.1}, {"tail": 0.5}, {"coefficient": -1.0}]
)
def test_values_outside_their_range_are_refused(settings):
    with pytest.raises(FedfusionError, match=f"fusion.{next(iter(settings))} must be"):
        Pcb(**settings)
