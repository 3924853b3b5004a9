import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedfusion.client.train import evaluate
from fedfusion.fusion import TaskArithmetic
from fedfusion.lora.model import LoraModel
from fedfusion.server.disentanglement import disagreement, disentanglement, interference, logits, squared_distance
from fedfusion.tasks.heads import LanguageHead, PrototypeHead
from fedfusion.types import FedfusionError, Samples, Updates

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inference(monkeypatch):
    """The tests of the experiment."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("experiments.disentanglement.inference")


@pytest.fixture
def run(monkeypatch):
    """The experiment."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("experiments.disentanglement.run")


# the metric, on logits


def test_by_hand():
    single = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    fused = torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    assert disagreement(single, fused) == 0.25  # the second only
    assert squared_distance(single, fused) == (16 + 5 + 0 + 1) / 4
    found = disentanglement({"a": single, "b": single[:1]}, {"a": fused, "b": fused[:1]})
    assert found == {"xi_01": 0.25, "xi_L2": 5.5 + 16}


@given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 6), st.integers(0, 99))
def test_errors_are_between_nothing_and_every_input_of_every_task(tasks, rows, classes, seed):
    rng = torch.Generator().manual_seed(seed)
    single, fused = ({str(t): torch.randn(rows, classes, generator=rng) for t in range(tasks)} for _ in range(2))
    found = disentanglement(single, fused)
    assert 0 <= found["xi_01"] <= tasks and found["xi_L2"] > 0
    assert disentanglement(fused, single) == found
    assert disentanglement(single, single) == {"xi_01": 0, "xi_L2": 0}
    opposed = {task: -one for task, one in single.items()}
    assert disentanglement(single, opposed)["xi_01"] == tasks
    scaled = disentanglement(single, {task: 3 * one for task, one in single.items()})
    assert scaled["xi_01"] == 0 and scaled["xi_L2"] > 0  # the same classes, other margins


