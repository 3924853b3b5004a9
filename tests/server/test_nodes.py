import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedfusion.apps import client_app
from fedfusion.client.train import Job
from fedfusion.client.wire import encode
from fedfusion.config import build, resolve, to_json
from fedfusion.federation.inline import InlineGrid
from fedfusion.lora.model import LoraModel
from fedfusion.server.meeting import meet
from fedfusion.server.nodes import Nodes, measured
from fedfusion.server.uploads import Uploads
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.types import Layout, Pair


class Suite:
    """Just enough of a suite: client k holds task k."""

    num_clients = 3

    def task_of(self, client):
        return f"task-{client}"


LAYOUT = Layout(("w",), ((4,),))
ASKED = {"to-7": [0], "to-8": [1], "to-9": [2]}


def question(node):
    message = Message(RecordDict(), node, "train")
    message.metadata.__dict__["_message_id"] = f"to-{node}"  # as a grid does when it is pushed
    return message


@pytest.fixture(autouse=True)
def identity():
    """Flower reads the sender of a message from a global that a grid sets."""
    InlineGrid(ClientApp(), 1, 1.0)


def reply(node, client, vectors):
    metrics = MetricRecord({"num_examples": [5.0], "train_loss": [0.1], "accuracy": [0.9], "loss": [0.2]})
    facts = ConfigRecord({"clients": [client], "failed": [], "reasons": []})
    content = {"arrays": ArrayRecord({"vectors": Array(vectors)}), "metrics": metrics, "config": facts}
    return Message(RecordDict(content), reply_to=question(node))


def collect(replies, chosen=(0, 1, 2), layout=LAYOUT, **settings):
    uploads = Uploads(chosen, layout, **settings)
    for one in replies:
        uploads.take(one, ASKED[one.metadata.reply_to_message_id])
    return uploads.updates(torch.zeros(3, layout.dim), Suite()), uploads.dropped, uploads


def test_rows_are_sorted_by_client_whatever_the_order_of_arrival():
    good = [reply(7 + k, k, np.full((1, 4), k, np.float32)) for k in range(3)]
    for order in (good, good[::-1], [good[1], good[2], good[0]]):
        updates, dropped, _ = collect(order)
        assert updates.clients == (0, 1, 2) and updates.tasks == ("task-0", "task-1", "task-2") and not dropped
        assert torch.equal(updates.vectors[:, 0], torch.tensor([0.0, 1.0, 2.0])) and updates.num_examples == (5, 5, 5)


def test_whoever_does_not_answer_well_is_named():
    error = Message(Error(2, "Traceback\n  ...\n\x1b[36mValueError\x1b[39m: broken"), reply_to=question(8))
    updates, dropped, _ = collect([reply(7, 0, np.zeros((2, 4), np.float32)), error])
    assert len(updates) == 0
    assert dropped == {
        0: "sent float32 (2, 4), expected float32 (1, 4)",
        1: "ValueError: broken",
        2: "did not answer before the deadline",
    }


@pytest.mark.parametrize("num_examples", [0.0, float("nan"), float("inf"), 1e300])
def test_a_malformed_reply_drops_its_client_only(num_examples):
    empty = Message(RecordDict(), reply_to=question(8))
    odd = reply(9, 2, np.ones((1, 4), np.float32))
    odd.content.metric_records["metrics"]["num_examples"] = [num_examples]
    updates, dropped, uploads = collect([reply(7, 0, np.ones((1, 4), np.float32)), empty, odd])
    assert updates.clients == (0,) and list(dropped) == [1, 2]
    assert all(reason.startswith("sent a malformed reply") for reason in dropped.values())
    assert uploads.heads(updates.clients, {}, Suite()) == {} and measured(empty, [1]) == {}


def test_a_node_cannot_speak_for_the_clients_of_another():
    updates, dropped, _ = collect([reply(7, 1, np.ones((1, 4), np.float32))])
    assert len(updates) == 0 and set(dropped) == {0, 1, 2}


def test_groups_depend_on_the_ids_alone_where_a_node_hosts_them_all():
    everyone = list(range(10))
    chosen = {9, 1, 4, 6, 0}
    for count in (1, 2, 5):
        nodes = Nodes("{}", dict.fromkeys(range(1, count + 1), everyone))
        placed = nodes.groups(chosen, 2)
        assert [group for _, group in placed] == [[0, 1], [4, 6], [9]]
        assert [node for node, _ in placed] == [1 + i % count for i in range(3)]
    devices = Nodes("{}", {k + 1: [k] for k in everyone}, devices=True)
    assert devices.groups(chosen, 2) == [(1, [0]), (2, [1]), (5, [4]), (7, [6]), (10, [9])]


