"""Every method is called on plain tensors, in two lines: what it is, and what it is given."""

import doctest
import importlib
import re

import pytest
import torch

from fedfusion import aggregators, attacks, channels, coupling, fusion, guard, optimizers, preaggregators, regularizers
from fedfusion.composition import CONF
from fedfusion.rng import generator
from fedfusion.types import Clients, Evidence, Layout, Updates

FAMILIES = (
    *("aggregators", "attacks", "channels", "coupling", "fusion"),
    *("guard", "optimizers", "preaggregators", "realign", "regularizers"),
)
NO_UPLOADS = {"Adversary", "Amplified", "Backdoor", "LabelFlip", "Poison", "Upload"}  # who attacks, and with which data
TAKES = {
    "TaskHijack": {"task": "b"},
    "OptimalALittleIsEnough": {"against": aggregators.Median()},
    "OptimalInnerProductManipulation": {"against": aggregators.Median()},
    "Laplacian": {"adjacency": coupling.Task(), "strength": 0.1},
}
COUPLINGS = [coupling.Average, coupling.Isolated, coupling.Laplacian, coupling.ProductAverage, coupling.Stacking]


def methods(family, *others):
    return [getattr(family, name) for name in family.__all__ if name not in others]


def rows(n=7, d=12):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_package_shows_it(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"fedfusion.{name}"))
    assert attempted > 2 and not failed


@pytest.mark.parametrize("rule", methods(aggregators))
def test_an_aggregator(rule):
    vectors, weights = rows(), torch.full((7,), 1 / 7)
    assert rule()(vectors, weights, generator(0), trusted=vectors[0]).shape == (12,)


@pytest.mark.parametrize("rule", methods(preaggregators))
def test_a_preaggregator(rule):
    made = rule()(rows(), generator(0))
    assert made.shape == (rule().rows(7), 12)


@pytest.mark.parametrize("upload", methods(attacks, *NO_UPLOADS))
def test_an_attack(upload):
    both = Updates.of(rows(), tasks=["a", "a", "a", "a", "b", "b", "b"])
    attack = upload(**TAKES.get(upload.__name__, {}))
    sent = attack(both.keep([0, 1]), both.keep(range(2, 7)), generator(0), torch.zeros(2, 12))
    assert set(sent.clients) <= {0, 1} and sent.vectors.shape[1] == 12


@pytest.mark.parametrize("name", ["AirComp", "Awgn", "Ideal", "Mimo"])
def test_a_channel(name):
    channel = getattr(channels, name)()
    received, report = channel(Updates.of(rows(4, 256)), generator(0))
    assert received.vectors.shape[1] == 256 and len(report.nmse) == 4 and (max(report.nmse) == 0) == (name == "Ideal")


def test_a_guard():
    believed, report = guard.NormClip()(Updates.of(rows() * torch.tensor([1.0] * 6 + [1e6])[:, None]))
    assert len(believed) == 6 and list(report.refused) == [6]


@pytest.mark.parametrize("rule", COUPLINGS)
def test_a_coupling(rule):
    clients = Clients.of(["a", "a", "b"], torch.zeros(12))
    coupled, _ = rule(**TAKES.get(rule.__name__, {}))(
        rows(3), torch.arange(3), torch.full((3,), 1 / 3), clients, generator(0)
    )
    assert coupled.shape == (3, 12)


@pytest.mark.parametrize("rule", [rule for rule in methods(fusion) if getattr(rule, "data", "") == "none"])
def test_a_fusion_rule(rule):
    layout = Layout.of({"one": torch.zeros(3, 2), "other": torch.zeros(2, 3)})
    assert rule()(rows(3), layout, Evidence(generator(0))).shape == (12,)


@pytest.mark.parametrize("optimizer", methods(optimizers))
def test_a_server_optimizer(optimizer):
    step, moments = optimizer()(rows(2), torch.zeros(optimizer().num_moments, 2, 12))
    assert step.shape == (2, 12) and moments.shape == (optimizer().num_moments, 2, 12)


@pytest.mark.parametrize("penalty", methods(regularizers))
def test_a_regularizer(penalty):
    layout = Layout.of({"m.lora_A.weight": torch.zeros(2, 3), "m.lora_B.weight": torch.zeros(3, 2)})
    assert penalty()(rows(2), rows(2), rows(2), torch.tensor([0, 1]), layout).shape == (2,)


def test_factors_are_pairs_and_everything_else_is_not():
    state = {"x.lora_A.weight": torch.ones(2, 5), "x.lora_B.weight": torch.ones(7, 2), "y.lora_A.weight": torch.ones(3)}
    layout = Layout.of(state, scale=0.5)
    (pair,) = layout.pairs
    assert (pair.module, layout.names[pair.a], layout.names[pair.b]) == ("x", "x.lora_A.weight", "x.lora_B.weight")
    assert pair.scale == 0.5 and layout.rank == 2 and layout.dim == 27
    assert all(torch.equal(state[name], tensor) for name, tensor in layout.unflatten(layout.flatten(state)).items())


def test_plain_uploads_are_of_one_task_unless_told_otherwise():
    plain, told = Updates.of(rows(2)), Updates.of(rows(2), ["a", "b"], Layout(("m",), ((3, 4),)))
    assert len(set(plain.tasks)) == 1 and plain.clients == (0, 1) and plain.layout.dim == 12
    assert told.tasks == ("a", "b") and told.layout.shapes == ((3, 4),) and not told.start.any()
    assert Clients.of("aab", torch.zeros(3)).relation.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_what_is_configured_is_public():
    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    targets = {t for text in texts for t in re.findall(r"_target_: (fedfusion\.\w+)\.(\w+)$", text, re.M)}
    assert len(targets) > 60
    for module, name in sorted(targets):
        assert name in getattr(importlib.import_module(module), "__all__", [name]), (module, name)


@pytest.mark.parametrize("name", [*FAMILIES, "federation", "tracking"])
def test_what_a_package_offers_is_public_and_nothing_else(name):
    package = importlib.import_module(f"fedfusion.{name}")
    offered = {n for n, value in vars(package).items() if getattr(value, "__module__", "").startswith("fedfusion.")}
    assert offered == set(package.__all__) and len(package.__all__) == len(offered)
