"""A Flower grid whose nodes are virtual; who handles their messages is left to the subclasses."""

import os
import sys
import uuid
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedfusion.server.lost import remaining_s


def python_path() -> str:
    """The import path of this process, for those that it starts."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)


def failure(message: Message, reason: str) -> Message:
    """Answer `message` with an error."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


class VirtualGrid(Grid):
    """A Flower grid whose nodes are virtual; each of them can host any client.

    A message that has expired is not handled any more, and not answered.

    Parameters
    ----------
    num_nodes
        Number of virtual nodes.
    deadline_s
        A message that takes longer, from when it begins to be handled, is answered with an error.

    Attributes
    ----------
    at_once
        How many messages it works on at the same time.
    """

    at_once = 1

    def __init__(self, num_nodes: int, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.waiting: dict[str, Message] = {}
        self.contexts = {
            node: Context(1, node, {"partition-id": node - 1, "num-partitions": num_nodes}, RecordDict(), {})
            for node in range(1, num_nodes + 1)
        }
        self.set_run(Run.create_empty(run_id=1))
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0

    def set_run(self, run: Run) -> None:
        """Set the run this grid works in."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid works in."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message, as the interface of older Flower apps asks for."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The virtual nodes, `1..P`."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; they are handled when replies are pulled."""
        ids = []
        for message in messages:
            if not message.metadata.message_id:
                message.metadata.__dict__["_message_id"] = uuid.uuid4().hex  # as a SuperLink does on arrival
            self.waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies to all that do not expire; each has its own deadline, not `timeout`."""
        sent = list(messages)
        unanswered = dict(zip(self.push_messages(sent), sent, strict=True))
        replies: list[Message] = []
        while unanswered:
            new = list(self.pull_messages(list(unanswered)))
            for reply in new:
                del unanswered[reply.metadata.reply_to_message_id]
            replies += new
            for key in [] if new else [key for key, message in unanswered.items() if remaining_s(message) <= 0]:
                del unanswered[key]
                self.waiting.pop(key, None)
        return replies
