import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedfusion.apps import client_app
from fedfusion.federation.inline import InlineGrid
from fedfusion.server import lost
from fedfusion.server.lost import DOUBT_S, PRESENT, Absent, Doubts, remaining_s
from fedfusion.server.nodes import Nodes
from fedfusion.server.uploads import reason_of

DEVICES = Nodes("{}", {1: [0, 2], 2: [1]}, devices=True)


class Suite:
    """Just enough of a suite: client k holds task k."""

    def task_of(self, client):
        return f"task-{client}"


def app(asked):
    """A client app that says that it was asked, and for whom."""
    devices = ClientApp()

    @devices.query("present")
    def present(message, context):
        return Message(RecordDict(), reply_to=message)

    @devices.train()
    def train(message, context):
        asked.append((context.node_id, list(message.content.config_records["config"]["clients"])))
        return Message(RecordDict(), reply_to=message)

    return devices


def exchange(grid, nodes=DEVICES):
    """Ask three clients; those that answered, and why others failed."""
    answered, failed = [], {}

    def take(reply, clients):
        if reply.has_error():
            failed.update(dict.fromkeys(clients, reason_of(reply)))
        else:
            answered.extend(clients)
        return []

    heads = {f"task-{client}": None for client in range(3)}
    messages = nodes.messages(1, nodes.groups({0, 1, 2}, 8), torch.zeros(3, 4), Suite(), heads, {})
    nodes.exchange(grid, messages, 3, 5.0, lambda *_: None, take)
    return sorted(answered), failed


class Flaky(InlineGrid):
    """Node 1 is gone the first `times` times that it is asked, and cannot be seen for `away` looks after that."""

    times, away, hidden, code = 1, 2, 0, ErrorCode.NODE_UNAVAILABLE

    def _handle(self, message):
        if message.metadata.dst_node_id == 1 and self.times:
            self.times -= 1
            self.hidden = self.away
            return [Message(Error(self.code, "Node unavailable"), reply_to=message)]
        return super()._handle(message)

    def get_node_ids(self):
        self.hidden -= 1
        return [node for node in super().get_node_ids() if node != 1 or self.hidden < 0]


@pytest.mark.parametrize("code", [ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED])
def test_a_node_that_comes_back_loses_nothing(code):
    asked = []
    grid = Flaky(app(asked), 2, 10.0)
    grid.code = code
    assert exchange(grid) == ([0, 1, 2], {}) and asked == [(2, [1]), (1, [0, 2])] and grid.hidden < 0


def test_a_node_that_is_gone_again_and_again_loses_its_clients():
    grid = Flaky(app([]), 2, 10.0)
    grid.times, grid.away = 99, 0
    assert exchange(grid) == ([1], {0: "Node unavailable", 2: "Node unavailable"}) and grid.times == 99 - 3


def test_a_node_that_has_left_when_it_is_asked_is_waited_for():
    class Forgetful(InlineGrid):
        def push_messages(self, messages):
            messages = list(messages)
            refused, self.times = self.times, 0
            return [""] * len(messages) if refused else super().push_messages(messages)

    grid = Forgetful(app([]), 2, 10.0)
    grid.times = 1
    assert exchange(grid) == ([0, 1, 2], {})


def test_nobody_waits_for_a_node_beyond_the_end_of_its_message():
    grid, absent = InlineGrid(app([]), 1, 10.0), Absent()
    for ttl in (50.0, 0.9):
        content = RecordDict({"config": ConfigRecord({"clients": [0]})})
        assert absent.keep(Message(content, 1, "train", group_id="7", ttl=ttl), "it has left")
    (again,) = absent.back(grid)
    assert 49.0 < remaining_s(again) <= 50.0 and again.metadata.group_id == "7" and not absent.messages


class Lossy(InlineGrid):
    """A SuperLink that hands out a message to node 1, or the answer to it, and dies before it has arrived."""

    times, trains = 1, False

    def _handle(self, message):
        if message.metadata.dst_node_id == 1 and message.metadata.message_type == "train" and self.times:
            self.times -= 1
            return super()._handle(message)[1:] if self.trains else []
        return super()._handle(message)


@pytest.mark.parametrize("trains", [False, True])
def test_a_message_that_a_device_never_got_or_whose_answer_was_lost_is_sent_again(trains, monkeypatch):
    monkeypatch.setattr(lost, "DOUBT_S", 0.1)
    asked = []
    grid = Lossy(app(asked), 2, 10.0)
    grid.trains = trains
    assert exchange(grid) == ([0, 1, 2], {})
    assert sorted(asked) == [(1, [0, 2])] * (1 + trains) + [(2, [1])]