def test_a_group_that_fails_is_asked_again_client_by_client():
    app, asked = ClientApp(), []

    @app.train()
    def train(message, context):
        clients = list(message.content.config_records["config"]["clients"])
        asked.append(clients)
        if 1 in clients:
            raise RuntimeError("out of battery")
        start = message.content.array_records["arrays"]["start"].numpy()
        metrics = dict.fromkeys(("num_examples", "train_loss", "accuracy", "loss"), [1.0] * len(clients))
        facts = ConfigRecord({"clients": clients, "failed": [], "reasons": []})
        content = {"arrays": ArrayRecord({"vectors": Array(start)}), "metrics": MetricRecord(metrics), "config": facts}
        return Message(RecordDict(content), reply_to=message)

    class Anyone(Suite):
        def task_of(self, client):
            return "task"

    nodes = Nodes("{}", {1: [0, 1, 2, 3]})
    adapters = torch.arange(4.0)[:, None].repeat(1, 4)
    messages = nodes.messages(1, nodes.groups({0, 1, 2, 3}, 3), adapters, Anyone(), {"task": None}, {})
    uploads, heard = Uploads({0, 1, 2, 3}, LAYOUT), []
    nodes.exchange(InlineGrid(app, 1, 10.0), messages, 4, 1.0, lambda *now: heard.append(now), uploads.take)
    updates, dropped = uploads.updates(adapters, Anyone()), uploads.dropped
    assert heard[0] == (0, 4) and heard[-1] == (4, 4) and sorted(heard) == heard
    assert asked == [[0, 1, 2], [3], [0], [1], [2]]
    assert updates.clients == (0, 2, 3) and torch.equal(updates.vectors, adapters[[0, 2, 3]])
    assert dropped == {1: "RuntimeError: out of battery"}


PAIRS = Layout(("A", "B"), ((1, 3), (2, 1)), (Pair("m", 0, 1, 1.0),))


def informed(node, client, **moments):
    """A reply with statistics, of which `moments` replaces some."""
    sent = {"inputs": np.diag([4.0, 1.0, 0.0]), "gradients": np.array([[2.0, -2.0], [-2.0, 2.0]])} | moments
    message = reply(node, client, np.ones((1, 5), np.float32))
    single = {kind: m if kind in moments else np.float32(m) for kind, m in sent.items()}
    named = {f"{client}.{kind}.m": Array(np.asarray(matrix)) for kind, matrix in single.items()}
    message.content["statistics"] = ArrayRecord(named)
    return message


def test_statistics_come_by_client_and_module_of_those_that_are_believed():
    replies = [informed(9, 2), informed(7, 0, inputs=np.full((3, 3), 2.0, np.float32))]
    updates, dropped, uploads = collect(replies, (0, 2), PAIRS, statistics=True)
    assert updates.clients == (0, 2) and not dropped
    found = uploads.curvature(updates.clients)
    assert list(found) == [0, 2] and list(found[0]) == ["m"]
    assert torch.equal(found[0]["m"][0], torch.full((3, 3), 2.0))
    assert torch.equal(found[2]["m"][1], torch.tensor([[2.0, -2.0], [-2.0, 2.0]]))
    assert list(uploads.curvature([2])) == [2] and collect(replies, (0, 2), PAIRS)[2].curvature([0, 2]) == {}


@pytest.mark.parametrize(
    "kind, matrix, reason",
    [
        ("inputs", np.eye(3, dtype=np.float64), "sent float64 (3, 3) as inputs of 'm', expected float32 (3, 3)"),
        ("inputs", np.eye(2, dtype=np.float32), "sent float32 (2, 2) as inputs of 'm', expected float32 (3, 3)"),
        ("gradients", np.ones(2, np.float32), "sent float32 (2,) as gradients of 'm', expected float32 (2, 2)"),
        ("inputs", np.diag(np.float32([1.0, np.nan, 1.0])), "sent inputs of 'm' that are no second moments"),
        ("inputs", np.diag(np.float32([1.0, np.inf, 1.0])), "sent inputs of 'm' that are no second moments"),
        ("inputs", np.diag(np.float32([1.0, -1e-5, 1.0])), "sent inputs of 'm' that are no second moments"),
        ("gradients", np.float32([[1.0, 0.5], [0.4, 1.0]]), "sent gradients of 'm' that are no second moments"),
        ("gradients", np.float32([[1.0, 1.1], [1.1, 1.0]]), "sent gradients of 'm' that are no second moments"),
    ],
)
def test_whoever_sends_what_is_no_statistics_is_dropped(kind, matrix, reason):
    replies = [informed(7, 0, **{kind: matrix}), informed(8, 1)]
    updates, dropped, _ = collect(replies, (0, 1), PAIRS, statistics=True)
    assert updates.clients == (1,) and dropped == {0: reason}
    assert collect(replies, (0, 1), PAIRS)[0].clients == (0, 1)  # not asked for


