import itertools
import math
from dataclasses import replace

import pytest
import torch

from fedfusion.channels.jammer import Jammer, Scene
from fedfusion.channels.worst_case import require_psd
from fedfusion.types import FedfusionError

SHAPED = ["sum_rate", "strongest_user", "mse", "fixed_filter"]
BUDGETS = [{}, {"budget": "tx", "num_ant": 4}, {"budget": "tx", "num_ant": 11}]


def scene(blocks=12, num_rx=8, users=(0, 1, 2, 3, 4, 5), snr_db=10.0, power=2.0):
    users, noise = torch.tensor(users), power * 10 ** (-snr_db / 10)
    f = torch.randn(
        blocks, num_rx, len(users), dtype=torch.complex128, generator=torch.Generator().manual_seed(7)
    ) * math.sqrt(power)
    filters = f.mH @ torch.linalg.inv(f @ f.mH + noise * torch.eye(num_rx))
    return Scene(f, users, noise, power, filters, block=14, pilots=2)


def jam(scene, seed=0, **settings):
    return Jammer(**settings)(scene, torch.Generator().manual_seed(seed))


def trace(covariance):
    return covariance.diagonal(dim1=-2, dim2=-1).real.sum(-1)


def rate(signal, noise):
    """Nats per block."""
    return torch.linalg.slogdet(noise + signal)[1] - torch.linalg.slogdet(noise)[1]


def left(scene, covariance, objective):
    """What the jammer minimises, per block, computed from the streams."""
    f, own = scene.streams, scene.streams
    noise = covariance + scene.noise * torch.eye(f.shape[1])
    if objective == "sum_rate":
        return rate(f @ f.mH, noise)
    if objective == "mse":
        return trace(f.mH @ torch.linalg.solve(noise + f @ f.mH, f))
    if objective == "fixed_filter":
        return -trace(scene.filters @ covariance @ scene.filters.mH)
    values = []
    for block in range(len(f)):
        clean, jammed = [], []
        for user in scene.users.unique():
            own, others = f[block][:, scene.users == user], f[block][:, scene.users != user]
            clean.append(rate(own @ own.mH, scene.noise * torch.eye(f.shape[1]).cdouble()))
            jammed.append(rate(own @ own.mH, noise[block] + others @ others.mH))
        values.append(jammed[int(torch.stack(clean).argmax())])
    return torch.stack(values)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("users", [(0, 1, 2, 3, 4, 5), (0, 0, 1, 1, 1, 2)])
@pytest.mark.parametrize("objective", SHAPED)
def test_no_objective_is_milder_than_barrage_by_its_own_measure(objective, users, budget):
    met = scene(users=users)
    for jsr_db in (-10.0, 20.0):
        worst = jam(met, objective=objective, jsr_db=jsr_db, **budget)
        barrage = jam(met, objective="barrage", jsr_db=jsr_db, **budget)
        require_psd(worst.covariance, "R_J")
        assert 0 <= worst.gap <= 1.001e-6
        gained = left(met, barrage.covariance, objective) - left(met, worst.covariance, objective)
        assert gained.min() > -1e-6 and gained.max() > 1e-3


@pytest.mark.parametrize("budget", BUDGETS)
def test_equal_settings_spend_equal_energy(budget):
    met = scene()
    expected = met.power * 10 ** (3.0 / 10)
    for objective, duty_cycle, knowledge in itertools.product(
        ["barrage", "pilot", *SHAPED], [1.0, 0.3, 1e-9], ["filter", "channel", "statistics"]
    ):
        if objective == "fixed_filter" and knowledge != "filter":
            continue
        settings = {"objective": objective, "duty_cycle": duty_cycle, "knowledge": knowledge, **budget}
        jamming = jam(met, jsr_db=3.0, **settings)
        assert jamming.energy == pytest.approx(expected, rel=1e-9)
        if not budget:  # what is received is what is spent
            assert trace(jamming.covariance).mean() / 8 == pytest.approx(
                0 if objective == "pilot" else expected, rel=1e-9
            )
            share = 2 / 14 if objective == "pilot" else 1
            assert jamming.pilot_power.mean() * share == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("objective", ["barrage", *SHAPED])
