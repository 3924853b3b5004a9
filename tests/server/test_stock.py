import json
import math
import random
import time

import numpy as np
import pytest
import torch
from command import SMALL, fedfusion, results
from flwr.app import Context, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file

from fedfusion.apps import client_app, server_app
from fedfusion.client.device import Device
from fedfusion.client.train import Job
from fedfusion.config import build, for_clients, resolve, to_json
from fedfusion.federation.inline import InlineGrid
from fedfusion.lora.model import LoraModel
from fedfusion.reporting import report
from fedfusion.server import stock
from fedfusion.server.evaluation import Evaluator
from fedfusion.server.stock_strategy import _finite_mean
from fedfusion.types import FedfusionError, RunFailed

N = 4
FEW = [*(override for override in SMALL if not override.startswith("realign")), "client.steps=1", "rounds=1"]
FLOWER = "flwr.serverapp.strategy"
DP = [
    f"+server.strategy.strategy._target_={FLOWER}.FedAvg",
    "+server.strategy.noise_multiplier=0.001",
    f"+server.strategy.num_sampled_clients={N}",
]


def chosen(strategy, *overrides):
    return [*FEW, f"server.strategy._target_={FLOWER}.{strategy}", "channel=ideal", *overrides]


class Grid(InlineGrid):
    """Virtual nodes with ids as Flower draws them: large, and in no order."""

    def __init__(self, seed):
        super().__init__(client_app, N, 60.0)
        ids = random.Random(seed).sample(range(2**62, 2**63), N)
        self.contexts = {
            node: Context(1, node, context.node_config, RecordDict(), {})
            for node, context in zip(ids, self.contexts.values(), strict=True)
        }


def start(folder, overrides, grid=None):
    cfg = resolve([*overrides, f"run_dir='{folder}'"])
    server_app(grid or InlineGrid(client_app, N, 60.0), Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))
    return results(folder)["metrics"]


def run(folder, strategy, *overrides, grid=None):
    return start(folder, chosen(strategy, *overrides), grid)


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def trained(folder):
    """The adapter that each client trains in the first round of the run in `folder`, and how they are laid out."""
    experiment = build(json.dumps(results(folder)["config"] | {"run_dir": None, "trainings": None}))
    model = LoraModel(experiment.model, experiment.seed)
    heads = Evaluator(experiment.suite, model, experiment.seed, experiment.head).heads
    suite, found = experiment.suite, []
    for client in range(N):
        job = Job(client, model.initial, suite.train(client, experiment.seed), heads[suite.task_of(client)])
        (result,) = experiment.client(model, [job], seed=experiment.seed, server_round=1)
        found.append(model.initial + result.update)
    return torch.stack(found), model.layout


def vector(folder, layout):
    """The adapter in a folder of peft's, as it is laid out here."""
    stored = adapter(folder)
    return layout.flatten({name: stored[name] for name in layout.names})


@pytest.mark.slow
def test_the_mean_of_flower_is_that_of_fedit(tmp_path):
    ours = ["channel=ideal", "method=fedit", "client.cohort_size=1", "rounds=2"]
    start(tmp_path / "ours", [*FEW, *ours])
    metrics = run(tmp_path / "theirs", "FedAvg", "rounds=2")
    common, personal = adapter(tmp_path / "theirs/adapter"), adapter(tmp_path / "ours/personal/client-00")
    assert common.keys() == personal.keys()
    for name, entry in common.items():
        torch.testing.assert_close(entry, personal[name], rtol=1e-4, atol=1e-7)
    assert metrics["measure"] == "accuracy" and len(metrics["rounds"]) == 2


def test_the_median_is_that_of_the_clients(tmp_path):
    run(tmp_path, "FedMedian")
    rows, layout = trained(tmp_path)
    expected = torch.from_numpy(np.median(rows.numpy(), 0))
    torch.testing.assert_close(vector(tmp_path / "adapter", layout), expected, rtol=0, atol=1e-7)


