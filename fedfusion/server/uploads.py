"""The uploads of a round: one matrix, filled as replies arrive, and who sent none."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor

from fedfusion.client.wire import Wire, decode
from fedfusion.tasks.heads import Head, PrototypeHead
from fedfusion.types import Layout, TaskSuite, Updates

Moments = dict[str, tuple[Tensor, Tensor]]
REPORTED = "num_examples", "train_loss", "accuracy", "loss"  # what every client has to say of its training
CLASS = re.compile(r"<class '[\w.]+'>:<['\"](.*)['\"]>$", re.S)  # how a SuperNode tells of an exception
LONGEST = 500  # characters of a reason
SILENT = "did not answer before the deadline"


class Uploads:
    """The matrix of a round. Nothing of a reply is kept but its rows, so that memory is that of the matrix.

    Parameters
    ----------
    chosen
        The clients that were asked.
    layout
        Of an upload.
    wire
        How its numbers are sent.
    statistics
        Whether clients have to send the moments of their inputs and gradients; whoever does not is dropped.

    Attributes
    ----------
    vectors : [n, d]
        One row for each chosen client, in the order of their ids.
    metrics
        By client that sent an upload, what it reported.
    dropped
        By client that sent none, why.
    moments
        By client and module, the moments of inputs `[n, n]` and of gradients `[m, m]`.
    """

    def __init__(
        self, chosen: Collection[int], layout: Layout, wire: Wire = "float32", statistics: bool = False
    ) -> None:
        self.layout, self.wire, self.statistics = layout, wire, statistics
        self.row = {client: row for row, client in enumerate(sorted(chosen))}
        self.vectors = torch.empty(len(self.row), layout.dim)
        self.metrics: dict[int, dict[str, float]] = {}
        self.dropped = dict.fromkeys(self.row, SILENT)
        self.moments: dict[int, Moments] = {}
        self.sent_heads: dict[int, Tensor] = {}

    def take(self, reply: Message, clients: Collection[int]) -> list[int]:
        """Enter what a reply says of `clients`; returns those that sent no upload."""
        mine = [client for client in clients if client in self.dropped]
        try:
            if reply.has_error():
                self.dropped |= dict.fromkeys(mine, reason_of(reply))
            else:
                self._read(reply, mine)
        except Exception as error:  # whatever a client sends, it is lost and not the round
            self.dropped |= dict.fromkeys([c for c in mine if c not in self.metrics], _malformed(error))
        return [client for client in clients if client in self.dropped]

    def updates(self, adapters: Tensor, suite: TaskSuite) -> Updates:
        """The rows of those that sent an upload, sorted by client; `adapters [num_clients, d]` is what they had."""
        clients = sorted(self.metrics)
        return Updates(
            layout=self.layout,
            vectors=self.vectors if len(clients) == len(self.row) else self.vectors[[self.row[c] for c in clients]],
            start=adapters if len(clients) == len(adapters) else adapters[torch.tensor(clients, dtype=torch.long)],
            clients=tuple(clients),
            tasks=tuple(suite.task_of(c) for c in clients),
            num_examples=tuple(int(self.metrics[c]["num_examples"]) for c in clients),
            metrics=tuple(self.metrics[c] for c in clients),
        )

    def heads(self, clients: Collection[int], like: Mapping[str, Head], suite: TaskSuite) -> dict[str, Tensor]:
        """The mean, by task, of the heads that `clients` trained; those of another shape or not finite are left out."""
        found: dict[str, list[Tensor]] = {}
        for client in sorted(self.sent_heads.keys() & set(clients)):
            task, tensor = suite.task_of(client), self.sent_heads[client]
            expected = like[task]
            if not isinstance(expected, PrototypeHead):
                continue
            if tensor.shape == expected.to_tensor().shape and bool(tensor.isfinite().all()):
                found.setdefault(task, []).append(tensor)
        return {task: torch.stack(tensors).mean(0) for task, tensors in sorted(found.items())}

    def curvature(self, clients: Collection[int]) -> dict[int, Moments]:
        """The moments that `clients` sent.

        Like heads, they cross no attack and no simulated channel. They tell more of a client's data than its upload.
        """
        return {client: self.moments[client] for client in sorted(self.moments.keys() & set(clients))}

    def _read(self, reply: Message, mine: Collection[int]) -> None:
        facts, metrics = reply.content.config_records["config"], reply.content.metric_records["metrics"]
        failures = zip(ints(facts["failed"]), listed(facts["reasons"]), strict=True)
        self.dropped |= {client: plain(str(reason)) for client, reason in failures if client in mine}
        clients = [client for client in ints(facts["clients"]) if client in mine]
        if len(set(clients)) < len(clients):
            raise ValueError(f"clients {clients} are named twice")
        arrays = {name: array.numpy() for name, array in reply.content.array_records["arrays"].items()}
        try:
            vectors = decode(arrays, self.wire, (len(clients), self.layout.dim))
        except ValueError as error:
            self.dropped |= dict.fromkeys(clients, str(error))
            return
        columns = {name: [float(value) for value in listed(column)] for name, column in metrics.items()}
        reported = [{name: columns[name][i] for name in (*REPORTED, *columns)} for i in range(len(clients))]
        for own in reported:
            if not 1 <= own["num_examples"] < 2**53:
                raise ValueError(f"num_examples is {own['num_examples']}")
        for i, client in enumerate(clients):
            if self.statistics:
                try:
                    flaw = _flaw(reply, client, self.layout)
                except Exception as error:
                    flaw = _malformed(error)
                if flaw:
                    self.dropped[client] = flaw
                    continue
                self.moments[client] = dict(_moments(reply, client, self.layout))
            if (head := arrays.get(f"head.{client}")) is not None:
                self.sent_heads[client] = torch.from_numpy(head.copy()).float()
            self.vectors[self.row[client]] = torch.from_numpy(vectors[i])
            self.metrics[client] = reported[i]
            del self.dropped[client]


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


def reason_of(reply: Message) -> str:
    """What was raised, not where: all that an exception said, or the last line of a traceback."""
    reason = (reply.error.reason or "").strip()
    if told := CLASS.match(reason):
        return plain("; ".join(told[1].splitlines()))
    return plain(reason.splitlines()[-1]) if reason else f"error {reply.error.code}"


def plain(reason: str) -> str:
    """What another machine says, on one line of bounded length, without colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", reason).split())[:LONGEST]


def _malformed(error: Exception) -> str:
    return f"sent a malformed reply ({type(error).__name__}: {plain(str(error))})"


def listed(values: Any) -> list[Any]:
    """The values of a record's entry."""
    return list(values)


def ints(values: Any) -> list[int]:
    """The same, as whole numbers."""
    return [int(value) for value in values]
