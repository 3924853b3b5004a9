import json
import math
from statistics import NormalDist

import pytest
import torch

from fedfusion import assets
from fedfusion.channels import packet
from fedfusion.channels.packet import Packet, effective_sinr, table
from fedfusion.types import FedfusionError

INDICES = list(table())


def gaussian(d, rng):
    return torch.randn(d, generator=rng)


def clear(sinr_db, streams=1):
    """The same SINR for everybody, for longer than any row here needs."""
    return torch.full((1, streams), 10 ** (sinr_db / 10)), 10**8


def send(sending, row, sinr_db, rng, mcs=28, doomed=None):
    sinr, block = clear(sinr_db)
    return sending(row, sinr, mcs, block, rng, doomed=doomed)


def threshold_db(scheme, target=0.1):
    """Where the table crosses the target, to 0.01 dB."""
    grid = torch.linspace(scheme.snr_db[0], scheme.snr_db[-1], 100 * len(scheme.snr_db))
    return float(grid[scheme.error_rate(10 ** (grid / 10)) > target][-1])


def clipped_nmse(c, top):
    """Of a standard Gaussian between levels up to `c`: uniform cells with stochastic rounding, and two cut tails."""
    normal = NormalDist()
    return (c / top) ** 2 / 6 * (2 * normal.cdf(c) - 1) + 2 * ((1 + c * c) * normal.cdf(-c) - c * normal.pdf(c))


@pytest.mark.parametrize("bits, stated_db", [(8, -36.4), (4, -16.3)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e10])
def test_quantiser_error_is_the_closed_form(bits, stated_db, scale, rng):
    row = gaussian(1_000_000, rng) * scale
    error = (Packet(bits=bits).quantise(row, rng) - row).double()
    nmse = float(error.square().sum() / row.double().square().sum())
    c = min(packet.CLIP[bits], float(row.abs().max() / row.double().square().mean().sqrt()))
    assert nmse == pytest.approx(clipped_nmse(c, 2 ** (bits - 1) - 1), rel=0.01)
    assert 10 * math.log10(nmse) == pytest.approx(stated_db, abs=0.2)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_unbiased_up_to_the_largest_level(bits, rng):
    row = torch.linspace(-0.3, 0.3, 101)  # largest is 1.7 root mean squares: nothing is cut
    draws = torch.stack([Packet(bits=bits).quantise(row, rng) for _ in range(5000)])
    step = 0.3 / (2 ** (bits - 1) - 1)
    assert (draws.mean(0) - row).abs().max() < 4.5 * step / 2 / math.sqrt(5000)
    assert torch.equal(draws[0, [0, -1]], row[[0, -1]])


@pytest.mark.parametrize("bits", [4, 8])
def test_what_arrives_are_few_levels_a_step_apart(bits, rng):
    row = gaussian(50_000, rng)
    quantised = Packet(bits=bits).quantise(row, rng)
    levels, top = quantised.unique(), 2 ** (bits - 1) - 1
    assert quantised.dtype == torch.float32 and len(levels) <= 2 * top + 1
    assert torch.allclose(levels / levels.max() * top, (levels / levels.max() * top).round(), atol=1e-4)
    c = min(packet.CLIP[bits], float(row.abs().max() / row.square().mean().sqrt()))
    inside = row.abs() < c * row.square().mean().sqrt()
    assert (quantised - row)[inside].abs().max() <= levels.max() / top * 1.0001


@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-37, 1e-30, 3e38])
def test_any_magnitude_survives(value, rng):
    row = torch.tensor([value, -value, value / 2, 0.0])
    quantised = Packet().quantise(row, rng)
    assert quantised[-1] == 0
    if value >= 1e-30:
        assert (quantised - row).abs().max() <= value / 127 * 1.001
    else:
        assert not quantised.any()


def test_one_outlier_does_not_silence_the_rest(rng):
    row = gaussian(10_000, rng)
    row[17] = 1000.0
    quantised = Packet().quantise(row, rng)
    others = torch.arange(10_000) != 17
    assert (quantised - row)[others].square().mean() < 0.05 and 50 < quantised[17] < 70


