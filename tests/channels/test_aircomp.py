import math

import pytest
import torch

from fedfusion.channels.aircomp import AirComp, exponential_integral
from fedfusion.types import FedfusionError, Layout, Updates

QUIET = {"snr_db": math.inf, "truncation_threshold": 1e-9}  # no noise, and of 10^9 blocks one is truncated


def uploads(rms=(1.0, 1.0), examples=None, tasks=None, d=2000, sizes=()):
    n, rng = len(rms), torch.Generator().manual_seed(1)
    vectors = torch.tensor(rms)[:, None] * torch.randn(n, d, generator=rng)
    return Updates(
        layout=Layout(("w",), ((d,),)),
        vectors=vectors,
        start=torch.zeros_like(vectors),
        clients=tuple(range(10, 10 + n)),
        tasks=tasks or ("a",) * n,
        num_examples=examples or (1,) * n,
        metrics=({},) * n,
        sizes=sizes,
    )


def weighted_mean(sent, rows):
    weights = torch.tensor([sent.num_examples[row] for row in rows], dtype=torch.float64)
    return (weights / weights.sum()) @ sent.vectors[rows].double()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("x", [1e-12, 1e-4, 0.1, 0.5, 0.999, 1.0, 1.001, 2.0, 10.0, 50.0])
def test_the_exponential_integral_is_that_of_scipy(x):
    special = pytest.importorskip("scipy.special")
    assert exponential_integral(x) == pytest.approx(special.exp1(x), rel=1e-13)


def test_the_exponential_integral_is_the_integral():
    x, grid = 0.3, torch.linspace(0, 60, 600_001, dtype=torch.float64)
    assert exponential_integral(x) == pytest.approx(float(torch.trapezoid((-x - grid).exp() / (x + grid), grid)), 1e-6)


def test_without_noise_and_truncation_each_task_gets_its_weighted_mean():
    sent = uploads((1.0, 1000.0, 0.5, 2.0, 1e-3), (10, 30, 5, 60, 7), ("a", "b", "a", "a", "b"))
    received, report = AirComp(**QUIET)(sent, rng())
    for rows in ([0, 2, 3], [1, 4]):
        torch.testing.assert_close(received.vectors[rows].double(), weighted_mean(sent, rows).expand(len(rows), -1))
    assert max(report.nmse) < 1e-12 and min(report.per_client["cosine"]) == pytest.approx(1.0)
    assert not report.erased and set(report.per_client["erased_share"]) == {0.0}
    assert received.clients == sent.clients


@pytest.mark.parametrize("threshold", [0.01, 0.1, 1.0])
def test_the_truncated_share_is_that_of_rayleigh_fading(threshold):
    channel = AirComp(truncation_threshold=threshold, coherence_block=1)
    _, report = channel(uploads((1.0,) * 4, d=40_000), rng())
    share = 1 - math.exp(-threshold)
    assert sum(report.per_client["erased_share"]) / 4 == pytest.approx(
        share, abs=4 * math.sqrt(share * (1 - share) / 80_000)
    )


@pytest.mark.parametrize("snr_db, jsr_db", [(10.0, -math.inf), (20.0, 0.0), (math.inf, -10.0), (-5.0, -math.inf)])
def test_of_one_client_the_error_is_what_theory_says(snr_db, jsr_db):
    """Truncated blocks are lost whole, the others carry noise of `E1(g) (1/SNR + JSR)`."""
    channel, g = AirComp(snr_db=snr_db, jsr_db=jsr_db, coherence_block=1, truncation_threshold=0.2), 0.2
    _, report = channel(uploads((3.0,), d=100_000), rng())
    noise = exponential_integral(g) * (10 ** (-snr_db / 10) + 10 ** (jsr_db / 10))
    assert report.nmse[0] == pytest.approx(1 - math.exp(-g) + math.exp(-g) * noise, rel=0.03)


