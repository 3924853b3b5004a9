import pytest
import torch

from fedfusion.fusion import Consensus, stream
from fedfusion.types import Evidence, FedfusionError, Layout, Serving

RULES = [Consensus(), Consensus(threshold=1.0, agree=3, coefficient=0.3), Consensus(threshold=0.0, agree=1)]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 1024)


def call(method, vectors):
    return method(vectors, Layout(("w",), ((vectors.shape[1],),)), Evidence(torch.Generator()))


def masks(vectors, threshold):
    return vectors.abs() > threshold * (vectors.sum(0) - vectors).abs()


@pytest.mark.parametrize("rule", RULES)
def test_what_several_tasks_need_is_summed(rng, rule):
    vectors = torch.randn(4, 3000, generator=rng)
    needed = masks(vectors, rule.threshold).sum(0) >= rule.agree
    assert 0 < needed.sum()
    torch.testing.assert_close(call(rule, vectors), rule.coefficient * needed * vectors.sum(0))


@pytest.mark.parametrize("rule", RULES)
def test_a_device_is_served_the_sum_under_its_own_mask(rng, rule):
    vectors = torch.randn(4, 3000, generator=rng)
    before = vectors.clone()
    assert isinstance(rule, Serving)
    torch.testing.assert_close(call(rule.served, vectors), masks(vectors, rule.threshold) * vectors.sum(0))
    assert torch.equal(vectors, before)


def test_no_agreement_asked_for_is_task_arithmetic(rng):
    vectors = torch.randn(4, 3000, generator=rng)
    torch.testing.assert_close(call(Consensus(agree=0, coefficient=0.3), vectors), 0.3 * vectors.sum(0))


def test_entries_that_are_one_tasks_own_are_served_to_it_and_to_nobody_else():
    vectors = torch.block_diag(torch.ones(1, 2), torch.ones(1, 3))
    assert torch.equal(call(Consensus().served, vectors), vectors)
    assert torch.equal(call(Consensus(), vectors), torch.zeros(5))


def test_an_entry_of_two_equal_tasks_is_no_more_ones_than_the_others():
    vectors = torch.ones(2, 3)
    assert torch.equal(call(Consensus(threshold=1.0).served, vectors), torch.zeros(2, 3))


def test_the_order_of_the_tasks_and_the_scale_do_not_matter(rng):
    vectors, order = torch.randn(4, 3000, generator=rng), [2, 0, 3, 1]
    torch.testing.assert_close(call(Consensus(), 8 * vectors[order]), 8 * call(Consensus(), vectors))
    torch.testing.assert_close(call(Consensus().served, vectors[order]), call(Consensus().served, vectors)[order])


@pytest.mark.parametrize("key", ["threshold", "agree", "coefficient"])
@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_values_that_are_negative_or_none_are_refused(key, value):
    with pytest.raises(FedfusionError, match=f"fusion.{key} must be finite and at least 0, got {value}"):
        Consensus(**{key: value})