def test_whoever_sends_no_statistics_is_dropped_where_they_are_asked_for():
    bare, partial = reply(7, 0, np.ones((1, 5), np.float32)), informed(8, 1)
    partial.content["statistics"] = ArrayRecord({"1.inputs.m": Array(np.eye(3, dtype=np.float32))})
    updates, dropped, _ = collect([bare, partial, informed(9, 2)], (0, 1, 2), PAIRS, statistics=True)
    assert updates.clients == (2,) and "statistics" in dropped[0] and "1.gradients.m" in dropped[1]


def test_of_a_group_only_those_with_malformed_statistics_are_dropped():
    app, asked = ClientApp(), []

    @app.train()
    def train(message, context):
        clients = list(message.content.config_records["config"]["clients"])
        asked.append(clients)
        start = message.content.array_records["arrays"]["start"].numpy()
        metrics = dict.fromkeys(("num_examples", "train_loss", "accuracy", "loss"), [1.0] * len(clients))
        facts = ConfigRecord({"clients": clients, "failed": [], "reasons": []})
        named = {}
        for client in clients:
            named[f"{client}.inputs.m"] = Array(np.eye(3, dtype=np.float32) * (client - 1))
            named[f"{client}.gradients.m"] = Array(np.eye(2, dtype=np.float32))
        content = {"arrays": ArrayRecord({"vectors": Array(start)}), "metrics": MetricRecord(metrics), "config": facts}
        return Message(RecordDict(content | {"statistics": ArrayRecord(named)}), reply_to=message)

    nodes, adapters = Nodes("{}", {1: [0, 1, 2]}), torch.zeros(3, 5)
    heads = {f"task-{client}": None for client in range(3)}
    messages = nodes.messages(1, nodes.groups({0, 1, 2}, 3), adapters, Suite(), heads, {})
    uploads = Uploads({0, 1, 2}, PAIRS, statistics=True)
    nodes.exchange(InlineGrid(app, 1, 10.0), messages, 3, 1.0, lambda *_: None, uploads.take)
    updates = uploads.updates(adapters, Suite())
    assert asked == [[0, 1, 2], [0]] and updates.clients == (1, 2) and set(uploads.dropped) == {0}
    assert list(uploads.curvature(updates.clients)) == [1, 2]


def test_clients_send_the_statistics_that_they_computed():
    overrides = [
        "client.steps=1",
        "client.statistics=curvature",
        "fusion=laplace",
        "client.statistics_rows=4",
        "suite.clients_per_task=1",
    ]
    cfg = resolve([*overrides, "client.cohort_size=2", "model.lora.target_modules=[q_proj]"])
    experiment, text = build(cfg), to_json(cfg)
    model = LoraModel(experiment.model, 0)
    heads = {
        t: PrototypeHead(torch.eye(experiment.suite.num_classes(t), 128), torch.zeros(128))
        for t in experiment.suite.tasks
    }
    grid, adapters = InlineGrid(client_app, 1, 60.0), model.initial.repeat(experiment.suite.num_clients, 1)
    held = [experiment.suite.task_of(client) for client in range(experiment.suite.num_clients)]
    nodes = meet(grid, text, held, timeout=60.0)
    messages = nodes.messages(1, nodes.groups({0, 3}, 2), adapters, experiment.suite, heads, {})
    uploads = Uploads({0, 3}, model.layout, statistics=True)
    nodes.exchange(grid, messages, 2, 60.0, lambda *_: None, uploads.take)
    found, dropped = uploads.curvature([0, 3]), uploads.dropped
    jobs = [Job(c, model.initial, experiment.suite.train(c, 0), heads[experiment.suite.task_of(c)]) for c in (0, 3)]
    trained = experiment.client(model, jobs, seed=0, server_round=1)
    assert list(found) == [0, 3] and not dropped
    for (client, own), result in zip(found.items(), trained, strict=True):
        assert list(own) == list(result.curvature) == [pair.module for pair in model.layout.pairs], client
        for module, moments in own.items():
            assert all(torch.equal(a, b) for a, b in zip(moments, result.curvature[module], strict=True))


