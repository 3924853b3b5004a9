import json

import pytest
import torch
from inline import run

from fedfusion.coupling import Similarity, Task, Uniform
from fedfusion.lora.product import factors
from fedfusion.server import structure
from fedfusion.types import Clients


def clients(layout, tasks):
    relation = torch.tensor([[float(a == b) for a in tasks] for b in tasks])
    return Clients(layout, tuple(tasks), torch.zeros(layout.dim), relation)


def test_the_graph_of_clients_holds_the_weights_as_they_are(layout, rng):
    adapters = torch.randn(3, layout.dim, generator=rng)
    found = structure.relation(Similarity(), clients(layout, "aab"), adapters, 0, 1)
    assert found["of"] == "clients" and found["tasks"] == ["a", "a", "b"]
    expected = Similarity()(clients(layout, "aab"), adapters, torch.Generator())
    torch.testing.assert_close(torch.tensor(found["weights"], dtype=torch.float64), expected, rtol=0, atol=1e-4)
    assert json.loads(json.dumps(found)) == found


def test_of_more_clients_than_a_person_can_read_tasks_are_the_nodes(layout):
    tasks = ["a"] * 40 + ["b"] * 29 + ["c"]
    adapters = torch.zeros(70, layout.dim)
    assert structure.relation(Uniform(), clients(layout, tasks), adapters, 0, 1) == {
        "of": "tasks",
        "tasks": ["a", "b", "c"],
        "weights": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 0.0]],  # c has nobody else
    }
    own = structure.relation(Task(), clients(layout, tasks), adapters, 0, 1)
    assert own["weights"] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_spectra_are_of_the_mean_product_of_the_clients_that_were_heard(layout, rng):
    adapters, fused = torch.randn(4, layout.dim, generator=rng), torch.randn(layout.dim, generator=rng)
    found = structure.spectra(layout, adapters, torch.tensor([1, 3, 0, 0]), ["a", "a", "a", "b"], (layout, fused))
    assert list(found) == ["a", "fused"]
    expected = []
    for pair in layout.pairs:
        b, a = factors(layout, pair, adapters[:2].double())
        power = torch.linalg.svdvals((torch.tensor([0.25, 0.75], dtype=torch.float64)[:, None, None] * (b @ a)).sum(0))
        power = power.square() / power.square().sum()
        expected.append(torch.nn.functional.pad(power, (0, 64))[: len(found["a"])])
    torch.testing.assert_close(
        torch.tensor(found["a"], dtype=torch.float64), torch.stack(expected).mean(0), rtol=0, atol=2e-6
    )
    for shares in found.values():
        assert sum(shares) == pytest.approx(1, abs=1e-4) and sorted(shares, reverse=True) == shares


def test_what_has_learnt_nothing_has_no_spectrum(layout):
    nothing = torch.zeros(2, layout.dim)
    assert structure.spectra(layout, nothing, torch.ones(2), ["a", "b"], (layout, nothing[0])) == {}


@pytest.mark.slow
def test_a_run_reports_both_and_where_it_ran(tmp_path):
    metrics = run(tmp_path, "coupling=laplacian", "rounds=1")
    assert metrics["relation"]["tasks"] == ["upright-digit"] * 2 + ["flipped-size"] * 2
    assert metrics["relation"]["weights"][0] == [0.0, 1.0, 0.0, 0.0]
    assert list(metrics["spectra"]) == ["upright-digit", "flipped-size", "fused"]
    machine = json.loads((tmp_path / "results.json").read_text())["machine"]
    assert machine["device"] == "cpu" and machine["threads"] == 1
    assert "relation" not in run(tmp_path / "plain", "rounds=1")
