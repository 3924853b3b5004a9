"""The round, as a Flower strategy: attack, channel, guard, couple, aggregate, fuse, realign, evaluate."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import INFO
from math import log10
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedfusion.config import Experiment
from fedfusion.lora.product import CoreSpace
from fedfusion.realign import FewShot, Unaligned
from fedfusion.rng import generator
from fedfusion.server.checkpoint import Checkpoints
from fedfusion.server.evaluation import Evaluator, Scores, summary
from fedfusion.server.nodes import Nodes, arrays
from fedfusion.tracking import Tracker
from fedfusion.types import FedfusionError, Layout, RunFailed, Updates

STARTUP_S = 600.0  # nodes have this long to appear, however short the deadline of a client


@dataclass
class State:
    """All that a round leaves behind.

    Attributes
    ----------
    adapters : [num_clients, d]
        Each client's personal adapter as the server knows it.
    examples : [num_clients]
        Training examples behind it; zero until a first upload has been believed.
    fused, realigned : [d']
        Multi-task adapters of the fused rank: fused, then repaired.
    history
        One record per finished round.
    single_task
        Last score of each task's own adapters.
    seconds
        What earlier calls of a resumed run have taken.
    reference
        Scores that no round changes: of the base, and of the control.
    """

    adapters: Tensor
    examples: Tensor
    fused: Tensor
    realigned: Tensor
    reference: dict[str, Scores]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    single_task: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Fused:
    """A multi-task adapter `[d']`, the task vectors `[T, D]` behind it, and a module's largest discarded energy."""

    adapter: Tensor
    task_vectors: Tensor
    discarded: float


class RoundStrategy(Strategy):
    """Fuses the task vectors of all clients into one multi-task adapter, round after round.

    Parameters
    ----------
    experiment
        The stages and their settings.
    experiment_json
        The same as one line, sent with every message so that clients need no other configuration.
    layout
        Layout of the clients' adapters.
    initial : [d]
        The adapter that every client starts from.
    evaluator
        Measures multi-task adapters, and provides the root set.
    trackers, checkpoints
        Where rounds are reported and kept.
    """

    def __init__(
        self,
        experiment: Experiment,
        experiment_json: str,
        layout: Layout,
        initial: Tensor,
        evaluator: Evaluator,
        trackers: Sequence[Tracker],
        checkpoints: Checkpoints,
    ) -> None:
        self.experiment = experiment
        self.experiment_json = experiment_json
        self.layout = layout
        self.initial = initial
        self.evaluator = evaluator
        self.trackers = trackers
        self.checkpoints = checkpoints
        self.suite = experiment.suite
        self.started = time.monotonic()
        self.nodes = Nodes(experiment_json, {})
        drawn = torch.randperm(self.suite.num_clients, generator=self._rng("byzantine"))
        self.byzantine = tuple(sorted(drawn[: experiment.attack.f].tolist()))
        self.state = self._resumed() or self._fresh()

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """One round of the server, from the replies of the clients to the realigned multi-task adapter."""
        experiment, state, chosen = self.experiment, self.state, self._chosen(server_round)
        trained, dropped = self.nodes.collect(replies, chosen, state.adapters, self.suite, self.layout)

        sent = experiment.attack(trained, self.byzantine, self._rng("attack", server_round))
        received, uplink = experiment.channel(sent, self._rng("channel", server_round))
        believed, guarded = experiment.guard(received)
        dropped |= dict.fromkeys(uplink.erased, "its upload was lost on the air") | dict(guarded.refused)
        self._require(server_round, believed, dropped)

        intact = trained.keep([i for i, client in enumerate(trained.clients) if client not in guarded.refused])
        clean = self._merge(intact)
        state.adapters, state.examples = self._merge(believed)
        state.adapters = self._couple(state.adapters, believed.clients)
        fused_clean = self._fuse(*clean).adapter
        fused = self._fuse(state.adapters, state.examples)
        state.fused = fused.adapter
        state.realigned = experiment.realign(
            fused.adapter, fused.task_vectors, self.evaluator.probe(), self._rng("realign", server_round)
        )

        state.single_task |= self._single_task(intact)
        scores = {
            "single_task": state.single_task,
            "fused_clean": self.evaluator(fused_clean),
            "fused_received": self.evaluator(state.fused),
            "realigned": self.evaluator(state.realigned),
        }
        record: dict[str, Any] = {
            "round": server_round,
            "clients": sorted(chosen),
            "believed": len(believed),
            "dropped": {str(client): dropped[client] for client in sorted(dropped)},
            "clipped": sorted(guarded.clipped),
            "byzantine": [client for client in self.byzantine if client in trained.clients],
            "train_loss": _mean([m["train_loss"] for m in intact.metrics]),
            "nmse_db": _db(
                _mean([nmse for c, nmse in zip(sent.clients, uplink.nmse, strict=True) if c in intact.clients])
            ),
            "discarded_energy": fused.discarded,
            "mean": {name: summary(score)["mean"] for name, score in scores.items()},
            "worst": {name: summary(score)["worst"] for name, score in scores.items()},
            "tasks": _by_task(scores),
        }
        state.history.append(record)
        return arrays(realigned=state.realigned), MetricRecord({"accuracy": record["mean"]["realigned"]})

    def _merge(self, updates: Updates) -> tuple[Tensor, Tensor]:
        """Personal adapters and example counts after `updates`; clients without one keep what they had."""
        adapters, examples = self.state.adapters.clone(), self.state.examples.clone()
        rows = torch.tensor(updates.clients, dtype=torch.long)
        adapters[rows] = updates.start + updates.vectors
        examples[rows] = torch.tensor(updates.num_examples, dtype=torch.long)
        return adapters, examples

    def _couple(self, adapters: Tensor, clients: Sequence[int]) -> Tensor:
        """Pull the personal adapters of this round's clients towards each other, all pairs alike."""
        rows = torch.tensor(clients, dtype=torch.long)
        adjacency = torch.ones(len(rows), len(rows)) - torch.eye(len(rows))
        adapters[rows] = self.experiment.coupling(adapters[rows], adjacency)
        return adapters

    def _fuse(self, adapters: Tensor, examples: Tensor) -> "Fused":
        """Aggregate within each task and fuse across tasks, on products."""
        known = torch.nonzero(examples)[:, 0]
        core = CoreSpace.of(self.layout, adapters[known])
        products = core.project(self.layout, adapters[known])
        tasks = [self.suite.task_of(int(client)) for client in known]
        task_vectors = []
        for task in dict.fromkeys(tasks):
            mine = torch.tensor([t == task for t in tasks])
            weights = examples[known][mine].double()
            task_vectors.append(self.experiment.aggregator(products[mine], weights / weights.sum()))
        stacked = torch.stack(task_vectors)
        adapter, discarded = core.to_adapter(self.experiment.fusion(stacked, core.layout), self.evaluator.model.layout)
        return Fused(adapter, stacked, max(discarded.values()))

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        """Run the rounds that are not done yet: exchange, aggregate, checkpoint, report."""
        for tracker in self.trackers:
            tracker.started(self.state.history, num_rounds)
        self.summary()
        result = Result()
        try:
            self.nodes = Nodes.meet(grid, self.experiment_json, self.suite.num_clients, max(timeout, STARTUP_S))
            for server_round in range(len(self.state.history) + 1, num_rounds + 1):
                messages = list(self.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid))
                report = partial(self._report, server_round)
                replies = self.nodes.exchange(grid, messages, timeout, report)
                result.arrays, metrics = self.aggregate_train(server_round, replies)
                result.train_metrics_clientapp[server_round] = metrics
                self._save(server_round)
                for tracker in self.trackers:
                    tracker.finished(self.state.history[-1])
        finally:
            for tracker in self.trackers:
                tracker.close()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per node that hosts a chosen client."""
        chosen = self._chosen(server_round)
        return self.nodes.messages(server_round, chosen, self.state.adapters, self.suite, self.evaluator.heads)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: clients measure their own adapter when they train it, the server measures the fused one."""
        return ()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to aggregate, see :meth:`configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Log the stages."""
        for name in ("attack", "channel", "guard", "coupling", "aggregator", "fusion", "realign"):
            log(INFO, "\t├──> %s: %s", name, getattr(self.experiment, name))

    def _report(self, server_round: int, done: int, total: int) -> None:
        for tracker in self.trackers:
            tracker.exchanged(server_round, done, total)

    def _chosen(self, server_round: int) -> set[int]:
        """The clients of a round, drawn by its name."""
        n = self.suite.num_clients
        order = torch.randperm(n, generator=self._rng("sample", server_round))
        return set(order[: max(1, round(self.experiment.fraction * n))].tolist())

    def _require(self, server_round: int, believed: Updates, dropped: Mapping[int, str]) -> None:
        if len(believed) < self.experiment.min_clients:
            latest = self.checkpoints.latest()
            reasons = "; ".join(f"client {client} {reason}" for client, reason in sorted(dropped.items()))
            raise RunFailed(
                f"round {server_round}: {len(believed)} uploads left, min_clients={self.experiment.min_clients} "
                f"({reasons}). Last checkpoint: {latest or 'none'} (continue with --resume, or lower min_clients)"
            )

    def _single_task(self, trained: Updates) -> Scores:
        """Each task's own adapters on their own test data, as measured by the clients that trained them."""
        scores: Scores = {}
        for task in self.suite.tasks:
            own = [m for m, t in zip(trained.metrics, trained.tasks, strict=True) if t == task]
            if own:
                scores[task] = {name: _mean([m[name] for m in own]) for name in ("accuracy", "loss")}
        return scores

    def _rng(self, stage: str, *labels: int) -> torch.Generator:
        return generator(self.experiment.seed, stage, *labels)

    def _fresh(self) -> State:
        """The state before round one, with the scores of the base and of the few-shot control."""
        base, repair = self.evaluator.base, self.experiment.realign
        repair = FewShot() if isinstance(repair, Unaligned) else repair
        control = repair(base, torch.zeros(0, 0), self.evaluator.probe(), self._rng("realign", 0))
        n = self.suite.num_clients
        reference = {"base": self.evaluator(base), "control": self.evaluator(control)}
        adapters = self.initial.repeat(n, 1)
        return State(adapters, torch.zeros(n, dtype=torch.long), base, base, reference)

    def _resumed(self) -> State | None:
        """The state of the last checkpoint, if there is one."""
        loaded = self.checkpoints.load()
        if loaded is None:
            return None
        tensors, facts = loaded
        stored = Layout(tuple(facts["names"]), tuple(map(tuple, facts["shapes"])))
        if difference := self.layout.difference(stored):
            raise FedfusionError(
                f"{self.checkpoints.latest()}: the layout of its adapters differs: {difference} "
                "(model.path and model.lora must be those of the run)"
            )
        kept: dict[str, Any] = {name: facts[name] for name in ("reference", "history", "single_task", "seconds")}
        return State(**(kept | tensors))

    def _save(self, server_round: int) -> None:
        state = self.state
        tensors = {name: getattr(state, name) for name in ("adapters", "examples", "fused", "realigned")}
        layout = {"names": self.layout.names, "shapes": self.layout.shapes}
        seconds = state.seconds + time.monotonic() - self.started
        facts = {
            **layout,
            "reference": state.reference,
            "history": state.history,
            "single_task": state.single_task,
            "seconds": seconds,
        }
        self.checkpoints.save(server_round, tensors, facts)


def _by_task(scores: Mapping[str, Scores]) -> dict[str, dict[str, dict[str, float]]]:
    """`{stage: {task: score}}` turned into `{task: {stage: score}}`."""
    tasks = dict.fromkeys(task for by_task in scores.values() for task in by_task)
    return {task: {name: by_task[task] for name, by_task in scores.items() if task in by_task} for task in tasks}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _db(ratio: float) -> float | None:
    """A power ratio in dB; null where there is no power."""
    return 10 * log10(ratio) if ratio > 0 else None
