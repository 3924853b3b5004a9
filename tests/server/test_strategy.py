from types import SimpleNamespace

import pytest
import torch
from inline import run
from safetensors.torch import load_file

from fedfusion.config import build, resolve
from fedfusion.coupling import Average
from fedfusion.server.fuser import Fuser
from fedfusion.server.strategy import RoundStrategy
from fedfusion.types import FedfusionError

HELD = "attack.clients=[0]"  # of four clients, of which the first two have the first task
THREE = ["suite.clients_per_task=3", "aggregator=krum", "aggregator.f=0"]


def state(folder):
    """What the last checkpoint holds."""
    return load_file(max((folder / "checkpoints").iterdir()) / "state.safetensors")


@pytest.fixture
def fused(monkeypatch):
    """Whose adapters each call of the fuser had, and whether it was for the clean reference."""
    calls, original = [], Fuser.__call__

    def spied(self, adapters, examples, curvature, errors, server_round, only_fused=False):
        calls.append((only_fused, torch.nonzero(examples)[:, 0].tolist()))
        return original(self, adapters, examples, curvature, errors, server_round, only_fused)

    monkeypatch.setattr(Fuser, "__call__", spied)
    return calls


def test_garbage_is_refused_and_named_and_its_task_goes_unheard(tmp_path):
    """Both clients of a task; the shares are of uploads, over all rounds."""
    metrics = run(tmp_path, "channel=ideal", "attack=garbage", "attack.clients=[0,1]")
    assert metrics["attack"] == {
        "byzantine": [0, 1], "accepted_honest": 1.0, "refused_byzantine": 1.0, "success": {}
    }  # fmt: skip
    for record in metrics["rounds"]:
        assert record["byzantine"] == record["refused"] == [0, 1] and record["heard"] == [2, 3]
        assert record["unheard"] == ["upright-digit"] and record["learnt"] and record["attack_success"] == {}
        assert all("not finite" in record["dropped"][client] for client in ("0", "1"))
    assert set(metrics["tasks"]["upright-digit"]) > {"single_task", "fused_clean", "fused_received"}


def test_what_is_erased_is_dropped_and_named_but_neither_believed_nor_refused(tmp_path, fused):
    metrics = run(tmp_path, "channel=ideal", "attack=erasure", HELD, "aggregator=geometric_median", "rounds=1")
    (record,) = metrics["rounds"]
    assert record["dropped"] == {"0": "was erased on its way"} and record["heard"] == [1, 2, 3]
    assert record["byzantine"] == [0] and record["refused"] == []
    assert metrics["attack"]["accepted_honest"] == 1.0 and metrics["attack"]["refused_byzantine"] is None
    assert fused == [(True, [0, 1, 2, 3]), (False, [1, 2, 3])]  # the reference is that without any jammer
    assert not state(tmp_path)["examples"][0]


def test_poisoned_clients_are_no_part_of_the_reference_and_their_trigger_is_tried(tmp_path, fused):
    metrics = run(tmp_path, "channel=ideal", "attack=backdoor", HELD, "guard=norm_clip", "rounds=1")
    (record,) = metrics["rounds"]
    assert fused == [(True, [1, 2, 3]), (False, [0, 1, 2, 3])]
    success = metrics["attack"]["success"]
    assert success == record["attack_success"] and list(success) == ["upright-digit"]
    assert set(success["upright-digit"]) == {"base", "fused_clean", "fused_received", "realigned"}
    assert all(0 <= share <= 1 for share in success["upright-digit"].values())


def test_a_round_in_which_everyone_is_poisoned_has_no_loss_and_no_reference(tmp_path):
    metrics = run(tmp_path, "attack=label_flip", "attack.fraction=1", "rounds=1")
    (record,) = metrics["rounds"]
    assert record["train_loss"] is None and record["nmse_db"] is None and record["learnt"]
    assert record["mean"]["fused_clean"] == metrics["mean"]["base"] and "single_task" not in record["mean"]


@pytest.mark.slow
def test_a_trigger_that_is_learnt_succeeds(tmp_path):
    """With a whole task poisoned and nothing that would refuse it; base and reference know no trigger."""
    arguments = ["channel=ideal", "attack=backdoor", "attack.clients=[2,3]", "guard=finite", "rounds=1"]
    learns = ["client.steps=25", "client.lr=5e-3", "fusion.coefficient=1"]
    success = run(tmp_path, *arguments, *learns)["attack"]["success"]["flipped-size"]
    assert success["fused_received"] > success["fused_clean"] + 0.2 and success["base"] < 0.5


@pytest.mark.slow
def test_replay_sends_what_was_uploaded_before_and_resumes_bit_by_bit(tmp_path):
    arguments = ["channel=ideal", "attack=replay", HELD, "guard=finite"]
    whole = run(tmp_path / "whole", *arguments)
    run(tmp_path / "half", *arguments, "rounds=1")
    first = state(tmp_path / "half")
    assert first["uploads"].shape == first["adapters"].shape and first["uploads"].any(1).all()
    assert not whole["rounds"][0]["dropped"]
    assert run(tmp_path / "half", *arguments) == whole
    one, two = state(tmp_path / "half"), state(tmp_path / "whole")
    assert one.keys() == two.keys() and all(torch.equal(one[name].nan_to_num(), two[name].nan_to_num()) for name in one)
    torch.testing.assert_close(two["adapters"][0] - first["adapters"][0], first["uploads"][0], rtol=1e-4, atol=1e-7)
    assert not torch.equal(two["uploads"][0], first["uploads"][0])


