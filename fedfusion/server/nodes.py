"""Which node hosts which client, who trains together, and the exchange of messages with them."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedfusion.tasks.heads import Head, PrototypeHead
from fedfusion.types import FedfusionError, Layout, TaskSuite, Updates

IN_FLIGHT = 32  # messages that wait for an answer at the same time: each holds the adapters of its clients
GRACE_S = 10.0  # a grid that watches the deadline itself answers for the client within this time


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
    statistics
        Whether clients send the moments of their inputs and gradients; whoever does not is dropped.
    """

    experiment_json: str
    hosted: Mapping[int, Sequence[int]]
    fused_rank: int = 1
    asked: dict[str, list[int]] = field(default_factory=dict)
    statistics: bool = False

    @classmethod
    def meet(
        cls,
        grid: Grid,
        experiment_json: str,
        num_clients: int,
        timeout: float,
        fused_rank: int = 1,
        statistics: bool = False,
    ) -> "Nodes":
        """Wait until every client is hosted by some node, and learn by which.

        Raises
        ------
        FedfusionError
            If a node cannot start, or some client has no node after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        hosted: dict[int, list[int]] = {}
        known: set[int] = set()
        asked: set[int] = set()
        content = RecordDict({"config": ConfigRecord({"experiment": experiment_json})})
        while len(known) < num_clients:
            new = sorted(set(grid.get_node_ids()) - asked)
            asked |= set(new)
            questions = [Message(content, node, MessageType.QUERY) for node in new]
            for reply in grid.send_and_receive(questions, timeout=timeout) if new else ():
                if reply.has_error():
                    raise FedfusionError(f"a node cannot start: {reason_of(reply)}")
                clients = _ints(reply.content.config_records["config"]["clients"])
                hosted[reply.metadata.src_node_id] = sorted(clients)
                known |= set(clients)
            if len(known) < num_clients and time.monotonic() > deadline:
                raise FedfusionError(
                    f"after {timeout:.0f} s the nodes host {len(known)} of {num_clients} clients "
                    "(start the missing nodes or raise deadline_s)"
                )
            if not new:
                time.sleep(0.1)
        return cls(experiment_json, dict(sorted(hosted.items())), fused_rank, statistics=statistics)

    def groups(self, chosen: Collection[int], size: int) -> list[tuple[int, list[int]]]:
        """Who trains together, and on which node: `size` clients at a time in the order of their ids.

        Results depend on the groups, and those on the ids alone, as long as one node hosts all of a group. Where
        none does, as with devices, its members train where they are.
        """
        ordered = sorted(chosen)
        placed: list[tuple[int, list[int]]] = []
        for i, start in enumerate(range(0, len(ordered), size)):
            group = ordered[start : start + size]
            able = [node for node, clients in self.hosted.items() if set(group) <= set(clients)]
            if able:
                placed.append((able[i % len(able)], group))
                continue
            home = {client: next(n for n, clients in self.hosted.items() if client in clients) for client in group}
            placed += [(node, [c for c in group if home[c] == node]) for node in dict.fromkeys(home.values())]
        return placed

    def messages(
        self,
        server_round: int,
        groups: Iterable[tuple[int, Sequence[int]]],
        adapters: Tensor,
        suite: TaskSuite,
        heads: Mapping[str, Head],
        shared: Mapping[str, Tensor],
        kind: str = MessageType.TRAIN,
    ) -> Iterable[Message]:
        """One message per group: ids, each client's adapter, the heads of their tasks, and what all `shared` alike."""
        for node, clients in groups:
            mine = {task: heads[task] for task in map(suite.task_of, clients)}
            tensors = {f"head.{t}": head.to_tensor() for t, head in mine.items() if isinstance(head, PrototypeHead)}
            content = RecordDict(
                {
                    "arrays": arrays(start=adapters[torch.tensor(clients)], **tensors, **shared),
                    "config": ConfigRecord(
                        {
                            "experiment": self.experiment_json,
                            "round": server_round,
                            "clients": list(clients),
                            "rank": self.fused_rank,
                        }
                    ),
                }
            )
            yield Message(content, node, kind, group_id=str(server_round))

    def exchange(
        self,
        grid: Grid,
        messages: Iterable[Message],
        total: int,
        timeout: float,
        progress: Callable[[int, int], None],
        layout: Layout | None,
    ) -> list[Message]:
        """Send, and take replies as they come until none has come for `timeout` seconds.

        A group whose reply is not wholly good is asked again, client by client, so that nobody is dropped for what
        another did. `progress` is told how many of the `total` clients have answered; `layout` is that of the uploads
        asked for, None where none is.
        """
        self.asked.clear()
        unsent, waiting = iter(messages), dict[str, Message]()
        replies: list[Message] = []
        last, answered = time.monotonic(), 0
        progress(0, total)
        while time.monotonic() - last < timeout + GRACE_S:
            waiting |= self._send(grid, islice(unsent, IN_FLIGHT - len(waiting)))
            if not waiting:
                break
            new = [r for r in grid.pull_messages(list(waiting)) if r.metadata.reply_to_message_id in waiting]
            for reply in new:
                message = waiting.pop(reply.metadata.reply_to_message_id)
                clients = self.asked[reply.metadata.reply_to_message_id]
                if len(clients) > 1 and not _good(reply, clients, layout, self.statistics):
                    waiting |= self._send(grid, _singly(message, clients))
                else:
                    replies.append(reply)
                    answered += len(clients)
            if new:
                last = time.monotonic()
                progress(answered, total)
            else:
                time.sleep(0.005)
        return replies

    def _send(self, grid: Grid, messages: Iterable[Message]) -> dict[str, Message]:
        """Push messages, and remember whom each asks for."""
        outgoing = list(messages)
        sent = dict(zip(grid.push_messages(outgoing), outgoing, strict=True))
        self.asked.update({key: _ints(m.content.config_records["config"]["clients"]) for key, m in sent.items()})
        return sent

    def collect(
        self, replies: Iterable[Message], chosen: Collection[int], adapters: Tensor, suite: TaskSuite, layout: Layout
    ) -> tuple[Updates, dict[int, str]]:
        """The matrix of uploads, sorted by client, and the clients that sent none, with the reason."""
        dropped = dict.fromkeys(sorted(chosen), "did not answer before the deadline")
        rows: dict[int, tuple[Tensor, dict[str, float]]] = {}
        for reply in replies:
            mine = [client for client in self.asked[reply.metadata.reply_to_message_id] if client in dropped]
            if reply.has_error():
                dropped |= dict.fromkeys(mine, reason_of(reply))
                continue
            try:
                found, failed = _read(reply, mine, layout, self.statistics)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                dropped |= dict.fromkeys(mine, f"sent a malformed reply ({type(error).__name__}: {error})")
                continue
            rows |= found
            dropped = {client: why for client, why in (dropped | failed).items() if client not in found}
        clients = sorted(rows)
        updates = Updates(
            layout=layout,
            vectors=_stacked([rows[c][0] for c in clients], layout.dim),
            start=adapters[torch.tensor(clients, dtype=torch.long)],
            clients=tuple(clients),
            tasks=tuple(suite.task_of(c) for c in clients),
            num_examples=tuple(int(rows[c][1]["num_examples"]) for c in clients),
            metrics=tuple(rows[c][1] for c in clients),
        )
        return updates, dropped

    def heads(
        self, replies: Iterable[Message], clients: Collection[int], like: Mapping[str, Head], suite: TaskSuite
    ) -> dict[str, Tensor]:
        """The mean, by task, of the heads that `clients` trained; those of another shape or not finite are left out."""
        found: dict[str, list[Tensor]] = {}
        for reply in replies:
            believed = [c for c in self.asked[reply.metadata.reply_to_message_id] if c in clients]
            for client in believed:
                task, sent = suite.task_of(client), reply.content.array_records["arrays"].get(f"head.{client}")
                expected = like[task]
                if sent is None or not isinstance(expected, PrototypeHead):
                    continue
                tensor = torch.from_numpy(sent.numpy().copy()).float()
                if tensor.shape == expected.to_tensor().shape and bool(tensor.isfinite().all()):
                    found.setdefault(task, []).append(tensor)
        return {task: torch.stack(tensors).mean(0) for task, tensors in sorted(found.items())}

    def curvature(
        self, replies: Iterable[Message], clients: Collection[int], layout: Layout
    ) -> dict[int, dict[str, tuple[Tensor, Tensor]]]:
        """By client and module: the moments of inputs `[n, n]` and of gradients `[m, m]` that `clients` sent.

        Like heads, they cross no attack and no simulated channel. They tell more of a client's data than its upload.
        """
        found: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        for reply in replies if self.statistics else ():
            believed = [c for c in self.asked[reply.metadata.reply_to_message_id] if c in clients]
            found |= {client: dict(_moments(reply, client, layout)) for client in believed}
        return dict(sorted(found.items()))

    def measured(self, replies: Iterable[Message]) -> dict[int, dict[str, float]]:
        """What each client measured when it was asked to evaluate."""
        found: dict[int, dict[str, float]] = {}
        for reply in replies:
            clients = self.asked[reply.metadata.reply_to_message_id]
            metrics: Mapping[str, Any] = {} if reply.has_error() else reply.content.metric_records.get("metrics", {})
            columns = {name: _list(column) for name, column in metrics.items()}
            if columns and all(len(column) == len(clients) for column in columns.values()):
                for i, client in enumerate(clients):
                    found[client] = {name: float(column[i]) for name, column in columns.items()}
        return dict(sorted(found.items()))


