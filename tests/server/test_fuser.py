from dataclasses import replace

import pytest
import torch
from inline import run
from safetensors.torch import load_file

from fedfusion.aggregators import FLTrust, GeometricMedian, Krum
from fedfusion.config import build, resolve
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import distances
from fedfusion.preaggregators import NNM
from fedfusion.server.evaluation import Evaluator
from fedfusion.server.fuser import Fuser, _task_errors
from fedfusion.server.trusted import TrustedSet
from fedfusion.types import FedfusionError

TASKS = ["suite.tasks=[upright-digit,flipped-size]", "suite.clients_per_task=2"]
SIX = ["suite.tasks=[upright-digit,flipped-size]", "suite.clients_per_task=3", "fusion.coefficient=[0.5,2.0]"]


def fuser_of(overrides, rank=8):
    """A fuser whose result has the given rank, the model of the clients, and that of the result."""
    experiment = build(resolve(overrides))
    model, wide = LoraModel(experiment.model, 0), LoraModel(experiment.model, 0, rank=rank)
    evaluator = Evaluator(experiment.suite, wide, 0)
    trusted = TrustedSet(experiment, model, evaluator.heads)
    return Fuser(experiment, model.layout, model.initial, evaluator, trusted), model, wide


def adapters_of(model, n):
    return model.initial + 0.1 * torch.randn(n, model.layout.dim, generator=torch.Generator().manual_seed(1))


def dense(layout, adapters):
    """Products `[n, D]` of `adapters [n, d]`."""
    return torch.cat(
        [(p.scale * layout.entry(adapters, p.b) @ layout.entry(adapters, p.a)).flatten(1) for p in layout.pairs], 1
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["fusion=tsv", "realign=distilled", "realign.steps=2"],
        ["fusion=knots", "realign=entropy", "realign.steps=2"],
        pytest.param(["fusion=adamerging", "fusion.steps=2", "suite.unlabelled=8"], marks=pytest.mark.slow),
        ["fusion=atlas", "fusion.steps=2", "fused_rank=4"],
        pytest.param(
            ["fusion=laplace", "client.statistics=curvature", "fraction=0.5", "rounds=2"], marks=pytest.mark.slow
        ),
        ["fusion=channel_aware", "channel=mimo", "channel.jammer.objective=barrage"],
    ],
)
def test_every_kind_of_evidence_reaches_a_rule(overrides, tmp_path):
    metrics = run(tmp_path, "rounds=1", *overrides)
    assert all(record["learnt"] for record in metrics["rounds"])
    assert {"base", "control", "single_task", "fused_clean", "fused_received", "realigned"} <= set(metrics["mean"])
    assert (metrics["mean"]["realigned"] != metrics["mean"]["base"]) or metrics["tasks"]


@pytest.mark.slow
def test_a_device_that_knows_its_task_is_served(tmp_path):
    metrics = run(tmp_path, "fusion=byom", "fusion.rank=4", "rounds=1", "channel=ideal", "client.steps=10")
    for task, scores in metrics["tasks"].items():
        adapter = load_file(tmp_path / "served" / task / "adapter_model.safetensors")
        assert all(tensor.isfinite().all() for tensor in adapter.values())
        assert set(scores["served"]) == {"accuracy", "loss"} and scores["served"] != scores["fused_received"]


def test_what_is_served_goes_through_a_checkpoint(tmp_path):
    run(tmp_path, "fusion=emr", "rounds=1", "channel=ideal")
    (state,) = sorted(tmp_path.glob("checkpoints/*/*.safetensors")) or sorted(tmp_path.glob("**/*1*.safetensors"))[-1:]
    assert {"served.upright-digit", "served.flipped-size"} <= set(load_file(state))


