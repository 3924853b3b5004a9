import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.channels.mirror_descent import exponentiated_gradient
from fedfusion.channels.worst_case import (
    Objective,
    duality_gap,
    fixed_filter,
    mse_levels,
    require_psd,
    single_target,
    sum_rate_levels,
)
from fedfusion.types import FedfusionError

LEVELS = {"rate": sum_rate_levels, "mse": mse_levels}
GRID = [(snr_db, jsr_db) for snr_db in (0, 10, 20, 30) for jsr_db in (-10, 0, 10, 20, 30)]


def cn(*shape, rng):
    return torch.randn(*shape, dtype=torch.complex128, generator=rng)


def grid(criterion, num_ant, rng, num_rx=8, targets=8):
    """Eight streams, of which `targets` are jammed from `num_ant` antennas (0: at `rx`), at any SNR and JSR."""
    snr_db, jsr_db = torch.tensor(GRID * 3 + [(20, 30)] * 40, dtype=torch.float64).T
    f = cn(len(snr_db), num_rx, 8, rng=rng)
    jammed, others = f.split([targets, 8 - targets], 2)
    noise = 10 ** (-snr_db / 10)[:, None, None] * torch.eye(num_rx) + others @ others.mH
    path = cn(len(snr_db), num_rx, num_ant, rng=rng) if num_ant else None
    budget = 10 ** (jsr_db / 10) * (1 if num_ant else num_rx)
    return Objective(jammed @ jammed.mH, noise, budget, path, criterion)


def barrage(objective):
    n = objective.signal.shape[1] if objective.path is None else objective.path.shape[2]
    return objective.budget[:, None, None] / n * torch.eye(n, dtype=torch.complex128)


def feasible(objective, rank, rng):
    root = cn(*barrage(objective).shape[:2], rank, rng=rng)
    z = root @ root.mH
    return z * (objective.budget / z.diagonal(dim1=1, dim2=2).real.sum(1))[:, None, None]


def closed(objective, noise):
    s, u = torch.linalg.eigh(objective.signal)
    z = LEVELS[objective.criterion](s, noise, objective.budget)
    return (u * z[:, None, :]) @ u.mH


@pytest.mark.parametrize("criterion", ["rate", "mse"])
@pytest.mark.parametrize("path", [True, False])
def test_the_ascent_matrix_is_minus_the_gradient(criterion, path, rng):
    objective = grid(criterion, 5 if path else 0, rng, targets=3)
    z, towards = feasible(objective, 8, rng), feasible(objective, 8, rng)
    step = 1e-5 * (towards - z)
    rise = objective.value(z + step) - objective.value(z - step)
    predicted = -2 * (objective.ascent(z) * step.conj()).real.sum((1, 2))
    torch.testing.assert_close(rise, predicted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("criterion", ["rate", "mse"])
@pytest.mark.parametrize("num_streams", [3, 8, 20])
def test_closed_form_is_optimal_and_agrees_with_the_gradient(criterion, num_streams, rng):
    for snr_db in (0, 10, 20):
        f = cn(32, 8, num_streams, rng=rng)
        noise = 10 ** (-snr_db / 10)
        budget = 8 * 10 ** (torch.tensor([-10.0, -5, 0, 5, 10, 15, 20, 40] * 4, dtype=torch.float64) / 10)
        objective = Objective(f @ f.mH, (noise * torch.eye(8).double()).expand(32, 8, 8), budget, None, criterion)
        z = closed(objective, noise)
        torch.testing.assert_close(z.diagonal(dim1=1, dim2=2).real.sum(1), budget, rtol=1e-12, atol=0)
        assert objective.gap(z).max() < 1e-8
        iterated = exponentiated_gradient(objective)
        assert objective.gap(iterated).max() < 1e-6
        excess = objective.value(iterated) - objective.value(z)
        assert excess.min() > -1e-8 and excess.max() < 1e-6
        assert (objective.value(barrage(objective)) - objective.value(z)).min() > -1e-12


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=9),
    st.floats(1e-6, 1e4),
    st.floats(1e-9, 1e9),
    st.sampled_from(["rate", "mse"]),
)
def test_levels_spend_the_budget_and_satisfy_the_kkt_conditions(s, noise, budget, criterion):
    s, budget = torch.tensor([s], dtype=torch.float64), torch.tensor([budget], dtype=torch.float64)
    z = LEVELS[criterion](s, noise, budget)
    assert (z >= 0).all() and z.sum() == pytest.approx(float(budget), rel=1e-12)
    ascent = s / ((noise + z) * (noise + z + s)) if criterion == "rate" else s / (noise + z + s) ** 2
    assert budget * ascent.max() - (z * ascent).sum() < 1e-9
    assert not z[s == 0].any() or not s.any()


