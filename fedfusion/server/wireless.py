"""Any strategy of Flower's, behind an uplink of :mod:`fedfusion.channels`."""

from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from math import inf, log10
from typing import cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Strategy
from torch import Tensor

from fedfusion.rng import generator
from fedfusion.types import Channel, ChannelReport, FedfusionError, Layout, Updates

FLOATS = ("float16", "float32", "float64")
MEANS = [strategy.aggregate_train for strategy in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi)]  # FedProx is FedAvg


class WirelessStrategy(Strategy):
    r"""Lets what clients send to `inner` cross a channel first; everything else is left to `inner`.

    Of each reply, the difference from the broadcast model becomes a row of :class:`fedfusion.types.Updates`, and what
    is received of it takes its place:

    .. math:: \hat w_k = w + \widehat{(w_k - w)}

    Rows are sorted by client, so that results do not depend on the order of arrival, and the channel's draws are
    named by `seed` and the round. An entry that arrives as it was sent is the client's own to the last bit: behind
    :class:`fedfusion.channels.Ideal`, the result is that of `inner` given sorted replies.

    Only arrays of floats cross, as they were when the model was first broadcast; integers (the counters of BatchNorm)
    and metrics are protected. Replies that the channel erases, that differ from the model in names or shapes, or that
    are not finite are left out and named in the log; errors are passed on to `inner`. If nothing is left to
    aggregate, the model stays as it was.

    The metrics of a round gain `uplink-nmse-db` (of the mean NMSE of what arrived; absent without any error),
    `uplink-erased` and `uplink-dropped` (replies lost on the air, and malformed ones), and, where the channel has
    them, `uplink-latency-s` (virtual time until the last upload) and `uplink-energy-j` (of all clients). `reports`
    holds what the channel did, one report per round.

    Parameters
    ----------
    inner
        A strategy that broadcasts the model it is given. It is started through this one.
    channel
        What replies cross. All clients count as of one task.
    seed
        Names the channel's draws.
    clients
        Client by node id; a node that is not in it stands for itself. Flower draws node ids anew for each run, and
        without it which client gets which draw of the channel.

    Raises
    ------
    FedfusionError
        If the channel superposes and `inner` is not a weighted mean, or `inner` has a `start` of its own; from
        `configure_train`, if the model has no floats.
    """

    def __init__(
        self, inner: Strategy, channel: Channel, seed: int = 0, clients: Mapping[int, int] | None = None
    ) -> None:
        name = type(inner).__name__
        if channel.superposes and type(inner).aggregate_train not in MEANS:
            raise FedfusionError(
                f"over {type(channel).__name__} only the sum of all uploads is received, but {name} aggregates in a "
                "way of its own, for which it needs each of them (choose a channel with superposes=False, as Awgn or "
                "Mimo, or FedAvg, FedAvgM, FedProx, FedAdam, FedAdagrad or FedYogi)"
            )
        if type(inner).start is not Strategy.start:
            raise FedfusionError(
                f"{name} overrides start(), but would not be started itself (do so in a subclass of WirelessStrategy)"
            )
        self.inner, self.channel, self.seed, self.clients = inner, channel, seed, dict(clients or {})
        self.reports: list[ChannelReport] = []
        self.dropped: dict[int, str] = {}  # of the last round: whose reply was left out, and why
        self.arrays = ArrayRecord()
        self.model, self.layout = Layout((), ()), Layout((), ())  # all arrays, and those that cross
        self.broadcast: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is broadcast, and let `inner` configure the round."""
        model = Layout(tuple(arrays), tuple(tuple(array.shape) for array in arrays.values()))
        if not self.broadcast or model.difference(self.model):  # not again: the mean of integers is broadcast as floats
            floats = [name for name, array in arrays.items() if array.dtype in FLOATS]
            if not floats:
                dtypes = sorted({array.dtype for array in arrays.values()})
                raise FedfusionError(f"the model has no arrays of {', '.join(FLOATS)} to send: its dtypes are {dtypes}")
            self.model, self.layout = model, Layout(tuple(floats), tuple(arrays[n].shape or (1,) for n in floats))
        self.arrays = arrays
        self.broadcast = {name: torch.from_numpy(arrays[name].numpy()).double() for name in self.layout.names}
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Let `inner` aggregate what is received of the replies."""
        ordered = sorted(replies, key=self.client_of)
        passed, figures = self._receive([reply for reply in ordered if not reply.has_error()], server_round)
        passed += [reply for reply in ordered if reply.has_error()]
        arrays, metrics = self.inner.aggregate_train(server_round, passed) if passed else (None, None)
        if arrays is None:
            log(WARNING, "uplink: nothing to aggregate in round %s, the model stays as it was", server_round)
            arrays = self.arrays
        return arrays, MetricRecord({**(metrics or {}), **figures})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for evaluation as `inner` does."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate metrics as `inner` does."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def client_of(self, reply: Message) -> int:
        """Whose reply it is."""
        return self.clients.get(reply.metadata.src_node_id, reply.metadata.src_node_id)

    def transmit(self, updates: Updates, server_round: int) -> tuple[Updates, Updates, ChannelReport]:
        """What is sent of `updates`, what is received of that, and what the channel did, row by row of what is sent."""
        return updates, *self.channel(updates, generator(self.seed, "channel", server_round))

    def summary(self) -> None:
        """Log the channel and the settings of `inner`."""
        log(INFO, "\t├──> Uplink of %s: %s", type(self.inner).__name__, self.channel)
        self.inner.summary()

    def _receive(self, replies: Iterable[Message], server_round: int) -> tuple[list[Message], dict[str, float]]:
        """The replies that arrive, rewritten to what is received of them, and figures of the round."""
        rows: dict[int, tuple[Message, Tensor, float]] = {}
        malformed, erased = dict[int, str](), dict[int, str]()
        for reply in replies:
            client = self.client_of(reply)
            try:
                if client in rows:
                    raise ValueError("the node answered twice, its first reply counts")
                rows[client] = reply, *self._read(reply)
            except Exception as error:  # whatever a client sends, it is this reply that is lost and not the run
                malformed[client] = str(error) or type(error).__name__
        passed, report, on_air = list[Message](), ChannelReport(), tuple[int, ...]()
        if rows:
            sent, received, report = self.transmit(self._updates(rows), server_round)
            on_air = sent.clients
            erased |= dict.fromkeys(rows.keys() - set(on_air), "was erased on its way") | dict(report.erased)
            for client, vector in zip(received.clients, received.vectors, strict=True):
                if client not in erased and not self._write(*rows[client][:2], vector):
                    erased[client] = "what was received of it is not finite"
            passed = [rows[client][0] for client in received.clients if client not in erased]
        self.reports.append(report)
        self.dropped = malformed | erased
        for client, reason in self.dropped.items():
            log(WARNING, "uplink: the reply of node %s is left out: %s", client, reason)
        figures: dict[str, float] = {"uplink-erased": len(erased), "uplink-dropped": len(malformed)}
        arrived = [nmse for client, nmse in zip(on_air, report.nmse, strict=False) if client not in erased]
        if sum(arrived) > 0:
            figures["uplink-nmse-db"] = 10 * log10(sum(arrived) / len(arrived))
        for figure, name, over in (("latency_s", "uplink-latency-s", max), ("energy_j", "uplink-energy-j", sum)):
            if values := report.per_client.get(figure):
                figures[name] = over(values)
        log(INFO, "uplink: %s of %s replies arrived, %s", len(passed), len(rows) + len(malformed), figures)
        return passed, figures

    def _updates(self, rows: Mapping[int, tuple[Message, Tensor, float]]) -> Updates:
        broadcast = torch.cat([part.flatten() for part in self.broadcast.values()]).float()
        return Updates(
            layout=self.layout,
            vectors=torch.stack([row for _, row, _ in rows.values()]),
            start=broadcast.expand(len(rows), -1),
            clients=tuple(rows),
            tasks=("",) * len(rows),
            num_examples=cast(tuple[int, ...], tuple(weight for *_, weight in rows.values())),  # Flower takes floats
            metrics=({},) * len(rows),
        )

    def _read(self, reply: Message) -> tuple[Tensor, float]:
        """Row `[d]` and weight of a reply; an exception says what is wrong with it."""
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            raise ValueError(f"it holds {len(records)} array records, expected one")
        found = {name: array.numpy() for name, array in records[0].items()}
        if difference := Layout(tuple(found), tuple(array.shape for array in found.values())).difference(self.model):
            raise ValueError(f"it differs from the broadcast model: {difference}")
        if strange := [name for name in self.layout.names if found[name].dtype.name not in FLOATS]:
            raise ValueError(f"'{strange[0]}' is {found[strange[0]].dtype}, expected one of {', '.join(FLOATS)}")
        learnt = [(torch.from_numpy(found[name]).double() - w).flatten() for name, w in self.broadcast.items()]
        row = torch.cat(learnt).float()
        if not row.isfinite().all():
            raise ValueError("it is not finite")
        key = getattr(self.inner, "weighted_by_key", "num-examples")
        weights = [metrics.get(key, 1) for metrics in reply.content.metric_records.values()] or [1]
        if not isinstance(weights[0], int | float) or not 0 <= weights[0] < inf:
            raise ValueError(f"its {key} is {weights[0]}, expected a finite number that is not negative")
        return row, weights[0]

    def _write(self, reply: Message, sent: Tensor, received: Tensor) -> bool:
        """Put what is received in the place of what was sent; say whether it is finite."""
        ((key, record),) = reply.content.array_records.items()
        arrays = dict(record)
        for index, name in enumerate(self.layout.names):
            own = torch.from_numpy(record[name].numpy())
            was, came = (self.layout.entry(vector, index).reshape(own.shape) for vector in (sent, received))
            arrived = torch.where(came == was, own, (self.broadcast[name] + came).to(own.dtype))
            if not arrived.isfinite().all():
                return False
            arrays[name] = Array(arrived.numpy())
        reply.content = RecordDict({**reply.content, key: ArrayRecord(arrays)})  # a new one: in process, it is shared
        return True
