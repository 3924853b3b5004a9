import pytest
import tiny
import torch
from tiny import gpt2, samples

from fedfusion.client.train import evaluate
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import CoreSpace
from fedfusion.server.evaluation import Evaluator, InCoordinates
from fedfusion.types import concatenate


class Words:
    """One task whose responses are words, one per token."""

    tasks = ("t",)

    def __init__(self, data):
        self.data = data

    def root(self, task, seed):
        return self.data

    def test(self, task):
        return self.data

    def decode(self, ids):
        return " ".join(f"W{token}!" for token in ids)


@pytest.fixture
def model(tmp_path):
    return LoraModel(gpt2(tmp_path), seed=0)


def half_right(model, adapter, rng):
    """Rows of which every other has the response that the model generates."""
    data = samples("gpt2", 12, rng)
    for row, made in enumerate(model.generate(adapter, data, 2)):
        if row % 2 == 0 and len(made) == 2:
            data.inputs["input_ids"][row, data.labels[row] != -100] = torch.tensor(made)
            data.labels[row, data.labels[row] != -100] = torch.tensor(made)
    return data


def common(a, b):
    """Length of the longest common subsequence."""
    if not a or not b:
        return 0
    same = a[-1] == b[-1]
    return max(common(a[:-1], b[:-1]) + same, common(a[:-1], b), common(a, b[:-1]))


def test_an_exact_match_of_what_is_generated_is_an_accuracy(model, rng):
    adapter = model.initial + torch.randn(model.layout.dim, generator=rng)
    data = half_right(model, adapter, rng)
    evaluator = Evaluator(Words(data), model, 0)
    for rows in (5, 12, 99):
        part = data.take(torch.arange(min(rows, 12)))
        found = evaluator.exact_match(model, adapter, "t", rows)
        assert 0.2 < found < 1 and found == evaluate(model, adapter, part, evaluator.heads["t"])["accuracy"]


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(model, rng):
    adapter = model.initial + torch.randn(model.layout.dim, generator=rng)
    data = half_right(model, adapter, rng)
    expected = []
    for row, made in enumerate(model.generate(adapter, data, 2)):
        given = data.labels[row][data.labels[row] != -100].tolist()
        expected.append(2 * common(made, given) / (len(made) + len(given)))
    found = Evaluator(Words(data), model, 0).rouge_l(model, adapter, "t", 12)
    assert found == pytest.approx(sum(expected) / 12) and 0.2 < found < 1


class Held:
    """Tasks of which the server holds labelled samples, and perhaps more of them."""

    def __init__(self, kind, rng, sizes=(7, 5, 6), more=4):
        self.tasks = tuple("abc"[: len(sizes)])
        self.roots = {t: samples(kind, n, rng) for t, n in zip(self.tasks, sizes, strict=True)}
        self.more = {t: samples(kind, more, rng, longest=11) for t in self.tasks}

    def root(self, task, seed):
        return self.roots[task]

    def num_classes(self, task):
        return 3

    def unlabelled_rows(self, task, seed):
        return self.more[task]


@pytest.fixture(params=tiny.ARCHITECTURES)
def held(request, tmp_path, rng):
    """An evaluator of rank 3 on three tasks."""
    base = tiny.ARCHITECTURES[request.param](tmp_path)
    return Evaluator(Held(request.param, rng, (13, 12, 14)), LoraModel(base, 0, rank=3), 0)


def adapter_of(evaluator, rng):
    return evaluator.base + 0.3 * torch.randn(evaluator.model.layout.dim, generator=rng)