@pytest.mark.parametrize("criterion", ["rate", "mse"])
def test_levels_in_the_limit(criterion):
    s = torch.tensor([[9.0, 1.0, 0.0, 4.0]], dtype=torch.float64)
    little, much = torch.tensor([1e-6], dtype=torch.float64), torch.tensor([1e12], dtype=torch.float64)
    first = 0 if criterion == "rate" else 1  # the strongest, or the one nearest to the noise
    assert LEVELS[criterion](s, 1.0, little)[0].argmax() == first
    assert LEVELS[criterion](s, 1.0, little)[0, first] == little
    torch.testing.assert_close(LEVELS[criterion](s, 1.0, much) / much, s.sqrt() / s.sqrt().sum(), rtol=1e-5, atol=0)
    for alike in (torch.zeros(1, 4, dtype=torch.float64), torch.full((1, 4), 3.0, dtype=torch.float64)):
        torch.testing.assert_close(LEVELS[criterion](alike, 1.0, little), little / 4 * torch.ones(1, 4).double())


@pytest.mark.parametrize("num_ant", [1, 2, 4, 7, 8, 9, 16])
@pytest.mark.parametrize("criterion, targets", [("rate", 8), ("rate", 2), ("rate", 4), ("mse", 8)])
def test_the_gradient_reaches_the_optimum_at_any_power(criterion, targets, num_ant, rng):
    objective = grid(criterion, num_ant, rng, targets=targets)
    z = exponentiated_gradient(objective)
    require_psd(z, "Z")
    torch.testing.assert_close(z.diagonal(dim1=1, dim2=2).real.sum(1), objective.budget, rtol=1e-12, atol=0)
    assert objective.gap(z).max() <= 1.001e-6
    assert (objective.value(z) - objective.value(barrage(objective))).max() < 1e-6
    for rank in (1, 2, 8):
        assert (objective.value(z) - objective.value(feasible(objective, rank, rng))).max() < 1e-6


def test_the_gap_bounds_what_is_missed(rng):
    objective = grid("rate", 6, rng)
    best = objective.value(exponentiated_gradient(objective))
    for z in (barrage(objective), feasible(objective, 1, rng), exponentiated_gradient(objective, max_steps=3)):
        missed = objective.value(z) - best
        assert (objective.gap(z) >= missed - 1e-9).all()
    assert objective.gap(exponentiated_gradient(objective, max_steps=3)).max() > 1e-6  # and says so when stopped early
    torch.testing.assert_close(exponentiated_gradient(objective, max_steps=0), barrage(objective))


def test_a_tighter_tolerance_is_kept(rng):
    objective = grid("mse", 8, rng)
    assert objective.gap(exponentiated_gradient(objective, tolerance=1e-9)).max() < 1.001e-9