def test_it_fuses_the_products_of_the_tasks_that_were_heard():
    fuser, model, wide = fuser_of([*TASKS, "fusion=task_arithmetic", "fusion.coefficient=[0.5,2.0]"], 32)
    adapters = adapters_of(model, 4)
    both = fuser(adapters, torch.tensor([1, 3, 2, 2]), {}, None, 1)
    second = fuser(adapters, torch.tensor([0, 0, 5, 5]), {}, None, 1)
    expected = [(0.5 * 0.25, 0), (0.5 * 0.75, 1), (1.0, 2), (1.0, 3)]
    for fused, parts in ((both, expected), (second, expected[2:])):  # its coefficient stays that of its task
        for pair, own in zip(wide.layout.pairs, model.layout.pairs, strict=True):
            b, a = (wide.layout.entry(fused.adapter, i) for i in (pair.b, pair.a))
            dense = sum(
                w * own.scale * model.layout.entry(adapters[c], own.b) @ model.layout.entry(adapters[c], own.a)
                for w, c in parts
            )
            torch.testing.assert_close(b @ a * pair.scale, dense, rtol=1e-4, atol=1e-5)
    assert not both.tasks and not both.served and max(both.discarded.values()) < 1e-6


def test_teachers_are_the_means_of_their_tasks_by_index():
    fuser, model, wide = fuser_of([*TASKS, "realign=distilled"], 16)
    adapters = adapters_of(model, 4)
    fused = fuser(adapters, torch.tensor([0, 0, 5, 0]), {}, None, 1)
    (task,) = fused.tasks
    alone = fuser(adapters, torch.tensor([0, 0, 0, 5]), {}, None, 1).tasks[1]
    assert task == 1 and float(distances(wide.layout, fused.tasks[1][None], alone[None])) > 0.1


def test_a_rule_that_breaks_down_is_named():
    fuser, model, _ = fuser_of([*TASKS, "fusion.coefficient=3e38"])
    with pytest.raises(FedfusionError, match="fusion=TaskArithmetic makes entries that are not finite"):
        fuser(model.initial.repeat(4, 1) + 100.0, torch.tensor([1, 1, 1, 1]), {}, None, 1)


def broken(fuser, stage, **made):
    """The same fuser, with a rule that makes something else of what the default rule makes."""
    default = getattr(fuser.experiment, stage)
    odd = type(f"Odd{stage.title()}", (type(default),), {"linear": False, "__call__": made["of"], **made})
    return replace(fuser, experiment=replace(fuser.experiment, **{stage: odd()}))


@pytest.mark.parametrize(
    "stage, of, said",
    [
        ("aggregator", lambda self, x, *rest: x, r"OddAggregator returns shape \[3, {d}\], .* shape \[{d}\] "),
        (
            "aggregator",
            lambda self, x, *rest: x.sum(0)[:-1],
            r"OddAggregator returns shape \[{less}\], .* shape \[{d}\]",
        ),
        ("aggregator", lambda self, x, *rest: None, r"OddAggregator returns NoneType, .* shape \[{d}\]"),
        ("aggregator", lambda self, x, *rest: x.sum(0) * torch.nan, "OddAggregator makes entries that are not finite"),
        ("preaggregator", lambda self, x, rng: x[0], r"OddPreaggregator returns shape \[{d}\], .* shape \[3, {d}\]"),
        ("preaggregator", lambda self, x, rng: x / 0, "OddPreaggregator makes entries that are not finite"),
        ("fusion", lambda self, x, *rest: x, r"OddFusion returns shape \[2, {d}\], .* shape \[{d}\] "),
        ("fusion", lambda self, x, *rest: x.sum(0) / 0, "OddFusion makes entries that are not finite"),
    ],
)
def test_a_rule_of_ones_own_that_breaks_down_is_named(stage, of, said):
    fuser, model, _ = fuser_of([*SIX, "aggregator=median"])
    adapters, examples = adapters_of(model, 6), torch.ones(6)
    d = fuser._task_vectors(adapters, examples, 1)[1].shape[1]
    with pytest.raises(FedfusionError, match=f"^{stage}=" + said.format(d=d, less=d - 1)):
        broken(fuser, stage, of=of)(adapters, examples, {}, None, 1)


