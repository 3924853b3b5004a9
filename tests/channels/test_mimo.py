import math

import pytest
import torch

from fedfusion.channels import Flat, Jammer, Mimo, Packet, Receiver, UMi
from fedfusion.types import FedfusionError, Layout, Updates

OBJECTIVES = ["barrage", "sum_rate", "strongest_user", "mse", "fixed_filter", "pilot"]
FILTERS = ["mmse", "zf", "sic"]
# zero forcing of as many streams as antennas has blocks whose error outweighs all others: too few symbols to measure
GROUP = {"mmse": 8, "zf": 4, "sic": 8}


def uploads(n=8, d=20_000, scale=1e-3, **kwargs):
    vectors = scale * torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    start = torch.zeros(n, 0)
    return Updates(Layout(("w",), ((d,),)), vectors, start, tuple(range(n)), ("a",) * n, (1,) * n, ({},) * n, **kwargs)


def rng():
    return torch.Generator().manual_seed(0)


def figures(channel, sent=None, seed=0):
    received, report = channel(sent or uploads(), torch.Generator().manual_seed(seed))
    return received, {name: torch.tensor(values) for name, values in report.per_client.items()}


def mean_ratio(channel, **kwargs):
    """Measured over predicted NMSE, both means over the clients."""
    _, seen = figures(channel, **kwargs)
    return float(seen["nmse"].mean() / seen["expected_nmse"].mean())