@pytest.mark.parametrize("index", INDICES)
def test_error_rate_falls_with_sinr_from_one_to_zero(index):
    scheme = table()[index]
    sinr_db = torch.linspace(-20, 30, 2001)
    rate = scheme.error_rate(10 ** (sinr_db / 10))
    assert (rate[sinr_db < scheme.snr_db[0] - 0.01] == 1).all() and (
        rate[sinr_db > scheme.snr_db[-1] + 0.01] == 0
    ).all()
    assert rate.diff().max() < 0.02  # the table's own noise
    at = scheme.error_rate(10 ** (torch.tensor(scheme.snr_db[1:-1], dtype=torch.float64) / 10))
    assert at.tolist() == pytest.approx(scheme.bler[1:-1], rel=1e-6)
    assert scheme.error_rate(torch.tensor([0.0, math.inf])).tolist() == [1.0, 0.0]


def test_between_two_points_the_log_odds_are_linear():
    scheme = table()[INDICES[3]]
    i = next(i for i, p in enumerate(scheme.bler) if p < 0.5)
    left, right = (math.log(p / (1 - p)) for p in scheme.bler[i - 1 : i + 1])
    middle_db = (scheme.snr_db[i - 1] + scheme.snr_db[i]) / 2
    rate = scheme.error_rate(torch.tensor(10 ** (middle_db / 10), dtype=torch.float64))
    assert rate.shape == () and float(rate) == pytest.approx(1 / (1 + math.exp(-(left + right) / 2)))


