import math

import pytest
import torch

from fedfusion.channels.fading import Flat
from fedfusion.types import FedfusionError

RICIAN = [-math.inf, 0.0, 6.0, math.inf]


def covariance(h):
    """Of the flattened antennas, `[n, n]`, over blocks and users."""
    x = h.flatten(2).flatten(0, 1)
    return x.T @ x.conj() / len(x)


def exponential(rho, n):
    i = torch.arange(n)
    return rho ** (i[:, None] - i).abs().double()


@pytest.mark.parametrize("k_factor_db", RICIAN)
@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_each_entry_has_unit_mean_power(k_factor_db, rho, rng):
    h = Flat(k_factor_db, rho, rho).draw(8000, 4, 3, 2, rng)
    assert h.shape == (8000, 4, 3, 2) and h.dtype == torch.complex128 and h.is_contiguous()
    torch.testing.assert_close(h.abs().square().mean((0, 1)), torch.ones(3, 2).double(), atol=0.03, rtol=0)


def test_rayleigh_is_circular_gaussian(rng):
    h = Flat().draw(50_000, 2, 2, 1, rng).flatten()
    assert (h * h).mean().abs() < 0.01 and h.mean().abs() < 0.01  # circular, no line of sight
    assert h.abs().pow(4).mean() == pytest.approx(2.0, abs=0.05)
    for level in (0.1, 1.0, 2.0):  # the power is exponential
        assert (h.abs().square() > level).double().mean() == pytest.approx(math.exp(-level), abs=0.006)


@pytest.mark.parametrize("rx, tx", [(0.9, 0.0), (0.0, 0.5), (0.7, 0.3)])
def test_correlation_falls_exponentially_along_both_arrays(rx, tx, rng):
    h = Flat(rx_correlation=rx, tx_correlation=tx).draw(40_000, 2, 4, 3, rng)
    expected = torch.kron(exponential(rx, 4), exponential(tx, 3)).to(h.dtype)
    torch.testing.assert_close(covariance(h), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("k_factor_db", [0.0, 5.0, 10.0])
def test_k_factor_from_the_moments_is_the_configured_one(k_factor_db, rng):
    power = Flat(k_factor_db).draw(40_000, 3, 2, 2, rng).abs().square()
    # moment estimator of Greenstein, Michelson and Erceg, 1999: Var / mean^2 = (1 + 2K) / (1 + K)^2
    gamma = (1 - power.var() / power.mean() ** 2).sqrt()
    assert 10 * math.log10(gamma / (1 - gamma)) == pytest.approx(k_factor_db, abs=0.2)


def test_pure_line_of_sight_has_rank_one_and_constant_modulus(rng):
    h = Flat(math.inf, rx_correlation=0.5).draw(20, 3, 4, 3, rng)
    torch.testing.assert_close(h.abs(), torch.ones(20, 3, 4, 3).double())
    assert torch.linalg.svdvals(h)[..., 1:].max() < 1e-6
    steps = h[:, :, 1:] / h[:, :, :-1]  # equal phase steps along the line, the same in every block
    torch.testing.assert_close(steps, steps[:1, :, :1, :1].expand_as(steps))
    assert (steps[0, 0, 0, 0] - steps[0, 1, 0, 0]).abs() > 1e-3  # each user has a direction of its own
    assert h.mean(0).abs().max() < 0.8 and (h[1] - h[0]).abs().max() > 0.1  # a new phase in each block


def test_lines_of_sight_come_from_all_directions_alike(rng):
    torch.testing.assert_close(
        covariance(Flat(math.inf).draw(1, 20_000, 4, 2, rng)), torch.eye(8).to(torch.complex128), atol=0.04, rtol=0
    )


def test_rayleigh_is_the_limit_of_a_weak_line_of_sight():
    weak, none = (Flat(k, 0.3).draw(5, 2, 3, 2, torch.Generator().manual_seed(4)) for k in (-400.0, -math.inf))
    torch.testing.assert_close(weak, none)


@pytest.mark.parametrize("k_factor_db", [-math.inf, 3.0])
def test_blocks_and_users_are_independent(k_factor_db, rng):
    h = Flat(k_factor_db, 0.9).draw(20_000, 2, 2, 1, rng)
    assert (h[1:] * h[:-1].conj()).mean((0, 2, 3)).abs().max() < 0.02
    assert (h[:, 0] * h[:, 1].conj()).mean(0).abs().max() < 0.02


def test_the_generator_decides():
    same, again, other = (Flat(3.0).draw(4, 2, 2, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(same, again) and not torch.equal(same, other)


@pytest.mark.parametrize(
    "values, key",
    [
        ({"rx_correlation": 1.0}, "rx_correlation=1.0"),
        ({"tx_correlation": -0.1}, "tx_correlation=-0.1"),
        ({"rx_correlation": math.nan}, "rx_correlation=nan"),
        ({"k_factor_db": math.nan}, "k_factor_db=nan"),
    ],
)
def test_impossible_values_are_refused(values, key):
    with pytest.raises(FedfusionError, match=rf"channel\.fading\.{key}"):
        Flat(**values)
