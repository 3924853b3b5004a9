"""Which node hosts which client, and the exchange of messages with them."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedfusion.tasks.heads import PrototypeHead
from fedfusion.types import FedfusionError, Layout, TaskSuite, Updates

GRACE_S = 10.0  # a grid that watches the deadline itself answers for the client within this time


@dataclass(frozen=True)
class Nodes:
    """The nodes of a grid and the clients that each of them hosts.

    Attributes
    ----------
    experiment_json
        The resolved configuration; every message carries it, so clients need no other.
    hosted
        Client ids by node id, sorted.
    """

    experiment_json: str
    hosted: Mapping[int, Sequence[int]]

    @classmethod
    def meet(cls, grid: Grid, experiment_json: str, num_clients: int, timeout: float) -> "Nodes":
        """Wait until every client is hosted by some node, and learn by which.

        Raises
        ------
        FedfusionError
            If a node cannot start, or some client has no node after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        host: dict[int, int] = {}
        asked: set[int] = set()
        content = RecordDict({"config": ConfigRecord({"experiment": experiment_json})})
        while len(host) < num_clients:
            new = sorted(set(grid.get_node_ids()) - asked)
            asked |= set(new)
            questions = [Message(content, node, MessageType.QUERY) for node in new]
            for reply in grid.send_and_receive(questions, timeout=timeout) if new else ():
                if reply.has_error():
                    raise FedfusionError(f"a node cannot start: {reason_of(reply)}")
                for client in _ints(reply.content.config_records["config"]["clients"]):
                    host[client] = reply.metadata.src_node_id
            if len(host) < num_clients and time.monotonic() > deadline:
                raise FedfusionError(
                    f"after {timeout:.0f} s the nodes host {len(host)} of {num_clients} clients "
                    "(start the missing nodes or raise deadline_s)"
                )
            if not new:
                time.sleep(0.1)
        hosted: dict[int, list[int]] = {}
        for client in sorted(host):
            hosted.setdefault(host[client], []).append(client)
        return cls(experiment_json, hosted)

    def messages(
        self,
        server_round: int,
        chosen: Collection[int],
        adapters: Tensor,
        suite: TaskSuite,
        heads: Mapping[str, PrototypeHead],
    ) -> Iterable[Message]:
        """One message per node that hosts a chosen client: ids, the adapters to start from, and the frozen heads."""
        for node, hosted in self.hosted.items():
            clients = [client for client in hosted if client in chosen]
            if not clients:
                continue
            mine = {task: heads[task] for task in map(suite.task_of, clients)}
            content = RecordDict(
                {
                    "arrays": arrays(
                        start=adapters[torch.tensor(clients)],
                        **{f"head.{task}": head.to_tensor() for task, head in mine.items()},
                    ),
                    "config": ConfigRecord(
                        {"experiment": self.experiment_json, "round": server_round, "clients": clients}
                    ),
                }
            )
            yield Message(content, node, MessageType.TRAIN, group_id=str(server_round))

    def exchange(
        self, grid: Grid, messages: Sequence[Message], timeout: float, progress: Callable[[int, int], None]
    ) -> list[Message]:
        """Send, and take replies as they come until none has come for `timeout` seconds.

        `progress` is told how many of how many clients have answered.
        """
        sizes = [len(_list(message.content.config_records["config"]["clients"])) for message in messages]
        waiting = dict(zip(grid.push_messages(messages), sizes, strict=True))
        replies: list[Message] = []
        last = time.monotonic()
        progress(0, sum(sizes))
        while waiting and time.monotonic() - last < timeout + GRACE_S:
            pulled = grid.pull_messages(list(waiting))
            new = [reply for reply in pulled if reply.metadata.reply_to_message_id in waiting]
            for reply in new:
                del waiting[reply.metadata.reply_to_message_id]
            replies += new
            if new:
                last = time.monotonic()
                progress(sum(sizes) - sum(waiting.values()), sum(sizes))
            else:
                time.sleep(0.005)
        return replies

    def collect(
        self, replies: Iterable[Message], chosen: Collection[int], adapters: Tensor, suite: TaskSuite, layout: Layout
    ) -> tuple[Updates, dict[int, str]]:
        """The matrix of uploads, sorted by client, and the clients that sent none, with the reason."""
        dropped = dict.fromkeys(sorted(chosen), "did not answer before the deadline")
        rows: dict[int, tuple[Tensor, dict[str, float]]] = {}
        for reply in replies:
            mine = [client for client in self.hosted[reply.metadata.src_node_id] if client in dropped]
            if reply.has_error():
                dropped |= dict.fromkeys(mine, reason_of(reply))
                continue
            try:
                found, failed = _read(reply, mine, layout)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                dropped |= dict.fromkeys(mine, f"sent a malformed reply ({type(error).__name__}: {error})")
                continue
            rows |= found
            dropped = {client: why for client, why in (dropped | failed).items() if client not in found}
        clients = sorted(rows)
        updates = Updates(
            layout=layout,
            vectors=torch.stack([rows[c][0] for c in clients]) if rows else torch.zeros(0, layout.dim),
            start=adapters[torch.tensor(clients, dtype=torch.long)],
            clients=tuple(clients),
            tasks=tuple(suite.task_of(c) for c in clients),
            num_examples=tuple(int(rows[c][1]["num_examples"]) for c in clients),
            metrics=tuple(rows[c][1] for c in clients),
        )
        return updates, dropped


def _read(
    reply: Message, mine: Collection[int], layout: Layout
) -> tuple[dict[int, tuple[Tensor, dict[str, float]]], dict[int, str]]:
    """What a reply says of the clients `mine`: upload and metrics of those that trained, the reason of the others."""
    facts, metrics = reply.content.config_records["config"], reply.content.metric_records["metrics"]
    failures = zip(_ints(facts["failed"]), _list(facts["reasons"]), strict=True)
    failed = {client: str(reason) for client, reason in failures if client in mine}
    clients = [client for client in _ints(facts["clients"]) if client in mine]
    vectors = reply.content.array_records["arrays"]["vectors"].numpy()
    if vectors.shape != (len(clients), layout.dim) or vectors.dtype != np.float32:
        wrong = f"sent {vectors.dtype} {vectors.shape}, expected float32 {(len(clients), layout.dim)}"
        return {}, failed | dict.fromkeys(clients, wrong)
    found = {}
    for i, client in enumerate(clients):
        own = {name: float(_list(column)[i]) for name, column in metrics.items()}
        if not own["num_examples"] >= 1:
            raise ValueError(f"num_examples is {own['num_examples']}")
        found[client] = torch.from_numpy(vectors[i].copy()), own
    return found, failed


def arrays(**tensors: Tensor) -> ArrayRecord:
    """Named tensors as Flower carries them."""
    return ArrayRecord({name: Array(tensor.detach().numpy()) for name, tensor in tensors.items()})


def reason_of(reply: Message) -> str:
    """The last line of an error, without colours: what was raised, not where."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", reply.error.reason or "").strip().splitlines()
    return lines[-1] if lines else f"error {reply.error.code}"


def _list(values: Any) -> list[Any]:
    return list(values)


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]