@pytest.mark.parametrize(
    "block, streams, length", [(1, 1, 1), (1, 3, 7), (5, 2, 13), (12, 4, 100), (50, 3, 8), (7, 1, 7)]
)
@pytest.mark.parametrize("beta", [0.5, 20.0])
def test_effective_sinr_is_that_of_each_blocks_own_symbols(block, streams, length, beta, rng):
    num = 6
    coherence_blocks = -(-num * length // (block * streams))
    sinr = 10 * torch.rand(coherence_blocks, streams, generator=rng)
    symbols = sinr.repeat_interleave(block, 0).flatten()[: num * length].view(num, length).double()
    expected = -beta * (-symbols / beta).exp().mean(1).log()
    effective = effective_sinr(sinr, beta, block, length, num)
    assert torch.allclose(effective, expected, rtol=1e-9)
    assert (effective >= symbols.min(1).values - 1e-9).all() and (effective <= symbols.mean(1) + 1e-9).all()


def test_effective_sinr_limits(rng):
    equal = effective_sinr(torch.full((50, 2), 3.0), 1.5, 10, 100, 10)
    assert torch.allclose(equal, torch.tensor(3.0, dtype=torch.float64), rtol=1e-9)
    sinr = 1 + torch.rand(10, 2, generator=rng)
    assert float(effective_sinr(sinr, 1e6, 10, 200, 1)) == pytest.approx(float(sinr.mean()), rel=1e-5)
    assert float(effective_sinr(sinr, 1e-2, 10, 200, 1)) == pytest.approx(float(sinr.min()), abs=0.04)
    extremes = effective_sinr(torch.tensor([[0.0, 0.0], [1e9, 1e9], [math.inf, 1e30]]), 2.0, 50, 100, 3)
    assert extremes[0] == 0 and (extremes[1:] > 100).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_erasures_are_as_frequent_as_predicted(bits, rng):
    scheme = table()[INDICES[-1]]
    delivered = send(Packet(bits=bits), gaussian(1_000_000, rng), threshold_db(scheme, 0.3), rng, scheme.index)
    num = len(delivered.lost)
    spread = math.sqrt(delivered.bler * (1 - delivered.bler) / num)
    assert delivered.bler == pytest.approx(0.3, abs=0.02)
    assert abs(float(delivered.lost.double().mean()) - delivered.bler) < 4 * spread
    assert abs(delivered.erased_share - delivered.bler) < 4 * spread + 1 / num


def test_blocks_are_lost_where_the_sinr_is_low(rng):
    sending, scheme = Packet(), table()[INDICES[2]]
    low, high = (10 ** ((threshold_db(scheme) + shift) / 10) for shift in (-6, 6))
    sinr = torch.tensor([[high, high], [low, low], [high, high]])  # coherence blocks of two code blocks
    row = 1 + torch.rand(6 * 240, generator=rng)
    delivered = sending(row, sinr, scheme.index, scheme.num_symbols, rng)
    assert delivered.lost.tolist() == [False, False, True, True, False, False]
    assert not delivered.row[480:960].any() and delivered.row[:480].all() and delivered.row[960:].all()
    assert delivered.bler == pytest.approx(1 / 3) and delivered.erased_share == pytest.approx(1 / 3)
    assert (delivered.row - row)[delivered.row != 0].abs().max() < 2 / 127 * 1.001


@pytest.mark.parametrize(
    "bits, size, blocks", [(8, 1, 1), (8, 240, 1), (8, 241, 2), (4, 480, 1), (4, 481, 2), (8, 0, 0)]
)
def test_symbols_counted_by_hand(bits, size, blocks, rng):
    by_hand = {0: 8192, 4: 3192, 13: 1004, 28: 346}  # 1920 / (bits per symbol * rate), rounded up
    sending = Packet(bits=bits)
    assert {mcs: sending.num_symbols(size, mcs) for mcs in by_hand} == {mcs: blocks * n for mcs, n in by_hand.items()}
    delivered = send(sending, torch.ones(size), 40.0, rng)
    assert delivered.bits == 1920 * blocks and len(delivered.lost) == blocks
    assert torch.allclose(delivered.row, torch.ones(size)) and delivered.erased_share == delivered.bler == 0


def test_doomed_blocks_are_lost_too(rng):
    doomed = torch.tensor([False, True, False])
    delivered = send(Packet(), torch.ones(500), 40.0, rng, doomed=doomed)
    assert torch.equal(delivered.lost, doomed) and delivered.bler == 0
    assert delivered.erased_share == pytest.approx(240 / 500) and not delivered.row[240:480].any()
    last = send(Packet(), torch.ones(500), 40.0, rng, doomed=~doomed)
    assert last.erased_share == pytest.approx(260 / 500) and last.row[240:480].all()
    assert send(Packet(), torch.ones(500), -40.0, rng, doomed=doomed).lost.all()


def test_a_row_of_zeros_stays_one(rng):
    delivered = send(Packet(), torch.zeros(1000), 40.0, rng)
    assert not delivered.row.any() and delivered.erased_share == 0


def test_equal_generators_deliver_equal_rows_and_leave_the_sent_one_alone():
    row = gaussian(5000, torch.Generator().manual_seed(1))
    sent = row.clone()
    sinr_db = threshold_db(table()[13], 0.5)

    def deliver(seed):
        return send(Packet(), row, sinr_db, torch.Generator().manual_seed(seed), 13)

    first, again, other = deliver(1), deliver(1), deliver(2)
    assert torch.equal(first.row, again.row) and torch.equal(first.lost, again.lost)
    assert not torch.equal(first.row, other.row) and torch.equal(row, sent)


def test_link_adaptation_takes_the_fastest_scheme_that_keeps_the_promise():
    for target in (0.01, 0.1, 0.5):
        sending = Packet(target_bler=target)
        for index in INDICES:
            at = threshold_db(table()[index], target)
            assert sending.choose(clear(at + 0.05, streams=3)[0]) == index
            slower = INDICES[max(INDICES.index(index) - 1, 0)]
            assert sending.choose(clear(at - 0.05)[0]) == slower
    assert Packet().choose(clear(-40.0)[0]) == INDICES[0] and Packet().choose(clear(60.0)[0]) == INDICES[-1]
    assert Packet(mcs=13).choose(clear(-40.0)[0]) == 13


def test_link_adaptation_sees_that_some_blocks_fade():
    scheme, slow = table()[13], table()[0]
    good, faded = 10 ** ((threshold_db(scheme) + 1) / 10), 10 ** ((threshold_db(slow) + 1) / 10)
    sinr = torch.tensor([[good]] * 4 + [[faded]]).repeat(10, 1)  # about a fifth of the code blocks see only the fade
    assert Packet().choose(sinr, slow.num_symbols) == slow.index
    assert Packet(target_bler=0.3).choose(sinr, slow.num_symbols) == 13
    assert Packet().choose(torch.full((1, 1), good), 10) == 13  # less than one code block: as far as it goes


@pytest.mark.parametrize("block", [12, 168, 1000])
def test_the_promise_is_kept_when_the_report_is_true(block, rng):
    sending, size = Packet(), 200_000
    sinr = -20 * torch.rand(3000, 4, generator=rng).log()  # Rayleigh fading
    sinr = sinr[: -(-sending.num_symbols(size, 0) // (4 * block))].repeat(200, 1)
    mcs = sending.choose(sinr, block)
    faster = INDICES[INDICES.index(mcs) + 1]
    kept, broken = (sending(gaussian(size, rng), sinr, index, block, rng).bler for index in (mcs, faster))
    assert kept < 0.13 and broken > 0.08


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"bits": 6}, r"channel\.packet\.bits=6: .* 4 or 8"),
        ({"mcs": 27}, r"channel\.packet\.mcs=27 .* 0, 4, .*28.*null"),
        ({"target_bler": 0.0}, r"channel\.packet\.target_bler=0\.0 .*between 0 and 1"),
        ({"target_bler": 1.0}, r"channel\.packet\.target_bler=1\.0"),
        ({"target_bler": math.nan}, r"channel\.packet\.target_bler=nan"),
    ],
)
def test_refusals(settings, said):
    with pytest.raises(FedfusionError, match=said):
        Packet(**settings)