def symbol_by_symbol(sent, channel, seed):
    """The mean as one antenna receives it from complex symbols through fades, without any formula for the noise."""
    generator = rng(seed)
    n, d = sent.vectors.shape

    def gaussian(*shape):
        return torch.randn(*shape, dtype=torch.complex128, generator=generator)

    weights = torch.tensor(sent.num_examples, dtype=torch.float64)
    weights = weights / weights.sum()
    symbols = torch.view_as_complex(sent.vectors.double().view(n, d // 2, 2))
    amplitude = (weights * symbols.abs().square().mean(1).sqrt()).max()
    h = gaussian(n, d // 2)
    sends = h.abs().square() >= channel.truncation_threshold
    rho = 1 / exponential_integral(channel.truncation_threshold)
    transmitted = torch.where(sends, math.sqrt(rho) / h, 0.0) * weights[:, None] * symbols / amplitude
    received = (h * transmitted).sum(0)
    received = (
        received + gaussian(d // 2) * 10 ** (-channel.snr_db / 20) + gaussian(d // 2) * 10 ** (channel.jsr_db / 20)
    )
    present = (weights[:, None] * sends).sum(0)
    mean = torch.where(present > 0, received * amplitude / math.sqrt(rho) / present.clamp_min(1e-9), 0.0)
    return torch.view_as_real(mean).flatten(), transmitted.abs().square().mean(1)


def test_it_does_to_second_moments_what_symbols_through_fades_suffer():
    sent = uploads((1.0, 2.0, 0.5), (10, 20, 30), d=200_000)
    channel = AirComp(snr_db=5.0, jsr_db=-3.0, coherence_block=1, truncation_threshold=0.3)
    truth = weighted_mean(sent, [0, 1, 2])
    simulated, powers = symbol_by_symbol(sent, channel, seed=7)
    received, report = channel(sent, rng(8))
    nmse = float((simulated - truth).square().sum() / truth.square().sum())
    assert report.nmse[0] == pytest.approx(nmse, rel=0.03)
    assert torch.equal(received.vectors[0], received.vectors[2])
    # and it spends what they spend: the strongest (client 1) the power P, the others in proportion
    spent = torch.tensor(report.per_client["energy_j"]) / report.per_client["air_time_s"][0] / 10 ** (2.3 - 3)
    torch.testing.assert_close(spent, powers.float(), rtol=0.05, atol=0.0)
    torch.testing.assert_close(spent, torch.tensor([1 / 16, 1.0, 9 / 64]), rtol=0.05, atol=0.0)


def test_the_expected_error_is_the_mean_over_noise_of_the_measured_one():
    sent, channel = uploads((1.0, 2.0, 0.5), (10, 20, 30), d=420), AirComp(snr_db=0.0, coherence_block=100)
    ratios = []
    for seed in range(100):
        _, report = channel(sent, rng(seed))
        assert set(report.per_client["expected_nmse"]) == {report.per_client["expected_nmse"][0]}
        ratios.append(report.nmse[0] / report.per_client["expected_nmse"][0])
    deviation = torch.tensor(ratios)
    assert abs(deviation.mean() - 1) < 4 * deviation.std() / math.sqrt(100) and deviation.std() < 0.15


def test_noise_shrinks_with_the_updates():
    sent, channel = uploads((1.0, 2.0, 0.5)), AirComp(snr_db=0.0)
    large, small = (channel(sent.with_vectors(scale * sent.vectors), rng()) for scale in (1.0, 1e-4))
    assert small[1].nmse == pytest.approx(large[1].nmse, rel=1e-5) and large[1].nmse[0] > 0.1
    torch.testing.assert_close(small[0].vectors, 1e-4 * large[0].vectors)


def test_the_common_gain_keeps_the_ratio_of_clients():
    """The loudest client rules the noise; nobody else is raised to its power."""
    sent = uploads((100.0, 1.0), d=4000)
    sent.vectors[0, 2000:], sent.vectors[1, :2000] = 0.0, 0.0  # each alone in its half
    received, _ = AirComp(**QUIET)(sent, rng())
    torch.testing.assert_close(received.vectors[0], sent.vectors.sum(0) / 2)
    noisy, _ = AirComp(snr_db=10.0, truncation_threshold=0.1)(sent, rng())
    error = (noisy.vectors[0] - sent.vectors.sum(0) / 2)[2000:]  # the quiet client's half
    assert error.square().mean().sqrt() > 5 * sent.vectors[1, 2000:].square().mean().sqrt()


def test_nothing_is_received_where_nobody_sends():
    channel = AirComp(snr_db=math.inf, truncation_threshold=2.0, coherence_block=10)
    received, report = channel(uploads((1.0, 1.0), d=1000), rng(3))
    blocks = received.vectors[0].view(-1, 20)
    silent = (blocks == 0).all(1)
    assert 0 < silent.sum() < 50 and not (blocks[~silent] == 0).any()
    assert report.nmse[0] == pytest.approx(report.per_client["expected_nmse"][0])


def test_a_client_truncated_throughout_is_erased_and_the_others_go_on():
    sent, channel = uploads((1.0,) * 6, d=100), AirComp(truncation_threshold=0.7)
    received, report = channel(sent, rng(2))  # one block each
    assert 0 < len(report.erased) < 6 and received.clients == tuple(c for c in sent.clients if c not in report.erased)
    assert {reason for reason in report.erased.values()} == {
        "its fades were below channel.truncation_threshold=0.7 in every block"
    }
    assert [share == 1.0 for share in report.per_client["erased_share"]] == [c in report.erased for c in sent.clients]
    silent = [row for row, client in enumerate(sent.clients) if client in report.erased]
    assert all(report.per_client["energy_j"][row] == 0 for row in silent) and len(report.nmse) == 6


def test_all_clients_of_a_task_can_be_erased():
    sent, channel = uploads((1.0, 1.0), d=100, tasks=("a", "b")), AirComp(truncation_threshold=5.0)
    received, report = channel(sent, rng())
    assert len(received) == 0 and set(report.erased) == {10, 11} and report.nmse == (1.0, 1.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_who_is_not_finite_does_not_transmit(poison):
    sent = uploads((1.0, 1.0, 2.0), (1, 5, 3))
    sent.vectors[1, 7] = poison
    received, report = AirComp(**QUIET)(sent, rng())
    assert report.erased == {11: "its upload was not finite"} and received.clients == (10, 12)
    torch.testing.assert_close(received.vectors[0].double(), weighted_mean(sent, [0, 2]))
    assert max(report.nmse) < 1e-12 and len(report.nmse) == 3
    alone, report = AirComp()(sent.keep([1]), rng())
    assert len(alone) == 0 and report.nmse == (1.0,) and list(report.erased) == [11]


def test_a_wild_or_silent_upload_stays_finite():
    sent = uploads((1e30, 1.0))
    received, report = AirComp()(sent, rng())
    assert received.vectors.isfinite().all() and all(map(math.isfinite, report.per_client["energy_j"]))
    silent, report = AirComp()(uploads((0.0, 0.0)), rng())
    assert not silent.vectors.any() and report.nmse == (0.0, 0.0) and report.per_client["energy_j"] == (0.0, 0.0)


def test_tasks_are_sent_one_after_another():
    sent = uploads((1.0,) * 3, tasks=("a", "b", "a"), d=1000, sizes=(1000, 601, 1000))
    received, report = AirComp(bandwidth_hz=1e6, overhead=0.5)(sent, rng())
    assert report.per_client["air_time_s"] == pytest.approx((1e-3, 602e-6, 1e-3))  # 500 and 301 symbols of 2 us
    assert report.per_client["latency_s"] == pytest.approx((1e-3, 1602e-6, 1e-3))
    assert not received.vectors[1, 601:].any() and received.vectors[1, :601].all()
    assert report.per_client["bits"] == (32, 32, 32)


def test_equal_generators_give_equal_bits():
    first, second, other = (AirComp()(uploads(), rng(seed))[0].vectors for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_vectors_of_different_sizes_are_refused():
    with pytest.raises(FedfusionError, match="task 'a' send 100 to 200 entries .*client.ranks"):
        AirComp()(uploads(sizes=(100, 200)), rng())


@pytest.mark.parametrize(
    "values",
    [
        {"snr_db": math.nan},
        {"snr_db": -math.inf},
        {"jsr_db": math.inf},
        {"truncation_threshold": 0.0},
        {"truncation_threshold": 11.0},
        {"truncation_threshold": math.nan},
        {"coherence_block": 0},
        {"bandwidth_hz": 0.0},
        {"bandwidth_hz": math.inf},
        {"overhead": 1.0},
        {"tx_power_dbm": math.inf},
    ],
)
def test_values_without_meaning_are_refused(values):
    with pytest.raises(FedfusionError, match=f"channel.{next(iter(values))}="):
        AirComp(**values)
