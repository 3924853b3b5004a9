import math
import time
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.config import build, resolve
from fedfusion.coupling import Isolated, Laplacian, Random, Shuffled, Task, Uniform
from fedfusion.types import Clients, FedfusionError, Layout

PLAIN = Layout(("w",), ((5,),))


@dataclass(frozen=True)
class Given:
    """Weights as they are given."""

    a: torch.Tensor

    def __call__(self, clients, adapters, rng):
        return self.a


def everyone(n, layout=PLAIN):
    return Clients(layout, ("a",) * n, torch.zeros(layout.dim), torch.ones(n, n))


def coupled(coupling, adapters, heard):
    heard = torch.tensor(heard)
    clients = everyone(len(adapters), Layout(("w",), ((adapters.shape[1],),)))
    return coupling(adapters, heard, torch.full((len(heard),), 1 / len(heard)), clients, torch.Generator())


def random_weights(n, seed, symmetric=True):
    a = torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).fill_diagonal_(0)
    return (a + a.T) / 2 if symmetric else a


def in_two_loops(adapters, heard, a, step, others, normalise):
    """The formula of the letter, word for word."""
    result = adapters.clone()
    for k in heard:
        relatives = [j for j in (heard if others == "sampled" else range(len(adapters))) if j != k]
        total = sum(float(a[k, j]) for j in relatives) if normalise == "row" else 1.0
        for j in relatives:
            if total:
                result[k] -= step * float(a[k, j]) / total * (adapters[k] - adapters[j])
    return result


@given(
    st.integers(2, 7),
    st.floats(0.0, 0.14),
    st.sampled_from(["sampled", "stored"]),
    st.sampled_from(["none", "row"]),
    st.booleans(),
    st.data(),
)
def test_it_is_the_formula_of_the_letter(n, step, others, normalise, symmetric, data):
    heard = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    a = random_weights(n, n, symmetric)
    a[0] = 0  # and one without relatives
    if symmetric:
        a[:, 0] = 0
    adapters = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    result, _ = coupled(Laplacian(Given(a), step / 2, 2.0, normalise, others), adapters, heard)
    torch.testing.assert_close(result, in_two_loops(adapters, heard, a, step, others, normalise))
    unheard = sorted(set(range(n)) - set(heard))
    assert torch.equal(result[unheard], adapters[unheard])


