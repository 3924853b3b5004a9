"""Flower's mods around what a client trained: against the theory of the Gaussian mechanism."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod, message_size_mod
from inline import run
from safetensors.torch import load_file

from fedfusion.client.privacy import protected
from fedfusion.client.train import Job, Trained
from fedfusion.config import build, resolve
from fedfusion.federation import Devices
from fedfusion.federation.inline import InlineGrid
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import restrict
from fedfusion.types import FedfusionError, Samples
from fedfusion.validation import ConfigErrors

DP = "{_target_:flwr.clientapp.mod.LocalDpMod,clipping_norm:1.0,sensitivity:%s,epsilon:10,delta:1e-5}"
CLIP = LocalDpMod(clipping_norm=1.0, sensitivity=0.0, epsilon=10, delta=1e-5)
NOISE = LocalDpMod(clipping_norm=1.0, sensitivity=2.0, epsilon=10, delta=1e-5)
SIGMA = 2.0 * math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
SIZE = "{_target_:flwr.clientapp.mod.message_size_mod,_partial_:true}"
NORM = 3.0  # of every update below
context = Context(1, 1, {}, RecordDict(), {})


@pytest.fixture(scope="module")
def experiment():
    return build(resolve([]))


@pytest.fixture(scope="module")
def model(experiment):
    return LoraModel(experiment.model, 0)


def cohort(model, clients, rank=None):
    """Clients that have trained something, each of its own."""
    jobs, trained = [], []
    for client in clients:
        rng = torch.Generator().manual_seed(client)
        update, start = torch.randn(2, model.layout.dim, generator=rng)
        for i in model.frozen:
            model.layout.entry(update, i).zero_()
        if rank:
            update, start = restrict(model.layout, torch.stack([update, start]), torch.tensor([rank, rank]))
        data = Samples({"x": torch.zeros(client + 5, 1)}, torch.zeros(client + 5, dtype=torch.long))
        jobs.append(Job(client, start, data, None))
        trained.append(Trained(NORM * update / update.norm(), 0.5, None))
    return jobs, trained


def pass_through(experiment, model, mods, *clients, server_round=1, rank=None, **sent):
    """Updates and figures of `clients`, before and after the mods."""
    InlineGrid(ClientApp(), 1, 10.0)  # there is a run that messages belong to
    content = RecordDict(
        {
            "arrays": ArrayRecord([np.zeros(3)]),
            "config": ConfigRecord({"clients": list(clients), "round": server_round, **sent}),
        }
    )
    plan = replace(experiment.client, mods=mods, ranks=[rank] if rank else None)
    jobs, trained = cohort(model, clients, rank)
    after, figures = protected(
        replace(experiment, client=plan), model, jobs, trained, server_round, Message(content, 1, "train"), context
    )
    return [t.update for t in trained], [t.update for t in after], figures


def test_the_noise_is_that_of_the_gaussian_mechanism(experiment, model):
    (before,), (after,), figures = pass_through(experiment, model, [NOISE], 3)
    noise = after - before / NORM  # of the clipped update
    assert float(noise.std()) == pytest.approx(SIGMA, rel=0.02) and abs(float(noise.mean())) < 0.01 * SIGMA
    expected = ((NORM - 1) ** 2 + model.layout.dim * SIGMA**2) / NORM**2
    assert figures == {"privacy_nmse": [pytest.approx(expected, rel=0.02)]}


def test_without_noise_the_update_is_clipped_to_the_norm_and_a_short_one_is_left(experiment, model):
    (before,), (after,), figures = pass_through(experiment, model, [CLIP], 3)
    torch.testing.assert_close(after, before / NORM, rtol=0, atol=1e-6)
    assert float(after.norm()) == pytest.approx(1.0, rel=1e-4)
    assert figures["privacy_nmse"] == [pytest.approx((NORM - 1) ** 2 / NORM**2, rel=1e-4)]
    roomy = LocalDpMod(clipping_norm=2 * NORM, sensitivity=0.0, epsilon=10, delta=1e-5)
    (before,), (after,), _ = pass_through(experiment, model, [roomy], 3)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_the_same_name_draws_the_same_noise_and_nobody_else_is_disturbed(experiment, model):
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    _, (first,), _ = pass_through(experiment, model, [NOISE], 3)
    assert (np.random.get_state()[1] == state).all()
    np.random.rand(7)
    _, (again,), _ = pass_through(experiment, model, [NOISE], 3)
    assert torch.equal(first, again)
    others = [
        pass_through(experiment, model, [NOISE], 3, server_round=2)[1][0],
        pass_through(replace(experiment, seed=1), model, [NOISE], 3)[1][0],
    ]
    assert all((first - other).std() > SIGMA for other in others)


def test_on_a_device_the_server_cannot_know_the_noise(experiment, model):
    outside = replace(experiment, federation=Devices())
    (_, (first,), told), (_, (second,), _) = (pass_through(outside, model, [NOISE], 3) for _ in range(2))
    drawn = first, second
    assert told == {}  # the power of the noise and of the update together would tell of the update
    assert float((drawn[0] - drawn[1]).std()) == pytest.approx(math.sqrt(2) * SIGMA, rel=0.02)


def test_a_cohort_of_one_is_a_cohort_of_many(experiment, model):
    before, together, figures = pass_through(experiment, model, [NOISE], 3, 0, 5)
    for i, client in enumerate((3, 0, 5)):
        _, (alone,), own = pass_through(experiment, model, [NOISE], client)
        assert torch.equal(alone, together[i]) and own["privacy_nmse"] == figures["privacy_nmse"][i : i + 1]
    noise = [after - update / NORM for after, update in zip(together, before, strict=True)]
    assert abs(float(torch.corrcoef(torch.stack(noise))[0, 1])) < 0.02  # everybody draws their own


def test_a_mod_sees_what_flowers_own_mods_ask_for(experiment, model):
    seen = []

    def witness(name):
        def mod(message, ctxt, call_next):
            reply = call_next(message, ctxt)
            seen.append((name, message, reply))
            return reply

        return mod

    before, after, figures = pass_through(experiment, model, [witness("outer"), witness("inner")], 3, 4)
    assert [name for name, _, _ in seen] == ["inner", "outer", "inner", "outer"]
    assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True)) and figures["privacy_nmse"] == [0.0, 0.0]
    jobs, trained = cohort(model, (3, 4))
    for (_, message, reply), job, result in zip(seen[::2], jobs, trained, strict=True):
        assert message.metadata.message_type == "train"
        (given,), (sent,) = message.content.array_records.values(), reply.content.array_records.values()
        assert tuple(given) == tuple(sent) == model.layout.names
        for record, adapter in ((given, job.start), (sent, job.start + result.update)):
            state = {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}
            assert torch.equal(model.layout.flatten(state), adapter)
        (facts,), (metrics,) = message.content.config_records.values(), reply.content.metric_records.values()
        assert facts["clients"] == [job.client] and metrics == MetricRecord(
            {"num-examples": len(job.data), "train_loss": 0.5}
        )


def test_mods_that_only_look_leave_every_bit(experiment, model):
    (before,), (after,), figures = pass_through(experiment, model, [message_size_mod], 3)
    assert torch.equal(before, after) and figures == {"privacy_nmse": [0.0]}
    assert pass_through(experiment, model, [], 3)[2] == {}


@pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod])
def test_a_clipping_norm_that_is_sent_reaches_the_mod(mod, experiment, model):
    _, (after,), _ = pass_through(experiment, model, [mod], 3, clipping_norm=0.5)
    assert float(after.norm()) == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(FedfusionError, match="client.mods: .*requires the key 'clipping_norm'"):
        pass_through(experiment, model, [mod], 3)


def test_what_a_mod_refuses_is_said(experiment, model):
    def refuse(message, ctxt, call_next):
        return Message(Error(200, "the budget is spent"), reply_to=message)

    with pytest.raises(FedfusionError, match="client.mods: the budget is spent"):
        pass_through(experiment, model, [refuse], 3)


def test_there_is_no_noise_on_what_a_client_does_not_train(experiment):
    frozen = LoraModel(replace(experiment.model, freeze_a=True), 0)
    _, (after,), _ = pass_through(experiment, frozen, [NOISE], 3)
    for pair in frozen.layout.pairs:
        assert not frozen.layout.entry(after, pair.a).any() and frozen.layout.entry(after, pair.b).all()


def test_there_is_no_noise_beyond_a_clients_rank(experiment, model):
    _, (after,), _ = pass_through(experiment, model, [NOISE], 3, rank=2)
    for pair in model.layout.pairs:
        a, b = model.layout.entry(after, pair.a), model.layout.entry(after, pair.b)
        assert not a[2:].any() and not b[:, 2:].any() and a[:2].all() and b[:, :2].all()


ONE_TASK = ["suite.tasks=[upright-digit]", "guard=norm_clip", "coupling=none", "aggregator=mean"]


@pytest.mark.parametrize(
    "overrides, sentences",
    [
        (
            ["client.mods=[{_target_:flwr.clientapp.mod.fixedclipping_mod,_partial_:true}]"],
            ["fixedclipping_mod takes its clipping norm from"],
        ),
        (
            ["client.mods=[{_target_:flwr.clientapp.mod.adaptiveclipping_mod,_partial_:true}]"],
            ["DifferentialPrivacyClientSideAdaptiveClipping", "choose flwr.clientapp.mod.LocalDpMod"],
        ),
        (
            [
                "client.mods=[{_target_:flwr.client.mod.secaggplus_mod,_partial_:true}]",
                "aggregator=median",
                "coupling=laplacian",
            ],
            ["secaggplus_mod, secure aggregation, shows the server only the sum of all uploads, but guard=TaskAware, "]
            + ["aggregator=Median, coupling=Laplacian, fusion=TaskArithmetic of 8 tasks must see more"],
        ),
        (
            ["client.mods=[{_target_:flwr.client.mod.secagg_mod,_partial_:true}]", *ONE_TASK],
            ["client.mods: secagg_mod, secure aggregation, is offered by Flower 1.", "for its former API alone"],
        ),
        (
            [
                "client.mods=[{_target_:flwr.client.mod.secagg_mod,_partial_:true}]",
                *ONE_TASK,
                "preaggregator=nnm",
                "aggregate_within=federation",
            ],
            ["only the sum of all uploads, but preaggregator=NNM must see more"],
        ),
        (
            ["client.mods=[flwr.clientapp.mod.message_size_mod]"],
            ["client.mods: 'flwr.clientapp.mod.message_size_mod' is"],
        ),
        (["client.mods=[{_target_:nowhere.mod}]"], ["nowhere"]),
        (["client.mods=[" + DP.replace("10", "0") % 1 + "]"], ["LocalDpMod needs a positive epsilon, got 0"]),
        (["client.mods=[" + DP % -1 + "]"], ["sensitivity should be a non-negative value"]),
        (
            [f"client.mods=[{SIZE}]", "client.train_head=true", "client.statistics=curvature", "fusion=regmean"],
            ["what client.train_head=true sends besides the update would bypass them (set it to false"]
            + ["what client.statistics=curvature sends besides the update would bypass them (set it to none"],
        ),
    ],
)
def test_what_cannot_be_composed_is_refused_in_the_configuration(overrides, sentences):
    with pytest.raises(ConfigErrors) as refused:
        resolve(overrides)
    assert all(sentence in str(refused.value) for sentence in sentences), refused.value


CLEAR = ["channel=ideal", "guard=norm_clip", "guard.clip=inf", "guard.refuse=inf", "rounds=1"]


def uploaded(folder):
    """The updates that a run of one round has believed, by client."""
    (state,) = (folder / "checkpoints").glob("*/state.safetensors")
    return (load_file(state)["adapters"] - LoraModel(build(resolve([])).model, 0).initial).double()


def test_a_run_reports_the_noise_and_the_accuracy_of_what_is_uploaded(tmp_path):
    private = run(tmp_path, *CLEAR, f"client.mods=[{SIZE},{DP % 2}]")
    (record,) = private["rounds"]
    assert uploaded(tmp_path).std(1).tolist() == pytest.approx([SIGMA] * 4, rel=0.02)  # the updates are far shorter
    heard = {client: figures["privacy_nmse_db"] for client, figures in record["uplink"]["clients"].items()}
    assert list(heard) == ["0", "1", "2", "3"] and record["uplink"]["mean"]["nmse_db"] is None
    powers = [10 ** (db / 10) for db in heard.values()]
    assert 10 ** (record["uplink"]["mean"]["privacy_nmse_db"] / 10) == pytest.approx(sum(powers) / 4)
    for scores in private["tasks"].values():  # personal adapters are what was uploaded
        assert scores["personal"]["accuracy"] == scores["single_task"]["accuracy"] != scores["base"]["accuracy"]


@pytest.mark.slow
def test_the_noise_that_is_reported_is_what_changed(tmp_path):
    plain = run(tmp_path / "plain", *CLEAR)
    private = run(tmp_path / "private", *CLEAR, f"client.mods=[{DP % 0.02}]")
    assert "privacy_nmse_db" not in plain["rounds"][0]["uplink"]["mean"]
    was, sent = uploaded(tmp_path / "plain"), uploaded(tmp_path / "private")
    powers = ((sent - was).square().sum(1) / was.square().sum(1)).tolist()
    reported = private["rounds"][0]["uplink"]["clients"].values()
    assert [10 ** (figures["privacy_nmse_db"] / 10) for figures in reported] == pytest.approx(powers, rel=1e-3)
