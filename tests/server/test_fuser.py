import pytest
import torch
from inline import run
from safetensors.torch import load_file

from fedfusion.config import build, resolve
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import distances
from fedfusion.server.evaluation import Evaluator
from fedfusion.server.fuser import Fuser, _task_errors
from fedfusion.types import FedfusionError

TASKS = ["suite.tasks=[upright-digit,flipped-size]", "suite.clients_per_task=2"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["fusion=tsv", "realign=distilled", "realign.steps=2"],
        ["fusion=knots", "realign=entropy", "realign.steps=2"],
        ["fusion=adamerging", "fusion.steps=2", "suite.unlabelled=8"],
        ["fusion=atlas", "fusion.steps=2", "fused_rank=4"],
        ["fusion=laplace", "client.statistics=curvature", "fraction=0.5", "rounds=2"],
        ["fusion=channel_aware", "channel=mimo", "channel.jammer.objective=barrage"],
    ],
)
def test_every_kind_of_evidence_reaches_a_rule(overrides, tmp_path):
    metrics = run(tmp_path, "rounds=1", *overrides)
    assert all(record["learnt"] for record in metrics["rounds"])
    assert {"base", "control", "single_task", "fused_clean", "fused_received", "realigned"} <= set(metrics["mean"])
    assert (metrics["mean"]["realigned"] != metrics["mean"]["base"]) or metrics["tasks"]


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
    experiment = build(resolve([*TASKS, "fusion=task_arithmetic", "fusion.coefficient=[0.5,2.0]"]))
    model = LoraModel(experiment.model, 0)
    wide = LoraModel(experiment.model, 0, rank=32)
    fuser = Fuser(experiment, model.layout, model.initial, Evaluator(experiment.suite, wide, 0))
    adapters = model.initial + 0.1 * torch.randn(4, model.layout.dim, generator=torch.Generator().manual_seed(1))
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
    experiment = build(resolve([*TASKS, "realign=distilled"]))
    model, wide = LoraModel(experiment.model, 0), LoraModel(experiment.model, 0, rank=16)
    fuser = Fuser(experiment, model.layout, model.initial, Evaluator(experiment.suite, wide, 0))
    adapters = model.initial + 0.1 * torch.randn(4, model.layout.dim, generator=torch.Generator().manual_seed(1))
    fused = fuser(adapters, torch.tensor([0, 0, 5, 0]), {}, None, 1)
    (task,) = fused.tasks
    alone = fuser(adapters, torch.tensor([0, 0, 0, 5]), {}, None, 1).tasks[1]
    assert task == 1 and float(distances(wide.layout, fused.tasks[1][None], alone[None])) > 0.1


def test_a_rule_that_breaks_down_is_named():
    experiment = build(resolve([*TASKS, "fusion.coefficient=3e38"]))
    model = LoraModel(experiment.model, 0)
    fuser = Fuser(experiment, model.layout, model.initial, Evaluator(experiment.suite, model, 0))
    with pytest.raises(FedfusionError, match="fusion=TaskArithmetic makes entries that are not finite"):
        fuser(model.initial.repeat(4, 1) + 100.0, torch.tensor([1, 1, 1, 1]), {}, None, 1)


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
