import math
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import get_args

import pytest
import torch

from fedfusion.channels import phy
from fedfusion.channels.phy import Model, Tr38901
from fedfusion.types import FedfusionError

SLOT_S = 0.5e-3
pytestmark = pytest.mark.filterwarnings("ignore")  # what Sionna's imports announce is theirs


@pytest.fixture
def sionna():
    return pytest.importorskip("sionna.phy")


def draw(model, blocks, users=1, num_rx_ant=1, num_tx_ant=1, seed=0, **values):
    rng = torch.Generator().manual_seed(seed)
    return Tr38901(model, **values).draw(blocks, users, num_rx_ant, num_tx_ant, rng)


def correlation(x, y):
    """Of two equally distributed channels, over all that is in them."""
    return (x * y.conj()).mean() / (x.abs().square().mean() * y.abs().square().mean()).sqrt()


@pytest.mark.parametrize("model", get_args(Model))
def test_mean_power_is_one(model, sionna):
    h = draw(model, 104, users=150, num_rx_ant=3, num_tx_ant=2, speed_m_s=30.0)
    assert h.shape == (104, 150, 3, 2) and h.dtype == torch.complex128 and h.is_contiguous()
    power = h.abs().square().mean((0, 2, 3))
    assert abs(power.mean() - 1) < 4 * power.std() / math.sqrt(len(power)) < 0.25


@pytest.mark.parametrize("profile", ["A", "C", "D"])
def test_frequency_correlation_is_the_transform_of_the_delay_profile(profile, sionna):
    from sionna.phy.channel.tr38901 import TDL

    h = draw(f"TDL-{profile}", 52, users=100, num_rx_ant=4, num_tx_ant=4)
    tdl = TDL(profile, 100e-9, 3.5e9, spec_version="19.2")
    for apart in (1, 5, 20):
        transform = torch.exp(-2j * math.pi * apart * 360e3 * tdl.delays.double())
        expected = (tdl.mean_powers.double() * transform).sum()
        found = correlation(h[apart:], h[:-apart])
        assert (found - expected).abs() < 0.05


def test_coherence_falls_with_the_delay_spread(sionna):
    near, far = (
        [correlation(h[apart:], h[:-apart]).abs().item() for apart in (1, 3)]
        for h in (draw("TDL-A", 52, users=100, num_rx_ant=4, delay_spread_s=spread) for spread in (30e-9, 300e-9))
    )
    assert near[0] > near[1] > far[0] > far[1]


def test_without_delay_spread_it_is_flat(sionna):
    h = draw("TDL-B", 104, users=2, delay_spread_s=0.0, speed_m_s=30.0).unflatten(0, (2, 52))
    torch.testing.assert_close(h, h[:, :1].expand_as(h))
    assert (h[1] - h[0]).abs().min() > 1e-3


@pytest.mark.parametrize("speed", [0.83, 30.0])
def test_time_correlation_is_that_of_jakes(speed, sionna):
    h = draw("TDL-A", 8 * 20, users=60, num_rx_ant=4, num_tx_ant=4, speed_m_s=speed, num_prb=8).unflatten(0, (20, 8))
    doppler_hz = speed / 299_792_458 * 3.5e9
    for slots in (1, 4):
        expected = torch.special.bessel_j0(torch.tensor(2 * math.pi * doppler_hz * slots * SLOT_S))
        assert (correlation(h[slots:], h[:-slots]) - expected).abs() < 0.06
    assert speed > 1 or correlation(h[1:], h[:-1]).abs() > 0.999


@pytest.mark.parametrize("model", ["CDL-A", "UMi"])
def test_the_channel_ages_with_speed(model, sionna):
    still, walking, driving = (
        draw(model, 5, users=50, num_rx_ant=2, speed_m_s=speed, num_prb=1) for speed in (0.0, 0.83, 30.0)
    )
    torch.testing.assert_close(still, still[:1].expand_as(still))
    assert 0.99 < correlation(walking[4], walking[0]).abs() < 1 - 1e-6
    assert correlation(driving[4], driving[0]).abs() < 0.9