def _stacked(rows: list[Tensor], dim: int) -> Tensor:
    """The rows as one matrix `[n, dim]`; `rows` is emptied, so that both are never held together."""
    matrix = torch.empty(len(rows), dim)
    for i in reversed(range(len(rows))):
        matrix[i] = rows.pop()
    return matrix


def _good(reply: Message, clients: Collection[int], layout: Layout | None, statistics: bool) -> bool:
    """Whether every client of a group sent what can be an upload."""
    if reply.has_error() or layout is None:
        return not reply.has_error()
    try:
        return len(_read(reply, clients, layout, statistics)[0]) == len(clients)
    except (KeyError, ValueError, TypeError, IndexError):
        return False


def _singly(message: Message, clients: Sequence[int]) -> Iterable[Message]:
    """The message of a group as one message per client."""
    tensors = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
    for i, client in enumerate(clients):
        own = {name: Array(array[i : i + 1] if name == "start" else array) for name, array in tensors.items()}
        facts = ConfigRecord({**message.content.config_records["config"], "clients": [client]})
        content = RecordDict({"arrays": ArrayRecord(own), "config": facts})
        meta = message.metadata
        yield Message(content, meta.dst_node_id, meta.message_type, group_id=meta.group_id)


def _read(
    reply: Message, mine: Collection[int], layout: Layout, statistics: bool
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
        if not 1 <= own["num_examples"] < 2**53:
            raise ValueError(f"num_examples is {own['num_examples']}")
        if statistics and (flaw := _flaw(reply, client, layout)):
            failed[client] = flaw
        else:
            found[client] = torch.from_numpy(vectors)[i], own
    return found, failed


def _moments(reply: Message, client: int, layout: Layout) -> Iterable[tuple[str, tuple[Tensor, Tensor]]]:
    """What a client sent as the moments of inputs and of gradients of each adapted module."""
    sent = reply.content.array_records["statistics"]
    for pair in layout.pairs:
        names = (f"{client}.{kind}.{pair.module}" for kind in ("inputs", "gradients"))
        inputs, gradients = (torch.from_numpy(sent[name].numpy()) for name in names)
        yield pair.module, (inputs, gradients)


def _flaw(reply: Message, client: int, layout: Layout) -> str | None:
    """Why what a client sent as moments can be none, or None where it may be."""
    for pair, (module, moments) in zip(layout.pairs, _moments(reply, client, layout), strict=True):
        sides = layout.shapes[pair.a][1], layout.shapes[pair.b][0]
        for matrix, side, kind in zip(moments, sides, ("inputs", "gradients"), strict=True):
            if matrix.shape != (side, side) or matrix.dtype != torch.float32:
                found = f"{matrix.dtype} {tuple(matrix.shape)}".removeprefix("torch.")
                return f"sent {found} as {kind} of '{module}', expected float32 {(side, side)}"
            power = matrix.diagonal().clamp_min(0).sqrt()
            bound = power[:, None] * power + 1e-4 * power.max() ** 2  # Cauchy-Schwarz, in single precision
            possible = (matrix.abs() <= bound).all() and matrix.isfinite().all() and (matrix.diagonal() >= 0).all()
            if not (possible and torch.equal(matrix, matrix.T)):
                return f"sent {kind} of '{module}' that are no second moments"
    return None


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
