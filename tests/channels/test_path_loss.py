import math

import pytest
import torch

from fedfusion.channels.path_loss import UMi, los_probability
from fedfusion.types import FedfusionError

SECTOR = range(4000)


def ring(distance, **values):
    return UMi(min_distance_m=distance, max_distance_m=distance, seed=0, **values)


@pytest.mark.parametrize("line_of_sight, loss, snr", [(True, 85.3, 34.0), (False, 104.6, 14.6)])
def test_link_budget_at_100_m(line_of_sight, loss, snr):
    model = UMi(seed=0)
    assert model.noise_dbm(18.72e6) == pytest.approx(-96.3, abs=0.05)
    assert model.path_loss_db(100.0, line_of_sight) == pytest.approx(loss, abs=0.05)
    gain = ring(100.0, shadowing=False, line_of_sight="always" if line_of_sight else "never").gains_db([7])
    assert gain.dtype == torch.float64 and gain.shape == (1,)
    assert 23.0 + gain.item() - model.noise_dbm(18.72e6) == pytest.approx(snr, abs=0.05)


def test_noise_power():
    assert UMi(noise_figure_db=0.0, seed=0).noise_dbm(1.0) == -174.0
    assert UMi(noise_figure_db=7.0, seed=0).noise_dbm(1e6) == pytest.approx(-107.0)


def test_two_slopes_meet_at_the_breakpoint():
    model = UMi(user_height_m=3.0, max_distance_m=5000.0, seed=0)
    d_bp = 4 * 9 * 2 * 3.5e9 / 3e8
    assert model.path_loss_db(d_bp * (1 + 1e-9), True) == pytest.approx(model.path_loss_db(d_bp, True), abs=1e-6)

    def decade(d):
        return model.path_loss_db(10 * d, True) - model.path_loss_db(d, True)

    assert decade(80.0) == pytest.approx(21.0, abs=0.1)  # up to 800 m: before it
    assert model.path_loss_db(4000.0, True) - model.path_loss_db(2000.0, True) == pytest.approx(12.04, abs=0.01)


@pytest.mark.parametrize("line_of_sight", [True, False])
def test_loss_grows_with_distance_and_frequency(line_of_sight):
    distances = [10.0, 20.0, 50.0, 100.0, 200.0, 211.0, 500.0, 5000.0]
    losses = [UMi(seed=0).path_loss_db(d, line_of_sight) for d in distances]
    assert losses == sorted(set(losses))
    assert UMi(carrier_frequency_hz=28e9, seed=0).path_loss_db(50.0, line_of_sight) > losses[2] + 18
    assert all(UMi(seed=0).path_loss_db(d, False) >= UMi(seed=0).path_loss_db(d, True) for d in distances)


def test_los_probability_is_the_one_of_the_standard():
    assert los_probability(10.0) == los_probability(18.0) == 1.0
    assert los_probability(72.0) == pytest.approx(0.25 + math.exp(-2) * 0.75)


@pytest.mark.parametrize("distance", [15.0, 40.0, 120.0])
def test_share_of_clients_in_sight(distance):
    model = ring(distance, shadowing=False)
    gains = model.gains_db(SECTOR)
    in_sight = gains == -model.path_loss_db(distance, True)
    assert torch.equal(in_sight, gains != -model.path_loss_db(distance, False))
    assert in_sight.double().mean().item() == pytest.approx(los_probability(distance), abs=0.025)


@pytest.mark.parametrize("line_of_sight, sigma", [("always", 4.0), ("never", 7.82)])
def test_spread_of_shadowing(line_of_sight, sigma):
    model = ring(100.0, line_of_sight=line_of_sight)
    shadowing = model.gains_db(SECTOR) + model.path_loss_db(100.0, line_of_sight == "always")
    assert shadowing.std().item() == pytest.approx(sigma, rel=0.05)
    assert shadowing.mean().item() == pytest.approx(0.0, abs=0.5)


def test_clients_are_uniform_over_the_area():
    gains = UMi(shadowing=False, line_of_sight="always", seed=3).gains_db(SECTOR)
    frequency_db = 20 * math.log10(3.5)
    squared = 10 ** ((-gains - 32.4 - frequency_db) / 10.5) - 8.5**2
    share = ((squared - 10.0**2) / (150.0**2 - 10.0**2)).sort().values
    uniform = (torch.arange(len(share)) + 0.5) / len(share)
    assert (share - uniform).abs().max() < 1.63 / math.sqrt(len(share))  # Kolmogorov-Smirnov, 1 %