@pytest.mark.parametrize("model", ["TDL-A", "CDL-B", "UMi"])
def test_blocks_run_over_frequency_and_then_over_time(model, sionna):
    h = draw(model, 60, users=20, num_rx_ant=4)
    assert correlation(h[52:], h[:8]).abs() > 0.999  # the same resource blocks, one slot later
    assert correlation(h[:8], h[40:48]).abs() < 0.9
    torch.testing.assert_close(h, draw(model, 104, users=20, num_rx_ant=4)[:60])  # the last slot is not used up


def test_stretches_are_independent(sionna, monkeypatch):
    monkeypatch.setattr(phy, "STRETCH", 2)
    h = draw("TDL-A", 4 * 5, users=100, num_rx_ant=4, speed_m_s=0.0, num_prb=4).unflatten(0, (5, 4))
    torch.testing.assert_close(h[0], h[1])
    torch.testing.assert_close(h[2], h[3])
    assert max(correlation(h[1], h[2]).abs(), correlation(h[3], h[4]).abs(), correlation(h[0], h[4]).abs()) < 0.15


@pytest.mark.parametrize("model", ["TDL-A", "CDL-A", "UMi"])
def test_users_are_independent(model, sionna):
    h = draw(model, 52, users=120, num_rx_ant=2)
    assert correlation(h[:, 1:], h[:, :-1]).abs() < 0.25


def test_antennas_are_independent_in_tdl_and_lines_in_cdl(sionna):
    tdl, cdl = (draw(model, 52, users=100, num_rx_ant=4, num_tx_ant=3) for model in ("TDL-A", "CDL-E"))
    assert correlation(tdl[:, :, 1], tdl[:, :, 0]).abs() < 0.1 and correlation(tdl[..., 1], tdl[..., 0]).abs() < 0.1
    # CDL-E is nearly a pure line of sight: one phase step along each array, another one for each user
    for x, y in ((cdl[:, :, 1:], cdl[:, :, :-1]), (cdl[..., 1:], cdl[..., :-1])):
        steps = (x * y.conj()).mean((0, 2, 3))
        assert steps.abs().min() > 0.5 and (steps / steps.abs()).mean().abs() < 0.8


def test_the_generator_decides_and_no_other_one(sionna):
    for model in ("TDL-D", "CDL-C", "UMi"):
        ours, theirs = torch.get_rng_state(), sionna.config.torch_rng("cpu").get_state()
        first = draw(model, 10, users=3, num_rx_ant=2)
        assert torch.equal(torch.get_rng_state(), ours)
        assert torch.equal(sionna.config.torch_rng("cpu").get_state(), theirs)
        sionna.config.torch_rng("cpu").manual_seed(99)
        torch.testing.assert_close(draw(model, 10, users=3, num_rx_ant=2), first, atol=0, rtol=0)
        assert (draw(model, 10, users=3, num_rx_ant=2, seed=1) - first).abs().mean() > 0.1


def test_importing_sionna_leaves_torch_alone():
    if find_spec("sionna") is None:
        pytest.skip("needs sionna-no-rt")
    program = """
import torch
from fedfusion.channels.phy import Tr38901
before = torch.get_rng_state()
Tr38901("TDL-A").draw(1, 1, 1, 1, torch.Generator())
assert torch.equal(torch.get_rng_state(), before)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_sionna_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(phy, "find_spec", lambda name: None)
    with pytest.raises(
        FedfusionError, match=r"TDL-A needs sionna-no-rt.*pip install 'fedfusion\[phy\]'.*fading=rayleigh"
    ):
        Tr38901("TDL-A")


@pytest.mark.parametrize(
    "values, key",
    [
        ({"model": "TDL-F"}, "model=TDL-F is unknown"),
        ({"delay_spread_s": 100.0}, r"delay_spread_s=100 is outside \[0, 0.0001\]"),
        ({"carrier_frequency_hz": 3.5}, "carrier_frequency_hz=3.5"),
        ({"subcarrier_spacing_hz": 0.0}, "subcarrier_spacing_hz=0"),
        ({"num_prb": 0}, "num_prb=0"),
        ({"speed_m_s": math.nan}, "speed_m_s=nan"),
    ],
)
def test_values_outside_their_range_are_refused(values, key, monkeypatch):
    monkeypatch.setattr(phy, "find_spec", lambda name: object())
    with pytest.raises(FedfusionError, match=rf"channel\.fading\.{key}"):
        replace(Tr38901("TDL-A"), **values)
