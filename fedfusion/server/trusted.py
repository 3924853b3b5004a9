"""The labelled samples by which the server judges uploads, and what it learns from them itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion.client.train import Job
from fedfusion.config import Experiment
from fedfusion.lora.curvature import curvature
from fedfusion.lora.model import LoraModel
from fedfusion.rng import generator
from fedfusion.server.evaluation import RootProbe
from fedfusion.tasks.heads import Head
from fedfusion.types import Layout, Samples, TrustedSuite, Updates

ROWS = 256  # samples that go through the model at once


@dataclass(frozen=True)
class TrustedSet:
    """Labelled samples of each task that no head was made of: those of a head's own making are right on the base.

    Attributes
    ----------
    experiment
        Whose suite they come from, and by whose local training the server learns from them.
    model
        The base with an adapter as clients have it.
    heads
        By task; those of the moment, where they are trained.
    """

    experiment: Experiment
    model: LoraModel
    heads: Mapping[str, Head]

    @cached_property
    def samples(self) -> dict[str, Samples]:
        """By task."""
        suite, seed = self.experiment.suite, self.experiment.seed
        assert isinstance(suite, TrustedSuite)
        return {task: suite.trusted_rows(task, seed) for task in suite.tasks}

    @property
    def probe(self) -> RootProbe:
        """All of them together, as a function of an adapter."""
        return RootProbe(self.model, self.samples, {task: self.heads[task] for task in self.samples})

    @torch.no_grad()
    def loss(self, adapter: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of `adapter [d]` at each prediction `[S]`, sorted by task, and the index `[S]` of its task."""
        probe, losses, owner = self.probe, [], []
        for i, rows in enumerate(torch.arange(len(probe)).split([len(part) for part in self.samples.values()])):
            for chunk in rows.split(ROWS):
                for logits, labels in probe.logits(adapter, chunk).values():
                    losses.append(F.cross_entropy(logits, labels, reduction="none"))
                    owner.append(torch.full((len(labels),), i))
        return torch.cat(losses), torch.cat(owner)

    def adapters(self, server_round: int) -> Tensor:
        """What a client with the trusted samples of each task would have after as many rounds: `[T, d]`."""
        if server_round not in self._learnt:
            self._learnt.clear()
            self._learnt[server_round] = self._learn(server_round)
        return self._learnt[server_round]

    @cached_property
    def _learnt(self) -> dict[int, Tensor]:
        return {}

    def _learn(self, server_round: int) -> Tensor:
        experiment, start = self.experiment, self.model.initial
        plan = experiment.client
        length = {"steps": server_round * plan.steps, "epochs": plan.epochs and server_round * plan.epochs}
        n = experiment.suite.num_clients  # their own draws
        jobs = [
            Job(n + i, start, samples, self.heads[task].detach())
            for i, (task, samples) in enumerate(self.samples.items())
        ]
        alone = replace(plan, **length, train_head=False, statistics="none")
        trained = alone(self.model, jobs, seed=experiment.seed, server_round=0, tasks=start.repeat(len(jobs), 1),
                        own={job.client: i for i, job in enumerate(jobs)})  # fmt: skip
        return torch.stack([start + one.update for one in trained])

    @cached_property
    def _inputs(self) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
        """By task and module: energy `[n]` and directions `[n, n]` of what enters the layer, in ascending order."""
        found = {}
        for task, samples in self.samples.items():
            rng = generator(self.experiment.seed, "trusted", task)
            moments = curvature(self.model, self.model.initial, samples, self.heads[task], rows=len(samples), rng=rng)
            found[task] = {m: tuple(torch.linalg.eigh(inputs.double())) for m, (inputs, _) in moments.items()}
        return found

    def subspace(self, task: str, module: str, energy: float) -> Tensor:
        """Orthonormal columns `[n, k]`: the fewest directions with the share `energy` of what enters the layer."""
        values, vectors = self._inputs[task][module]
        left_out = values.clamp_min(0).cumsum(0) <= (1 - energy) * values.clamp_min(0).sum()
        return vectors[:, ~left_out].float()


@dataclass(frozen=True)
class Judge:
    """The trusted set as a guard sees it, for the uploads of one round: a :class:`fedfusion.types.Root`.

    Attributes
    ----------
    trusted
        The samples.
    uploads
        Turns what was received into uploads of adapters.
    """

    trusted: TrustedSet
    uploads: Callable[[Updates], Updates]

    @property
    def names(self) -> Sequence[str]:
        """Names of the tasks."""
        return list(self.trusted.samples)

    @property
    def tasks(self) -> Tensor:
        """Index `[S]` of the task of each prediction."""
        return self._base[1]

    @cached_property
    def _base(self) -> tuple[Tensor, Tensor]:
        return self.trusted.loss(self.trusted.model.initial)

    def base(self) -> Tensor:
        """Loss `[S]` of the base."""
        return self._base[0]

    def losses(self, updates: Updates) -> Tensor:
        """Loss `[n, S]` of the adapters that `updates` make."""
        adapters = self.uploads(updates)
        return torch.stack([self.trusted.loss(one)[0] for one in adapters.start + adapters.vectors])

    def project(self, updates: Updates, energy: float) -> Updates:
        r"""Uploads whose products are :math:`B A P P^\top`, with `P` the subspace of what enters the layer."""
        layout, changed = updates.layout, updates.start + updates.vectors
        for row, task in enumerate(updates.tasks):
            for entry, module in _right_sides(layout, self.trusted.model.layout):
                p = self.trusted.subspace(task, module, energy)
                side = layout.entry(changed[row], entry)
                side.copy_(side @ p @ p.T)
        return updates.with_vectors(changed - updates.start)


def _right_sides(layout: Layout, adapter: Layout) -> list[tuple[int, str]]:
    """The entries whose last axis is what enters a layer: the `A` of a pair, or a whole product; and its module."""
    if layout.pairs:
        return [(pair.a, pair.module) for pair in layout.pairs]
    modules = {pair.module for pair in adapter.pairs}
    return [(i, name) for i, name in enumerate(layout.names) if name in modules]