def test_too_few_sinrs_are_refused(rng):
    with pytest.raises(ValueError, match="241 parameters need 692 symbols with MCS 28, the SINRs cover 690"):
        Packet()(torch.ones(241), torch.ones(5, 2), 28, 69, rng)


def test_a_missing_table_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(assets, "find", lambda name: None)
    with pytest.raises(FedfusionError, match=r"bler\.json is not there \(install"):
        table.__wrapped__()


def test_the_table_is_sane():
    path = assets.find("bler.json")
    document = json.loads(path.read_text())
    assert path.stat().st_size < 30_000
    assert {"sionna", "decoder", "iterations", "made_by", "seed"} <= document["provenance"].keys()
    assert [0, 28] == [INDICES[0], INDICES[-1]] and len(INDICES) >= 8 and sorted(INDICES) == INDICES
    thresholds, efficiencies = [], []
    for scheme in table().values():
        assert scheme.information_bits % 8 == 0 and scheme.coded_bits % scheme.bits_per_symbol == 0
        rate = scheme.information_bits / scheme.coded_bits
        assert rate == pytest.approx(scheme.code_rate_x1024 / 1024, rel=0.003)
        assert torch.tensor(scheme.snr_db).diff().allclose(torch.tensor(0.25))
        noise = [4 * math.sqrt(2 * p * (1 - p) / n) for p, n in zip(scheme.bler, scheme.blocks, strict=True)]
        assert all(later < p + e for p, later, e in zip(scheme.bler, scheme.bler[1:], noise, strict=False))
        assert scheme.bler[0] > 0.95 and scheme.bler[-1] < 1e-3
        assert max(abs(e) for e in scheme.eesm_error_db) < 1.0 and scheme.beta > 0
        thresholds.append(threshold_db(scheme))
        efficiencies.append(rate * scheme.bits_per_symbol)
        capacity_db = 10 * math.log10(2 ** efficiencies[-1] - 1)
        assert capacity_db + 0.7 < thresholds[-1] < capacity_db + 4  # Shannon's limit, and short blocks of QAM
    assert sorted(thresholds) == thresholds and sorted(efficiencies) == efficiencies