def test_a_probe_measures_each_task_with_its_own_head(held, rng):
    adapter, probe = adapter_of(held, rng), held.probe()
    rows = torch.randperm(len(probe), generator=rng)[:20]
    assert len(probe) == 39 and probe.tasks.bincount().tolist() == [13, 12, 14]
    found, losses, entropies = probe.logits(adapter, rows), [], []
    for i, task in enumerate("abc"):
        mine = rows[probe.tasks[rows] == i] - (0, 13, 25)[i]
        features, labels, _ = held.model.features(
            adapter[None], held.roots[task].take(mine), torch.zeros(len(mine), dtype=torch.long)
        )
        logits = held.heads[task](features)
        torch.testing.assert_close(found[i], (logits, labels), atol=1e-5, rtol=1e-4)
        chances = logits.double().softmax(1)
        losses += (-chances.log()[torch.arange(len(labels)), labels]).tolist()
        entropies += (-(chances * chances.log()).sum(1)).tolist()
    assert float(probe.loss(adapter, rows)) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert float(probe.entropy(adapter, rows)) == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_what_the_server_holds_without_labels_is_all_it_holds_with_labels_hidden(held, rng):
    adapter, probe = adapter_of(held, rng), held.unlabelled()
    assert probe.tasks.bincount().tolist() == [17, 16, 18]
    rows = torch.nonzero(probe.tasks == 1)[:, 0]
    mine = concatenate([held.roots["b"], held.suite.more["b"]])
    features, labels, of = held.model.features(adapter[None], mine, torch.zeros(len(mine), dtype=torch.long))
    first = torch.tensor([i == 0 or of[i] != of[i - 1] for i in range(len(of))])  # of a response, the first token
    chances = held.heads["b"](features[first]).double().softmax(1)
    expected = -(chances * chances.log()).sum(1).mean()
    assert len(chances) == len(probe.logits(adapter, rows)[1][0]) == 16
    assert float(probe.entropy(adapter, rows)) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(IndexError):
        probe.loss(adapter, rows)


def test_a_suite_that_knows_no_more_rows_has_its_root_sets_without_labels(tmp_path, rng):
    evaluator = Evaluator(Rooted(Held("vit", rng)), LoraModel(tiny.vit(tmp_path), 0), 0)
    known, hidden = evaluator.probe().samples, evaluator.unlabelled().samples
    assert torch.equal(known.inputs["pixel_values"], hidden.inputs["pixel_values"]) and (hidden.labels == -1).all()


class Rooted:
    """A suite with nothing but root sets."""

    def __init__(self, suite):
        self.tasks, self.root, self.num_classes = suite.tasks, suite.root, suite.num_classes


def coordinates_of(evaluator, rng, clients=3):
    """A core space of a higher rank than the evaluator's model has, and a point in it."""
    layout = evaluator.model.layout
    adapters = evaluator.base + 0.3 * torch.randn(clients, layout.dim, generator=rng)
    core = CoreSpace.of(layout, adapters, evaluator.base)
    return core, core.project(layout, adapters).sum(0)


def test_a_probe_of_coordinates_is_that_of_their_adapter_whatever_its_rank(held, rng):
    core, point = coordinates_of(held, rng)
    rows = torch.arange(0, 39, 2)
    wide = LoraModel(held.model.model, 0, rank=core.rank)
    adapter, discarded = core.to_adapter(point, wide.layout)
    expected = Evaluator(held.suite, wide, 0).probe()
    assert core.rank == 9 and max(discarded.values()) < 1e-9
    for probe in (held.probe(core), held.unlabelled(core)):
        assert isinstance(probe, InCoordinates) and torch.equal(probe.tasks, probe.probe.tasks)
    found = held.probe(core)
    assert len(found) == 39
    for i, (logits, labels) in expected.logits(adapter, rows).items():
        torch.testing.assert_close(found.logits(point, rows)[i], (logits, labels), atol=1e-3, rtol=1e-3)
    for name in ("loss", "entropy"):
        assert float(getattr(found, name)(point, rows)) == pytest.approx(
            float(getattr(expected, name)(adapter, rows)), rel=1e-4
        )


def test_the_slope_along_a_line_of_coordinates_is_that_of_the_loss(held, rng):
    core, point = coordinates_of(held, rng)
    probe, rows = held.probe(core), torch.arange(39)
    leaf = point.clone().requires_grad_()
    probe.loss(leaf, rows).backward()
    step = 1e-2
    with torch.no_grad():
        rise = probe.loss((1 + step) * point, rows) - probe.loss((1 - step) * point, rows)
    assert float(leaf.grad @ point) == pytest.approx(float(rise) / (2 * step), rel=0.02, abs=1e-3)


def test_the_model_of_a_core_space_depends_on_its_rank_alone(held, rng):
    (small, point), (large, _) = coordinates_of(held, rng, 2), coordinates_of(held, rng, 4)
    rows = torch.arange(10)
    first = held.probe(small)
    assert held.probe(small).layout is first.layout  # and is made once
    assert held.probe(large).layout.shapes != first.layout.shapes
    assert held.probe(small).layout == first.layout
    assert torch.equal(held.probe(small).loss(point, rows), first.loss(point, rows))
    tight, _ = coordinates_of(held, rng, 1)
    assert held.probe(tight).layout is held.model.layout
