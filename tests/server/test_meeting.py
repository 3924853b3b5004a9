import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedfusion.federation.inline import InlineGrid
from fedfusion.server import lost, meeting
from fedfusion.server.lost import PRESENT
from fedfusion.server.meeting import Offer, _dealt, meet
from fedfusion.server.nodes import PAUSES_S
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


class Field(InlineGrid):
    """Devices 1..P, each the part of that place. One that is busy with a message answers no other.

    Attributes
    ----------
    asked
        The types of the messages sent to each node.
    loses
        How many questions to each node never arrive.
    loads
        How many looks a node is busy with its first message.
    """

    def __init__(self, parts, loses=None, loads=None, **odd):
        app = ClientApp()

        @app.query()
        def hosted(message, context):
            return Message(RecordDict({"config": ConfigRecord(self.offers[context.node_id])}), reply_to=message)

        @app.query("present")
        def present(message, context):
            return Message(RecordDict(), reply_to=message)

        super().__init__(app, parts, 10.0)
        self.offers = {node: device(node - 1, "a", parts=parts) | odd.get(f"n{node}", {}) for node in self.contexts}
        self.asked = {node: [] for node in self.contexts}
        self.loses, self.loads = loses or {}, loads or {}

    def push_messages(self, messages):
        messages = list(messages)
        keys = list(super().push_messages(messages))
        for key, message in zip(keys, messages, strict=True):
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            self.asked[node].append(kind)
            if kind != PRESENT and self.loses.get(node, 0):
                self.loses[node] -= 1
                del self.waiting[key]
        return keys

    def pull_messages(self, message_ids):
        ready = []
        for node in self.contexts:
            there = [key for key in message_ids if key in self.waiting]
            own = [key for key in there if self.waiting[key].metadata.dst_node_id == node]
            if own and self.loads.get(node, 0):
                self.loads[node] -= 1
            else:
                ready += reversed(own)  # a SuperLink hands them out in any order
        return [reply for key in ready for reply in super(Field, self).pull_messages([key])]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lost, "DOUBT_S", 0.2)


def test_a_question_to_a_device_that_was_lost_is_asked_again(impatient):
    grid = Field(3, loses={2: 2})
    met = meet(grid, "{}", ["a"] * 3, timeout=10.0, simulated=False)
    assert met.hosted == {1: [0], 2: [1], 3: [2]}
    assert grid.asked == {1: ["query"], 2: ["query", PRESENT, "query", PRESENT, "query"], 3: ["query"]}


def test_a_device_that_takes_long_to_answer_is_asked_once(impatient):
    grid = Field(2, loads={2: 4})
    assert meet(grid, "{}", ["a"] * 2, timeout=10.0, simulated=False).hosted == {1: [0], 2: [1]}
    assert grid.asked[1] == ["query"] and grid.asked[2].count("query") == 1 and PRESENT in grid.asked[2]


def test_devices_that_stay_silent_are_named(impatient):
    class Crashed(Field):
        def _handle(self, message):
            if message.metadata.dst_node_id == 4:
                self.loads[4] = 10**9
                return [Message(Error(ErrorCode.CLIENT_APP_CRASHED, "out of memory"), reply_to=message)]
            return super()._handle(message)

    grid = Crashed(6, loads=dict.fromkeys((5, 2), 10**9), n3={"part": 9})
    said = "0 of 6 .*; node 3: part.*; node 4: out of memory; node 2: it has not answered; node 5: it has not answered$"
    with pytest.raises(FedfusionError, match=said):
        meet(grid, "{}", ["a"] * 6, timeout=2.5, simulated=False)
    assert grid.asked[5].count("query") == 1 and 1 < grid.asked[5].count(PRESENT) < 5


def test_a_device_that_was_away_is_asked_again():
    class Away(Field):
        """Where the SuperLink answers for node 2, which has just left; Flower gives the SuperLink the id 1."""

        times = 1

        def _handle(self, message):
            if message.metadata.dst_node_id == 2 and self.times:
                self.times -= 1
                reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node unavailable"), reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = 1
                return [reply]
            return super()._handle(message)

    grid = Away(2)
    assert meet(grid, "{}", ["a"] * 2, timeout=10.0, simulated=False).hosted == {1: [0], 2: [1]}
    assert grid.asked == {1: ["query"], 2: ["query"] * 2}


def test_a_device_that_the_superlink_does_not_know_yet_is_asked_again():
    class Forgetful(Field):
        times = 1

        def push_messages(self, messages):
            refused, self.times = self.times, 0
            return [""] * len(messages) if refused else super().push_messages(messages)

    assert meet(Forgetful(2), "{}", ["a"] * 2, timeout=10.0, simulated=False).hosted == {1: [0], 2: [1]}


def test_a_superlink_that_refuses_every_question_is_left_in_peace_between_them():
    class Refusing(Field):
        pushes = 0

        def push_messages(self, messages):
            self.pushes += 1
            return [""] * len(messages)

    grid = Refusing(2)
    with pytest.raises(FedfusionError, match="host 0 of 2 clients"):
        meet(grid, "{}", ["a"] * 2, timeout=1.2, simulated=False)
    assert 1 <= grid.pushes <= 1.2 / PAUSES_S[1] + 1


def test_a_device_that_claims_to_be_alone_is_not_believed_while_others_may_say_otherwise():
    for others in (range(2, 5), range(2, 3)):  # of the last, one word is against another
        grid = Field(1 + len(others), loads=dict.fromkeys(others, 1), n1={"parts": 1})
        met = meet(grid, "{}", ["a"] * len(grid.contexts), timeout=10.0, simulated=False)
        assert met.hosted == {node: [node - 1] for node in grid.contexts}


def test_nobody_waits_for_a_device_that_nobody_misses():
    alone = {f"n{node}": {"parts": 2} for node in (1, 2)}
    grid = Field(3, loads={3: 10**9}, **alone)
    assert meet(grid, "{}", ["a"] * 2, timeout=10.0, simulated=False).hosted == {1: [0], 2: [1]}
    assert grid.asked[3] == ["query"]


@pytest.mark.parametrize("parts, silent", [(2, 2), (2, 3), (1, 1)])
def test_at_the_deadline_nobody_waits_for_silent_devices_however_many(parts, silent):
    there = range(1, parts + 1)
    hang = range(parts + 1, parts + silent + 1)
    grid = Field(parts + silent, loads=dict.fromkeys(hang, 10**9), **{f"n{node}": {"parts": parts} for node in there})
    met = meet(grid, "{}", ["a"] * parts, timeout=1.0, simulated=False)
    assert met.hosted == {node: [node - 1] for node in there}


def test_devices_that_all_answer_are_dealt_clients_without_a_pause(monkeypatch):
    paused = []
    monkeypatch.setattr(meeting.time, "sleep", paused.append)
    assert len(meet(Field(3), "{}", ["a"] * 3, timeout=10.0, simulated=False).hosted) == 3
    assert not any(paused)
