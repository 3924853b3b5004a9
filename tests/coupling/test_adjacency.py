import json

import numpy as np
import pytest
import torch

from fedfusion.coupling import FromFile, Random, Shuffled, Similarity, Task, Uniform
from fedfusion.lora.product import gram
from fedfusion.types import Clients, FedfusionError

TASKS = ("a", "a", "b", "b", "c", "c")


@pytest.fixture
def clients(layout) -> Clients:
    """Two clients each of three tasks; `a` and `b` are related by construction."""
    related = {("a", "b"): 0.25, ("b", "a"): 0.25}
    relation = torch.tensor([[float(s == t) or related.get((s, t), 0.0) for t in TASKS] for s in TASKS])
    return Clients(layout, TASKS, torch.zeros(layout.dim), relation)


@pytest.fixture
def adapters(layout, rng):
    return torch.randn(len(TASKS), layout.dim, generator=rng)


@pytest.mark.parametrize("adjacency", [Uniform(), Random(), Task(), Shuffled(), Similarity()], ids=repr)
def test_weights_are_symmetric_and_hollow_and_at_least_zero(adjacency, clients, adapters, rng):
    before = clients.relation.clone(), adapters.clone(), rng.get_state()
    a = adjacency(clients, adapters, rng)
    assert a.shape == (6, 6) and a.dtype == torch.float64
    assert torch.equal(a, a.T) and not a.diagonal().any() and (a >= 0).all() and a.any()
    assert torch.equal(a, adjacency(clients, adapters, rng))  # the next round's is the same
    for kept, now in zip(before, (clients.relation, adapters, rng.get_state()), strict=True):
        assert torch.equal(kept, now)


def test_uniform_is_one_for_all(clients, adapters, rng):
    assert torch.equal(Uniform()(clients, adapters, rng), torch.ones(6, 6).double() - torch.eye(6).double())


def test_task_is_the_relation_by_construction(clients, adapters, rng):
    a = Task()(clients, adapters, rng)
    assert a[0].tolist() == [0, 1, 0.25, 0.25, 0, 0] and a[4].tolist() == [0, 0, 0, 0, 0, 1]


def test_random_is_named_by_its_seed_and_as_large_as_published(clients, adapters, rng):
    assert torch.equal(Random(3)(clients, adapters, rng), Random(3)(clients, adapters, torch.Generator()))
    assert not torch.equal(Random(3)(clients, adapters, rng), Random(4)(clients, adapters, rng))
    many = Clients(clients.layout, ("a",) * 80, clients.initial, torch.ones(80, 80))
    degree = Random()(many, adapters, rng).sum(1)
    bound = 2 / torch.linalg.eigvalsh(degree.diag() - Random()(many, adapters, rng))[-1]
    assert abs(bound - 0.0441) < 0.001 and abs(1 / degree.max() - 0.0228) < 0.001


def test_shuffled_is_the_truth_of_other_clients(clients, adapters, rng):
    truth, control = Task()(clients, adapters, rng), Shuffled()(clients, adapters, rng)
    assert not torch.equal(truth, control)
    torch.testing.assert_close(torch.linalg.eigvalsh(truth), torch.linalg.eigvalsh(control))


def test_similarity_is_the_positive_cosine_of_the_products(clients, adapters, layout, rng):
    pair = layout.pairs
    adapters[1] = adapters[0]
    for p in pair:  # the same product from other factors, its opposite, and none
        layout.entry(adapters[1], p.a).mul_(4)
        layout.entry(adapters[2], p.a).copy_(layout.entry(adapters[0], p.a))
        layout.entry(adapters[2], p.b).copy_(-layout.entry(adapters[0], p.b))
        layout.entry(adapters[5], p.b).zero_()
    a = Similarity()(clients, adapters, rng)
    inner = gram(layout, adapters)
    expected = inner[3, 4] / (inner[3, 3] * inner[4, 4]).sqrt()
    torch.testing.assert_close(a[3, 4], expected.clamp_min(0))
    assert a[0, 1] == pytest.approx(1) and a[0, 2] == 0 and not a[5].any()


def test_files_of_every_kind(clients, adapters, rng, tmp_path):
    weights = np.random.default_rng(0).random((6, 6))
    np.savetxt(tmp_path / "a.csv", weights, delimiter=",")
    np.save(tmp_path / "a.npy", weights)
    (tmp_path / "a.json").write_text(json.dumps(weights.tolist()))
    for name in ("a.csv", "a.npy", "a.json"):
        a = FromFile(str(tmp_path / name))(clients, adapters, rng)
        assert np.array_equal(a.numpy(), weights * (1 - np.eye(6)))


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("none.csv", None, "no file at"),
        ("a.txt", "0", "is not one of .csv, .json, .npy"),
        ("a.csv", "0,x\n1,0\n", "holds no matrix of numbers"),
        ("a.json", "[[0, 1], [0]]", "holds no matrix of numbers"),
        ("a.json", "[[0, 1], [0", "holds no matrix of numbers"),
        ("a.json", "[0, 1]", "it has 1 dimensions"),
        ("a.npy", "", "holds no matrix of numbers"),
        ("a.csv", "0,1\n-2,0\n", "has -2.0 at (2, 1), counted from one"),
        ("a.csv", "0,nan\n1,0\n", "has nan at (1, 2)"),
    ],
)
def test_a_file_without_weights_is_refused(name, text, sentence, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(FedfusionError) as caught:
        _ = FromFile(str(tmp_path / name)).weights
    assert sentence in str(caught.value) and str(caught.value).startswith("coupling.adjacency.path: ")


@pytest.mark.parametrize("text, size", [("0,1\n1,0\n", "2 x 2"), ("1,1,1\n", "1 x 3")])
def test_a_file_for_other_clients_is_refused(text, size, clients, adapters, rng, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(FedfusionError, match=rf"a.csv' is {size}, the 6 clients need 6 x 6 weights"):
        FromFile(str(tmp_path / "a.csv"))(clients, adapters, rng)