@pytest.mark.parametrize("level, tolerance", [("mse", 0.01), ("analog", 0.01)])
@pytest.mark.parametrize(
    "receiver",
    [Receiver(filter) for filter in FILTERS]
    + [
        Receiver(knowledge="sample"),
        Receiver("zf", "unaware", shrink=True),
        Receiver(knowledge="unaware", shrink=True),
    ],
    ids=lambda receiver: "-".join(map(str, (receiver.filter, receiver.knowledge, receiver.shrink))),
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_error_is_the_predicted_one_for_every_jammer_and_receiver(level, tolerance, receiver, objective):
    pilots = 16 if objective == "pilot" else 0
    jammer = Jammer(objective=objective, jsr_db=5.0)
    common = {"level": level, "pilots": pilots, "jammer": jammer, "group_size": GROUP[receiver.filter]}
    channel = Mimo(**common, receiver=receiver, coherence_block=500)
    assert mean_ratio(channel, sent=uploads(d=400_000)) == pytest.approx(1.0, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["mse", "analog"])
@pytest.mark.parametrize("num_tx_ant", [1, 2, 4])
@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
@pytest.mark.parametrize("filter", FILTERS)
def test_the_error_is_the_predicted_one_at_every_snr_and_jsr(level, num_tx_ant, snr_db, filter):
    for objective in ["none", *OBJECTIVES]:
        pilots = 16 if objective == "pilot" else 0
        for jsr_db in (-10.0, 0.0, 10.0, 20.0) if objective != "none" else (0.0,):
            jammer = Jammer(objective=objective, jsr_db=jsr_db)
            common = {"level": level, "snr_db": snr_db, "num_tx_ant": num_tx_ant, "pilots": pilots, "jammer": jammer}
            channel = Mimo(**common, group_size=GROUP[filter], receiver=Receiver(filter=filter), coherence_block=2000)
            ratio = mean_ratio(channel, sent=uploads(d=1_000_000))
            assert ratio == pytest.approx(1.0, abs=0.01), (objective, jsr_db)


@pytest.mark.parametrize("receiver", [{"knowledge": "unaware"}, {"knowledge": "sample"}, {"shrink": True}])
@pytest.mark.parametrize("num_tx_ant, num_streams", [(1, 1), (2, 1), (4, 2), (2, 2)])
def test_symbols_and_equivalent_noise_agree(receiver, num_tx_ant, num_streams):
    jammer, seen = Jammer(objective="barrage", jsr_db=0.0), []
    for level in ("mse", "analog"):
        channel = Mimo(
            level=level, num_tx_ant=num_tx_ant, num_streams=num_streams, jammer=jammer, receiver=Receiver(**receiver)
        )
        seen.append(figures(channel, uploads(d=200_000))[1]["nmse"].mean())
    assert float(seen[0] / seen[1]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("snr_db", [-5.0, 10.0])
@pytest.mark.parametrize("jsr_db", [-3.0, 12.0])
def test_snr_and_jsr_are_those_at_one_antenna(snr_db, jsr_db):
    """Power of what one antenna receives of one client, of noise and of jamming, from the drawn link itself."""
    channel = Mimo(snr_db=snr_db, num_tx_ant=2, num_streams=2, jammer=Jammer(objective="sum_rate", jsr_db=jsr_db))
    powers = channel.powers(range(4))
    link, _ = channel.link(powers, float(powers.mean()), channel.streams(powers, 4000, rng()), 1, rng())
    received = link.streams.unflatten(2, (4, 2)).abs().square().sum(-1).mean((0, 1))  # by client
    jamming = (link.covariance.diagonal(dim1=1, dim2=2).real - 1).mean()
    assert (10 * received.log10() - snr_db).abs().max() < 0.1
    assert abs(10 * math.log10(jamming / received.mean()) - jsr_db) < 0.1


def test_measured_awgn_of_one_antenna_has_the_configured_snr():
    """Without fading, array and shrinking, the NMSE is noise over signal: two reals share the noise of a symbol."""
    for snr_db in (0.0, 10.0, 20.0):
        channel = Mimo(level="analog", snr_db=snr_db, num_rx_ant=1, fading=Flat(k_factor_db=math.inf))
        _, seen = figures(channel, uploads(n=2, d=200_000))
        assert (10 * seen["nmse"].log10() + snr_db).abs().max() < 0.1


def test_two_antennas_of_a_client_gain_by_beam_forming_and_lose_nothing_by_sharing_power():
    one, beam = (figures(Mimo(num_tx_ant=n, group_size=1))[1]["sinr"].mean() for n in (1, 2))
    assert 1.3 < beam / one < 2.0  # the strongest of two directions, at most all of the power of both


def test_equal_energy_of_all_jammers_to_nine_digits():
    spent = {}
    for objective in OBJECTIVES:
        for duty_cycle in (1.0, 0.1):
            jammer = Jammer(objective=objective, jsr_db=7.0, duty_cycle=duty_cycle)
            _, report = Mimo(pilots=16, jammer=jammer)(uploads(), rng())
            spent[objective, duty_cycle] = report.jamming["power"]
    assert all(energy == pytest.approx(10**1.7, rel=1e-9) for energy in spent.values()), spent


def test_the_raw_estimate_of_a_shrunk_one_is_worse_and_the_unaware_is_worst():
    jammer = Jammer(objective="fixed_filter", jsr_db=10.0)
    nmse = {
        name: float(figures(Mimo(jammer=jammer, receiver=receiver))[1]["nmse"].mean())
        for name, receiver in {
            "genie": Receiver(shrink=True),
            "sample": Receiver(shrink=True, knowledge="sample"),
            "raw": Receiver(),
            "unaware": Receiver(shrink=True, knowledge="unaware"),
        }.items()
    }
    assert nmse["genie"] < nmse["sample"] < 1 < nmse["unaware"] and nmse["genie"] < nmse["raw"]


def test_pilots_cost_accuracy_and_time_and_more_of_them_less_accuracy():
    known, few, many = (figures(Mimo(pilots=pilots))[1] for pilots in (0, 8, 64))
    assert known["nmse"].mean() < many["nmse"].mean() < few["nmse"].mean()
    assert many["air_time_s"][0] == pytest.approx(known["air_time_s"][0] * 168 / 104)


def test_jamming_the_pilots_ruins_an_estimate_that_data_jamming_does_not():
    receiver = Receiver(knowledge="unaware")
    clean, jammed = (
        figures(Mimo(pilots=16, jammer=Jammer(objective=o, jsr_db=0.0), receiver=receiver))[1]["nmse"].mean()
        for o in ("none", "pilot")
    )
    assert jammed > 2 * clean


def test_the_same_bits_for_the_same_seed_and_others_for_another():
    channel = Mimo(jammer=Jammer(objective="mse"), receiver=Receiver(knowledge="sample"), pilots=16)
    first, again, other = (figures(channel, seed=seed)[0].vectors for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("level", ["mse", "analog", "packet"])
def test_wild_silent_and_broken_rows_disturb_nobody(level):
    sent = uploads()
    sent.vectors[1], sent.vectors[2] = 0.0, 1e30 * sent.vectors[2]
    sent.vectors[3, 7] = math.nan
    received, seen = figures(Mimo(level=level, snr_db=30.0), sent)
    assert not received.vectors[1].any() and received.vectors[3].isnan().any()
    others = [0, 2, 4, 5, 6, 7]
    assert received.vectors[others].isfinite().all() and (seen["nmse"][others] < 0.9).all()


def test_a_short_row_is_noisy_where_it_was_sent_and_pays_for_no_more():
    received, seen = figures(Mimo(), uploads(sizes=(10_000,) + (20_000,) * 7))
    assert 2 * seen["air_time_s"][0] == seen["air_time_s"][1]
    assert float(seen["nmse"][0] / seen["expected_nmse"][0]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("level", ["mse", "analog"])
def test_one_draw_for_the_whole_upload(level):
    channel = Mimo(level=level, coherence_block=None)
    assert mean_ratio(channel, sent=uploads(d=200_000)) == pytest.approx(1.0, abs=0.01)
    _, seen = figures(channel)
    assert set(seen["outage"].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("level", ["mse", "analog"])
def test_unscaled_noise_does_not_know_the_size_of_the_vector(level):
    errors = []
    for scale in (1e-3, 1.0):
        sent = uploads(scale=scale)
        received, seen = figures(Mimo(level=level, receiver=Receiver(rescale=False, erase_above_db=None)), sent)
        errors.append(float((received.vectors - sent.vectors).square().mean()))
        assert float(seen["nmse"].mean() / seen["expected_nmse"].mean()) == pytest.approx(1.0, abs=0.05)
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_groups_take_turns_in_virtual_time():
    _, seen = figures(Mimo(bandwidth_hz=1e6, overhead=0.2, tx_power_dbm=30.0), uploads(n=20))
    one = 10_000 / 0.8e6
    assert torch.allclose(seen["air_time_s"], torch.full((20,), one))
    assert torch.allclose(seen["latency_s"], torch.tensor([one] * 8 + [2 * one] * 8 + [3 * one] * 4))
    assert torch.allclose(seen["energy_j"], torch.full((20,), one)) and (seen["bits"] == 32).all()


def test_the_late_and_the_bad_are_erased_and_named():
    received, report = Mimo(bandwidth_hz=1e6, deadline_s=0.013)(uploads(n=12), rng())
    assert list(report.erased) == [8, 9, 10, 11] and received.clients == tuple(range(8))
    assert "0.025 s" in report.erased[8] and "channel.deadline_s=0.013" in report.erased[8]
    assert len(report.nmse) == 12 and received.vectors.shape == (8, 20_000)
    jammer = Jammer(objective="barrage", jsr_db=20.0)
    received, report = Mimo(jammer=jammer, receiver=Receiver(erase_above_db=3.0))(uploads(), rng())
    assert len(received) == 0 and "channel.receiver.erase_above_db=3" in report.erased[0]


def test_a_list_of_snrs_goes_round_the_clients_and_a_street_gives_each_its_own():
    powers = 10 * Mimo(snr_db=[0.0, 20.0]).powers((0, 1, 2, 5)).log10()
    assert torch.allclose(powers, torch.tensor([0.0, 20.0, 0.0, 20.0], dtype=torch.float64))
    street = Mimo(snr_db=None, path_loss=UMi(seed=0))
    powers = 10 * street.powers(range(50)).log10()
    assert powers.max() - powers.min() > 15 and torch.equal(powers[7], 10 * street.powers([7]).log10()[0])


def test_packets_arrive_whole_or_not_and_the_link_adapts():
    _, good = figures(Mimo(level="packet", snr_db=30.0, group_size=2, coherence_block=2016))
    assert (good["erased_share"] == 0).all() and (10 * good["nmse"].log10() < -30).all()
    fixed = Mimo(level="packet", snr_db=-10.0, packet=Packet(mcs=13))
    received, report = fixed(uploads(), rng())
    assert len(report.erased) > 0 and "lost all" in next(iter(report.erased.values()))
    _, adapted = figures(Mimo(level="packet", snr_db=0.0, group_size=4))
    assert adapted["bler"].mean() < 0.3 and (adapted["bits"] > 8 * 20_000).all()


def test_packets_with_cancellation_lose_what_was_decoded_after_a_loss():
    jammer = Jammer(objective="barrage", jsr_db=9.0)
    sic, mmse = (
        figures(Mimo(level="packet", packet=Packet(mcs=4), jammer=jammer, receiver=Receiver(filter=f)), seed=1)[1]
        for f in ("sic", "mmse")
    )
    assert (sic["bler"] < mmse["bler"] + 0.05).all() and sic["bler"][-1] < 0.01  # the last one is alone with the noise
    assert (mmse["erased_share"] - mmse["bler"]).abs().max() < 0.1
    assert sic["erased_share"].min() > 0.5  # but nobody is better off than the first one decoded


@pytest.mark.parametrize(
    "values, words",
    [
        ({"group_size": 9}, "9 streams.*num_rx_ant=8"),
        ({"num_streams": 2}, "num_streams=2.*num_tx_ant=1"),
        ({"num_rx_ant": 0}, "at least 1"),
        ({"snr_db": 300.0}, "snr_db=300.0"),
        ({"snr_db": math.nan}, "snr_db=nan"),
        ({"snr_db": []}, "snr_db"),
        ({"snr_db": None}, "exactly one"),
        ({"path_loss": UMi(seed=0)}, "exactly one"),
        ({"pilots": 4}, "pilots=4 are too few"),
        ({"pilots": 168}, "leaves no room"),
        ({"jammer": Jammer(objective="pilot")}, "channel.pilots=0"),
        ({"receiver": Receiver(knowledge="sample", num_silent=8)}, "num_silent=8"),
        ({"level": "packet", "receiver": Receiver(rescale=False)}, "rescale"),
        ({"level": "packet", "num_tx_ant": 2, "num_streams": 2, "receiver": Receiver("sic")}, "num_streams=2"),
        ({"bandwidth_hz": -1.0}, "bandwidth_hz=-1.0"),
        ({"overhead": 1.0}, "overhead=1.0"),
        ({"tx_power_dbm": 1e6}, "tx_power_dbm"),
        ({"deadline_s": 0.0}, "deadline_s=0.0"),
        ({"outage_rate": -1.0}, "outage_rate=-1.0"),
    ],
)
def test_what_has_no_meaning_is_refused(values, words):
    with pytest.raises(FedfusionError, match=words):
        Mimo(**values)


def test_silence_to_learn_from_costs_air_time_and_must_fit():
    sample, genie = (figures(Mimo(receiver=Receiver(knowledge=k)))[1]["air_time_s"][0] for k in ("sample", "genie"))
    assert float(sample / genie) == pytest.approx(168 / (168 - 32))
    with pytest.raises(FedfusionError, match="coherence_block=32 leaves no room"):
        Mimo(coherence_block=32, receiver=Receiver(knowledge="sample"))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"fading": Flat(k_factor_db=9.0)},
        {"coherence_block": None},
        {"receiver": Receiver("sic"), "coherence_block": 168},
        {"jammer": Jammer(objective="barrage", jsr_db=0.0), "pilots": 16},
    ],
    ids=["rayleigh", "rician", "one draw", "sic", "pilots"],
)
def test_link_adaptation_keeps_near_its_target(values):
    losses = []
    for seed in range(6):
        _, seen = figures(Mimo(**({"level": "packet", "coherence_block": 2016, "group_size": 4} | values)), seed=seed)
        losses.append(seen["bler"].mean())
        assert (seen["goodput"] <= seen["rate"]).all() and (seen["mcs"] >= 0).all()
    assert sum(losses) / 6 < 0.15


def test_bad_blocks_of_an_upload_do_not_condemn_the_packets_that_arrived():
    jammer = Jammer(objective="barrage", jsr_db=30.0, duty_cycle=0.02)
    received, report = Mimo(level="packet", jammer=jammer, coherence_block=2016)(uploads(d=200_000), rng())
    assert report.erased == {} and len(received) == 8


def test_nothing_sent_is_nothing_received():
    received, report = Mimo()(uploads().keep([]), rng())
    assert len(received) == 0 and report.erased == {}
