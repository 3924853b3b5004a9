"""From personal adapters to one multi-task adapter: aggregate within each task, fuse across tasks, on products."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedfusion.config import Experiment
from fedfusion.lora.product import CoreSpace
from fedfusion.rng import generator
from fedfusion.server.evaluation import Evaluator
from fedfusion.types import Evidence, FedfusionError, Layout, Probe, Serving


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
    """

    experiment: Experiment
    layout: Layout
    initial: Tensor
    evaluator: Evaluator

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
            If the rule makes something that is not finite.
        """
        target, fusion = self.evaluator.model.layout, self.experiment.fusion
        core, task_vectors, clients = self._task_vectors(adapters, examples)
        evidence = Evidence(
            rng=self._rng(server_round),
            tasks=tuple(self.experiment.suite.tasks.index(task) for task in clients),
            nmse=None if errors is None else _task_errors(clients, examples, errors),
            probe=self._probe(core),
            curvature=core.curvature(self._moments(clients, curvature)),
        )
        fused = fusion(task_vectors, core.layout, evidence)
        if not fused.isfinite().all():
            raise FedfusionError(
                f"fusion={type(fusion).__name__} makes entries that are not finite (choose another rule or coefficient)"
            )
        adapter, discarded = core.to_adapter(fused, target)
        served: Iterable[Tensor] = ()
        if isinstance(fusion, Serving) and not only_fused:
            again = replace(evidence, rng=self._rng(server_round))  # the same draws
            served = fusion.served(task_vectors, core.layout, again)
        single = task_vectors if self.experiment.realign.needs_tasks and not only_fused else ()
        return Fused(
            adapter,
            {task: core.to_adapter(vector, target)[0] for task, vector in zip(evidence.tasks, single, strict=False)},
            {task: core.to_adapter(vector, target)[0] for task, vector in zip(clients, served, strict=False)},
            discarded,
        )

    def _rng(self, server_round: int) -> torch.Generator:
        return generator(self.experiment.seed, "fusion", server_round)

    def _probe(self, core: CoreSpace) -> Probe | None:
        """The server's samples, as far as the rule may see them."""
        if self.experiment.fusion.data == "unlabelled":
            return self.evaluator.unlabelled(core)
        return self.evaluator.probe(core) if self.experiment.fusion.data == "few labels" else None

    def _task_vectors(self, adapters: Tensor, examples: Tensor) -> tuple[CoreSpace, Tensor, dict[str, list[int]]]:
        """Coordinates `[T, D]` of the mean of each task that has been heard of, their space, and whose mean it is."""
        known = torch.nonzero(examples)[:, 0]
        core = CoreSpace.of(self.layout, adapters[known], self.initial, self.experiment.fusion.space)
        clients: dict[str, list[int]] = {}
        for client in known.tolist():
            clients.setdefault(self.experiment.suite.task_of(client), []).append(client)
        task_vectors = []
        for mine in clients.values():  # one task at a time: products are larger than factors
            weights = examples[mine].double()
            weights = weights / weights.sum()
            if self.experiment.aggregator.linear:
                task_vectors.append(core.mean(self.layout, adapters[mine], weights))
            else:
                products = core.project(self.layout, adapters[mine])
                task_vectors.append(self.experiment.aggregator(products, weights))
        return core, torch.stack(task_vectors), clients

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


def _task_errors(clients: Mapping[str, Sequence[int]], examples: Tensor, errors: Tensor) -> Tensor:
    """Error `[T]` of the mean of each task: those of independent clients average out."""
    found = []
    for mine in clients.values():
        weights = examples[mine].double()
        weights = weights / weights.sum()
        found.append((weights.square() * errors[mine].nan_to_num(0.0)).sum())
    return torch.stack(found).float()