@pytest.mark.parametrize(
    "served, said",
    [
        (lambda self, x, *rest: x[:1], r"OddFusion returns shape \[1, {d}\], .* shape \[2, {d}\] "),
        (lambda self, x, *rest: list(x), r"OddFusion returns list, .* shape \[2, {d}\] "),
        (lambda self, x, *rest: x * torch.nan, "OddFusion makes entries that are not finite"),
    ],
)
def test_what_a_rule_of_ones_own_serves_is_checked_as_well(served, said):
    fuser, model, _ = fuser_of(SIX)
    adapters, examples = adapters_of(model, 6), torch.ones(6)
    d = fuser._task_vectors(adapters, examples, 1)[1].shape[1]
    odd = broken(fuser, "fusion", of=lambda self, x, *rest: x.sum(0), served=served)
    with pytest.raises(FedfusionError, match="^fusion=" + said.format(d=d)):
        odd(adapters, examples, {}, None, 1)
    assert odd(adapters, examples, {}, None, 1, only_fused=True).served == {}


def test_all_clients_together_have_one_mean_which_stands_for_every_task():
    fuser, model, wide = fuser_of([*SIX, "aggregate_within=federation", "realign=distilled"], 48)
    adapters, examples = adapters_of(model, 6), torch.tensor([1, 3, 2, 2, 0, 2])
    fused = fuser(adapters, examples, {}, None, 1)
    mean = (examples / examples.sum())[None] @ dense(model.layout, adapters)
    torch.testing.assert_close(dense(wide.layout, fused.adapter[None]), 2.5 * mean, rtol=1e-3, atol=1e-5)
    for task in (0, 1):
        torch.testing.assert_close(dense(wide.layout, fused.tasks[task][None]), mean, rtol=1e-3, atol=1e-5)
    assert sorted(fused.tasks) == [0, 1] and not fuser.short(examples)


EQUAL = torch.full((3,), 1 / 3, dtype=torch.float64)


