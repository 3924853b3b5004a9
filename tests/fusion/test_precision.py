import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.fusion import PrecisionWeighted
from fedfusion.types import Evidence, FedfusionError, Layout

LAYOUT = Layout(("x", "bias", "y"), ((3, 5), (2,), (4, 4)))
PRECISIONS = ("inputs", "diagonal", "kronecker")
EXACT = {"alpha": 1.0, "ridge": 1e-12, "tolerance": 1e-12}


def spread(rng, tasks, n, samples=40):
    """Samples `[T, samples, n]` with correlated entries that differ from task to task."""
    return torch.randn(tasks, samples, n, generator=rng) @ torch.randn(tasks, n, n, generator=rng)


def moments(samples):
    return samples.mT @ samples / samples.shape[1]


def problem(rng, tasks=3, layout=LAYOUT):
    vectors = torch.randn(tasks, layout.dim, generator=rng)
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    curvature = {
        name: (moments(spread(rng, tasks, shape[1])), moments(spread(rng, tasks, shape[0])))
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    return vectors, curvature


def fuse(vectors, curvature, layout=LAYOUT, **settings):
    return PrecisionWeighted(**settings)(vectors, layout, Evidence(torch.Generator(), curvature=curvature))


def changed(curvature, inputs=lambda g: g, gradients=lambda s: s):
    return {name: (inputs(g), gradients(s)) for name, (g, s) in curvature.items()}


def identity(matrices):
    return torch.eye(matrices.shape[-1]).expand_as(matrices)


def diagonal(matrices):
    return torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))


def test_inputs_give_regmean_as_published(rng):
    vectors, curvature = problem(rng)
    fused = fuse(vectors, curvature, precision="inputs", alpha=0.9, ridge=1e-12)
    for i in (0, 2):
        inputs = curvature[LAYOUT.names[i]][0].double().numpy()
        inputs = 0.9 * inputs + 0.1 * np.stack([np.diag(np.diag(g)) for g in inputs])
        single = LAYOUT.entry(vectors, i).double().numpy()
        expected = (single @ inputs).sum(0) @ np.linalg.inv(inputs.sum(0))
        np.testing.assert_allclose(LAYOUT.entry(fused, i), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", ["left", "core"])
def test_in_coordinates_outputs_are_nearest_to_each_clients_own_on_its_inputs(space, rng):
    """Least squares over all matrices for `left`, over those of the common basis for `core`."""
    u, v = torch.linalg.qr(torch.randn(7, 3, generator=rng))[0], torch.linalg.qr(torch.randn(6, 4, generator=rng))[0]
    v = v if space == "core" else torch.eye(6)
    layout = Layout(("x",), ((3, v.shape[1]),))
    vectors, samples = torch.randn(3, layout.dim, generator=rng), spread(rng, 3, 6)
    curvature = {"x": (v.T @ moments(samples) @ v, torch.ones(3, 3, 3))}
    fused = u @ layout.entry(fuse(vectors, curvature, layout, precision="inputs", **EXACT), 0) @ v.T
    dense = (u @ layout.entry(vectors, 0) @ v.T).double().numpy()
    x = samples.double().numpy()
    outputs = np.concatenate([x[k] @ dense[k].T for k in range(3)])
    best = np.linalg.lstsq(np.concatenate(x) @ v.double().numpy(), outputs, rcond=None)[0].T @ v.T.double().numpy()
    np.testing.assert_allclose(fused, best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ridge", [1e-12, 0.3])
def test_kronecker_solves_the_dense_system(ridge, rng):
    vectors, curvature = problem(rng)
    fused = fuse(vectors, curvature, precision="kronecker", alpha=0.8, ridge=ridge, tolerance=1e-12)
    for i in (0, 2):
        g, s = (m.double().numpy() for m in curvature[LAYOUT.names[i]])
        g = 0.8 * g + 0.2 * np.stack([np.diag(np.diag(one)) for one in g])
        g = g + ridge * np.trace(g.mean(0)) / len(g[0]) * np.eye(len(g[0]))
        s = s + ridge * np.trace(s.mean(0)) / len(s[0]) * np.eye(len(s[0]))
        precisions = [np.kron(s[k], g[k]) for k in range(3)]
        right = sum(
            p @ d for p, d in zip(precisions, LAYOUT.entry(vectors, i).flatten(1).double().numpy(), strict=True)
        )
        expected = np.linalg.solve(sum(precisions), right)
        np.testing.assert_allclose(LAYOUT.entry(fused, i).flatten(), expected, rtol=1e-4, atol=1e-4)


def test_the_diagonal_is_a_mean_weighted_entry_by_entry(rng):
    vectors, curvature = problem(rng)
    fused = fuse(vectors, curvature, precision="diagonal", ridge=1e-12)
    for i in (0, 2):
        (g, s), single = curvature[LAYOUT.names[i]], LAYOUT.entry(vectors, i)
        for row in range(single.shape[1]):
            for column in range(single.shape[2]):
                weights = s[:, row, row] * g[:, column, column]
                expected = (weights * single[:, row, column]).sum() / weights.sum()
                assert float(LAYOUT.entry(fused, i)[row, column]) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_task_keeps_its_vector_and_equal_statistics_give_the_mean(precision, rng):
    vectors, curvature = problem(rng)
    alone = changed(curvature, lambda g: g[:1], lambda s: s[:1])
    assert torch.equal(fuse(vectors[:1], alone, precision=precision), vectors[0])
    alike = changed(curvature, lambda g: g[:1].expand_as(g), lambda s: s[:1].expand_as(s))
    torch.testing.assert_close(fuse(vectors, alike, precision=precision), vectors.mean(0), rtol=1e-4, atol=1e-5)
    assert (fuse(vectors, curvature, precision=precision) - vectors.mean(0)).abs().max() > 0.1


@given(st.integers(0, 99), st.floats(1e-4, 1.0), st.floats(0.0, 1.0), st.booleans())
def test_kronecker_is_inputs_where_gradients_are_white_and_diagonal_where_nothing_correlates(
    seed, ridge, alpha, normalise
):
    vectors, curvature = problem(torch.Generator().manual_seed(seed), tasks=1 + seed % 5)
    settings = {"ridge": ridge, "alpha": alpha, "normalise": normalise, "tolerance": 1e-10}
    for white, other in (
        (changed(curvature, gradients=identity), "inputs"),
        (changed(curvature, diagonal, diagonal), "diagonal"),
    ):
        expected = fuse(vectors, white, precision=other, **settings)
        found = fuse(vectors, white, precision="kronecker", **settings)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 99), st.sampled_from(["inputs", "kronecker"]))
