"""Messages that never arrive: their node is gone, they were lost on the way, or they have expired."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from logging import WARNING

from flwr.app import Message, RecordDict
from flwr.common import log
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedfusion.server.uploads import ints

RETRIES = 2  # of a message whose node went away, or that was lost
DOUBT_S = 60.0  # a device that has not answered by then is asked whether it still has the message
PRESENT = "query.present"  # the question
SHORTEST_S = 1.0  # a message that would expire sooner is not sent: a SuperLink refuses expired ones
GONE = (  # Flower's errors that say nothing of the clients
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)


class Absent:
    """Messages whose node is gone, until it is back; each is sent again `RETRIES` times at most."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.times: Counter[tuple[int, ...]] = Counter()
        self.looked = 0.0

    def keep(self, message: Message, reason: str) -> bool:
        """Keep a message that its clients are not to blame for, unless that has happened too often."""
        clients = tuple(clients_of(message))
        self.times[clients] += 1
        if self.times[clients] > RETRIES:
            return False
        log(WARNING, "node %d: %s; clients %s wait", message.metadata.dst_node_id, reason, list(clients))
        self.messages.append(message)
        return True

    def back(self, grid: Grid) -> list[Message]:
        """Those whose node is there again, as new messages; looks once a second."""
        self.messages = [message for message in self.messages if remaining_s(message) > SHORTEST_S]
        if not self.messages or time.monotonic() - self.looked < 1.0:
            return []
        self.looked, there = time.monotonic(), set(grid.get_node_ids())
        found = [message for message in self.messages if message.metadata.dst_node_id in there]
        self.messages = [message for message in self.messages if message.metadata.dst_node_id not in there]
        return [like(message, message.content) for message in found]


class Doubts:
    """Questions to devices that have not answered for long.

    A SuperLink hands out every message, and every answer, once: what it was sending when it died, or the connection
    broke, is lost, and nobody is told. But a SuperNode takes one message after another, in the order in which they were
    made: one that answers a question has no earlier message any more.

    Attributes
    ----------
    questions
        By the id of each question, that of the message in doubt and the question itself.
    refused
        Questions that the SuperLink did not take, by the id of the message in doubt.
    """

    def __init__(self) -> None:
        self.questions: dict[str, tuple[str, Message]] = {}
        self.refused: dict[str, Message] = {}

    def ask(self, grid: Grid, waiting: Mapping[str, Message]) -> None:
        """Ask for each message that has waited for `DOUBT_S`; again, if need be, when it has waited twice as long.

        A question expires before the next is asked, even one that was refused, so that a busy device finds one at most.
        """

        def lives(key: str, question: Message) -> bool:
            return key in waiting and remaining_s(question) > 0

        self.questions = {question: about for question, about in self.questions.items() if lives(*about)}
        self.refused = {key: message for key, message in self.refused.items() if lives(key, message)}
        asked = {key for key, _ in self.questions.values()} | self.refused.keys()
        waited = {key: time.time() - m.metadata.created_at for key, m in waiting.items() if key not in asked}
        doubtful = [key for key, seconds in waited.items() if seconds > DOUBT_S]
        new = [Message(RecordDict(), waiting[key].metadata.dst_node_id, PRESENT, ttl=waited[key]) for key in doubtful]
        pushed = list(zip(grid.push_messages(new) if new else (), doubtful, new, strict=True))
        self.questions |= {question: (key, message) for question, key, message in pushed if question}
        self.refused |= {key: message for question, key, message in pushed if not question}

    def settled(self, replies: Iterable[Message]) -> set[str]:
        """The messages that are lost unless `replies` answer them, too."""
        answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
        answered = [
            (self.questions.pop(question)[0], answers[question]) for question in answers.keys() & self.questions.keys()
        ]
        return {key for key, answer in answered if not (answer.has_error() and answer.error.code in GONE)}


def like(message: Message, content: RecordDict) -> Message:
    """A message like another, that expires when it does."""
    meta = message.metadata
    ttl = max(remaining_s(message), SHORTEST_S / 2)
    return Message(content, meta.dst_node_id, meta.message_type, group_id=meta.group_id, ttl=ttl)


def remaining_s(message: Message) -> float:
    """Seconds until `message` expires; nobody wants an answer to it after that."""
    return message.metadata.created_at + message.metadata.ttl - time.time()


def clients_of(message: Message) -> list[int]:
    """The clients that `message` asks for."""
    return ints(message.content.config_records["config"]["clients"])
