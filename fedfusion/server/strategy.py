"""The round, as a Flower strategy: attack, channel, guard, couple, aggregate, fuse, realign, evaluate."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedfusion.client.device import facts
from fedfusion.config import Experiment
from fedfusion.guard import NormClip
from fedfusion.lora.model import LoraModel
from fedfusion.lora.payload import Payload
from fedfusion.realign import FewShot, Unaligned
from fedfusion.rng import generator
from fedfusion.server.checkpoint import Checkpoints
from fedfusion.server.coupler import Coupled, Coupler
from fedfusion.server.evaluation import Evaluator, Scores, mean, summary
from fedfusion.server.fuser import Fused, Fuser
from fedfusion.server.meeting import meet
from fedfusion.server.nodes import Nodes, arrays, measured
from fedfusion.server.record import Delivery, standings
from fedfusion.server.state import State
from fedfusion.server.trusted import Judge, TrustedSet
from fedfusion.server.uplink import Uplink, fused_fidelity
from fedfusion.server.uploads import Uploads
from fedfusion.soundness import sound
from fedfusion.tracking import Tracker
from fedfusion.types import FedfusionError, Layout, Realigner, Repair, RunFailed, Updates

SANE = NormClip(clip=100.0, refuse=100.0)  # what training can have given
STAGES = (
    "attack",
    "channel",
    "guard",
    "coupling",
    "server_optimizer",
    "preaggregator",
    "aggregator",
    "fusion",
    "realign",
)
STARTUP_S = 600.0  # nodes have this long to appear, however short the deadline of a client


@dataclass(frozen=True)
class LearningReport:
    """What there is to report of a round that could be learnt from: of its coupling, and what fusion discarded."""

    coupling: Mapping[str, float | None] = field(default_factory=dict)
    discarded: Mapping[str, float] = field(default_factory=dict)


class RoundStrategy(Strategy):
    """Fuses the task vectors of all clients into one multi-task adapter, round after round.

    Parameters
    ----------
    experiment
        The stages and their settings.
    experiment_json
        The same as one line, sent with every message so that clients need no other configuration.
    model
        The base with the clients' adapter on it.
    evaluator
        Measures multi-task adapters, and provides the root set.
    trackers, checkpoints
        Where rounds are reported and kept.
    """

    def __init__(
        self,
        experiment: Experiment,
        experiment_json: str,
        model: LoraModel,
        evaluator: Evaluator,
        trackers: Sequence[Tracker],
        checkpoints: Checkpoints,
    ) -> None:
        self.experiment = experiment
        self.experiment_json = experiment_json
        self.model = model
        self.layout = model.layout
        self.evaluator = evaluator
        self.trackers = trackers
        self.checkpoints = checkpoints
        self.suite = experiment.suite
        self.started = time.monotonic()
        self.training_s = 0.0  # since then, in which clients were waited for
        self.nodes = Nodes(experiment_json, {})
        self.moved: list[int] = []
        self.byzantine = experiment.byzantine()
        self.coupler = Coupler(experiment, model, evaluator.model.layout)
        self.uplink = Uplink(experiment.channel, Payload(experiment.payload, self.layout, experiment.client.ranks))
        self.trusted = TrustedSet(experiment, model, evaluator.heads)
        self.fuser = Fuser(experiment, self.layout, model.initial, evaluator, self.trusted)
        self.state = self._resumed() or self._fresh()
        self.evaluator.adopt(self.state.heads)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """One round as Flower's interface has it; :meth:`start` takes replies as they come, and then learns."""
        uploads = self._uploads(server_round)
        for reply in replies:
            uploads.take(reply, self.nodes.asked[reply.metadata.reply_to_message_id])
        return self.learn(server_round, uploads)

    def learn(self, server_round: int, uploads: Uploads) -> tuple[ArrayRecord, MetricRecord]:
        """One round of the server, from what the clients uploaded to the realigned multi-task adapter."""
        state, self.moved = self.state, []
        delivery = self._delivered(server_round, uploads)
        believed, intact = delivery.believed, delivery.intact
        short = self._short(believed)
        learnt = self._enough(believed, short)  # else the last model is kept: too few arrived, or were believed
        state.heads |= uploads.heads(believed.clients, self.evaluator.heads, self.suite)
        self.evaluator.adopt(state.heads)

        curvature = state.curvature | self._curvature(uploads, delivery.trained, intact.clients)
        state.curvature |= self._curvature(uploads, delivery.trained, believed.clients)
        fused_clean = self._fuse(self.coupler(state, intact, server_round), server_round, curvature)
        learning = self._learn(delivery, server_round) if learnt else LearningReport()

        state.single_task |= self._single_task(intact)
        state.personal |= self._personal()
        scores = {
            "single_task": state.single_task,
            "personal": self._by_own_task(state.personal),
            "fused_clean": self.evaluator(fused_clean.adapter),
            "fused_received": self.evaluator(state.fused),
            "realigned": self.evaluator(state.realigned),
            "served": {task: self.evaluator.single(task, adapter) for task, adapter in state.served.items()},
        }
        adapters = {"fused_clean": fused_clean.adapter, "fused_received": state.fused, "realigned": state.realigned}
        record: dict[str, Any] = {
            "round": server_round,
            "clients": list(uploads.row),
            **delivery.record(self.byzantine),
            "learnt": learnt,
            "unheard": sorted({*set(delivery.trained.tasks) - set(believed.tasks), *short}),
            "attack_success": self._attack_success({"base": self.evaluator.base, **adapters}),
            "uplink": self.uplink.record(delivery.sent, delivery.received, delivery.report)
            | {"fused": fused_fidelity(self.evaluator.model.layout, fused_clean.adapter, state.fused)},
            "coupling": learning.coupling,
            "held_out_loss": self._kept(),
            "discarded_energy": max(learning.discarded.values(), default=0.0),
            "discarded_by_module": {module: share for module, share in learning.discarded.items() if share > 1e-6},
            **standings(scores),
        }
        state.history.append(record)
        return arrays(realigned=state.realigned), MetricRecord({"accuracy": record["mean"]["realigned"]})

    def _delivered(self, server_round: int, uploads: Uploads) -> Delivery:
        """What becomes of uploads on their way: attacked, sent through the channel, and judged by the guard."""
        trained, dropped = uploads.updates(self.starts(), self.suite), uploads.dropped
        self._require(server_round, len(trained), dropped)
        sent = self._attacked(trained, server_round)
        received, report = self.uplink(sent, self._rng("channel", server_round))
        guard = self.experiment.guard
        if self.experiment.coupling.into_base and guard.needs_root:
            self.model.bake(self.state.merged, self.evaluator.model.layout)
        believed, judged = guard(received, Judge(self.trusted, partial(self.uplink.uploads, sent=sent)))
        spoilt = self._spoilt(trained)
        intact = trained.keep([i for i, client in enumerate(trained.clients) if client not in spoilt])
        delivery = Delivery(trained, intact, sent, received, report, believed, judged, dropped)
        distrusted = len(judged.refused) if guard.needs_root else 0  # they did answer
        self._require(server_round, len(believed) + len(delivery.lost) + distrusted, delivery.dropped)
        return delivery

    def _kept(self) -> float | None:
        """The loss by which rounds are compared, where the best one is kept; keeps this one if it is."""
        if self.experiment.keep == "last":
            return None
        loss, before = self.evaluator.held_out_loss(self.state.realigned), self.state.history
        if all(loss < record["held_out_loss"] for record in before):
            self.state.best = self.state.realigned.clone()
        return loss

    def _short(self, believed: Updates) -> dict[str, str]:
        """Tasks of which too few clients are known, with those that are believed now, and why."""
        examples = self.state.examples.clone()
        examples[list(believed.clients)] = 1
        short = self.fuser.short(examples)
        for task, why in short.items():
            log(WARNING, "%s: %s", task, why)
        return short

    def _enough(self, believed: Updates, short: Collection[str]) -> bool:
        """Whether the round can learn from what is believed."""
        known = {*torch.nonzero(self.state.examples)[:, 0].tolist(), *believed.clients}
        some = len(short) < len({self.suite.task_of(client) for client in known})
        return len(believed) >= self.experiment.min_clients and some

    def _attacked(self, trained: Updates, server_round: int) -> Updates:
        """What is sent of what was trained."""
        attack, heard = self.experiment.attack, torch.tensor(trained.clients, dtype=torch.long)
        last = self.state.uploads[heard] if attack.remembers else torch.zeros_like(trained.vectors)
        sent = attack(trained, self.byzantine, self._rng("attack", server_round), last)
        if attack.remembers:
            self.state.uploads[heard] = trained.vectors
        return sent

    def _spoilt(self, trained: Updates) -> set[int]:
        """Clients whose own training cannot be part of the reference without attack and channel."""
        poisoned = self.byzantine if self.experiment.attack.poisons else ()
        return {*SANE(trained)[1].refused, *poisoned}

    def _attack_success(self, adapters: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """How often test samples with the trigger get the label that it wants, by task of a Byzantine client."""
        found: dict[str, dict[str, float]] = {}
        for task in dict.fromkeys(self.suite.task_of(client) for client in self.byzantine):
            samples = self.experiment.attack.triggered(self.suite.test(task), self.suite.num_classes(task))
            if samples is not None:
                found[task] = {name: self.evaluator.accuracy(task, one, samples) for name, one in adapters.items()}
        return found

    def _learn(self, delivery: Delivery, server_round: int) -> LearningReport:
        """Couple, aggregate, fuse and realign what is believed."""
        state, unpacked = self.state, self.uplink.uploads(delivery.believed, delivery.sent)
        coupled = self.coupler(state, unpacked, server_round)
        self.moved = coupled.moved
        state.adapters, state.examples = coupled.adapters, coupled.examples
        state.moments, state.merged = coupled.moments, coupled.merged
        errors = delivery.reported_nmse
        for client in unpacked.clients:
            state.errors[client] = errors.get(client, torch.nan)
        fused = self._fuse(coupled, server_round)
        state.fused = fused.adapter
        state.served |= fused.served
        state.realigned = self._repaired(self.experiment.realign, fused.adapter, fused.tasks, server_round)
        return LearningReport(coupled.report, fused.discarded)

    def starts(self) -> Tensor:
        """What clients are sent: their personal adapters, cut to their own ranks."""
        return self.coupler.starts(self.state.adapters)

    def _personal(self) -> dict[str, dict[str, float]]:
        """Score of the adapter that each client will start from next, where that has changed."""
        if self.experiment.evaluation == "clients":
            return {}  # they are asked once the round is done, see :meth:`start`
        if self.experiment.coupling.into_base:
            self.model.bake(self.state.merged, self.evaluator.model.layout)
        scores = self.evaluator.personal(self.model, self.starts(), self.moved)
        return {str(client): score for client, score in scores.items()}

    def _by_own_task(self, personal: Mapping[str, Mapping[str, float]]) -> Scores:
        """Mean score of the clients of each task."""
        scores: Scores = {}
        for task in self.suite.tasks:
            own = [score for client, score in personal.items() if self.suite.task_of(int(client)) == task]
            if own:
                scores[task] = {name: mean([score[name] for score in own]) for name in own[0]}
        return scores

    def _fuse(self, coupled: Coupled, server_round: int, clean: Mapping[str, Tensor] | None = None) -> Fused:
        """Aggregate within each task and fuse across tasks, on products.

        `clean` is given for the reference without attack and channel: the curvature, as if everything had arrived.
        """
        if self.experiment.coupling.into_base:  # there is one model, and everyone has it
            return Fused(coupled.merged, {}, {}, {"base": coupled.report["discarded"] or 0.0})
        known, alone = torch.nonzero(coupled.examples)[:, 0], clean is not None
        curvature = self.state.curvature if clean is None else clean
        errors = None if alone or self.state.errors[known].isnan().all() else self.state.errors
        return self.fuser(coupled.adapters, coupled.examples, curvature, errors, server_round, only_fused=alone)

    def _curvature(self, uploads: Uploads, trained: Updates, heard: Collection[int]) -> dict[str, Tensor]:
        """The mean moments of the clients `heard` of each task, by `task.kind.module`."""
        sent = uploads.curvature(heard)
        examples = dict(zip(trained.clients, trained.num_examples, strict=True))
        means: dict[str, Tensor] = {}
        for task in dict.fromkeys(self.suite.task_of(client) for client in sent):
            mine = [client for client in sent if self.suite.task_of(client) == task]
            total = sum(examples[client] for client in mine)
            for pair in self.layout.pairs:
                for kind, name in enumerate(("inputs", "gradients")):
                    parts = [sent[client][pair.module][kind] * (examples[client] / total) for client in mine]
                    means[f"{task}.{name}.{pair.module}"] = torch.stack(parts).sum(0)
        return means

    def _repaired(
        self, realigner: Realigner, adapter: Tensor, tasks: Mapping[int, Tensor], server_round: int
    ) -> Tensor:
        """The adapter realigned; `tasks` are the received adapters of the single tasks."""
        held, rng = self.evaluator, self._rng("realign", server_round)
        probe = held.unlabelled() if self.experiment.realign.data == "unlabelled" else held.probe()
        repair = Repair(rng, probe, held.model.layout, held.base, tasks)
        return sound("realign", realigner, realigner(adapter, repair), adapter.shape)

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
        metrics_file = self.checkpoints.folder.parent / "metrics.jsonl"
        for tracker in self.trackers:
            with self.checkpoints.writing(metrics_file):
                tracker.started(self.state.history, num_rounds)
        self.summary()
        result = Result()
        rank = max(1, self.evaluator.model.layout.rank)
        patience = max(timeout, STARTUP_S)
        held = [self.suite.task_of(client) for client in range(self.suite.num_clients)]
        own = facts(self.suite, self.model)
        self.nodes = meet(grid, self.experiment_json, held, patience, rank, own, self.experiment.federation.simulated)
        for server_round in range(len(self.state.history) + 1, num_rounds + 1):
            uploads, report = self._uploads(server_round), partial(self._report, server_round)
            messages = self.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
            self.nodes.exchange(grid, messages, len(uploads.row), timeout, report, uploads.take)
            result.arrays, metrics = self.learn(server_round, uploads)
            result.train_metrics_clientapp[server_round] = metrics
            if self.experiment.evaluation == "clients":
                self._ask(grid, server_round, timeout)
            self._save(server_round)
            for tracker in self.trackers:
                with self.checkpoints.writing(metrics_file):
                    tracker.finished(self.state.history[-1])
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per group of clients that train together."""
        experiment, heads, shared = self.experiment, self.evaluator.heads, self.coupler.shared(self.state)
        groups = self.nodes.groups(experiment.chosen(server_round), experiment.client.cohort_size)
        within = experiment.round_deadline_s
        return self.nodes.messages(server_round, groups, self.starts(), self.suite, heads, shared, deadline_s=within)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to measure the realigned adapter and their personal one, where that has changed."""
        groups = self.nodes.groups(self.moved, self.experiment.client.cohort_size)
        heads, shared = self.evaluator.heads, self.coupler.shared(self.state) | {"shared": self.state.realigned}
        kind = MessageType.EVALUATE
        return self.nodes.messages(server_round, groups, self.starts(), self.suite, heads, shared, kind)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Enter what the clients measured into the record of the round."""
        for reply in replies:
            found = measured(reply, self.nodes.asked[reply.metadata.reply_to_message_id])
            self.state.personal |= {str(client): score for client, score in found.items()}
        scores = self._by_own_task(self.state.personal)
        if not scores:
            return None
        record = self.state.history[-1]
        record["mean"]["personal"], record["worst"]["personal"] = summary(scores).values()
        for task, score in scores.items():
            record["tasks"].setdefault(task, {})["personal"] = score
        return MetricRecord({"accuracy": record["mean"]["personal"]})

    def _ask(self, grid: Grid, server_round: int, timeout: float) -> None:
        """Have clients measure what the round gave them."""
        replies: list[Message] = []

        def take(reply: Message, clients: Collection[int]) -> Collection[int]:
            replies.append(reply)
            return () if measured(reply, clients) else clients

        asked = self.configure_evaluate(server_round, ArrayRecord(), ConfigRecord(), grid)
        self.nodes.exchange(grid, asked, len(self.moved), timeout, lambda *_: None, take)
        self.aggregate_evaluate(server_round, replies)

    def _uploads(self, server_round: int) -> Uploads:
        """The matrix of a round, empty."""
        experiment = self.experiment
        statistics = experiment.client.statistics != "none"
        return Uploads(experiment.chosen(server_round), self.layout, experiment.wire, statistics)

    def summary(self) -> None:
        """Log the stages, and what they do not protect from."""
        for name in STAGES:
            log(INFO, "\t├──> %s: %s", name, getattr(self.experiment, name))
        for sentence in self._unprotected():
            log(WARNING, sentence)

    def _unprotected(self) -> list[str]:
        """Which resilience against Byzantine clients cannot be claimed, in sentences."""
        experiment = self.experiment
        guard, rule = type(experiment.guard).__name__, type(experiment.aggregator).__name__
        if not experiment.guard.needs_root and experiment.aggregator.linear:
            return [f"not resilient against Byzantine clients: guard={guard} and aggregator={rule} believe all of them"]
        if experiment.aggregate_within == "federation" and len(self.suite.tasks) > 1:
            return [f"aggregator={rule} across tasks takes clients with another task for Byzantine ones"]
        tasks = [self.suite.task_of(client) for client in range(self.suite.num_clients)]
        few = [task for task in self.suite.tasks if experiment.aggregator.linear or tasks.count(task) < 3]
        gate = "" if experiment.guard.needs_root else " or any other attack"
        return [f"nobody outvotes a backdoor{gate} in {', '.join(few)}"] if few else []

    def _report(self, server_round: int, done: int, total: int) -> None:
        for tracker in self.trackers:
            tracker.exchanged(server_round, done, total)

    def _require(self, server_round: int, left: int, dropped: Mapping[int, str]) -> None:
        if left < self.experiment.min_clients:
            latest = self.checkpoints.latest()
            reasons = "; ".join(f"client {client} {reason}" for client, reason in sorted(dropped.items()))
            raise RunFailed(
                f"round {server_round}: {left} uploads left, min_clients={self.experiment.min_clients} "
                f"({reasons}). Last checkpoint: {latest or 'none'} (continue with --resume, or lower min_clients)"
            )

    def _single_task(self, trained: Updates) -> Scores:
        """Each task's own adapters on their own test data, as measured by the clients that trained them."""
        scores: Scores = {}
        for task in self.suite.tasks:
            own = [m for m, t in zip(trained.metrics, trained.tasks, strict=True) if t == task]
            if own:
                scores[task] = {name: mean([m[name] for m in own]) for name in ("accuracy", "loss")}
        return scores

    def _rng(self, stage: str, *labels: int) -> torch.Generator:
        return generator(self.experiment.seed, stage, *labels)

    def _fresh(self) -> State:
        """The state before round one, with the scores of the base and of the few-shot control."""
        base, repair = self.evaluator.base, self.experiment.realign
        repair = FewShot() if isinstance(repair, Unaligned) else repair
        control = self._control(repair)
        n = self.suite.num_clients
        reference = {"base": self.evaluator(base), "control": self.evaluator(control)}
        adapters = self.model.initial.expand(n, -1)  # one row in memory until they differ
        moments = torch.zeros(self.experiment.server_optimizer.num_moments, n, self.layout.dim)
        merged = base if self.experiment.coupling.into_base else torch.zeros(0)
        uploads = torch.zeros(n, self.layout.dim) if self.experiment.attack.remembers else torch.zeros(0)
        heard, errors = torch.zeros(n, dtype=torch.long), torch.full((n,), torch.nan)
        realigned = base if isinstance(self.experiment.realign, Unaligned) else control
        return State(adapters, heard, base, realigned, merged, moments, uploads, errors, {}, {}, {}, reference)

    def _control(self, repair: Realigner) -> Tensor:
        """The base realigned with the same few shots, without any task vector."""
        base, store = self.evaluator.base, self.evaluator.store
        if store is None:
            return self._repaired(repair, base, {}, 0)
        layout = self.evaluator.model.layout
        key = store.key("control", repr(repair), repr((layout.names, layout.shapes)))
        return store.vector(key, lambda: self._repaired(repair, base, {}, 0))

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
        return State.of(tensors, facts)

    def _save(self, server_round: int) -> None:
        facts = {name: getattr(self.state, name) for name in State.FACTS}
        facts["seconds"] += time.monotonic() - self.started
        layout = {"names": self.layout.names, "shapes": self.layout.shapes}
        self.checkpoints.save(server_round, self.state.tensors(), facts | layout)