def trainer(asked):
    """A client app whose clients send back what they were sent."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        clients = list(message.content.config_records["config"]["clients"])
        asked.append((context.node_id, clients))
        records = message.content.array_records
        start = records["arrays"]["start"].numpy() + (records["shared"]["add"].numpy() if "shared" in records else 0)
        metrics = dict.fromkeys(("num_examples", "train_loss", "accuracy", "loss"), [1.0] * len(clients))
        facts = ConfigRecord({"clients": clients, "failed": [], "reasons": []})
        content = {"arrays": ArrayRecord({"vectors": Array(start)}), "metrics": MetricRecord(metrics), "config": facts}
        return Message(RecordDict(content), reply_to=message)

    return app


def exchange(grid, nodes, **deadline):
    adapters, heads = torch.arange(3.0)[:, None].repeat(1, 4), {f"task-{client}": None for client in range(3)}
    uploads = Uploads({0, 1, 2}, LAYOUT)
    messages = nodes.messages(1, nodes.groups({0, 1, 2}, 8), adapters, Suite(), heads, {}, **deadline)
    nodes.exchange(grid, messages, 3, 5.0, lambda *_: None, uploads.take)
    return uploads


def test_a_round_ends_at_its_deadline_with_those_that_have_answered():
    class Slow(InlineGrid):
        def pull_messages(self, message_ids):
            replies = super().pull_messages([key for key in message_ids if self.waiting[key].metadata.dst_node_id == 2])
            return replies

    asked, nodes = [], Nodes("{}", {1: [0, 2], 2: [1]}, devices=True)
    uploads = exchange(Slow(trainer(asked), 2, 10.0), nodes, deadline_s=1.5)
    assert asked == [(2, [1])] and set(uploads.dropped.values()) == {"did not answer before the deadline"}
    assert list(uploads.metrics) == [1]


def test_what_all_share_alike_is_one_object():
    nodes, adapters, add = Nodes("{}", {1: [0, 1, 2]}), torch.zeros(3, 4), torch.full((4,), 7.0)
    heads = {f"task-{client}": None for client in range(3)}
    messages = list(nodes.messages(1, nodes.groups({0, 1, 2}, 1), adapters, Suite(), heads, {"add": add}))
    assert len({id(message.content["shared"]) for message in messages}) == 1
    uploads = Uploads({0, 1, 2}, LAYOUT)
    nodes.exchange(InlineGrid(trainer([]), 1, 10.0), messages, 3, 5.0, lambda *_: None, uploads.take)
    assert torch.equal(uploads.vectors, torch.full((3, 4), 7.0))


@pytest.mark.parametrize("wire", ["float16", "int8"])
def test_uploads_are_decoded_as_they_were_encoded(wire):
    vectors = np.float32([[0.5, -1.0, 0.25, 0.0]])
    message = reply(7, 0, np.zeros((1, 4), np.float32))
    message.content["arrays"] = ArrayRecord({name: Array(a) for name, a in encode(vectors, wire).items()})
    updates, dropped, _ = collect([message], [0], wire=wire)
    assert not dropped and torch.allclose(updates.vectors, torch.from_numpy(vectors), atol=1 / 254)
    assert collect([message], [0])[1][0].startswith(f"sent {wire} (1, 4), expected float32")
    assert "scales" in collect([reply(7, 0, np.zeros((1, 4), np.int8))], [0], wire="int8")[1][0]


def test_nothing_is_sent_after_the_deadline_of_the_round():
    """A SuperLink refuses expired messages, and that would end the run."""

    class Slow(InlineGrid):
        sent = 0

        def push_messages(self, messages):
            messages = list(messages)
            self.sent += len(messages)
            assert all(message.metadata.created_at + message.metadata.ttl > time.time() for message in messages)
            return super().push_messages(messages)

        def pull_messages(self, message_ids):
            time.sleep(0.3)
            return super().pull_messages(message_ids)

    everyone = list(range(60))
    nodes, heads = Nodes("{}", {1: everyone}), {f"task-{client}": None for client in everyone}
    grid, uploads = Slow(trainer([]), 1, 10.0), Uploads(everyone, LAYOUT)
    messages = nodes.messages(1, nodes.groups(everyone, 1), torch.zeros(60, 4), Suite(), heads, {}, deadline_s=2.0)
    nodes.exchange(grid, messages, 60, 5.0, lambda *_: None, uploads.take)
    assert 32 <= grid.sent < 40 and 0 < len(uploads.metrics) <= grid.sent


def test_devices_that_hang_keep_nobody_else_waiting():
    class Hung(InlineGrid):
        def pull_messages(self, message_ids):
            return super().pull_messages([k for k in message_ids if self.waiting[k].metadata.dst_node_id > 40])

    hosted = {node: [node - 1] for node in range(1, 46)}
    nodes, heads, asked = Nodes("{}", hosted, devices=True), {f"task-{client}": None for client in range(45)}, []
    uploads = Uploads(range(45), LAYOUT)
    groups = nodes.groups(range(45), 8)
    messages = nodes.messages(1, groups, torch.zeros(45, 4), Suite(), heads, {}, deadline_s=2.0)
    nodes.exchange(Hung(trainer(asked), 45, 10.0), messages, 45, 5.0, lambda *_: None, uploads.take)
    assert sorted(uploads.metrics) == [40, 41, 42, 43, 44] and len(asked) == 5


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04broken", np.lib.format.magic(1, 0) + b"\x76\x00{'descr': '<f4', "])
def test_bytes_that_are_no_array_drop_their_client_only(data):
    odd = reply(8, 1, np.ones((1, 4), np.float32))
    odd.content.array_records["arrays"]["vectors"].data = data
    updates, dropped, _ = collect([reply(7, 0, np.ones((1, 4), np.float32)), odd], (0, 1))
    assert updates.clients == (0,) and dropped[1].startswith("sent a malformed reply")


@pytest.mark.parametrize("name", ["num_examples", "train_loss", "accuracy", "loss"])
def test_whoever_leaves_out_a_figure_is_dropped(name):
    odd = reply(8, 1, np.ones((1, 4), np.float32))
    del odd.content.metric_records["metrics"][name]
    updates, dropped, _ = collect([odd], (0, 1))
    assert len(updates) == 0 and name in dropped[1]


def test_a_client_that_names_itself_twice_sends_nothing():
    metrics = MetricRecord(dict.fromkeys(("num_examples", "train_loss", "accuracy", "loss"), [1.0, 1.0]))
    odd = reply(7, 0, np.ones((2, 4), np.float32))
    odd.content["metrics"], odd.content["config"]["clients"] = metrics, [0, 0]
    updates, dropped, uploads = collect([odd], (0,))
    assert len(updates) == 0 and "named twice" in dropped[0] and not uploads.metrics


@pytest.mark.parametrize(
    "figures",
    [{}, {"accuracy": 1.0}, {"accuracy": [1.0], "loss": [1.0], "shared_accuracy": [1.0]},
     dict.fromkeys(("accuracy", "loss", "shared_accuracy", "shared_loss"), [1.0, 2.0])],
)  # fmt: skip
def test_measures_that_are_none_are_left_out(figures):
    content = RecordDict({"metrics": MetricRecord(figures)})
    assert measured(Message(content, reply_to=question(7)), [0]) == {}


def test_what_another_machine_says_is_one_line():
    error = Message(Error(2, "Traceback\n  x\n" + "\x1b[31mno\x1b[0m" * 900), reply_to=question(8))
    _, dropped, _ = collect([error], (1,))
    assert "\x1b" not in dropped[1] and len(dropped[1]) == 500
    told = Error(2, "<class 'fedfusion.types.FedfusionError'>:<'too\nmany steps'>")  # as a SuperNode has it
    assert collect([Message(told, reply_to=question(8))], (1,))[1] == {1: "too; many steps"}


def test_a_group_that_is_asked_again_may_go_beyond_what_waits_at_the_same_time():
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise RuntimeError("out of battery")

    everyone = list(range(80))
    nodes, heads = Nodes("{}", {1: everyone}), {f"task-{client}": None for client in everyone}
    uploads = Uploads(everyone, LAYOUT)
    messages = nodes.messages(1, nodes.groups(everyone, 2), torch.zeros(80, 4), Suite(), heads, {})
    nodes.exchange(InlineGrid(app, 1, 10.0), messages, 80, 5.0, lambda *_: None, uploads.take)
    assert set(uploads.dropped.values()) == {"RuntimeError: out of battery"} and len(uploads.dropped) == 80