@pytest.mark.parametrize(
    ("single", "fused", "message"),
    [
        ({"a": torch.ones(2, 3)}, {"a": torch.ones(1, 3)}, r"\(2, 3\) and \(1, 3\)"),
        ({"a": torch.ones(0, 3)}, {"a": torch.ones(0, 3)}, "at least one"),
        ({"a": torch.ones(2, 3)}, {"b": torch.ones(2, 3)}, r"\['a'\], those of the fused \['b'\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(single, fused, message):
    with pytest.raises(FedfusionError, match=message):
        disentanglement(single, fused)


# the metric, on models


def heads_of(kind, model, rng):
    if kind == "gpt2":
        return LanguageHead(model.output)
    return PrototypeHead(torch.randn(3, 16, generator=rng), torch.randn(16, generator=rng))


@pytest.fixture(params=tiny.ARCHITECTURES)
def models(request, tmp_path, rng):
    """A model, three adapters, and samples and a head of two tasks."""
    model = LoraModel(tiny.ARCHITECTURES[request.param](tmp_path), seed=0)
    adapters = model.initial + 0.5 * torch.randn(3, model.layout.dim, generator=rng)
    data = {task: tiny.samples(request.param, n, rng) for task, n in (("a", 13), ("b", 11))}
    heads = {task: heads_of(request.param, model, rng) for task in data}
    return model, adapters, data, heads


def one_by_one(model, adapter, data, head):
    """Logits of each sample alone, without any padding."""
    parts = []
    for row in range(len(data)):
        sample = data.take(torch.tensor([row]))
        sample = sample if sample.lengths is None else sample.pad(int(sample.lengths[0]))
        parts.append(head(model.features(adapter[None], sample, torch.zeros(1, dtype=torch.long))[0]))
    return torch.cat(parts)


@torch.no_grad()
def test_logits_are_in_the_order_of_the_samples_however_they_are_batched(models):
    model, adapters, data, heads = models
    expected = one_by_one(model, adapters[0], data["a"], heads["a"])
    for max_tokens in (4096, 20):
        found = logits(model, adapters[0], data["a"], heads["a"], max_tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_interference_compares_the_fused_adapter_with_that_of_each_task_on_its_own_samples(models):
    model, (fused, *single), data, heads = models
    single = dict(zip(data, single, strict=True))
    apart = {
        task: [one_by_one(model, adapter, data[task], heads[task]) for adapter in (single[task], fused)]
        for task in data
    }
    found = interference(model, fused, single, data, heads)
    different = [(a.argmax(1) != b.argmax(1)).float().mean() for a, b in apart.values()]
    assert found["xi_01"] == pytest.approx(float(sum(different))) and found["xi_01"] > 0
    squares = [((a - b) ** 2).sum(1).mean() for a, b in apart.values()]
    assert found["xi_L2"] == pytest.approx(float(sum(squares)), rel=1e-3)
    assert interference(model, fused, dict.fromkeys(data, fused), data, heads) == {"xi_01": 0, "xi_L2": 0}


@torch.no_grad()
@pytest.mark.parametrize("models", ["bert", "vit"], indirect=True)
def test_of_one_task_it_is_what_is_not_accurate_where_the_single_model_is_right(models):
    model, (fused, single, _), data, heads = models
    part, head = data["a"], heads["a"]
    right = Samples(part.inputs, logits(model, single, part, head).argmax(1))
    found = interference(model, fused, {"a": single}, data, heads)
    assert evaluate(model, fused, right, head)["accuracy"] == pytest.approx(1 - found["xi_01"])


# noise


class Linear:
    """A model whose features are linear in the adapter, with the Jacobian `[C, d]` of each sample as its input."""

    image_tokens = 1

    def features(self, adapters: Tensor, samples: Samples, owner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return samples.inputs["jacobian"] @ adapters[0], samples.labels, torch.arange(len(samples))


@pytest.fixture
def linear(rng):
    """Clean adapters, samples and heads of three tasks on a linear model, and the sum of its squared Jacobians."""
    single = {task: torch.randn(12, generator=rng, dtype=torch.float64) for task in "abc"}
    jacobians = {task: torch.randn(9, 4, 12, generator=rng, dtype=torch.float64) for task in "abc"}
    data = {task: Samples({"jacobian": one}, torch.zeros(9)) for task, one in jacobians.items()}
    power = sum(float(one.square().sum((1, 2)).mean()) for one in jacobians.values())
    return single, data, dict.fromkeys("abc", lambda features: features), power


def xi_l2(linear, noise):
    single, data, heads, _ = linear
    return interference(Linear(), sum(single.values()) + noise, single, data, heads)["xi_L2"]


def test_noise_on_a_linear_model_adds_its_power_times_that_of_the_jacobian(linear, rng):
    std, clean, draws = 0.3, xi_l2(linear, 0.0), []
    for _ in range(400):
        n = std * torch.randn(12, generator=rng, dtype=torch.float64)
        draws.append([xi_l2(linear, n) - clean, xi_l2(linear, -n) - clean])
    draws = torch.tensor(draws)
    pairs, expected = draws.mean(1), std**2 * linear[3]
    assert abs(float(pairs.mean()) - expected) < 4 * float(pairs.std()) / math.sqrt(len(pairs))
    assert float(pairs.std()) < 0.25 * float(draws[:, 0].std())  # what is odd in the noise is gone
    assert (pairs > 0).all() and 0.2 < float((draws < 0).float().mean()) < 0.8  # a single draw may say anything


def test_a_pair_on_a_linear_model_rises_by_what_the_jacobian_makes_of_the_noise(linear, rng):
    n = torch.randn(12, generator=rng, dtype=torch.float64)
    expected = sum(float((part.inputs["jacobian"] @ n).square().sum(1).mean()) for part in linear[1].values())
    rise = (xi_l2(linear, n) + xi_l2(linear, -n)) / 2 - xi_l2(linear, 0.0)
    assert rise == pytest.approx(expected, rel=1e-9)


# what is inferred


def test_holm_by_hand(inference):
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert inference.holm([0.5, 0.6]) == [1, 1] and inference.holm([0.02]) == [0.02]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_rejects_what_the_step_down_procedure_does(p_values):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        holm = importlib.import_module("experiments.disentanglement.inference").holm
    m, going, rejected = len(p_values), True, [False] * len(p_values)
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        going = going and (m - rank) * p_values[i] <= 0.05
        rejected[i] = going
    assert [p <= 0.05 for p in holm(p_values)] == rejected


def test_one_sided_tests_by_hand(inference):
    x = np.array([0.2, 1.1, -0.3, 0.7, 0.9, 0.4])
    t = x.mean() / (x.std(ddof=1) / math.sqrt(6))
    angle = math.atan(t / math.sqrt(5))  # the distribution of five degrees of freedom is elementary
    above = 0.5 - (angle + math.sin(angle) * math.cos(angle) * (1 + 2 / 3 * math.cos(angle) ** 2)) / math.pi
    found = inference.above_zero(x)
    assert found["t"] == pytest.approx(above) and 0 < above < 0.05
    half = (inference.interval(x)[1] - inference.interval(x)[0]) / 2
    assert half / x.std(ddof=1) * math.sqrt(6) == pytest.approx(2.5706, abs=1e-4)  # its quantile
    assert sum(inference.interval(x)) / 2 == pytest.approx(x.mean())
    assert found["wilcoxon"] == pytest.approx(3 / 64)  # rank two is negative: {}, {1} and {2} are as far out
    assert inference.above_zero(-x)["t"] == pytest.approx(1 - found["t"])
    assert inference.above_zero(np.abs(x))["wilcoxon"] == pytest.approx(1 / 64)


def test_zeros_count_half_for_either_sign(inference):
    found = inference.above_zero(np.array([0.0] * 12 + [1.0, 2.0, 3.0]))
    ranks, mean = 13 + 14 + 15 + 12 * 6.5 / 2, 15 * 16 / 4
    z = (ranks - mean) / math.sqrt(15 * 16 * 31 / 24 - (12**3 - 12) / 48)  # twelve are tied
    assert found["wilcoxon"] == pytest.approx(math.erfc(z / math.sqrt(2)) / 2)


def test_nothing_is_rejected_where_nothing_changed(inference):
    assert inference.above_zero(np.zeros(16)) == {"t": 1, "wilcoxon": 1}
    same = inference.above_zero(np.full(16, 0.25))
    assert same["t"] == 1 and same["wilcoxon"] < 0.001


def test_the_trend_is_that_of_jonckheere_and_terpstra(inference, rng):
    groups = torch.randn(4, 5, generator=rng).double().numpy() + 0.4 * np.arange(4)[:, None]
    larger = sum((groups[j][None] > groups[i][:, None]).sum() for i in range(4) for j in range(i + 1, 4))
    n = groups.size
    variance = (n**2 * (2 * n + 3) - 4 * 25 * 13) / 72
    z = (larger - (n**2 - 4 * 25) / 4) / math.sqrt(variance)
    assert inference.jonckheere(groups)["p"] == pytest.approx(math.erfc(z / math.sqrt(2)) / 2)
    assert inference.jonckheere(groups)["p"] < 0.5 < inference.jonckheere(-groups)["p"]


def test_a_rise_is_found_where_it_is(inference, rng):
    rise = np.array([0, 0, 0, 1, 2, 4])[None, :, None] * np.array([0.8, 1.0, 1.2])[:, None, None]
    found = inference.analyse(rise + torch.randn(3, 6, 16, generator=rng).numpy())
    for test in ("t", "wilcoxon"):
        p = [row[f"p_{test}_holm"] for row in found["levels"]]
        assert max(p[3:]) < 0.001 and min(p[:3]) > 0.05
        assert all(row[f"p_{test}"] <= row[f"p_{test}_holm"] for row in found["levels"])
    assert all(seed["jonckheere"]["p"] < 1e-6 for seed in found["by_seed"])
    assert found["page"]["p"] < 0.001
    for row, mean in zip(found["levels"], (0, 0, 0, 1, 2, 4), strict=True):
        assert row["low"] < row["increment"] < row["high"] and row["increment"] == pytest.approx(mean, abs=0.5)


def test_noise_alone_is_rejected_as_seldom_as_promised(inference, rng):
    trials, false = 150, {"t": 0, "wilcoxon": 0, "jonckheere": 0, "page": 0}
    for _ in range(trials):
        increments = torch.randn(3, 4, 8, generator=rng).numpy()
        rows = inference.by_level(increments[0])
        for test in ("t", "wilcoxon"):
            false[test] += min(row[f"p_{test}_holm"] for row in rows) < 0.05  # in any of the levels
        false["jonckheere"] += inference.jonckheere(increments[0])["p"] < 0.05
        false["page"] += inference.page(increments.mean(2))["p"] < 0.05
    limit = trials * 0.05 + 3 * math.sqrt(trials * 0.05 * 0.95)
    assert all(0 < count < limit for count in false.values()), false


# the experiment


class Tiny:
    """What the experiment asks of trained clients: two of each of two tasks, on a tiny model."""

    def __init__(self, run, folder, rng):
        model = LoraModel(tiny.vit(folder), seed=0)
        self.seed, self.model = 5, model
        self.experiment = SimpleNamespace(model=model.model, fusion=TaskArithmetic(0.7))
        data = {task: tiny.samples("vit", 6, rng) for task in "ab"}
        self.suite = SimpleNamespace(test=data.__getitem__)
        self.evaluator = SimpleNamespace(heads={task: heads_of("vit", model, rng) for task in data})
        vectors = 0.1 * torch.randn(4, model.layout.dim, generator=rng) * torch.tensor([[1.0], [2.0], [1.0], [0.5]])
        start = model.initial.repeat(4, 1)
        self.sent = Updates(model.layout, vectors, start, (0, 1, 2, 3), tuple("aabb"), (1,) * 4, ({},) * 4)
        self.task_vectors = lambda received, space: run.Trained.task_vectors(self, received, space)


@pytest.fixture
def fused(run, tmp_path, rng):
    return run.Fused(Tiny(run, tmp_path, rng), 4)


def test_the_experiment_fuses_exactly(fused):
    layout, sent = fused.trained.model.layout, fused.sent
    adapter = fused.fuse(sent.vectors)
    for pair, wide in zip(layout.pairs, fused.model.layout.pairs, strict=True):
        b, a = (layout.entry(sent.start + sent.vectors, i) for i in (pair.b, pair.a))
        found = wide.scale * fused.model.layout.entry(adapter, wide.b) @ fused.model.layout.entry(adapter, wide.a)
        torch.testing.assert_close(found, 0.7 * pair.scale * (b @ a).sum(0) / 2)  # means over two clients each
    assert len(fused.clean["a"]) == 4


def test_a_task_beside_one_that_learnt_nothing_is_not_disturbed(run, tmp_path, rng):
    trained = Tiny(run, tmp_path, rng)
    trained.sent.vectors[2:] = 0
    fused = run.Fused(trained, 4)
    torch.testing.assert_close(fused.clean["a"], fused.single["a"])
    torch.testing.assert_close(fused.single["b"], fused.base["b"])
    assert squared_distance(fused.clean["b"], fused.base["b"]) > 1e-3


def test_signs_that_are_sent_backwards_measure_the_jacobian(fused):
    sent = fused.sent.vectors
    expected = 0.0
    for task in fused.tasks:
        jacobian = torch.autograd.functional.jacobian(lambda uploads, t=task: fused(uploads)[t], sent)
        squares = jacobian.double().square().sum((0, 1, 3)) / 4  # [clients]
        expected += float(sent.double().square().mean(1) @ squares)
    draws = torch.tensor(fused.slope(60), dtype=torch.float64)
    assert abs(float(draws.mean()) - expected) < 4 * float(draws.std()) / math.sqrt(60)
    assert float(draws.std()) / math.sqrt(60) < 0.1 * expected
    odd = [fused.pair(-30, draw)["odd"] / 1e-3 for draw in range(60)]
    assert np.mean(odd) == pytest.approx(expected, abs=4 * np.std(odd) / math.sqrt(60))


def test_a_pair_is_mirrored_and_drawn_anew_for_every_level(fused):
    small = fused.pair(-50, 0)
    clean = disentanglement(fused.single, fused.clean)["xi_L2"]
    plus, minus = (one - clean for one in small["xi_L2"])
    assert abs(plus + minus) < 0.05 * abs(plus)
    assert fused.pair(0, 0) == fused.pair(0, 0) != fused.pair(0, 1)
    signs = [[fused.pair(level, draw)["xi_L2"][0] > clean for draw in range(12)] for level in (-40, -41)]
    assert signs[0] != signs[1]  # with the same draw at nearby levels they would agree


def test_conclusions_of_known_draws(run, monkeypatch):
    monkeypatch.setattr(run, "NMSE_DB", [0, 10, 20])
    monkeypatch.setattr(run, "NMSE", np.array([1.0, 10.0, 100.0]))
    seeds = []
    for slope in (1.0, 2.0):
        levels = []
        for nmse in (1.0, 10.0, 100.0):
            xi_l2 = [[5 + slope * nmse + swing, 5 + 2 * slope * nmse - swing] for swing in (0.0, 7.0, 9.0)]
            xi_01 = [[0.1 + 0.2, 0.5], [0.2, 0.5], [0.7, 0.6]]
            odd = [slope * nmse * share for share in (0.5, 1.0, 1.5)]
            levels.append({"xi_01": xi_01, "xi_L2": xi_l2, "odd": odd, "accuracy": 0.5, "product_nmse": nmse})
        seeds.append({"clean": {"xi_01": 0.3, "xi_L2": 5.0}, "slope": [0.5 * slope, 1.5 * slope], "levels": levels})
    found = run.conclude(seeds)
    for row, nmse in zip(found["prediction"], (1.0, 10.0, 100.0), strict=True):
        assert row["first_order"] == pytest.approx(1.5 * nmse) and row["odd"] == pytest.approx(1.5 * nmse)
        assert row["measured"] == pytest.approx(1.5 * 1.5 * nmse)
        assert (row["measured_ratio"], row["odd_ratio"]) == pytest.approx((1.5, 1.0))
        assert row["odd_ratio_stderr"] == pytest.approx(math.sqrt(0.2 / 6))
        assert row["product_nmse_db"] == pytest.approx(10 * math.log10(nmse))
    assert found["xi_L2"]["clean"] == 5 and found["xi_L2"]["levels"][0]["draws_below_clean"] == pytest.approx(4 / 12)
    assert found["xi_L2"]["levels"][2]["draws_below_clean"] == 0
    first = found["xi_01"]["levels"][0]
    assert (first["draws_below_clean"], first["draws_equal_clean"]) == pytest.approx((1 / 6, 1 / 6))
    assert first["increment"] == pytest.approx(1 / 6)


def test_committed_results_follow_from_their_draws(run):
    found = json.loads((ROOT / "experiments/disentanglement/results.json").read_text())
    again = json.loads(run.written(run.conclude(found["seeds"])))
    assert again["prediction"] == [pytest.approx(row) for row in found["prediction"]]
    for name in run.METRICS:
        assert again[name]["levels"] == [pytest.approx(row) for row in found[name]["levels"]]
    assert found["settings"]["pairs"] * 2 >= 30 and len(found["seeds"]) >= 3