@pytest.mark.parametrize("duty_cycle, active", [(1.0, 12), (0.3, 4), (0.01, 1)])
def test_a_duty_cycle_concentrates_the_power_in_its_blocks(objective, duty_cycle, active):
    met = scene()
    jamming = jam(met, objective=objective, duty_cycle=duty_cycle)
    hit = jamming.pilot_power > 0
    assert hit.sum() == active and not jamming.covariance[~hit].any()
    torch.testing.assert_close(
        jamming.pilot_power[hit], torch.full((active,), met.power * 12 / active, dtype=torch.float64)
    )
    torch.testing.assert_close(trace(jamming.covariance) / 8, jamming.pilot_power)
    other = jam(met, objective="mse", duty_cycle=duty_cycle).pilot_power > 0
    assert torch.equal(hit, other)  # the same blocks, whatever the objective


@pytest.mark.parametrize("objective", SHAPED)
def test_with_one_receive_antenna_all_are_barrage(objective):
    met = scene(num_rx=1, users=(0, 1, 2))
    torch.testing.assert_close(
        jam(met, objective=objective).covariance, jam(met, objective="barrage").covariance, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_strongest_user_meets_as_many_times_the_power_as_there_are_antennas(budget):
    met = scene()
    antennas = budget.get("num_ant", 8)
    worst = jam(met, objective="strongest_user", jsr_db=5.0, **budget)
    louder = jam(met, objective="barrage", jsr_db=5.0 + 10 * math.log10(antennas), **budget)
    found, expected = (left(met, one.covariance, "strongest_user") for one in (worst, louder))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    spared = left(met, worst.covariance, "sum_rate") - left(met, louder.covariance, "sum_rate")
    assert spared.min() > 1  # and the others next to nothing


def test_the_strongest_is_who_has_the_largest_rate_were_nobody_jammed():
    f = torch.zeros(1, 3, 3, dtype=torch.complex128)
    f[0, 0, 0], f[0, 1, 1], f[0, 2, 2] = 10**0.5, 3**0.5, 3**0.5  # one strong stream, or two of a third each
    for noise, directions in ((1.0, [1, 2]), (100.0, [0])):
        met = Scene(f, torch.tensor([0, 1, 1]), noise, 1.0, f.mH, 14, 2)
        power = jam(met, objective="strongest_user").covariance[0].diagonal().real
        assert power[directions].sum() == pytest.approx(3, rel=1e-4)


def test_the_gap_is_that_of_the_worst_block():
    gaps = [jam(scene(blocks=n), objective="sum_rate", budget="tx", num_ant=6).gap for n in (1, 30)]
    assert 1e-9 < gaps[0] < gaps[1] <= 1.001e-6


@pytest.mark.parametrize("settings", [{"objective": "none"}, *(
    {"objective": objective, "jsr_db": -math.inf} for objective in ["barrage", "pilot", *SHAPED]
)])  # fmt: skip
@pytest.mark.parametrize("budget", BUDGETS)
def test_nobody_jams(settings, budget):
    jamming = jam(scene(), **settings, **budget)
    assert not jamming.covariance.any() and not jamming.pilot_power.any()
    assert jamming.gap == jamming.energy == 0
    assert jamming.covariance.shape == (12, 8, 8) and jamming.pilot_power.shape == (12,)


@pytest.mark.parametrize("objective", ["sum_rate", "strongest_user", "mse"])
def test_statistics_are_the_mean_covariance_of_each_user(objective):
    met = scene(blocks=30, users=(0, 0, 1, 2))
    blind = jam(met, objective=objective, knowledge="statistics", duty_cycle=0.5)
    hit = blind.pilot_power > 0
    assert (blind.covariance[hit] == blind.covariance[hit][:1]).all()
    # one block that holds the streams of all is the mean, as the jammer sees it
    streams = met.streams.movedim(0, 1).flatten(1)[None] / math.sqrt(30)
    pooled = replace(met, streams=streams, users=met.users.repeat(30))
    expected = jam(pooled, objective=objective, jsr_db=10 * math.log10(2)).covariance[0]
    torch.testing.assert_close(blind.covariance[hit][0], expected, rtol=1e-3, atol=1e-3)
    assert blind.gap <= 1.001e-6
    informed = jam(met, objective=objective, duty_cycle=0.5)
    assert (left(met, informed.covariance, objective) - left(met, blind.covariance, objective))[hit].mean() < -0.01


@pytest.mark.parametrize("objective", ["sum_rate", "strongest_user", "mse"])
def test_who_knows_only_statistics_behind_an_unknown_path_sends_barrage(objective):
    budget = {"budget": "tx", "num_ant": 5}
    blind = jam(scene(), objective=objective, knowledge="statistics", **budget)
    torch.testing.assert_close(blind.covariance, jam(scene(), objective="barrage", **budget).covariance)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_pilots_get_the_energy_of_the_block(budget):
    pilots, barrage = (jam(scene(), objective=objective, **budget) for objective in ("pilot", "barrage"))
    assert not pilots.covariance.any() and barrage.covariance.any()
    torch.testing.assert_close(pilots.pilot_power, barrage.pilot_power * 14 / 2)


def test_behind_one_antenna_there_is_nothing_to_choose():
    budget = {"budget": "tx", "num_ant": 1}
    barrage = jam(scene(), objective="barrage", **budget).covariance
    for objective in SHAPED:
        torch.testing.assert_close(jam(scene(), objective=objective, **budget).covariance, barrage)
    rank = torch.linalg.matrix_rank(barrage, hermitian=True)
    assert (rank == 1).all()  # each block's own path


def test_more_blocks_than_are_held_at_once_have_the_measured_jsr():
    met = scene(blocks=2500, num_rx=4, users=(0, 1), power=0.5)
    jamming = jam(met, objective="barrage", jsr_db=7.0, budget="tx", num_ant=3)
    assert 10 * math.log10(jamming.pilot_power.mean() / met.power) == pytest.approx(7, abs=0.1)
    assert jamming.energy == pytest.approx(0.5 * 10**0.7, rel=1e-9)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("objective", ["barrage", *SHAPED])
def test_the_generator_decides(objective, budget):
    settings = {"objective": objective, "duty_cycle": 0.5, **budget}
    first, again, other = (jam(scene(), seed, **settings).covariance for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("values, message", [
    ({"jsr_db": math.nan}, "channel.jammer.jsr_db must be at most 100, got nan"),
    ({"jsr_db": 100.1}, "channel.jammer.jsr_db must be at most 100, got 100.1"),
    ({"duty_cycle": 0.0}, "channel.jammer.duty_cycle must be above 0 and at most 1, got 0.0"),
    ({"duty_cycle": 1.5}, "channel.jammer.duty_cycle must be above 0 and at most 1, got 1.5"),
    ({"duty_cycle": math.nan}, "channel.jammer.duty_cycle must be .* got nan"),
    ({"num_ant": 4}, "channel.jammer.num_ant=4 .* channel.jammer.budget=rx"),
    ({"budget": "tx"}, "channel.jammer.budget=tx needs channel.jammer.num_ant .* got None"),
    ({"budget": "tx", "num_ant": 0}, "channel.jammer.budget=tx needs channel.jammer.num_ant .* got 0"),
    ({"objective": "fixed_filter", "knowledge": "channel"}, "fixed_filter needs channel.jammer.knowledge=.* channel"),
    ({"objective": "fixed_filter", "knowledge": "statistics"}, "channel.jammer.objective=fixed_filter .* statistics"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(values, message):
    with pytest.raises(FedfusionError, match=message):
        Jammer(**values)


def test_without_pilots_they_cannot_be_the_objective():
    with pytest.raises(FedfusionError, match="objective=pilot needs channel.pilots of at least 1, got 0"):
        jam(replace(scene(), pilots=0), objective="pilot")
