import math

import pytest
import torch

from fedfusion.channels import Awgn, Ideal
from fedfusion.types import FedfusionError, Layout, Updates


def upload(scale=1.0, d=200_000):
    rng = torch.Generator().manual_seed(1)
    vectors = scale * torch.randn(2, d, generator=rng)
    return Updates(Layout(("w",), ((d,),)), vectors, torch.zeros_like(vectors), (0, 1), ("a", "b"), (1, 1), ({}, {}))


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 10.0, 30.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_measured_snr_is_the_configured_one(snr_db, scale, rng):
    sent = upload(scale)
    received, report = Awgn(snr_db=snr_db)(sent, rng)
    noise = received.vectors - sent.vectors
    for row in range(2):
        measured = 10 * math.log10(sent.vectors[row].double().square().sum() / noise[row].double().square().sum())
        assert abs(measured - snr_db) < 0.1
        assert abs(-10 * math.log10(report.nmse[row]) - snr_db) < 0.1


@pytest.mark.parametrize("snr_db, jsr_db", [(20.0, 10.0), (0.0, 0.0), (math.inf, -3.0)])
def test_noise_and_jamming_add_in_power(snr_db, jsr_db, rng):
    channel = Awgn(snr_db=snr_db, jsr_db=jsr_db)
    _, report = channel(upload(), rng)
    expected = 10 ** (-snr_db / 10) + 10 ** (jsr_db / 10)
    assert channel.expected_nmse == pytest.approx(expected)
    assert 10 * abs(math.log10(report.nmse[0] / expected)) < 0.1


def test_without_noise_it_is_the_ideal_channel(rng):
    sent = upload()
    received, report = Awgn(snr_db=math.inf)(sent, rng)
    assert torch.equal(received.vectors, sent.vectors) and report.nmse == (0.0, 0.0)
    assert torch.equal(Ideal()(sent, rng)[0].vectors, sent.vectors)


def test_a_silent_client_stays_silent(rng):
    received, report = Awgn(snr_db=0.0, jsr_db=10.0)(upload(scale=0.0), rng)
    assert not received.vectors.any() and report.nmse == (0.0, 0.0)


def test_a_wild_upload_does_not_disturb_the_others(rng):
    sent = upload(d=1000)
    wild = sent.with_vectors(torch.stack([sent.vectors[0], torch.full((1000,), 1e30)]))
    received, report = Awgn(snr_db=20.0)(wild, rng)
    assert torch.isfinite(received.vectors).all() and report.nmse[0] < 0.1


@pytest.mark.parametrize("values", [{"snr_db": math.nan}, {"jsr_db": math.inf}, {"snr_db": -math.inf}])
def test_infinite_noise_is_refused(values):
    with pytest.raises(FedfusionError, match="channel.(snr|jsr)_db"):
        Awgn(**values)
