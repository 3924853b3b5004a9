"""A strategy of Flower's behind attack and channel: who is drawn, what arrives, and what there is to say of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedfusion.client.stock import adapter_of
from fedfusion.config import Experiment
from fedfusion.lora.model import LoraModel
from fedfusion.lora.payload import Payload
from fedfusion.rng import generator, seed_of, seeded
from fedfusion.server.evaluation import Evaluator, Scores, mean, summary
from fedfusion.server.uplink import Uplink, decibel
from fedfusion.server.uploads import SILENT, reason_of
from fedfusion.server.wireless import WirelessStrategy
from fedfusion.tracking import Tracker
from fedfusion.types import ChannelReport, FedfusionError, Repair, RunFailed, Updates
from fedfusion.validation import first_line

FIGURES = {"num-examples", "train_loss", "accuracy", "loss"}  # what a client says of its training


class StockStrategy(WirelessStrategy):
    """A strategy of Flower's behind attack and channel, with a record of each round.

    Parameters
    ----------
    experiment
        Attack, channel and data. The round itself is that of `inner`.
    model
        The base with the one adapter on it.
    evaluator
        Measures it on every task.
    places
        The client of each node.
    told
        What clients are told in every message.
    trackers
        Where rounds are reported.
    """

    def __init__(
        self,
        inner: Strategy,
        experiment: Experiment,
        model: LoraModel,
        evaluator: Evaluator,
        places: Mapping[int, int],
        told: Mapping[str, str | bytes],
        trackers: Sequence[Tracker],
    ) -> None:
        super().__init__(inner, experiment.channel, experiment.seed, places)
        self.told = told
        self.experiment, self.own, self.evaluator, self.trackers = experiment, model, evaluator, trackers
        self.uplink = Uplink(experiment.channel, Payload(experiment.payload, model.layout))
        self.suite, self.byzantine = experiment.suite, experiment.byzantine()
        self.last = torch.zeros(self.suite.num_clients, model.layout.dim)
        self.reference: dict[str, Scores] = {}
        self.single_task: Scores = {}
        self.history: list[dict[str, Any]] = []
        self.chosen: list[int] = []
        self.reported: dict[int, Mapping[str, Any]] = {}
        self.failed: dict[int, str] = {}
        self.air: tuple[Updates, Updates, Updates, ChannelReport] | None = None
        self.said: dict[str, dict[str, Any]] = {}
        self.learnt = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let `inner` draw the clients of the round, from nodes in the order of their clients."""
        config.update(self.told)
        with seeded(seed_of(self.seed, "sample", server_round)):
            messages = list(super().configure_train(server_round, arrays, config, self._ordered(grid)))
        self.chosen = sorted(self.clients[message.metadata.dst_node_id] for message in messages)
        for tracker in self.trackers:
            tracker.exchanged(server_round, 0, len(messages))
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Let `inner` aggregate what is received of the replies, and remember what the round's record needs."""
        replies, self.air, name = list(replies), None, type(self.inner).__name__
        answers = {self.client_of(reply): reply for reply in replies}
        self.failed = {c: SILENT for c in self.chosen if c not in answers}
        self.failed |= {client: reason_of(reply) for client, reply in answers.items() if reply.has_error()}
        odd = {client: why for client, reply in answers.items() if (why := self._odd(reply))}
        replies = [reply for reply in replies if self.client_of(reply) not in odd]
        self.reported = {
            self.client_of(reply): dict(next(iter(reply.content.metric_records.values())))
            for reply in replies
            if not reply.has_error()
        }
        with seeded(seed_of(self.seed, "strategy", server_round)):
            try:
                arrays, metrics = super().aggregate_train(server_round, replies)
            except FedfusionError:
                raise
            except Exception as error:  # whatever a strategy finds wrong with its round
                raise RunFailed(f"round {server_round}: server.strategy={name} failed, {first_line(error)}") from error
        self.failed |= odd | self.dropped
        heard = len(self.air[0]) if self.air else 0  # whatever became of it on the air
        if heard < self.experiment.min_clients:
            reasons = "; ".join(f"client {client} {reason}" for client, reason in sorted(self.failed.items()))
            raise RunFailed(
                f"round {server_round}: {heard} uploads left, min_clients={self.experiment.min_clients} ({reasons})"
            )
        self.learnt, self.said = arrays is not self.arrays, {"train": dict(metrics)}
        return arrays, metrics

    def transmit(self, updates: Updates, server_round: int) -> tuple[Updates, Updates, ChannelReport]:
        """What adversaries make of the uploads, and what arrives of it."""
        attack, own = self.experiment.attack, torch.tensor(updates.clients)
        trained = replace(
            updates,
            layout=self.own.layout,
            tasks=tuple(self.suite.task_of(client) for client in updates.clients),
            metrics=tuple(self.reported[client] for client in updates.clients),
        )
        sent = attack(trained, self.byzantine, generator(self.seed, "attack", server_round), self.last[own])
        self.last[own] = trained.vectors
        if self.channel.superposes:  # there is one model: all tasks are summed together
            sent = replace(sent, tasks=("",) * len(sent))
        received, report = self.uplink(sent, generator(self.seed, "channel", server_round))
        self.air = trained, sent, received, report
        return sent, self.uplink.uploads(received, sent), report

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have clients evaluate as `inner` wants it, if it is they who evaluate."""
        if self.experiment.evaluation == "server":
            return []
        config.update(self.told)
        with seeded(seed_of(self.seed, "evaluate", server_round)):
            return list(super().configure_evaluate(server_round, arrays, config, self._ordered(grid)))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate metrics as `inner` does."""
        if self.experiment.evaluation == "server":
            return None
        metrics = super().aggregate_evaluate(server_round, sorted(replies, key=self.client_of))
        self.said["evaluate"] = dict(metrics or {})
        return metrics

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Measure the adapter on every task, and report the round."""
        scores = self.evaluator(adapter_of(arrays, self.own))
        if not server_round:
            self.reference = {"base": scores, "control": self.evaluator(self._control())}
        else:
            self.history.append(self._record(server_round, arrays, scores))
            for tracker in self.trackers:
                tracker.finished(self.history[-1])
        return MetricRecord({"accuracy": summary(scores)["mean"]})

    def _odd(self, reply: Message) -> str | None:
        """What is wrong with the figures of a reply: one client with others would end the run of all."""
        if reply.has_error():
            return None
        private = self.experiment.client.mods and self.experiment.federation.simulated
        expected = FIGURES | ({"privacy_nmse"} if private else set())
        records = [dict(record) for record in reply.content.metric_records.values()]
        numbers = all(isinstance(value, int | float) for record in records for value in record.values())
        if len(records) == 1 and set(records[0]) == expected and numbers:
            return None
        return f"sent other figures than {', '.join(sorted(expected))}"

    def _ordered(self, grid: Grid) -> Grid:
        return cast(Grid, _Ordered(grid, sorted(self.clients, key=self.clients.__getitem__)))

    def _record(self, server_round: int, arrays: ArrayRecord, scores: Scores) -> dict[str, Any]:
        """What there is to say of a round; `fused_received` and `realigned` are the one adapter."""
        assert self.air is not None
        trained, sent, received, report = self.air
        heard = [client for client in received.clients if client not in self.failed]
        honest = [c for c in heard if not (self.experiment.attack.poisons and c in self.byzantine)]
        arrived = [nmse for c, nmse in zip(sent.clients, report.nmse, strict=False) if c in heard]
        self.single_task |= self._own(honest)
        stages = {"single_task": self.single_task, "fused_received": scores, "realigned": scores}
        return {
            "round": server_round,
            "clients": self.chosen,
            "believed": len(heard),
            "heard": heard,
            "refused": [],
            "learnt": self.learnt,
            "dropped": {str(client): why for client, why in sorted(self.failed.items())},
            "clipped": [],
            "byzantine": [client for client in self.byzantine if client in self.reported],
            "attack_success": self._attack_success(adapter_of(arrays, self.own)),
            "unheard": sorted({self.suite.task_of(c) for c in self.chosen} - {self.suite.task_of(c) for c in heard}),
            "train_loss": _finite_mean([float(self.reported[c]["train_loss"]) for c in trained.clients]),
            "nmse_db": decibel(_finite_mean(arrived)) if arrived else None,
            "uplink": self.uplink.record(sent, received, report) | {"fused": {"nmse_db": None, "cosine": None}},
            "coupling": {},
            "discarded_energy": 0.0,
            "discarded_by_module": {},
            "strategy": self.said,
            "mean": {name: summary(score)["mean"] for name, score in stages.items() if score},
            "worst": {name: summary(score)["worst"] for name, score in stages.items() if score},
            "tasks": {t: {name: s[t] for name, s in stages.items() if t in s} for t in self.suite.tasks},
        }

    def _own(self, clients: Sequence[int]) -> Scores:
        """Each task's own adapters on their own test data, as measured by the clients that trained them."""
        found: Scores = {}
        for task in self.suite.tasks:
            own = [self.reported[client] for client in clients if self.suite.task_of(client) == task]
            if own:
                found[task] = {name: _finite_mean([float(one[name]) for one in own]) for name in ("accuracy", "loss")}
        return found

    def _control(self) -> Tensor:
        """What the labelled samples make of the base, without any upload."""
        held, rng = self.evaluator, generator(self.seed, "realign", 0)
        repair = Repair(rng, held.probe(), held.model.layout, held.base, {})
        return self.experiment.realign(held.base, repair)

    def _attack_success(self, adapter: Tensor) -> dict[str, dict[str, float]]:
        """How often test samples with the trigger get the label that it wants, by task of a Byzantine client."""
        attack, found = self.experiment.attack, {}
        for task in dict.fromkeys(self.suite.task_of(client) for client in self.byzantine):
            samples = attack.triggered(self.suite.test(task), self.suite.num_classes(task))
            if samples is not None:
                of = {"base": self.evaluator.base, "fused_received": adapter, "realigned": adapter}
                found[task] = {name: self.evaluator.accuracy(task, one, samples) for name, one in of.items()}
        return found


class _Ordered:
    """A grid whose nodes come in a given order."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def _finite_mean(values: Sequence[float]) -> float:
    """The mean of the values that are finite; not a number where none is."""
    finite = [value for value in values if isfinite(value)]
    return mean(finite) if finite else nan