def test_a_device_that_loses_every_message_loses_its_clients(monkeypatch):
    monkeypatch.setattr(lost, "DOUBT_S", 0.1)
    grid = Lossy(app([]), 2, 10.0)
    grid.times = 99
    assert exchange(grid) == ([1], {}) and grid.times == 99 - 3


def test_a_device_is_asked_once_it_has_been_silent_for_long():
    grid, doubts, message = InlineGrid(app([]), 1, 10.0), Doubts(), Message(RecordDict(), 1, "train")
    message.metadata.created_at -= DOUBT_S / 2
    doubts.ask(grid, {"key": message})
    assert not doubts.questions and not grid.waiting
    message.metadata.created_at -= DOUBT_S / 2 + 1
    doubts.ask(grid, {"key": message})
    ((key, question),) = doubts.questions.values()
    assert key == "key" and DOUBT_S + 1 <= question.metadata.ttl < DOUBT_S + 10 and len(grid.waiting) == 1


def test_a_question_that_is_refused_is_asked_again_when_it_would_have_expired():
    class Refusing(InlineGrid):
        asked, refuses = 0, True

        def push_messages(self, messages):
            messages = list(messages)
            self.asked += len(messages)
            return [""] * len(messages) if self.refuses else super().push_messages(messages)

    grid, doubts = Refusing(app([]), 1, 10.0), Doubts()
    one, other = Message(RecordDict(), 1, "train"), Message(RecordDict(), 1, "train")
    one.metadata.created_at -= DOUBT_S + 1
    for _ in range(3):
        doubts.ask(grid, {"one": one, "other": other})
    assert grid.asked == 1 and not doubts.questions
    other.metadata.created_at -= DOUBT_S + 1
    doubts.ask(grid, {"one": one, "other": other})
    assert grid.asked == 2
    grid.refuses, doubts.refused["one"].metadata.ttl = False, 0.0
    doubts.ask(grid, {"one": one, "other": other})
    assert grid.asked == 3 and [key for key, _ in doubts.questions.values()] == ["one"]
    doubts.ask(grid, {"one": one})
    assert grid.asked == 3 and not doubts.refused


class Busy(InlineGrid):
    """Node 1 works while it is asked. The first question is lost; to the fourth, all answers come at once."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.questions, self.trainings = [], 0

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == PRESENT:
                assert not any(remaining_s(question) > 0 for question in self.questions[1:])
                self.questions.append(message)
            else:
                self.trainings += 1
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        there = [key for key in message_ids if key in self.waiting]
        if len(self.questions) == 4:
            return [reply for key in reversed(there) for reply in super(Busy, self).pull_messages([key])]
        for question in self.questions[:1]:
            if self.waiting.pop(question.metadata.message_id, None):
                return [Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "it was lost"), reply_to=question)]
        return super().pull_messages([key for key in there if self.waiting[key].metadata.dst_node_id == 2])


def test_a_device_that_works_for_long_is_asked_one_question_at_a_time_and_trains_once(monkeypatch):
    monkeypatch.setattr(lost, "DOUBT_S", 0.1)
    asked = []
    grid = Busy(app(asked), 2, 10.0)
    assert exchange(grid) == ([0, 1, 2], {})
    assert asked == [(2, [1]), (1, [0, 2])] and grid.trainings == 2
    assert [question.metadata.dst_node_id for question in grid.questions] == [1, 1, 1, 1]


def test_simulated_nodes_are_asked_no_questions(monkeypatch):
    monkeypatch.setattr(lost, "DOUBT_S", 0.0)
    sent = []

    class Watched(InlineGrid):
        def push_messages(self, messages):
            messages = list(messages)
            sent.extend(message.metadata.message_type for message in messages)
            return super().push_messages(messages)

    exchange(Watched(app([]), 2, 10.0), Nodes("{}", {1: [0, 1, 2], 2: [0, 1, 2]}))
    assert sent == ["train"]


def test_a_node_says_that_it_takes_messages():
    grid = InlineGrid(client_app, 1, 10.0)
    sent = grid.push_messages([Message(RecordDict(), 1, PRESENT)])
    (reply,) = grid.pull_messages(sent)
    assert not reply.has_error()