STRATEGIES = {
    "Krum": ["+server.strategy.num_malicious_nodes=1"],
    "MultiKrum": ["+server.strategy.num_malicious_nodes=1", "+server.strategy.num_nodes_to_select=2"],
    "Bulyan": ["+server.strategy.num_malicious_nodes=0"],
    "FedTrimmedAvg": ["+server.strategy.beta=0.25"],
    "FedAvgM": ["+server.strategy.server_momentum=0.9"],
    "FedAdam": ["+server.strategy.eta=0.001"],
    "FedAdagrad": ["+server.strategy.eta=0.001"],
    "FedYogi": ["+server.strategy.eta=0.001"],
    "FedProx": ["+server.strategy.proximal_mu=1.0"],
    "QFedAvg": ["+server.strategy.client_learning_rate=0.1", "+server.strategy.q=0.2"],
    "DifferentialPrivacyServerSideFixedClipping": [*DP, "+server.strategy.clipping_norm=1.0"],
    "DifferentialPrivacyServerSideAdaptiveClipping": DP,
}


@pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=[] if name == "QFedAvg" else [pytest.mark.slow]) for name in STRATEGIES]
)
def test_every_strategy_of_flower_that_averages_adapters_runs(strategy, tmp_path):
    before = random.getstate(), np.random.get_state()[1].tolist()
    metrics = run(tmp_path, strategy, *STRATEGIES[strategy])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    (record,) = metrics["rounds"]
    assert record["clients"] == record["heard"] == [0, 1, 2, 3] and record["learnt"] and not record["dropped"]
    assert {"uplink-erased", "accuracy", "train_loss"} <= set(record["strategy"]["train"])
    base, stored = LoraModel(build(resolve([])).model, seed=0), adapter(tmp_path / "adapter")
    assert any(not torch.equal(entry, stored[name]) for name, entry in base.layout.unflatten(base.initial).items())
    assert all(entry.isfinite().all() for entry in stored.values())


@pytest.mark.slow
def test_the_penalty_of_fedprox_reaches_the_clients(tmp_path):
    steps = "client.steps=3"
    free, held = (run(tmp_path / mu, "FedProx", f"+server.strategy.proximal_mu={mu}", steps) for mu in ("0.0", "1e6"))
    mean = run(tmp_path / "mean", "FedAvg", steps)
    assert free["tasks"] == mean["tasks"] != held["tasks"]


@pytest.mark.slow
def test_equal_seeds_are_equal_bits_whatever_ids_flower_draws(tmp_path):
    """Also where clients are drawn, noise is added at the server, and the channel draws."""
    fixed = "DifferentialPrivacyServerSideFixedClipping"
    some = [*STRATEGIES[fixed], "+server.strategy.strategy.fraction_train=0.5", "channel=awgn", "rounds=2"]
    first, second = (run(tmp_path / str(i), fixed, *some, grid=Grid(i)) for i in (1, 2))
    assert first == second and [len(record["clients"]) for record in first["rounds"]] == [2, 2]
    other = run(tmp_path / "other", fixed, *some, "seed=1")
    assert other["rounds"] != first["rounds"]


@pytest.mark.slow
def test_clients_are_drawn_by_the_seed_and_anew_in_each_round(tmp_path):
    some = ["+server.strategy.fraction_train=0.5", "rounds=5"]
    drawn = [record["clients"] for record in run(tmp_path, "FedAvg", *some)["rounds"]]
    assert len({tuple(clients) for clients in drawn}) > 1 and {c for clients in drawn for c in clients} == set(range(N))


@pytest.mark.slow
def test_ray_gives_the_same_bits_as_inline(tmp_path):
    arguments = [*chosen("FedMedian"), "rounds=2", "channel=awgn"]
    for grid in ("inline", "ray"):
        fedfusion("run", *arguments, f"federation={grid}", f"run_dir={tmp_path / grid}", check=True)
    assert results(tmp_path / "ray")["metrics"] == results(tmp_path / "inline")["metrics"]


HOSTILE = ["attack=sign_flipping", "attack.upload.scale=30", "attack.clients=[2]"]


@pytest.mark.slow
def test_krum_of_flower_withstands_what_its_mean_does_not(tmp_path):
    attacked = run(tmp_path / "krum", "Krum", "+server.strategy.num_malicious_nodes=1", *HOSTILE)
    rows, layout = trained(tmp_path / "krum")
    krum = vector(tmp_path / "krum" / "adapter", layout)
    assert min((krum - row).abs().max() for i, row in enumerate(rows) if i != 2) < 1e-7
    run(tmp_path / "mean", "FedAvg", *HOSTILE)
    mean, honest = vector(tmp_path / "mean" / "adapter", layout), rows[[0, 1, 3]]
    assert (mean - honest).norm(dim=1).min() > 3 * (honest[0] - honest).norm(dim=1).max()
    assert attacked["attack"]["byzantine"] == attacked["rounds"][0]["byzantine"] == [2]


