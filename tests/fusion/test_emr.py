import pytest
import torch

from fedfusion.fusion import Emr, stream
from fedfusion.types import Evidence, Layout, Serving


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 1024)


def call(method, vectors, *sizes):
    layout = Layout(tuple(map(str, sizes or [0])), tuple((size,) for size in sizes or [vectors.shape[1]]))
    return method(vectors, layout, Evidence(torch.Generator()))


def test_the_largest_entry_of_the_elected_sign_is_unified():
    vectors = torch.tensor([[1.0, 5.0, 0.0, 2.0], [2.0, -3.0, 0.0, -2.0], [-1.0, -4.0, 0.0, 0.0]])
    assert call(Emr(), vectors).tolist() == [2.0, -4.0, 0.0, 0.0]


def test_a_task_is_served_its_signs_at_its_mean_magnitude(rng):
    vectors = torch.randn(4, 3000, generator=rng) * torch.tensor([[1.0], [2.0], [0.5], [3.0]])
    unified = call(Emr(), vectors)
    served = call(Emr().served, vectors)
    agreeing = vectors.sign() == unified.sign()
    assert torch.equal(served != 0, agreeing)
    assert torch.equal(served[agreeing].sign(), vectors[agreeing].sign())
    torch.testing.assert_close(served.abs().mean(1), vectors.abs().mean(1))
    ratio = served / unified
    torch.testing.assert_close(ratio.amax(1, keepdim=True) * agreeing, ratio)  # one number for each task


def test_scales_are_over_all_modules_however_they_are_cut(rng):
    vectors = torch.randn(3, 100, generator=rng) * torch.linspace(0.1, 3, 100)
    assert torch.equal(call(Emr().served, vectors, 10, 90), call(Emr().served, vectors))


def test_a_single_task_is_returned_as_it_is(rng):
    vector = torch.randn(1, 3000, generator=rng)
    assert isinstance(Emr(), Serving)
    torch.testing.assert_close(call(Emr(), vector), vector[0])
    torch.testing.assert_close(call(Emr().served, vector), vector)


def test_a_task_of_zeros_is_served_zeros(rng):
    vectors = torch.stack([torch.randn(9, generator=rng), torch.zeros(9)])
    torch.testing.assert_close(call(Emr().served, vectors), vectors)


def test_the_order_of_the_tasks_and_the_scale_do_not_matter(rng):
    vectors, order = torch.randn(4, 3000, generator=rng), [2, 0, 3, 1]
    before = vectors.clone()
    torch.testing.assert_close(call(Emr(), 8 * vectors[order]), 8 * call(Emr(), vectors))
    torch.testing.assert_close(call(Emr().served, vectors[order]), call(Emr().served, vectors)[order])
    assert torch.equal(vectors, before)
