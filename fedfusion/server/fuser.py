"""From personal adapters to one multi-task adapter: aggregate within each task, fuse across tasks, on products."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedfusion.config import Experiment
from fedfusion.lora.product import CoreSpace
from fedfusion.preaggregators import Unmixed
from fedfusion.rng import generator
from fedfusion.server.evaluation import Evaluator
from fedfusion.server.trusted import TrustedSet
from fedfusion.soundness import sound
from fedfusion.types import Evidence, Layout, Probe, Serving


@dataclass(frozen=True)
class Fused:
    """What fusion made of a round.

    Attributes
    ----------
    adapter : [d']
        The multi-task adapter.
    tasks
        Those of the single tasks by index, for realigners that need them.
    served
        By name of the task, for devices that know theirs: where the fusion rule has something for them.
    discarded
        The share of its energy that each module's rank could not hold.
    """

    adapter: Tensor
    tasks: Mapping[int, Tensor]
    served: Mapping[str, Tensor]
    discarded: Mapping[str, float]


@dataclass(frozen=True)
class Fuser:
    """Aggregation and fusion of an experiment.

    Attributes
    ----------
    experiment
        Which rules.
    layout, initial
        Of a client's adapter.
    evaluator
        Has the server's samples, and the model that carries the result.
    trusted
        For rules that aggregate around an update of the server's own.
    """

    experiment: Experiment
    layout: Layout
    initial: Tensor
    evaluator: Evaluator
    trusted: TrustedSet

    def __call__(
        self,
        adapters: Tensor,
        examples: Tensor,
        curvature: Mapping[str, Tensor],
        errors: Tensor | None,
        server_round: int,
        only_fused: bool = False,
    ) -> Fused:
        """Fuse what is known of all clients.

        Parameters
        ----------
        adapters : [N, d]
            Personal adapters.
        examples : [N]
            Training examples behind each; zero where nothing is known of a client.
        curvature
            By `task.kind.module`, see :class:`fedfusion.server.state.State`.
        errors : [N]
            Of the upload behind each adapter, relative to its power, as the receiver believed; not a number where
            nothing is known of one, None where of none.
        only_fused
            Leave out the adapters of single tasks.

        Raises
        ------
        FedfusionError
            If a rule makes something that is not finite, or of another shape than it should.
        """
        target, fusion = self.evaluator.model.layout, self.experiment.fusion
        if len(self.short(examples)) == len(self._groups(examples)):
            return Fused(self.evaluator.base, {}, {}, {})
        core, task_vectors, clients = self._task_vectors(adapters, examples, server_round)
        evidence = Evidence(
            rng=self._rng(server_round),
            tasks=tuple(self.experiment.suite.tasks.index(task) for task in clients),
            nmse=None if errors is None else _task_errors(clients, examples, errors),
            probe=self._probe(core),
            curvature=core.curvature(self._moments(clients, curvature)),
        )
        fused = sound("fusion", fusion, fusion(task_vectors, core.layout, evidence), task_vectors.shape[1:])
        adapter, discarded = core.to_adapter(fused, target)
        served: Iterable[Tensor] = ()
        if isinstance(fusion, Serving) and not only_fused:
            again = replace(evidence, rng=self._rng(server_round))  # the same draws
            served = sound("fusion", fusion, fusion.served(task_vectors, core.layout, again), task_vectors.shape)
        single = task_vectors if self.experiment.realign.needs_tasks and not only_fused else ()
        return Fused(
            adapter,
            {task: core.to_adapter(vector, target)[0] for task, vector in zip(evidence.tasks, single, strict=False)},
            {task: core.to_adapter(vector, target)[0] for task, vector in zip(clients, served, strict=False)},
            discarded,
        )

    def short(self, examples: Tensor) -> dict[str, str]:
        """Tasks of which too few clients are known for what the rules promise, and why; `examples [N]` as above."""
        experiment, groups = self.experiment, self._groups(examples)
        sizes = {task: len(mine) for task, mine in groups.items()}
        if experiment.aggregate_within == "federation":
            sizes = dict.fromkeys(sizes, sum(sizes.values()))
        found: dict[str, str] = {}
        for task, n in sizes.items():
            if lack := experiment.lack(n):
                _, stage, size = lack
                name = type(stage).__name__
                found[task] = f"{name} needs {stage.inequality} uploads, there are n={size}, f={stage.f}: left out"
        return found

    def _groups(self, examples: Tensor) -> dict[str, list[int]]:
        """The clients of each task of which something is known."""
        clients: dict[str, list[int]] = {}
        for client in torch.nonzero(examples)[:, 0].tolist():
            clients.setdefault(self.experiment.suite.task_of(client), []).append(client)
        return clients

    def _rng(self, server_round: int) -> torch.Generator:
        return generator(self.experiment.seed, "fusion", server_round)

    def _probe(self, core: CoreSpace) -> Probe | None:
        """The server's samples, as far as the rule may see them."""
        if self.experiment.fusion.data == "unlabelled":
            return self.evaluator.unlabelled(core)
        return self.evaluator.probe(core) if self.experiment.fusion.data == "few labels" else None

    def _task_vectors(
        self, adapters: Tensor, examples: Tensor, server_round: int
    ) -> tuple[CoreSpace, Tensor, dict[str, list[int]]]:
        """Coordinates `[T, D]` of the aggregate of each task that has been heard of, their space, and whose it is.

        Where all clients are aggregated together, it is that of every task.
        """
        experiment, clients = self.experiment, self._groups(examples)
        short = self.short(examples)
        known = [client for task, mine in clients.items() for client in mine if task not in short]
        clients = {task: mine for task, mine in clients.items() if task not in short}
        own = self.trusted.adapters(server_round) if experiment.aggregator.needs_root else adapters[:0]
        everyone = known == list(range(len(adapters))) and not len(own)
        every = adapters if everyone else torch.cat([adapters[known], own])
        core = CoreSpace.of(self.layout, every, self.initial, experiment.fusion.space)
        roots = dict(zip(experiment.suite.tasks, core.project(self.layout, own), strict=False))
        if experiment.aggregate_within == "federation":
            together = self._aggregate(core, adapters, examples, known, _mixed(roots), server_round)
            return core, together.expand(len(clients), -1), clients
        task_vectors = [
            self._aggregate(core, adapters, examples, mine, roots.get(task), server_round)
            for task, mine in clients.items()  # one task at a time: products are larger than factors
        ]
        return core, torch.stack(task_vectors), clients

    def _aggregate(
        self,
        core: CoreSpace,
        adapters: Tensor,
        examples: Tensor,
        mine: list[int],
        trusted: Tensor | None,
        server_round: int,
    ) -> Tensor:
        """Coordinates `[D]` of what is made of the clients `mine`."""
        before, rule = self.experiment.preaggregator, self.experiment.aggregator
        weights = examples[mine].double()
        weights = weights / weights.sum()
        if rule.linear and isinstance(before, Unmixed):
            return core.mean(self.layout, adapters[mine], weights)
        rng = generator(self.experiment.seed, "aggregation", server_round, mine[0])
        sent = core.project(self.layout, adapters[mine])
        products = sound("preaggregator", before, before(sent, rng), (before.rows(len(sent)), *sent.shape[1:]))
        if not isinstance(before, Unmixed):
            weights = torch.full((len(products),), 1 / len(products), dtype=torch.float64)
        return sound("aggregator", rule, rule(products, weights, rng, trusted), sent.shape[1:])

    def _moments(self, tasks: Iterable[str], kept: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """By module, moments of inputs `[T, n, n]` and of gradients `[T, m, m]`; empty where clients send none."""
        return {
            pair.module: (
                torch.stack([kept[f"{task}.inputs.{pair.module}"] for task in tasks]),
                torch.stack([kept[f"{task}.gradients.{pair.module}"] for task in tasks]),
            )
            for pair in self.layout.pairs
            if kept
        }


def _mixed(roots: Mapping[str, Tensor]) -> Tensor | None:
    """The mean direction `[D]` of the server's own updates of all tasks, as long as one of them is in the mean."""
    if not roots:
        return None
    rows = torch.stack(list(roots.values()))
    mean = rows.mean(0)
    return mean * (rows.norm(dim=1).mean() / mean.norm().clamp_min(torch.finfo(mean.dtype).tiny))


def _task_errors(clients: Mapping[str, Sequence[int]], examples: Tensor, errors: Tensor) -> Tensor:
    """Error `[T]` of the mean of each task: those of independent clients average out."""
    found = []
    for mine in clients.values():
        weights = examples[mine].double()
        weights = weights / weights.sum()
        found.append((weights.square() * errors[mine].nan_to_num(0.0)).sum())
    return torch.stack(found).float()