@pytest.mark.slow
def test_byzantine_clients_learn_from_what_they_poison(tmp_path):
    honest, poisoned = (run(tmp_path / attack, "FedAvg", f"attack={attack}", *f) for attack, f in (
        ("none", []), ("backdoor", ["attack.clients=[2]"])
    ))  # fmt: skip
    assert poisoned["rounds"][0]["train_loss"] != honest["rounds"][0]["train_loss"]
    assert set(poisoned["attack"]["success"]["flipped-size"]) == {"base", "fused_received", "realigned"}


@pytest.mark.parametrize("figures", [{"num-examples": 5}, {"num-examples": 5, "train_loss": [1.0, 2.0]}, None])
def test_one_client_with_other_figures_does_not_end_the_run_of_all(figures, tmp_path):
    class Odd(InlineGrid):
        def pull_messages(self, message_ids):
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                if reply.metadata.src_node_id == 3 and "metrics" in reply.content:
                    del reply.content["metrics"]
                    if figures:
                        reply.content["metrics"] = MetricRecord(figures)
            return replies

    (record,) = run(tmp_path, "FedMedian", grid=Odd(client_app, N, 60.0))["rounds"]
    assert record["heard"] == [0, 1, 3]
    assert record["dropped"] == {"2": "sent other figures than accuracy, loss, num-examples, train_loss"}


@pytest.mark.slow
def test_a_round_of_which_nothing_arrives_keeps_the_model(tmp_path):
    metrics = run(tmp_path, "FedAvg", "attack=erasure", "attack.clients=[0,1,2,3]", "channel=awgn")
    (record,) = metrics["rounds"]
    assert record["heard"] == [] and not record["learnt"] and record["train_loss"] > 0
    assert metrics["mean"]["realigned"] == metrics["mean"]["base"]


def test_uploads_that_never_arrive_are_dropped_by_name(tmp_path):
    metrics = run(tmp_path, "FedAvg", "attack=erasure", "attack.clients=[1,3]", "channel=awgn")
    (record,) = metrics["rounds"]
    assert record["heard"] == [0, 2] and set(record["dropped"]) == {"1", "3"}
    assert set(record["dropped"].values()) == {"was erased on its way"} and set(record["uplink"]["clients"]) == {
        "0",
        "2",
    }


def test_noise_has_the_power_that_was_asked_for(tmp_path):
    (record,) = run(tmp_path, "FedMedian", "channel=awgn", "channel.snr_db=10", "channel.jsr_db=-inf")["rounds"]
    assert record["nmse_db"] == pytest.approx(-10, abs=0.3)
    assert record["strategy"]["train"]["uplink-nmse-db"] == pytest.approx(record["nmse_db"])
    assert record["uplink"]["mean"]["nmse_db"] == pytest.approx(record["nmse_db"])