@given(st.integers(2, 8), st.floats(0.0, 1.0), st.sampled_from(["sampled", "stored"]))
def test_symmetric_weights_preserve_the_mean(n, share, others):
    a = random_weights(n, 7 * n)
    adapters = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    _, report = coupled(Laplacian(Given(a), 0.0), adapters, range(n))
    result, _ = coupled(Laplacian(Given(a), share * report["bound"], others=others), adapters, range(n))
    torch.testing.assert_close(result.mean(0), adapters.mean(0))
    degree = a.sum(1).float()
    result, _ = coupled(Laplacian(Given(a), share, normalise="row", others=others), adapters, range(n))
    torch.testing.assert_close(degree @ result, degree @ adapters, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("others", ["sampled", "stored"])
def test_no_strength_is_local_training_only(others, rng):
    adapters = torch.randn(6, 5, generator=rng)
    result, report = coupled(Laplacian(Random(), 0.0, others=others), adapters, [4, 1, 2])
    assert torch.equal(result, adapters) and report["step"] == 0
    assert torch.equal(coupled(Isolated(), adapters, [4, 1, 2])[0], adapters)


def test_one_over_n_is_the_mean_of_those_heard(rng):
    adapters = torch.randn(6, 5, generator=rng)
    result, _ = coupled(Laplacian(Uniform(), 1 / 3), adapters, [4, 1, 2])
    torch.testing.assert_close(result[[4, 1, 2]], adapters[[4, 1, 2]].mean(0).expand(3, 5))
    assert torch.equal(result[[0, 3, 5]], adapters[[0, 3, 5]])


def test_only_the_same_task_is_pulled_together(rng):
    clients = Clients(PLAIN, ("a", "b", "a", "b"), torch.zeros(PLAIN.dim), torch.eye(2).repeat(2, 2))
    adapters = torch.randn(4, 5, generator=rng)
    result, _ = Laplacian(Task(), 0.5)(adapters, torch.arange(4), torch.full((4,), 0.25), clients, rng)
    torch.testing.assert_close(result, torch.stack([adapters[0::2].mean(0), adapters[1::2].mean(0)]).repeat(2, 1))


@pytest.mark.parametrize("normalise", ["none", "row"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_it_converges_below_the_bound_and_diverges_beyond(n, symmetric, normalise, rng):
    a = random_weights(n, n, symmetric)
    adapters = torch.randn(n, 5, dtype=torch.float64, generator=rng)
    _, report = coupled(Laplacian(Given(a), 0.0, normalise=normalise), adapters, range(n))
    degree = a.sum(1)
    exact = 2 / torch.linalg.eigvalsh(degree.diag() - a)[-1]
    if symmetric and normalise == "none":
        assert report["bound"] == pytest.approx(float(exact))
        assert report["convex_bound"] == pytest.approx(1 / float(degree.max()))
    if normalise == "row":
        assert report["convex_bound"] == pytest.approx(1)
        assert 1 - 1e-9 <= report["bound"] <= 2 * (n - 1) / n + 1e-9

    below = Laplacian(Given(a), 0.9 * report["bound"], normalise=normalise)
    result = adapters
    for _ in range(400):
        result, _ = coupled(below, result, range(n))
    torch.testing.assert_close(result, result[:1].expand(n, 5))  # all agree

    if normalise == "row":
        a = a / a.sum(1, keepdim=True)
    beyond = torch.eye(n) - 1.05 * report["bound"] * (a.sum(1).diag() - a)
    assert torch.linalg.matrix_power(beyond, 1000).abs().max() > 1e6
    with pytest.raises(FedfusionError, match="coupling.strength x coupling.server_lr = .* diverges"):
        coupled(Laplacian(Given(a), 1.05 * report["bound"], normalise=normalise), adapters, range(n))


@given(st.integers(3, 8), st.data())
def test_a_stored_sum_never_adds_to_the_disagreement(n, data):
    """Whoever is heard, the penalty of the letter falls, right up to the bound of the round."""
    a = random_weights(n, n)
    laplacian = a.sum(1).diag() - a
    w = torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    for _ in range(6):
        heard = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
        _, report = coupled(Laplacian(Given(a), 0.0, others="stored"), w, heard)
        after, _ = coupled(Laplacian(Given(a), report["bound"], others="stored"), w, heard)
        assert torch.trace(after.T @ laplacian @ after) <= torch.trace(w.T @ laplacian @ w) * (1 + 1e-9)
        w = after


def test_bounds_without_relatives_are_infinite(rng):
    adapters = torch.randn(3, 5, generator=rng)
    result, report = coupled(Laplacian(Given(torch.zeros(3, 3).double()), 1e9), adapters, [0, 2])
    assert torch.equal(result, adapters)
    assert report == {"step": 1e9, "bound": math.inf, "convex_bound": math.inf}


@pytest.mark.parametrize("values, key", [
    ({"strength": -1.0}, "coupling.strength must be"),
    ({"strength": math.nan}, "coupling.strength must be"),
    ({"strength": 1.0, "server_lr": 0.0}, "coupling.server_lr must be"),
    ({"strength": 2.0, "normalise": "row"}, "coupling.strength x coupling.server_lr must be below 2"),
])  # fmt: skip
def test_what_no_graph_can_bear_is_refused_at_once(values, key):
    with pytest.raises(FedfusionError, match=key):
        Laplacian(Uniform(), **values)


def test_what_is_fine_for_eight_diverges_for_eighty(rng):
    adapters = torch.randn(80, 5, generator=rng)
    coupling = Laplacian(Random(), 0.2)
    coupled(coupling, adapters, range(8))
    with pytest.raises(FedfusionError, match="80 clients heard are stable up to 0.044.*normalise=row"):
        coupled(coupling, adapters, range(80))
    coupled(Laplacian(Random(), 0.2, normalise="row"), adapters, range(80))


def test_a_thousand_clients_are_one_product(rng):
    n, d = 1000, 2000
    adapters = torch.randn(n, d, generator=rng)
    relation = torch.eye(50).repeat(20, 20)  # twenty clients for each of fifty tasks: sparse
    clients = Clients(Layout(("w",), ((d,),)), tuple(str(i % 50) for i in range(n)), torch.zeros(d), relation)
    started = time.perf_counter()
    sparse, _ = Laplacian(Task(), 0.05)(adapters, torch.arange(n), torch.full((n,), 1 / n), clients, rng)
    dense, _ = Laplacian(Uniform(), 1 / n)(adapters, torch.arange(n), torch.full((n,), 1 / n), clients, rng)
    assert time.perf_counter() - started < 10
    means = adapters.view(20, 50, d).mean(0)
    torch.testing.assert_close(sparse, means.repeat(20, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dense, adapters.mean(0).expand(n, d), rtol=1e-4, atol=1e-5)


def test_the_adjacency_is_a_group_of_its_own():
    assert build(resolve(["coupling=laplacian"])).coupling.adjacency == Task()
    assert build(resolve(["coupling=laplacian", "adjacency=random"])).coupling.adjacency == Random()
    overrides = ["adjacency=shuffled", "coupling.adjacency.seed=3", "coupling=laplacian", "coupling.strength=0.25"]
    assert build(resolve(overrides)).coupling == Laplacian(Shuffled(3), 0.25, normalise="row")
    assert build(resolve([])).coupling == Isolated()
