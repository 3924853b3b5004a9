import math

import pytest
import torch

from fedfusion.channels.fidelity import fidelity


@pytest.mark.parametrize("nmse", [0.01, 0.1, 1.0, 10.0])
def test_white_noise_has_the_cosine_and_the_sign_errors_of_the_theory(nmse, rng):
    sent = torch.randn(2, 200_000, generator=rng)
    seen = fidelity(sent, sent + math.sqrt(nmse) * torch.randn(sent.shape, generator=rng))
    for row in range(2):
        assert seen["nmse"][row] == pytest.approx(nmse, rel=0.02)
        assert seen["cosine"][row] == pytest.approx(1 / math.sqrt(1 + nmse), abs=0.01)
        flips = math.acos(1 / math.sqrt(1 + nmse)) / math.pi
        assert seen["sign_agreement"][row] == pytest.approx(1 - flips, abs=0.005)


def test_shrinking_keeps_cosine_and_signs(rng):
    sent = torch.randn(1, 1000, generator=rng)
    seen = fidelity(sent, 0.25 * sent)
    assert seen["nmse"][0] == pytest.approx(0.5625, rel=1e-5) and seen["cosine"][0] == pytest.approx(1.0, abs=1e-6)
    assert seen["sign_agreement"] == (1.0,)


def test_only_what_was_sent_counts():
    sent, received = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 2.0, 9.0]])
    assert fidelity(sent, received, [2])["nmse"] == (0.0,) and fidelity(sent, received)["nmse"][0] > 1


def test_silence_and_wild_rows_are_measured_without_overflow():
    sent = torch.tensor([[0.0, 0.0], [1e30, -1e30]])
    seen = fidelity(sent, sent.clone())
    assert seen["nmse"] == (0.0, 0.0) and seen["cosine"][1] == pytest.approx(1.0)