def test_a_task_with_too_few_left_is_left_out_and_the_others_go_on(tmp_path):
    metrics = run(tmp_path, *THREE, "channel=ideal", "attack=erasure", HELD)
    for record in metrics["rounds"]:
        assert record["unheard"] == ["upright-digit"] and record["learnt"] and len(record["heard"]) == 5
    assert metrics["tasks"]["flipped-size"]["fused_received"] != metrics["tasks"]["flipped-size"]["base"]


@pytest.mark.slow
def test_with_too_few_left_in_every_task_the_last_model_is_kept_and_the_run_goes_on(tmp_path):
    metrics = run(tmp_path, *THREE, "channel=ideal", "attack=erasure", "attack.clients=[0,5]")
    assert len(metrics["rounds"]) == 2
    for record in metrics["rounds"]:
        assert not record["learnt"] and record["unheard"] == ["flipped-size", "upright-digit"]
        assert record["mean"]["fused_received"] == metrics["mean"]["base"]
    assert metrics["mean"]["fused_clean"] != metrics["mean"]["base"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregator=fltrust"],
        ["preaggregator=nnm", "aggregator=geometric_median", "aggregate_within=federation"],
        ["guard.energy=0.95", "payload=product"],
        pytest.param(["aggregator=fltrust", "aggregate_within=federation"], marks=pytest.mark.slow),
        pytest.param(["aggregator=monna", "aggregator.f=0"], marks=pytest.mark.slow),
        pytest.param(["method=flora", "guard=task_aware", "guard.energy=0.95"], marks=pytest.mark.slow),
    ],
)
def test_defences_run_end_to_end_and_honest_clients_are_believed(overrides, tmp_path):
    metrics = run(tmp_path, *overrides, "channel=ideal", "client.steps=10", "rounds=1")
    (record,) = metrics["rounds"]
    assert record["heard"] == [0, 1, 2, 3] and record["learnt"] and metrics["attack"]["accepted_honest"] == 1.0
    losses = [scores["fused_received"]["loss"] - scores["base"]["loss"] for scores in metrics["tasks"].values()]
    assert sum(losses) < 0


@pytest.mark.slow
def test_the_gate_tells_sign_flipping_from_training(tmp_path):
    trained = ["channel=ideal", "client.steps=50", "client.lr=3e-3", "rounds=1"]
    metrics = run(tmp_path, *trained, "attack=sign_flipping", "attack.clients=[0,2]")
    assert metrics["attack"]["accepted_honest"] == 1.0 and metrics["attack"]["refused_byzantine"] == 1.0


@pytest.mark.parametrize(
    "overrides, sentences",
    [
        (
            ["guard=norm_clip"],
            ["not resilient against Byzantine clients: guard=NormClip and aggregator=Mean believe all of them"],
        ),
        ([], ["nobody outvotes a backdoor in upright-digit, flipped-size"]),
        (["aggregator=geometric_median"], ["nobody outvotes a backdoor in upright-digit, flipped-size"]),
        (["suite.clients_per_task=3"], ["nobody outvotes a backdoor in upright-digit, flipped-size"]),
        (["aggregator=geometric_median", "suite.clients_per_task=3"], []),
        (
            ["guard=norm_clip", "aggregator=geometric_median"],
            ["nobody outvotes a backdoor or any other attack in upright-digit, flipped-size"],
        ),
        (
            ["aggregator=median", "aggregate_within=federation"],
            ["aggregator=Median across tasks takes clients with another task for Byzantine ones"],
        ),
        (["aggregator=median", "suite.tasks=[noisy-prime]", "suite.clients_per_task=3"], []),
        (
            ["aggregator=median", "aggregate_within=federation", "suite.tasks=[noisy-prime]"],
            ["nobody outvotes a backdoor in noisy-prime"],
        ),
    ],
)
def test_what_a_choice_does_not_protect_from_is_said(overrides, sentences):
    tasks = [] if any("suite.tasks" in text for text in overrides) else ["suite.tasks=[upright-digit,flipped-size]"]
    experiment = build(resolve([*tasks, *overrides]))
    chosen = SimpleNamespace(experiment=experiment, suite=experiment.suite)
    assert RoundStrategy._unprotected(chosen) == sentences


@pytest.mark.parametrize("base_too", [True, False])
@pytest.mark.parametrize(
    "what, said",
    [("shape", r"returns shape \[.*\], expected a tensor of shape \[.*\] .mend it.$"), ("values", "makes entries")],
)
def test_a_realigner_that_breaks_down_is_named(what, said, base_too, tmp_path):
    odd = ["realign._target_=odd_rules.Spoiler", f"+realign.what={what}", f"+realign.base_too={base_too}"]
    with pytest.raises(FedfusionError, match=f"^realign=Spoiler {said}"):
        run(tmp_path, "rounds=1", *odd)
    assert (tmp_path / "metrics.jsonl").exists() != base_too  # the control comes before the first round


def test_a_coupling_that_breaks_down_on_the_way_is_named(tmp_path, monkeypatch):
    def broken(self, adapters, *rest):
        return adapters / (len(adapters.T) == 1), {}

    monkeypatch.setattr(Average, "__call__", broken)
    with pytest.raises(FedfusionError, match="^coupling=Average makes entries that are not finite"):
        run(tmp_path, "rounds=1", "coupling=average")


def test_a_channel_need_not_report_what_it_does(tmp_path):
    metrics = run(tmp_path / "run", "channel=ideal", "channel._target_=odd_rules.Muffled", "rounds=1")
    assert metrics["rounds"][0]["nmse_db"] is None and metrics["rounds"][0]["believed"] == 4
