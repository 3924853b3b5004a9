import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedfusion.federation.inline import InlineGrid
from fedfusion.server.nodes import Nodes
from fedfusion.types import FedfusionError, Layout


class Suite:
    """Just enough of a suite: client k holds task k."""

    num_clients = 3

    def task_of(self, client):
        return f"task-{client}"


LAYOUT = Layout(("w",), ((4,),))
NODES = Nodes("{}", {7: [0], 8: [1], 9: [2]}, asked={"to-7": [0], "to-8": [1], "to-9": [2]})


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


def collect(replies):
    return NODES.collect(replies, {0, 1, 2}, torch.zeros(3, 4), Suite(), LAYOUT)


def test_rows_are_sorted_by_client_whatever_the_order_of_arrival():
    good = [reply(7 + k, k, np.full((1, 4), k, np.float32)) for k in range(3)]
    for order in (good, good[::-1], [good[1], good[2], good[0]]):
        updates, dropped = collect(order)
        assert updates.clients == (0, 1, 2) and updates.tasks == ("task-0", "task-1", "task-2") and not dropped
        assert torch.equal(updates.vectors[:, 0], torch.tensor([0.0, 1.0, 2.0])) and updates.num_examples == (5, 5, 5)


def test_whoever_does_not_answer_well_is_named():
    error = Message(Error(2, "Traceback\n  ...\n\x1b[36mValueError\x1b[39m: broken"), reply_to=question(8))
    updates, dropped = collect([reply(7, 0, np.zeros((2, 4), np.float32)), error])
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
    updates, dropped = collect([reply(7, 0, np.ones((1, 4), np.float32)), empty, odd])
    assert updates.clients == (0,) and list(dropped) == [1, 2]
    assert all(reason.startswith("sent a malformed reply") for reason in dropped.values())
    assert NODES.heads([empty, odd], updates.clients, {}, Suite()) == {} and NODES.measured([empty]) == {}


def test_a_node_cannot_speak_for_the_clients_of_another():
    updates, dropped = collect([reply(7, 1, np.ones((1, 4), np.float32))])
    assert len(updates) == 0 and set(dropped) == {0, 1, 2}


def test_meeting_learns_who_hosts_whom_and_reports_a_node_that_cannot_start():
    app = ClientApp()

    @app.query()
    def hosted(message, context):
        part = context.node_config["partition-id"]
        return Message(
            RecordDict({"config": ConfigRecord({"clients": [5 - 2 * part, 4 - 2 * part]})}), reply_to=message
        )

    met = Nodes.meet(InlineGrid(app, 3, 10.0), "{}", num_clients=6, timeout=5.0)
    assert {k: list(v) for k, v in met.hosted.items()} == {3: [0, 1], 2: [2, 3], 1: [4, 5]}
    with pytest.raises(FedfusionError, match="the nodes host 6 of 7 clients"):
        Nodes.meet(InlineGrid(app, 3, 10.0), "{}", num_clients=7, timeout=0.3)
    with pytest.raises(FedfusionError, match="a node cannot start"):
        Nodes.meet(InlineGrid(ClientApp(), 1, 10.0), "{}", num_clients=1, timeout=5.0)


def test_groups_depend_on_the_ids_alone_where_a_node_hosts_them_all():
    everyone = list(range(10))
    chosen = {9, 1, 4, 6, 0}
    for count in (1, 2, 5):
        nodes = Nodes("{}", dict.fromkeys(range(1, count + 1), everyone))
        placed = nodes.groups(chosen, 2)
        assert [group for _, group in placed] == [[0, 1], [4, 6], [9]]
        assert [node for node, _ in placed] == [1 + i % count for i in range(3)]
    devices = Nodes("{}", {k + 1: [k] for k in everyone})
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
    replies = nodes.exchange(InlineGrid(app, 1, 10.0), messages, 4, 1.0, lambda *_: None, LAYOUT)
    updates, dropped = nodes.collect(replies, {0, 1, 2, 3}, adapters, Anyone(), LAYOUT)
    assert asked == [[0, 1, 2], [3], [0], [1], [2]]
    assert updates.clients == (0, 2, 3) and torch.equal(updates.vectors, adapters[[0, 2, 3]])
    assert dropped == {1: "RuntimeError: out of battery"}
