import math
from dataclasses import replace

import pytest
import torch

from fedfusion.fusion import ChannelAware, TaskArithmetic, Ties
from fedfusion.types import Evidence, FedfusionError, Layout

LAYOUT = Layout(("w",), ((4,),))


@pytest.fixture
def vectors(rng):
    return torch.randn(3, 4, generator=rng)


def test_half_at_the_tolerance_and_everything_without_noise(vectors, rng):
    rule = ChannelAware(TaskArithmetic(1.0), tolerance_db=10.0)
    fused = rule(vectors, LAYOUT, Evidence(rng, nmse=torch.tensor([0.0, 10.0, math.inf])))
    torch.testing.assert_close(fused, vectors[0] + 0.5 * vectors[1])


def test_no_tolerance_is_the_estimate_with_the_least_error(rng):
    """Of all scalings of a noisy vector, that of the LMMSE estimate is nearest to the clean one."""
    clean, nmse = torch.randn(1, 20000, generator=rng), 3.0
    noisy = clean + math.sqrt(nmse) * clean.square().mean().sqrt() * torch.randn(1, 20000, generator=rng)
    layout = Layout(("w",), ((20000,),))
    shrunk = ChannelAware(TaskArithmetic(1.0), 0.0)(noisy, layout, Evidence(rng, nmse=torch.tensor([nmse])))
    errors = {scale: float((scale * noisy[0] - clean[0]).square().sum()) for scale in (0.2, 0.3)}
    assert float((shrunk - clean[0]).square().sum()) < min(errors.values())


def test_it_is_the_rule_where_nothing_is_reported_or_all_is_forgiven(vectors, rng):
    rule = Ties()
    plain = rule(vectors, LAYOUT, Evidence(rng))
    for aware, nmse in ((ChannelAware(rule), None), (ChannelAware(rule, math.inf), torch.tensor([1.0, 9.0, 99.0]))):
        assert torch.equal(aware(vectors, LAYOUT, Evidence(rng, nmse=nmse)), plain)


def test_space_and_data_are_those_of_the_rule():
    rule = ChannelAware(replace(Ties(), space="left"))
    assert (rule.space, rule.data) == ("left", "none")


def test_a_negative_tolerance_is_refused():
    with pytest.raises(FedfusionError, match="fusion.tolerance_db"):
        ChannelAware(tolerance_db=-1.0)
