import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedfusion.federation.inline import InlineGrid
from fedfusion.server.meeting import Offer, _dealt, meet
from fedfusion.types import FedfusionError


def test_meeting_learns_who_hosts_whom_and_reports_a_node_that_cannot_start():
    app = ClientApp()

    @app.query()
    def hosted(message, context):
        part = context.node_config["partition-id"]
        return Message(
            RecordDict({"config": ConfigRecord({"clients": [5 - 2 * part, 4 - 2 * part]})}), reply_to=message
        )

    met = meet(InlineGrid(app, 3, 10.0), "{}", ["task"] * 6, timeout=5.0)
    assert {k: list(v) for k, v in met.hosted.items()} == {3: [0, 1], 2: [2, 3], 1: [4, 5]}
    with pytest.raises(FedfusionError, match="the nodes host 6 of 7 clients"):
        meet(InlineGrid(app, 3, 10.0), "{}", ["task"] * 7, timeout=0.3)
    with pytest.raises(FedfusionError, match="node 1 cannot start"):
        meet(InlineGrid(ClientApp(), 1, 10.0), "{}", ["task"], timeout=5.0)


def test_clients_that_do_not_exist_are_hosted_by_nobody():
    with pytest.raises(FedfusionError, match=r"host 0 of 2 clients .*; node 1: it hosts clients \[-2, -1\], and there"):
        meet(answering({"clients": [-1, -2]}), "{}", ["task"] * 2, timeout=0.3)


def answering(*answers):
    """Nodes that give these answers."""
    app = ClientApp()

    @app.query()
    def hosted(message, context):
        answer = answers[context.node_config["partition-id"]]
        if isinstance(answer, int):
            return Message(Error(answer, "it is on its way"), reply_to=message)
        return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)

    return InlineGrid(app, len(answers), 10.0)


def device(part, *tasks, own_rows=False, parts=2):
    return {"part": part, "parts": parts, "tasks": list(tasks), "own_rows": own_rows}


def offers(**devices):
    return {int(node[1:]): Offer.of(answer) for node, answer in devices.items()}


def test_devices_are_dealt_clients_once_all_are_there():
    tasks = ["a", "a", "a", "b"]
    both = device(1, "a", "b")
    assert _dealt(offers(n9=both), tasks) == {}
    assert _dealt(offers(n9=both, n5=device(0, "a")), tasks) == {5: [0, 2], 9: [1, 3]}
    assert _dealt(offers(n9=device(1, "a"), n5=device(0, "a")), tasks) == {5: [0, 2], 9: [1]}  # nobody holds b
    own = offers(n9=device(1, "a", "b", own_rows=True), n5=device(0, "a", own_rows=True))
    with pytest.raises(FedfusionError, match="task 'a' has 3 clients, and 2 devices hold its rows"):
        _dealt(own, tasks)


def test_a_device_that_claims_to_be_of_many_does_not_keep_the_others_waiting():
    grid = answering(device(0, "a", parts=2), device(1, "a", parts=2), device(7, "a", parts=10**9))
    met = meet(grid, "{}", ["a", "a", "a"], timeout=5.0, simulated=False)
    assert {client for clients in met.hosted.values() for client in clients} == {0, 1, 2} and met.devices


@pytest.mark.parametrize(
    "answer, said",
    [
        (device(1, "a"), "it is part 1, and so is node 1"),
        (device(2, "a"), "partition-id=2 is not among num-partitions=2"),
        ({"clients": [0, 1]}, "part"),
        (ErrorCode.CLIENT_APP_CRASHED, "it is on its way"),
    ],
)
def test_a_device_that_makes_no_sense_takes_no_part_and_is_named(answer, said):
    with pytest.raises(FedfusionError, match=f"host 0 of 2 clients .*; node 2: .*{said}"):
        meet(answering(device(1, "a"), answer), "{}", ["a", "a"], timeout=0.5, simulated=False)
