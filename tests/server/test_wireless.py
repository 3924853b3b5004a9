import importlib
import logging
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from fedfusion.channels import Awgn, Ideal, Jammer, Mimo
from fedfusion.channels.aircomp import AirComp
from fedfusion.federation.inline import InlineGrid
from fedfusion.server import WirelessStrategy
from fedfusion.types import ChannelReport, FedfusionError

N = 5
ROUNDS = 3
MODEL = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "half": np.ones(4, dtype=np.float16) / 3,
    "double": np.full((2, 2), 1 / 3),
    "scale": np.array(1.5, dtype=np.float32),
    "steps": np.array([3, 4], dtype=np.int64),
    "mask": np.array([True, False]),
}


def client(model, node):
    """What a client makes of a model: a delta of its own, and counters as integers whatever it was sent."""
    noise = np.random.default_rng(node)
    trained = {
        n: a + noise.normal(size=a.shape).astype(a.dtype) for n, a in model.items() if n not in ("steps", "mask")
    }
    return trained | {"steps": model["steps"].astype(np.int64) + node, "mask": np.array([True, node % 2 == 0])}


def federation(train=client, order=1, weight="num-examples"):
    """A grid of N clients that answer at once, in `order` 1 or backwards."""
    app = ClientApp()

    @app.train()
    def fit(message, context):
        node = context.node_id
        arrays = train({n: a.numpy() for n, a in message.content["arrays"].items()}, node)
        metrics = MetricRecord({weight: 10 * node, "loss": 1.0 / node})
        arrays = ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def test(message, context):
        first = next(iter(message.content["arrays"].values())).numpy()
        metrics = MetricRecord({weight: 1, "norm": float(np.square(first).sum())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    class Ordered(InlineGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            return sorted(replies, key=lambda reply: order * reply.metadata.src_node_id)

    return Ordered(app, N, 60.0)


def model(arrays=MODEL):
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def run(strategy, grid=None, arrays=MODEL, rounds=ROUNDS):
    result = strategy.start(grid or federation(), model(arrays), num_rounds=rounds, timeout=60.0)
    return result, {name: array.numpy() for name, array in result.arrays.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype and np.array_equal(array, theirs[name]), name


class Spy(FedMedian):
    """Keeps what it is given to aggregate, by node."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.given = {reply.metadata.src_node_id: reply for reply in replies}
        self.arrays = {
            node: {name: array.numpy() for name, array in reply.content["arrays"].items()}
            for node, reply in self.given.items()
            if not reply.has_error()
        }
        return super().aggregate_train(server_round, replies)


@dataclass(frozen=True)
class Lossy:
    """Loses every client whose id is in `lost`; the others arrive whole."""

    superposes: ClassVar[bool] = False
    lost: tuple[int, ...] = ()

    def __call__(self, updates, rng):
        erased = {c: "its packets were lost" for c in updates.clients if c in self.lost}
        report = ChannelReport({"nmse": (0.0,) * len(updates), "energy_j": (2.0,) * len(updates)}, erased)
        return updates.keep([i for i, c in enumerate(updates.clients) if c not in erased]), report


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="flwr")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


STOCK = [FedAvg, FedAvgM, FedAdam, FedMedian, FedTrimmedAvg, FedProx]


@pytest.mark.parametrize("stock", STOCK)
def test_over_an_ideal_uplink_it_is_the_bare_strategy_to_the_last_bit(stock):
    """In the order of node ids, in which sums of floats are added up; entries that arrive whole are not rewritten."""
    arguments = {"proximal_mu": 0.1} if stock is FedProx else {"server_momentum": 0.9} if stock is FedAvgM else {}
    floats = {name: MODEL[name] for name in ("w", "double", "scale")}  # Flower's optimizers handle no others

    def fit(arrays, node):
        return {name: array for name, array in client(MODEL | arrays, node).items() if name in floats}

    bare, ours = (run(strategy, federation(fit), floats) for strategy in (
        stock(**arguments), WirelessStrategy(stock(**arguments), Ideal())
    ))  # fmt: skip
    assert_same(ours[1], bare[1])
    assert ours[0].evaluate_metrics_clientapp == bare[0].evaluate_metrics_clientapp != {}
    metrics = [dict(metrics) for metrics in ours[0].train_metrics_clientapp.values()]
    expected = {**bare[0].train_metrics_clientapp[1], "uplink-erased": 0, "uplink-dropped": 0}
    assert metrics == [expected] * ROUNDS and "loss" in expected


def test_every_type_of_array_keeps_to_itself():
    bare, ours = run(FedAvg()), run(WirelessStrategy(FedAvg(), Ideal()))
    assert_same(ours[1], bare[1])


def test_noise_has_the_power_that_was_asked_for():
    arrays = {"w": np.zeros((100, 200), dtype=np.float32), "steps": MODEL["steps"], "mask": MODEL["mask"]}
    spy = Spy()
    strategy = WirelessStrategy(spy, Awgn(snr_db=10.0))
    result, _ = run(strategy, federation(), arrays, rounds=1)
    for node in range(1, N + 1):
        sent, received = client(arrays, node), spy.arrays[node]
        nmse = np.square(received["w"] - sent["w"]).sum() / np.square(sent["w"]).sum()
        assert nmse == pytest.approx(0.1, rel=0.05) and received["w"].dtype == np.float32
        assert received["steps"].dtype == np.int64 and np.array_equal(received["steps"], sent["steps"])
        assert received["mask"].dtype == bool and np.array_equal(received["mask"], sent["mask"])
    assert result.train_metrics_clientapp[1]["uplink-nmse-db"] == pytest.approx(-10.0, abs=0.1)
    assert [len(report.nmse) for report in strategy.reports] == [N]


def test_noise_is_on_what_was_learned_and_not_on_the_model():
    """Far from zero, the difference is small and so is its noise."""
    arrays = {"w": np.full(20_000, 1000.0, dtype=np.float32)}
    spy = Spy()
    fit = lambda model, node: {"w": model["w"] + np.float32(node)}  # noqa: E731
    run(WirelessStrategy(spy, Awgn(snr_db=20.0)), federation(fit), arrays, rounds=1)
    for node in range(1, N + 1):
        assert (spy.arrays[node]["w"] - 1000).std() == pytest.approx(0.1 * node, rel=0.05)


def test_integers_stay_protected_when_the_mean_of_them_is_broadcast_as_floats():
    spy = Spy()
    run(WirelessStrategy(spy, Awgn(snr_db=0.0)))
    assert all(given["steps"].dtype == np.int64 for given in spy.arrays.values())
    bare = run(FedMedian())[1]
    assert bare["steps"].dtype == np.float64  # that is what happens
    assert np.array_equal(run(WirelessStrategy(FedMedian(), Awgn(snr_db=0.0)))[1]["steps"], bare["steps"])


@pytest.mark.parametrize("inner", [FedAvg, FedMedian])
def test_the_seed_and_not_the_order_of_arrival_decides(inner):
    first, backwards, other = (
        run(WirelessStrategy(inner(), Awgn(snr_db=5.0), seed), federation(order=order))[1]
        for seed, order in ((1, 1), (1, -1), (2, 1))
    )
    assert_same(first, backwards)
    assert not np.array_equal(first["w"], other["w"])


def test_rounds_draw_noise_of_their_own():
    arrays, spy, draws = {"w": np.zeros(50, dtype=np.float32)}, Spy(), []
    strategy = WirelessStrategy(spy, Awgn(snr_db=0.0))
    fit = lambda model, node: {"w": model["w"] + 1}  # noqa: E731
    grid = federation(fit)
    for server_round in (1, 2):
        messages = strategy.configure_train(server_round, model(arrays), ConfigRecord(), grid)
        strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        draws.append(spy.arrays[1]["w"])
    assert not np.array_equal(*draws)


BROKEN = {
    "nan": lambda arrays: arrays | {"w": np.full((2, 3), np.nan, np.float32)},
    "shape": lambda arrays: arrays | {"w": np.ones((3, 2), np.float32)},
    "shape of a protected one": lambda arrays: arrays | {"steps": np.ones(3, np.int64)},
    "missing": lambda arrays: {n: a for n, a in arrays.items() if n != "scale"},
    "extra": lambda arrays: arrays | {"more": np.ones(1, np.float32)},
    "dtype": lambda arrays: arrays | {"w": np.ones((2, 3), np.int32)},
    "beyond float32": lambda arrays: arrays | {"double": np.full((2, 2), 1e300)},
}
REASONS = {
    "nan": "it is not finite",
    "shape": "'w' is (3, 2) here and (2, 3) there",
    "shape of a protected one": "'steps' is (3,) here and (2,) there",
    "missing": "'scale' is absent here and () there",
    "extra": "'more' is (1,) here and absent there",
    "dtype": "'w' is int32",
    "beyond float32": "it is not finite",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_malformed_reply_is_left_out_and_named(fault, warnings):
    def fit(arrays, node):
        return BROKEN[fault](client(arrays, node)) if node == 2 else client(arrays, node)

    spy = Spy()
    result, arrays = run(WirelessStrategy(spy, Awgn(snr_db=10.0)), federation(fit), rounds=1)
    assert set(spy.given) == {1, 3, 4, 5} and np.isfinite(arrays["w"]).all()
    assert result.train_metrics_clientapp[1]["uplink-dropped"] == 1
    (warning,) = warnings()
    assert "node 2 is left out" in warning and REASONS[fault] in warning


def exchange(strategy, change, rounds=1):
    """One round whose replies `change` may rewrite on their way."""
    grid = federation()
    messages = strategy.configure_train(1, model(), ConfigRecord(), grid)
    replies = list(grid.send_and_receive(messages))
    for reply in replies:
        change(reply)
    return strategy.aggregate_train(1, replies)


def with_w(content, *array):
    return {**content, "arrays": ArrayRecord(dict(content["arrays"]) | {"w": Array(*array)})}


@pytest.mark.parametrize(
    "content, reason",
    [
        (lambda c: {"metrics": c["metrics"]}, "0 array records"),
        (lambda c: {**c, "more": c["arrays"]}, "2 array records"),
        (lambda c: {**c, "metrics": MetricRecord({"num-examples": -1})}, "num-examples is -1"),
        (lambda c: {**c, "metrics": MetricRecord({"num-examples": math.nan})}, "num-examples is nan"),
        (lambda c: {**c, "metrics": MetricRecord({"num-examples": [1]})}, "num-examples is [1]"),
        (lambda c: with_w(c, "float32", (2, 3), "numpy.ndarray", b""), "No data left"),
        (lambda c: with_w(c, "float32", (2, 3), "numpy.ndarray", b"not numpy"), "pickled (object) data"),
        (lambda c: with_w(c, "float32", (2, 3), "numpy.ndarray", b"PK\3\4"), "not a zip file"),
        (lambda c: with_w(c, "float32", (2, 3), "pickle", b""), "Unsupported serialization"),
    ],
)
def test_a_reply_of_another_form_is_left_out_and_named(content, reason, warnings):
    def change(reply):
        if reply.metadata.src_node_id == 3:
            reply.content = RecordDict(content(reply.content))

    spy = Spy()
    exchange(WirelessStrategy(spy, Ideal()), change)
    assert set(spy.given) == {1, 2, 4, 5}
    assert "node 3 is left out" in warnings()[0] and reason in warnings()[0]


def test_of_two_replies_of_one_node_the_first_counts(warnings):
    spy = Spy()
    strategy, grid = WirelessStrategy(spy, Ideal()), federation()
    replies = list(grid.send_and_receive(strategy.configure_train(1, model(), ConfigRecord(), grid)))
    _, metrics = strategy.aggregate_train(1, [*replies, replies[0]])
    assert len(spy.given) == N and metrics["uplink-dropped"] == 1 and "answered twice" in warnings()[0]


def test_the_weight_is_the_one_that_the_strategy_uses():
    @dataclass(frozen=True)
    class Weights(Ideal):
        def __call__(self, updates, rng):
            seen.append(updates.num_examples)
            return super().__call__(updates, rng)

    seen = []
    run(WirelessStrategy(FedAvg(weighted_by_key="tokens"), Weights()), federation(weight="tokens"), rounds=1)

    class Mean(FedAvg):  # one that needs no weights
        def aggregate_train(self, server_round, replies):
            return None, None

    exchange(WirelessStrategy(Mean(weighted_by_key="tokens"), Weights()), lambda reply: None)
    assert seen == [(10, 20, 30, 40, 50), (1,) * N]


def test_errors_reach_the_strategy():
    def fit(arrays, node):
        if node == 4:
            raise RuntimeError("out of battery")
        return client(arrays, node)

    spy = Spy()
    result, _ = run(WirelessStrategy(spy, Awgn(snr_db=10.0)), federation(fit), rounds=1)
    assert spy.given[4].has_error() and set(spy.arrays) == {1, 2, 3, 5}
    assert result.train_metrics_clientapp[1]["uplink-dropped"] == 0


def test_erased_clients_are_left_out_and_the_others_are_untouched(warnings):
    lossy = WirelessStrategy(FedAvg(), Lossy((2, 5)))
    result, arrays = run(lossy, rounds=1)
    replies = {node: client(MODEL, node) for node in (1, 3, 4)}
    mean = sum(node * replies[node]["double"] for node in replies) / 8
    np.testing.assert_allclose(arrays["double"], mean, rtol=1e-12)
    assert result.train_metrics_clientapp[1]["uplink-erased"] == 2
    assert result.train_metrics_clientapp[1]["uplink-energy-j"] == 2.0 * N
    assert [f"node {n} is left out: its packets were lost" in w for n, w in zip((2, 5), warnings(), strict=True)]


class Fussy(FedAvg):
    """Takes it for granted that somebody answered."""

    def aggregate_train(self, server_round, replies):
        assert list(replies)[0]
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("inner", [FedAvg(), FedMedian(), FedAvgM(server_momentum=0.9), Krum(), Bulyan(), Fussy()])
def test_when_everybody_is_erased_the_model_stays_as_it_was(inner, warnings):
    floats = {name: MODEL[name] for name in ("w", "double")}
    fit = lambda model, node: {name: array + 1 for name, array in model.items()}  # noqa: E731
    strategy = WirelessStrategy(inner, Lossy(tuple(range(1, N + 1))))
    result, arrays = run(strategy, federation(fit), floats)
    assert_same(arrays, floats)
    assert [m["uplink-erased"] for m in result.train_metrics_clientapp.values()] == [N] * ROUNDS
    assert "nothing to aggregate in round 3, the model stays as it was" in warnings()[-1] and len(strategy.reports) == 3


def test_a_round_without_any_good_reply_keeps_the_model_and_the_run_goes_on():
    def fit(arrays, node):
        if node == 1:
            raise RuntimeError("out of battery")
        return {name: array * np.nan if name == "w" else array for name, array in arrays.items()}

    strategy = WirelessStrategy(FedAvg(), Awgn(snr_db=10.0))
    result, arrays = run(strategy, federation(fit))
    assert_same(arrays, MODEL)
    assert strategy.reports == [ChannelReport()] * ROUNDS
    assert result.train_metrics_clientapp[3] == MetricRecord({"uplink-erased": 0, "uplink-dropped": N - 1})


def test_what_is_received_beyond_all_numbers_is_left_out():
    @dataclass(frozen=True)
    class Explosive(Ideal):
        def __call__(self, updates, rng):
            vectors = updates.vectors.clone()
            vectors[0] = 1e38  # no float16
            return updates.with_vectors(vectors), ChannelReport({"nmse": (1.0,) * len(updates)})

    spy = Spy()
    result, arrays = run(WirelessStrategy(spy, Explosive()), rounds=1)
    assert set(spy.given) == {2, 3, 4, 5} and np.isfinite(arrays["half"]).all()
    assert result.train_metrics_clientapp[1]["uplink-erased"] == 1


def test_a_client_that_answers_with_the_record_it_was_sent_is_not_mixed_up_with_others():
    """In process, the messages of a round share one record."""

    class Echo(InlineGrid):
        def _handle(self, message):
            message.content["metrics"] = MetricRecord({"num-examples": 1})
            return [Message(message.content, reply_to=message)]

    @dataclass(frozen=True)
    class Shift(Ideal):
        def __call__(self, updates, rng):
            return updates.with_vectors(torch.tensor(updates.clients)[:, None] + 0.0 * updates.vectors), ChannelReport()

    spy = Spy()
    strategy, grid = WirelessStrategy(spy, Shift()), Echo(ClientApp(), N, 60.0)
    messages = strategy.configure_train(1, model(), ConfigRecord(), grid)
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    for node in range(1, N + 1):
        np.testing.assert_allclose(spy.arrays[node]["double"], MODEL["double"] + node)


@pytest.mark.parametrize("inner", [FedAvg, FedAvgM, FedProx, FedAdam, FedAdagrad, FedYogi])
def test_sums_over_the_air_serve_every_weighted_mean(inner):
    class Mine(inner):
        pass

    arguments = {"proximal_mu": 0.1} if inner is FedProx else {}
    floats = {"w": MODEL["w"]}
    fit = lambda model, node: {"w": model["w"] + np.float32(node)}  # noqa: E731
    channel = AirComp(snr_db=math.inf, truncation_threshold=1e-9)
    bare, ours = (
        run(strategy, federation(fit), floats)[1]
        for strategy in (inner(**arguments), WirelessStrategy(Mine(**arguments), channel))
    )
    np.testing.assert_allclose(ours["w"], bare["w"], rtol=1e-5)  # the mean is formed in another order


def test_over_the_air_every_client_shows_the_same_mean():
    strategy = WirelessStrategy(FedAvg(), AirComp(snr_db=10.0))
    strategy.inner.aggregate_train = lambda server_round, replies: (given.extend(replies), (None, None))[1]
    given = []
    _, metrics = exchange(strategy, lambda reply: None)
    first, last = (given[i].content["arrays"]["w"].numpy() for i in (0, -1))
    assert np.array_equal(first, last) and not np.array_equal(first, client(MODEL, 1)["w"])
    assert metrics["uplink-latency-s"] == pytest.approx(8 / (18.72e6 * 0.8)) and metrics["uplink-energy-j"] > 0


@pytest.mark.parametrize("inner", [FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan, QFedAvg])
def test_a_strategy_that_needs_single_uploads_is_refused_over_the_air(inner):
    strategy = inner(client_learning_rate=0.1) if inner is QFedAvg else inner()
    with pytest.raises(FedfusionError, match=f"AirComp only the sum .* {inner.__name__} .*FedAvg"):
        WirelessStrategy(strategy, AirComp())
    WirelessStrategy(strategy, Awgn())


def test_a_start_that_would_never_be_called_is_refused():
    class Mine(FedAvg):
        def start(self, *args, **kwargs):
            raise AssertionError

    with pytest.raises(FedfusionError, match="Mine overrides start"):
        WirelessStrategy(Mine(), Ideal())


@pytest.mark.parametrize("names, dtypes", [(["steps"], r"\['int64'\]"), ([], r"\[\]")])
def test_a_model_without_floats_is_refused(names, dtypes):
    with pytest.raises(FedfusionError, match=rf"no arrays of float16, float32, float64 to send: .*{dtypes}"):
        run(WirelessStrategy(FedAvg(), Ideal()), arrays={name: MODEL[name] for name in names})


def test_another_model_can_follow():
    strategy = WirelessStrategy(FedAvg(), Ideal())
    run(strategy)
    other = {"v": np.zeros(3, dtype=np.float32)}
    _, arrays = run(strategy, federation(lambda model, node: {"v": model["v"] + 1}), other)
    np.testing.assert_allclose(arrays["v"], ROUNDS, rtol=1e-6)


def test_the_summary_names_channel_and_strategy(caplog):
    caplog.set_level(logging.INFO, logger="flwr")
    WirelessStrategy(FedAvg(fraction_train=0.5), Awgn(snr_db=12.5)).summary()
    assert "Uplink of FedAvg: Awgn(snr_db=12.5" in caplog.text and "train (0.50)" in caplog.text


def test_the_package_imports_flower_only_when_asked():
    code = "import sys, fedfusion.server; assert 'flwr' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'WirelessStrategies'"):
        importlib.import_module("fedfusion.server").WirelessStrategies  # noqa: B018


def test_stock_strategies_run_behind_the_antennas_and_the_jammer_of_the_simulation():
    uplink = Mimo(snr_db=15.0, jammer=Jammer(objective="sum_rate", jsr_db=0.0))
    for inner in (FedAvg, FedMedian):
        strategies = [WirelessStrategy(inner(), channel=uplink) for _ in range(2)]
        (result, arrays), (_, again) = (run(strategy) for strategy in strategies)
        assert_same(arrays, again)
        _, clean = run(inner())
        assert not np.array_equal(arrays["w"], clean["w"]) and np.isfinite(arrays["w"]).all()
        assert np.array_equal(arrays["steps"], clean["steps"])
        report = strategies[0].reports[0]
        assert len(report.per_client["sinr"]) == N and report.jamming["gap"] < 1e-6
        assert "uplink-energy-j" in result.train_metrics_clientapp[1]
