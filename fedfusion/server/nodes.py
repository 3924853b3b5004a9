"""Who trains together and on which node, and the exchange of messages with them."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedfusion.server.lost import GONE, SHORTEST_S, Absent, Doubts, clients_of, like, remaining_s
from fedfusion.server.uploads import listed, reason_of
from fedfusion.tasks.heads import Head, PrototypeHead
from fedfusion.types import TaskSuite

IN_FLIGHT = 32  # messages that wait for an answer at the same time: each holds the adapters of its clients
GRACE_S = 10.0  # a grid that watches the deadline itself answers for the client within this time
PAUSES_S = 0.005, 0.5  # between two looks for replies: doubled while none comes
MEASURED = "accuracy", "loss", "shared_accuracy", "shared_loss"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a grid and the clients that each of them hosts.

    Attributes
    ----------
    experiment_json
        The resolved configuration; every message carries it, so clients need no other.
    hosted
        Client ids by node id, sorted. In simulation every node hosts all of them.
    fused_rank
        Rank of multi-task adapters, which clients have to know when they are sent one.
    asked
        The clients that each message sent in the last exchange asked for.
    devices
        Whether each node is a device, with clients of its own.
    """

    experiment_json: str
    hosted: Mapping[int, Sequence[int]]
    fused_rank: int = 1
    asked: dict[str, list[int]] = field(default_factory=dict)
    devices: bool = False

    def groups(self, chosen: Collection[int], size: int) -> list[tuple[int, list[int]]]:
        """Who trains together, and on which node.

        In simulation, where every node hosts all of them, `size` clients at a time in the order of their ids, so that
        results depend on the ids alone. Devices are asked once for all the clients they hold, and train `size` of them
        at a time.
        """
        ordered = sorted(chosen)
        if not self.devices:
            parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
            nodes = list(self.hosted)
            return [(nodes[i % len(nodes)], part) for i, part in enumerate(parts)]
        home = {client: node for node, clients in self.hosted.items() for client in clients}
        return [(n, [c for c in ordered if home[c] == n]) for n in dict.fromkeys(home[c] for c in ordered)]

    def messages(
        self,
        server_round: int,
        groups: Iterable[tuple[int, Sequence[int]]],
        adapters: Tensor,
        suite: TaskSuite,
        heads: Mapping[str, Head],
        shared: Mapping[str, Tensor],
        kind: str = MessageType.TRAIN,
        deadline_s: float | None = None,
    ) -> Iterable[Message]:
        """One message per group: ids, each client's adapter, and the heads of their tasks.

        What all share alike is one object, for grids that can broadcast it. No message outlives `deadline_s`, counted
        from now.
        """
        until = time.time() + (DEFAULT_TTL if deadline_s is None else deadline_s)
        common = arrays(**shared)
        for node, clients in groups:
            if until - time.time() < SHORTEST_S:
                return
            mine = {task: heads[task] for task in map(suite.task_of, clients)}
            tensors = {f"head.{t}": head.to_tensor() for t, head in mine.items() if isinstance(head, PrototypeHead)}
            facts: dict[str, Any] = {
                "experiment": self.experiment_json,
                "round": server_round,
                "clients": list(clients),
                "rank": self.fused_rank,
            }
            content = RecordDict(
                {
                    "arrays": arrays(start=adapters[torch.tensor(clients)], **tensors),
                    "config": ConfigRecord(facts),
                    **({"shared": common} if shared else {}),
                }
            )
            yield Message(content, node, kind, group_id=str(server_round), ttl=until - time.time())

    def exchange(
        self,
        grid: Grid,
        messages: Iterable[Message],
        total: int,
        timeout: float,
        progress: Callable[[int, int], None],
        take: Callable[[Message, Collection[int]], Collection[int]],
    ) -> None:
        """Send, and let `take` have replies as they come, until none has come for `timeout` seconds.

        `take` says which clients of a group did not send what was asked for. Those are asked again, one by one, so
        that nobody is dropped for what another did. A message whose node is gone waits until it is back, or until it
        has expired; one that a device has lost is sent again. `progress` is told how many of the `total` clients have
        answered.
        """
        self.asked.clear()
        unsent, waiting, absent, doubts = iter(messages), dict[str, Message](), Absent(), Doubts()
        last, pause, answered = time.monotonic(), PAUSES_S[0], 0
        at_once = None if self.devices else IN_FLIGHT  # a device that hangs keeps nobody else waiting
        progress(0, total)
        while time.monotonic() - last < timeout + GRACE_S:
            free = None if at_once is None else max(at_once - len(waiting), 0)  # those asked again count, too
            waiting |= self._send(grid, [*absent.back(grid), *islice(unsent, free)], absent)
            if not waiting and not absent.messages:
                break
            if self.devices:
                doubts.ask(grid, waiting)
            replies = list(grid.pull_messages([*waiting, *doubts.questions]))
            new = [reply for reply in replies if reply.metadata.reply_to_message_id in waiting]
            for reply in new:
                message = waiting.pop(reply.metadata.reply_to_message_id)
                clients = self.asked[reply.metadata.reply_to_message_id]
                if reply.has_error() and reply.error.code in GONE and absent.keep(message, reason_of(reply)):
                    continue
                failed = take(reply, clients)
                again = failed if len(clients) > 1 else ()
                waiting |= self._send(grid, _singly(message, again), absent)
                answered += len(clients) - len(again)
            lost = doubts.settled(replies) & waiting.keys()
            for key in lost:
                absent.keep(waiting.pop(key), "the message, or the answer to it, was lost on the way")
            if new or lost:
                last, pause = time.monotonic(), PAUSES_S[0]
                progress(answered, total)
            else:
                waiting = {key: message for key, message in waiting.items() if remaining_s(message) > 0}
                time.sleep(pause)
                pause = min(2 * pause, PAUSES_S[1])

    def _send(self, grid: Grid, messages: Iterable[Message], absent: Absent) -> dict[str, Message]:
        """Push messages that have time left, and remember whom each asks for."""
        outgoing = [message for message in messages if remaining_s(message) > SHORTEST_S]
        pushed = list(zip(grid.push_messages(outgoing) if outgoing else (), outgoing, strict=True))
        sent = {key: message for key, message in pushed if key}
        for message in (message for key, message in pushed if not key):  # its node is not known any more
            absent.keep(message, "it has left")
        self.asked.update({key: clients_of(message) for key, message in sent.items()})
        return sent


def measured(reply: Message, clients: Collection[int]) -> dict[int, dict[str, float]]:
    """What each of `clients` measured when it was asked to evaluate; nothing where the reply is malformed."""
    try:
        metrics = reply.content.metric_records["metrics"]
        columns = [[float(value) for value in listed(metrics[name])] for name in MEASURED]
        rows = zip(clients, *columns, strict=True)
        return {client: dict(zip(MEASURED, values, strict=True)) for client, *values in rows}
    except Exception:  # whatever a client sends
        return {}


def _singly(message: Message, clients: Collection[int]) -> Iterable[Message]:
    """The message of a group as one message for each of `clients`."""
    starts = message.content.array_records["arrays"]["start"].numpy()
    for row, client in enumerate(clients_of(message)):
        if client in clients:
            own = {**message.content.array_records["arrays"], "start": Array(starts[row : row + 1])}
            facts = ConfigRecord({**message.content.config_records["config"], "clients": [client]})
            yield like(message, RecordDict({**message.content, "arrays": ArrayRecord(own), "config": facts}))


def arrays(**tensors: Tensor) -> ArrayRecord:
    """Named tensors as Flower carries them."""
    return ArrayRecord({name: Array(tensor.detach().numpy()) for name, tensor in tensors.items()})