def test_a_member_does_not_depend_on_its_batch(rng):
    objective = grid("rate", 8, rng)
    alone = Objective(objective.signal[:3], objective.background[:3], objective.budget[:3], objective.path[:3])
    torch.testing.assert_close(
        exponentiated_gradient(objective)[:3], exponentiated_gradient(alone), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("num_ant", [0, 1, 2, 8, 16])
def test_one_target_is_barrage_with_as_many_times_the_power_as_antennas(num_ant, rng):
    objective = grid("rate", num_ant, rng, targets=1)
    eigenvalues, vectors = torch.linalg.eigh(objective.signal)
    h = vectors[:, :, -1] * eigenvalues[:, -1:].sqrt()
    z = single_target(h, objective.background, objective.budget, objective.path)
    torch.testing.assert_close(z @ z, objective.budget[:, None, None] * z)  # rank one, trace P
    array_gain = num_ant or 8

    def sinr(covariance):
        return (h.conj() * torch.linalg.solve(objective.received(covariance), h)).real.sum(1)

    torch.testing.assert_close(sinr(z), sinr(array_gain * barrage(objective)), rtol=1e-9, atol=0)
    torch.testing.assert_close(objective.value(z), sinr(z).log1p(), rtol=1e-6, atol=0)
    for criterion in ("rate", "mse"):
        own = Objective(objective.signal, objective.background, objective.budget, objective.path, criterion)
        assert own.gap(z).max() < 1e-9
        assert (own.value(exponentiated_gradient(own)) - own.value(z)).abs().max() < 1e-6
        assert (own.value(z) - own.value(feasible(own, 2, rng))).max() < 1e-9


def test_against_a_silent_user_any_direction_is_as_good():
    z = single_target(torch.zeros(1, 3, dtype=torch.complex128), torch.eye(3).cdouble()[None], torch.tensor([2.0]))
    assert z.diagonal(dim1=1, dim2=2).real.sum() == pytest.approx(2)


@pytest.mark.parametrize("num_ant", [0, 3, 16])
def test_a_fixed_filter_is_hit_along_its_strongest_direction(num_ant, rng):
    w, budget = cn(20, 4, 8, rng=rng), torch.rand(20, dtype=torch.float64, generator=rng) + 0.1
    path = cn(20, 8, num_ant, rng=rng) if num_ant else None
    z, m = fixed_filter(w, budget, path)

    def harm(z):
        seen = w @ (z if path is None else path @ z @ path.mH) @ w.mH
        return seen.diagonal(dim1=1, dim2=2).real.sum(1)

    largest = torch.linalg.matrix_norm(w if path is None else w @ path, 2)
    torch.testing.assert_close(harm(z), budget * largest**2)
    assert duality_gap(m, z, budget).abs().max() < 1e-10
    n = num_ant or 8
    torch.testing.assert_close(
        harm(budget[:, None, None] / n * torch.eye(n, dtype=w.dtype)),
        budget / n * m.diagonal(dim1=1, dim2=2).real.sum(1),
    )


@pytest.mark.parametrize("matrix, message", [
    ([[1.0, 0.0], [0.0, -0.5]], "sigma must be positive semidefinite, .* eigenvalue is -0.5 at a trace of 0.5"),
    ([[-1.0, 0.0], [0.0, -1.0]], "sigma must be positive semidefinite, .* -1 at a trace of -2"),
    ([[1.0, 0.3], [0.0, 1.0]], "sigma must be Hermitian, .* by 0.3 at a trace of 2"),
    ([[math.nan, 0.0], [0.0, 1.0]], "sigma must be Hermitian"),
])  # fmt: skip
def test_what_is_no_covariance_is_refused(matrix, message):
    good = torch.eye(2, dtype=torch.complex128)
    bad = torch.stack([good, torch.tensor(matrix, dtype=torch.complex128)])
    with pytest.raises(FedfusionError, match=message):
        require_psd(bad, "sigma")
    both, budget = torch.stack([good, good]), torch.ones(2, dtype=torch.float64)
    for refused in (lambda: Objective(bad, both, budget), lambda: Objective(both, bad, budget)):
        with pytest.raises(FedfusionError, match="the covariance of the (signal|background) must be"):
            refused()
    with pytest.raises(FedfusionError, match="the covariance of the background must be"):
        single_target(both[:, 0], bad, budget)


@given(st.integers(1, 6), st.integers(0, 6), st.floats(1e-9, 1e9))
def test_every_covariance_is_accepted(n, rank, scale):
    root = cn(3, n, rank, rng=torch.Generator().manual_seed(rank)) * math.sqrt(scale)
    require_psd(root @ root.mH, "S")
