"""A Flower grid whose nodes are virtual; who handles their messages is left to the subclasses."""

import os
import sys
import uuid
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_RAISED = 2  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def python_path() -> str:
    """The import path of this process, for those that it starts."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)


class VirtualGrid(Grid):
    """A Flower grid whose nodes are virtual; each of them can host any client.

    Parameters
    ----------
    num_nodes
        Number of virtual nodes.
    deadline_s
        A message that takes longer is answered with an error.
    """

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
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex  # as a SuperLink does on arrival
            self.waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return all replies."""
        waiting = dict.fromkeys(self.push_messages(messages))
        replies: list[Message] = []
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.pop(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def failure(self, message: Message, reason: str) -> Message:
        """Answer `message` with an error."""
        return Message(Error(CLIENT_RAISED, reason), reply_to=message)