@pytest.mark.parametrize(
    "overrides, rule",
    [
        (["aggregator=geometric_median"], lambda x, rng: GeometricMedian()(x, EQUAL, rng)),
        (["aggregator=krum", "aggregator.f=0"], lambda x, rng: Krum(0)(x, EQUAL, rng)),
        (["preaggregator=nnm"], lambda x, rng: NNM(1)(x, rng).mean(0)),
        (
            ["preaggregator=nnm", "aggregator=geometric_median"],
            lambda x, rng: GeometricMedian()(NNM(1)(x, rng), EQUAL, rng),
        ),
    ],
)
def test_a_rule_sees_the_products_of_one_task_and_believes_no_claimed_examples(overrides, rule, rng):
    """As if the products themselves had been formed; one client of the first task is an outlier."""
    fuser, model, wide = fuser_of([*SIX, *overrides], 48)
    adapters = adapters_of(model, 6)
    adapters[2] = model.initial + 20 * (adapters[2] - model.initial)
    fused = fuser(adapters, torch.tensor([10, 10, 10**6, 5, 7, 9]), {}, None, 1)
    own = dense(model.layout, adapters)
    expected = 0.5 * rule(own[:3], rng) + 2.0 * rule(own[3:], rng)
    torch.testing.assert_close(dense(wide.layout, fused.adapter[None])[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("within", ["task", "federation"])
def test_the_servers_own_update_is_that_of_the_task_or_the_mean_direction_of_all(within, rng):
    fuser, model, wide = fuser_of([*SIX, "aggregator=fltrust", f"aggregate_within={within}", "client.steps=2"], 48)
    own = dense(model.layout, fuser.trusted.adapters(2))
    adapters = torch.stack([*fuser.trusted.adapters(1), *adapters_of(model, 4)])[[0, 2, 3, 1, 4, 5]]
    found = dense(wide.layout, fuser(adapters, torch.ones(6, dtype=torch.long), {}, None, 2).adapter[None])[0]
    products, mean = dense(model.layout, adapters), own.mean(0)
    mixed = mean * own.norm(dim=1).mean() / mean.norm()
    if within == "task":
        one, two = (FLTrust()(products[3 * i : 3 * i + 3], EQUAL, rng, own[i]) for i in range(2))
        expected = 0.5 * one + 2.0 * two
    else:
        expected = 2.5 * FLTrust()(products, EQUAL, rng, mixed)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=float(expected.norm()) * 1e-4)
    assert float(expected.norm()) > 0


def test_a_task_of_which_too_few_are_known_is_left_out():
    fuser, model, wide = fuser_of([*SIX, "aggregator=krum", "aggregator.f=0"], 48)
    adapters, few = adapters_of(model, 6), torch.tensor([5, 0, 5, 1, 1, 1])
    assert fuser.short(few) == {"upright-digit": "Krum needs n >= 2f + 3 uploads, there are n=2, f=0: left out"}
    fused = fuser(adapters, few, {}, None, 1)
    alone = fuser(adapters, torch.tensor([0, 0, 0, 1, 1, 1]), {}, None, 1)
    torch.testing.assert_close(fused.adapter, alone.adapter)
    assert fused.adapter.ne(wide.initial).any() and not fuser.short(torch.ones(6)) and not fuser.short(torch.zeros(6))


def test_where_every_task_is_left_out_or_unknown_the_base_is_all_there_is():
    fuser, model, wide = fuser_of([*SIX, "aggregator=krum", "aggregator.f=0"])
    for few in (torch.tensor([5, 0, 5, 0, 1, 1]), torch.zeros(6, dtype=torch.long)):
        fused = fuser(adapters_of(model, 6), few, {}, None, 1)
        assert torch.equal(fused.adapter, wide.initial) and not fused.tasks and not fused.discarded


def test_together_they_may_be_enough_and_merged_they_may_not():
    together, _, _ = fuser_of([*SIX, "aggregator=krum", "aggregator.f=1", "aggregate_within=federation"])
    assert not together.short(torch.tensor([1, 0, 1, 1, 1, 1]))
    assert set(together.short(torch.tensor([1, 0, 0, 1, 1, 1]))) == {"upright-digit", "flipped-size"}
    merged = ["preaggregator=bucketing", "aggregator=krum", "aggregator.f=0", "aggregate_within=federation"]
    merging, _, _ = fuser_of([*SIX, *merged])
    assert not merging.short(torch.tensor([1, 1, 1, 1, 1, 0]))
    short = merging.short(torch.tensor([1, 1, 1, 1, 0, 0]))
    assert short["flipped-size"] == "Krum needs n >= 2f + 3 uploads, there are n=2, f=0: left out"
    before, _, _ = fuser_of([*SIX, "preaggregator=nnm", "preaggregator.f=1"])
    assert before.short(torch.tensor([1, 1, 0, 1, 1, 1])) == {
        "upright-digit": "NNM needs n >= 2f + 1 uploads, there are n=2, f=1: left out"
    }


def test_errors_of_independent_clients_average_out():
    examples, errors = torch.tensor([9, 1, 3, 1]), torch.tensor([4.0, 4.0, 2.0, torch.nan])
    found = _task_errors({"one": [0], "two": [1, 2], "unknown": [3]}, examples, errors)
    torch.testing.assert_close(found, torch.tensor([4.0, 4 / 16 + 2 * 9 / 16, 0.0]))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["fusion=regmean"], "needs client statistics: set client.statistics=curvature"),
        (["fusion.coefficient=[0.1,0.2,0.3]"], "must have one number for each of the 2 tasks"),
        (["fusion.coefficient={query:0.1}"], "needs a 'default'"),
        (["fusion=channel_aware", "fusion.rule.coefficient=[0.3]"], "must have one number for each of the 2 tasks"),
        (["client.statistics=curvature"], "fusion=TaskArithmetic has no use for it"),
        (["fusion=consensus", "fusion.agree=3"], "fusion.agree=3 exceeds the 2 tasks"),
        (["realign=distilled", "coupling=stacking"], "realign.loss=teachers"),
    ],
)
def test_what_a_rule_lacks_is_said_before_any_model_is_loaded(overrides, sentence):
    with pytest.raises(FedfusionError, match=sentence):
        resolve([*TASKS, *overrides])