def test_the_choice_of_the_basis_does_not_matter(seed, precision):
    rng = torch.Generator().manual_seed(seed)
    layout = Layout(("x",), ((3, 5),))
    vectors, curvature = problem(rng, 4, layout)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=rng))[0] for n in (3, 5))
    turned = (u @ layout.entry(vectors, 0) @ v.T).flatten(1)
    settings = {"precision": precision, "alpha": 1.0, "tolerance": 1e-10}
    there = fuse(turned, changed(curvature, lambda g: v @ g @ v.T, lambda s: u @ s @ u.T), layout, **settings)
    here = u @ layout.entry(fuse(vectors, curvature, layout, **settings), 0) @ v.T
    torch.testing.assert_close(there, here.flatten(), rtol=1e-3, atol=1e-4)


@given(st.sampled_from(PRECISIONS), st.floats(1e-3, 0.1), st.booleans())
def test_normalised_nobody_wins_by_the_size_of_its_statistics(precision, factor, louder):
    vectors, curvature = problem(torch.Generator().manual_seed(0))
    scale = torch.tensor([1 / factor if louder else factor, 1.0, 1.0])[:, None, None]
    scaled = changed(curvature, lambda g: scale * g, lambda s: scale.square() * s)
    settings = {"precision": precision, "tolerance": 1e-10}
    assert (fuse(vectors, scaled, **settings) - fuse(vectors, curvature, **settings)).abs().max() > 0.05
    found, expected = (fuse(vectors, c, normalise=True, **settings) for c in (scaled, curvature))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_large_ridge_and_inputs_that_are_all_zero_give_the_mean(precision, rng):
    vectors, curvature = problem(rng)
    nothing = changed(curvature, torch.zeros_like, torch.zeros_like)
    for fused in (
        fuse(vectors, curvature, precision=precision, ridge=1e6),
        fuse(vectors, nothing, precision=precision),
    ):
        torch.testing.assert_close(fused, vectors.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_directions_that_only_one_client_sees_are_its_own_and_those_nobody_sees_the_mean(precision):
    layout = Layout(("x",), ((1, 3),))
    vectors = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    inputs = torch.diag_embed(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    fused = fuse(vectors, {"x": (inputs, torch.ones(2, 1, 1))}, layout, precision=precision, ridge=1e-9)
    torch.testing.assert_close(fused, torch.tensor([1.0, 6.0, 5.0]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_outside_every_module_is_averaged_and_all_is_scaled(precision, rng):
    vectors, curvature = problem(rng)
    before = vectors.clone(), changed(curvature, torch.clone, torch.clone)
    fused = fuse(vectors, curvature, precision=precision)
    torch.testing.assert_close(LAYOUT.entry(fused, 1), LAYOUT.entry(vectors, 1).mean(0))
    torch.testing.assert_close(fuse(vectors, curvature, precision=precision, coefficient=1.5), 1.5 * fused)
    assert fused.dtype == torch.float32 and torch.equal(vectors, before[0])
    for name, kept in before[1].items():
        assert all(torch.equal(a, b) for a, b in zip(curvature[name], kept, strict=True))


def test_conjugate_gradients_that_stop_early_say_by_how_much_they_miss(rng, caplog):
    layout = Layout(("x",), ((3, 5),))
    vectors, curvature = problem(rng, layout=layout)
    g, s = (m.double() for m in curvature["x"])
    for iterations, silent in ((2, False), (20, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fedfusion"):
            settings = {"alpha": 1.0, "ridge": 1e-9, "tolerance": 1e-5, "max_iterations": iterations}
            fused = layout.entry(fuse(vectors, curvature, layout, precision="kronecker", **settings), 0).double()
        single = layout.entry(vectors, 0).double()
        missed = (s @ (fused - single) @ g).sum(0).norm() / (s @ (single - single.mean(0)) @ g).sum(0).norm()
        assert (not caplog.records) == silent and (missed < 3e-5) == silent
        assert silent or f"'x' misses its equation by {float(missed):.1e}" in caplog.text


def test_conjugate_gradients_end_after_about_as_many_steps_as_there_are_unknowns(rng, caplog):
    layout = Layout(("x",), ((6, 8),))
    curvature = {"x": (moments(spread(rng, 3, 8, samples=3)), moments(spread(rng, 3, 6, samples=2)))}
    vectors = torch.randn(3, layout.dim, generator=rng)
    fuse(vectors, curvature, layout, precision="kronecker", alpha=1.0, tolerance=1e-5, max_iterations=2 * 48)
    assert not caplog.records


def test_missing_statistics_are_refused(rng):
    vectors, curvature = problem(rng)
    with pytest.raises(FedfusionError, match="there are none of 'y' .set client.statistics=curvature"):
        fuse(vectors, {"x": curvature["x"]})


@pytest.mark.parametrize("precision, said", [("inputs", "not those of any inputs"), ("kronecker", "misses its")])
def test_statistics_of_no_inputs_end_no_run_and_are_logged(precision, said, rng, caplog):
    vectors, curvature = problem(rng)
    fused = fuse(vectors, changed(curvature, lambda g: -g), precision=precision)
    torch.testing.assert_close(fused, vectors.mean(0))
    assert all(f"'{name}'" in caplog.text for name in "xy") and said in caplog.text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_whoever_has_no_inputs_says_nothing(precision, rng):
    vectors, curvature = problem(rng)
    silent = changed(curvature, lambda g: torch.cat([g[:2], 0 * g[2:]]), lambda s: torch.cat([s[:2], 0 * s[2:]]))
    settings = {"precision": precision, "normalise": True, "ridge": 1e-9}
    two = fuse(vectors[:2], changed(curvature, lambda g: g[:2], lambda s: s[:2]), **settings)
    fused = fuse(vectors, silent, **settings)
    for i in (0, 2):
        torch.testing.assert_close(LAYOUT.entry(fused, i), LAYOUT.entry(two, i), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [{"alpha": 1.1}, {"alpha": -0.1}, {"ridge": 0.0}, {"ridge": float("inf")}, {"coefficient": -1.0}]
    + [{"coefficient": float("inf")}, {"tolerance": 0.0}, {"max_iterations": 0}],
)
def test_meaningless_settings_are_refused(settings):
    with pytest.raises(FedfusionError, match=f"fusion.{next(iter(settings))} must be"):
        PrecisionWeighted(**settings)