@pytest.mark.slow
def test_over_the_air_there_is_one_sum_for_the_one_model(tmp_path):
    noiseless = ["channel=aircomp", "channel.snr_db=inf", "channel.truncation_threshold=1e-9"]
    (record,) = run(tmp_path / "air", "FedAvg", *noiseless)["rounds"]
    assert len({figures["latency_s"] for figures in record["uplink"]["clients"].values()}) == 1
    run(tmp_path / "ideal", "FedAvg")
    ideal = adapter(tmp_path / "ideal" / "adapter")
    for name, entry in adapter(tmp_path / "air" / "adapter").items():
        torch.testing.assert_close(entry, ideal[name], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_what_is_never_sent_stays_as_it_was(tmp_path):
    run(tmp_path, "FedMedian", "payload=frozen_a", "model.freeze_a=true", "channel=awgn")
    model = LoraModel(build(resolve([])).model, seed=0)
    initial = model.layout.unflatten(model.initial)
    for name, entry in adapter(tmp_path / "adapter").items():
        assert torch.equal(entry, initial[name]) == ("lora_A" in name)


FAULTS = {
    0: ("raise", "RuntimeError: out of battery"),
    1: ("poison", "it is not finite"),
    2: ("hang", "did not answer"),
}


@pytest.mark.slow
def test_clients_that_misbehave_are_dropped_and_named(tmp_path):
    kinds = ",".join(f"{client}:{kind}" for client, (kind, _) in FAULTS.items())
    faulty = ["client._target_=faulty.Faulty", f"+client.faults={{{kinds}}}"]
    metrics = run(tmp_path, "FedMedian", *faulty, grid=InlineGrid(client_app, N, 5.0))
    (record,) = metrics["rounds"]
    assert record["heard"] == [3] and record["unheard"] == ["upright-digit"]
    for client, (_, reason) in FAULTS.items():
        assert reason in record["dropped"][str(client)]
    with pytest.raises(RunFailed, match="round 1: 1 uploads left, min_clients=2 .*out of battery"):
        run(tmp_path / "few", "FedMedian", *faulty, "min_clients=2", grid=InlineGrid(client_app, N, 5.0))


class Broken(FedAvg):
    def aggregate_train(self, server_round, replies):
        raise ValueError(f"no majority among {len(list(replies))}\nsecond line")


def test_what_a_strategy_finds_wrong_with_its_round_ends_the_run_in_a_sentence(tmp_path):
    with pytest.raises(RunFailed, match="round 1: server.strategy=Broken failed, no majority among 4"):
        run(tmp_path / "broken", "FedAvg", f"server.strategy._target_={__name__}.Broken")
    metrics = run(tmp_path / "few", "Bulyan", "+server.strategy.num_malicious_nodes=1")  # it needs 7, and says so
    assert not metrics["rounds"][0]["learnt"]
    assert metrics["tasks"]["flipped-size"]["realigned"] == metrics["tasks"]["flipped-size"]["base"]


@pytest.mark.slow
def test_clients_evaluate_as_the_strategy_asks_them(tmp_path):
    (record,) = run(tmp_path, "FedAvg", "evaluation=clients")["rounds"]
    of_clients = record["strategy"]["evaluate"]
    scores = [record["tasks"][task]["realigned"] for task in ("upright-digit", "flipped-size")]
    mean = (
        sum(score["accuracy"] for score in scores) / 2
    )  # test sets are of one size, and there are two clients of each
    assert of_clients["accuracy"] == pytest.approx(mean)
    assert "evaluate" not in run(tmp_path / "server", "FedAvg")["rounds"][0]["strategy"]


def test_the_run_folder_is_that_of_any_run(tmp_path):
    metrics = run(tmp_path, "FedMedian", "rounds=2")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == metrics["rounds"]
    assert set(load_file(tmp_path / "adapter" / "heads.safetensors")) == {"upright-digit", "flipped-size"}
    assert metrics["mean"]["realigned"] == metrics["rounds"][-1]["mean"]["realigned"]
    assert set(metrics["tasks"]["upright-digit"]) == {"base", "control", "single_task", "fused_received", "realigned"}
    (tmp_path / "results.json").write_text(json.dumps(results(tmp_path) | {"command": "fedfusion run"}))
    report.make(tmp_path)
    assert (tmp_path / "report.html").is_file() and (tmp_path / "adapter" / "README.md").is_file()


IDLE = {
    "guard=norm_clip": "guard=NormClip has no part in a run of server.strategy=FedMedian",
    "coupling=laplacian": "coupling=Laplacian has no part",
    "server_optimizer=fedadam": "server_optimizer=FedAdam has no part",
    "preaggregator=nnm": "preaggregator=NNM has no part",
    "aggregator=median": "aggregator=Median has no part",
    "fusion=ties": "fusion=Ties has no part",
    "realign=none": "realign=Unaligned has no part",
    "fraction=0.5": "FedMedian, fraction=0.5: .*fraction_train",
    "aggregate_within=federation": "aggregate_within=federation: there is one adapter",
    "fused_rank=4": "fused_rank=4",
    "payload=product": "payload=product: it aggregates factors",
    "wire=int8": "wire=int8",
    "round_deadline_s=60": "round_deadline_s=60",
    "rouge_rows=2": "rouge_rows=2: no responses are generated",
    "client.ranks=[4]": r"client.ranks=\[4\]: the one adapter is of one rank",
    "client.train_head=true": "client.train_head=true: heads belong to a task",
    "client.statistics=curvature": "client.statistics=curvature: it has no use",
    "regularizer=orthogonal": "regularizer=Orthogonal needs the mean adapter of each task",
    "+server.strategy.arrayrecord_key=model": "arrayrecord_key=model: clients know 'arrays' alone",
    "+server.strategy.weighted_by_key=tokens": "weighted_by_key=tokens: clients know 'num-examples' alone",
    "+server.strategy.fraction=1": "FedMedian has no parameter 'fraction'",
    "+server.strategy.fraction_train=many": "fraction_train: expected float",
    "channel=aircomp": "AirComp only the sum of all uploads is received, but FedMedian",
    "attack.f=1": "attack=none: Byzantine clients that do nothing",
    "payload=frozen_a": "payload=frozen_a with model.freeze_a=false",
}


@pytest.mark.parametrize("override", IDLE)
def test_what_has_no_part_in_it_is_refused(override):
    with pytest.raises(FedfusionError, match=IDLE[override]):
        resolve([*chosen("FedMedian"), override])


UNFIT = {
    "FedXgbBagging": "adds up trees",
    "FedMedain": "cannot import 'flwr.serverapp.strategy.FedMedain'",
    "Result": "Result is no strategy of Flower's",
    "DifferentialPrivacyClientSideFixedClipping": "choose its ServerSide counterpart",
}


@pytest.mark.parametrize("strategy", UNFIT)
def test_a_strategy_that_cannot_serve_is_refused(strategy):
    wrapper = [*DP, "+server.strategy.clipping_norm=1.0"] if strategy.startswith("Diff") else []
    with pytest.raises(FedfusionError, match=UNFIT[strategy]):
        resolve(chosen(strategy, *wrapper))


def test_values_that_a_strategy_refuses_are_named():
    with pytest.raises(FedfusionError, match="server.strategy: The noise multiplier should be a non-negative value"):
        resolve(
            chosen(
                "DifferentialPrivacyServerSideFixedClipping",
                *(value.replace("=0.001", "=-1") for value in DP),
                "+server.strategy.clipping_norm=1.0",
            )
        )
    with pytest.raises(FedfusionError, match=r"proximal_mu \(set regularizer=none\)"):
        resolve(chosen("FedProx", "regularizer=proximal"))


def test_a_strategy_that_would_wait_for_ever_is_refused():
    with pytest.raises(FedfusionError, match="min_available_nodes=100: it would wait for ever for more than the"):
        resolve(chosen("FedMedian", "+server.strategy.min_available_nodes=100"))


def test_by_default_there_is_none():
    experiment = build(resolve(FEW))
    assert not experiment.server.stock
    experiment.check()


def test_too_few_nodes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stock, "REGISTERED_S", 0.0)
    with pytest.raises(FedfusionError, match="there are 3 such nodes for 4 clients .*num-supernodes=4"):
        run(tmp_path, "FedMedian", grid=InlineGrid(client_app, 3, 60.0))


@pytest.mark.slow
def test_it_waits_for_nodes_that_come_one_by_one(tmp_path):
    class Slow(InlineGrid):
        def get_node_ids(self):
            return list(self.contexts)[: 1 + int(time.monotonic() - began)]

    began = time.monotonic()
    assert run(tmp_path, "FedMedian", grid=Slow(client_app, N, 60.0))["rounds"][0]["heard"] == [0, 1, 2, 3]


def test_a_device_does_not_run_the_strategy_and_admits_what_it_is_told(tmp_path):
    device, given = Device(str(tmp_path)), to_json(resolve(chosen("FedMedian")))
    told = for_clients(given)
    assert FLOWER in given and FLOWER not in told
    admitted = build(device.admit(told))
    assert not admitted.server.stock
    with pytest.raises(FedfusionError, match="server.strategy._target_=flwr.serverapp.strategy.FedMedian: not on the"):
        device.admit(given)


def test_a_mean_is_that_of_what_is_finite():
    assert _finite_mean([1.0, math.nan, 3.0, -math.inf]) == 2.0
    assert math.isnan(_finite_mean([])) and math.isnan(_finite_mean([math.inf]))