def test_a_client_has_the_same_gain_in_any_company():
    model = UMi(seed=5)
    alone, among = model.gains_db([11]), model.gains_db([3, 11, 0])
    assert among[1] == alone[0] and len(set(among.tolist())) == 3
    assert UMi(seed=6).gains_db([11]) != alone
    assert model.gains_db([]).shape == (0,)


def test_options_do_not_move_clients():
    median = UMi(shadowing=False, seed=1).gains_db(SECTOR)
    always = UMi(shadowing=False, line_of_sight="always", seed=1).gains_db(SECTOR)
    never = UMi(shadowing=False, line_of_sight="never", seed=1).gains_db(SECTOR)
    assert ((median == always) | (median == never)).all() and (median != always).any() and (median != never).any()
    shadowed = UMi(line_of_sight="always", seed=1).gains_db(SECTOR) - always
    torch.testing.assert_close(shadowed * 7.82 / 4, UMi(line_of_sight="never", seed=1).gains_db(SECTOR) - never)


@pytest.mark.parametrize(
    "values, key",
    [
        ({"carrier_frequency_hz": 3.5}, r"carrier_frequency_hz=3.5 is outside \[5e\+08, 1e\+11\]"),
        ({"min_distance_m": 1.0}, "min_distance_m=1 "),
        ({"min_distance_m": 100.0, "max_distance_m": 50.0}, r"max_distance_m=50 is outside \[100, 5000\]"),
        ({"user_height_m": 0.5}, "user_height_m=0.5"),
        ({"bs_height_m": math.nan}, "bs_height_m=nan"),
        ({"noise_figure_db": -1.0}, "noise_figure_db=-1"),
        ({"line_of_sight": "often"}, "line_of_sight=often"),
    ],
)
def test_values_outside_their_range_are_refused(values, key):
    with pytest.raises(FedfusionError, match=rf"channel\.path_loss\.{key}"):
        UMi(seed=0, **values)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frequency, base_m, user_m", [(3.5e9, 10.0, 1.5), (28e9, 10.0, 22.5), (0.5e9, 20.0, 20.0)])
def test_sionna_agrees(frequency, base_m, user_m):
    pytest.importorskip("sionna")
    from sionna.phy.channel.tr38901 import PanelArray
    from sionna.phy.channel.tr38901 import UMi as Oracle

    distances = [10.0, 30.0, 100.0, 209.0, 212.0, 1000.0]
    model = UMi(carrier_frequency_hz=frequency, bs_height_m=base_m, user_height_m=user_m, seed=0)
    array = PanelArray(1, 1, "single", "V", "omni", frequency, device="cpu")
    oracle = Oracle(frequency, "low", array, array, "uplink", precision="double", device="cpu", spec_version="19.2")
    places = torch.tensor([[[d, 0.0, user_m] for d in distances]], dtype=torch.float64)
    still = torch.zeros_like(places)
    base = torch.tensor([[[0.0, 0.0, base_m]]], dtype=torch.float64)
    outdoors = torch.zeros(1, len(distances), dtype=torch.bool)
    for line_of_sight in (True, False):
        oracle.set_topology(places, base, still, torch.zeros_like(base), still, outdoors, line_of_sight)
        ours = torch.tensor([[[model.path_loss_db(d, line_of_sight) for d in distances]]]).double()
        # theirs has c = 2.998e8 where the table has 3e8
        torch.testing.assert_close(oracle._scenario.basic_pathloss, ours, atol=0.01, rtol=0)
    ours = torch.tensor([[[los_probability(d) for d in distances]]]).double()
    torch.testing.assert_close(oracle._scenario.los_probability, ours)


def test_no_sight_is_never_better():
    model = UMi(carrier_frequency_hz=0.5e9, bs_height_m=20.0, user_height_m=20.0, seed=0)
    assert model.path_loss_db(10.0, False) == model.path_loss_db(10.0, True)  # the other formula is 1.6 dB below
    assert model.path_loss_db(100.0, False) > model.path_loss_db(100.0, True) + 5
