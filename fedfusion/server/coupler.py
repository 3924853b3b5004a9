"""What clients start from next: coupling, and the server's optimiser after it."""

from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

from fedfusion.config import Experiment
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import accumulate, restrict, revive
from fedfusion.rng import generator
from fedfusion.server.state import State
from fedfusion.soundness import sound
from fedfusion.types import Clients, Layout, Updates


@dataclass(frozen=True)
class Coupled:
    """What clients start from next and what is behind it, see :class:`State`; for whom it changed; and a report."""

    adapters: Tensor
    examples: Tensor
    moments: Tensor
    merged: Tensor
    moved: list[int]
    report: dict[str, float | None]


@dataclass(frozen=True)
class Coupler:
    """The personal adapters of all clients, from one round to the next.

    Attributes
    ----------
    experiment
        The coupling, the server's optimiser, and the ranks of the clients.
    model
        The base with the clients' adapter on it.
    target
        Layout of what is added to the base, where the coupling adds anything.
    """

    experiment: Experiment
    model: LoraModel
    target: Layout

    @cached_property
    def clients(self) -> Clients:
        """All of them, and how their tasks are related."""
        return self.experiment.clients(self.model.layout, self.model.initial)

    def __call__(self, state: State, updates: Updates, server_round: int) -> Coupled:
        """What clients start from next, after `updates`; `state` is left as it was."""
        coupling, optimizer, layout = self.experiment.coupling, self.experiment.server_optimizer, self.model.layout
        adapters, examples = updates.start + updates.vectors, state.examples.clone()
        heard = torch.tensor(updates.clients, dtype=torch.long)
        if len(heard) < len(state.adapters):
            adapters = state.adapters.index_copy(0, heard, adapters)
        examples[heard] = torch.tensor(updates.num_examples, dtype=torch.long)
        weights = examples[heard].double()
        weights = weights / weights.sum()
        rng = generator(self.experiment.seed, "coupling", server_round)
        made, report = coupling(adapters, heard, weights, self.clients, rng)
        coupled = sound("coupling", coupling, made, adapters.shape)
        moved = torch.tensor([not torch.equal(*rows) for rows in zip(coupled, state.adapters, strict=True)])
        moments, merged = state.moments, state.merged
        if optimizer.num_moments:  # else the step is the change
            step, moments = optimizer(coupled - state.adapters, state.moments)
            step[~moved], moments[:, ~moved] = 0.0, state.moments[:, ~moved]  # nobody drifts on momentum alone
            coupled = state.adapters + step
        if coupling.into_base:
            merged, discarded = accumulate(merged, self.target, adapters[heard], weights, layout)
            report, moved = {**report, "discarded": discarded}, torch.ones_like(moved)
        finite = {name: value if isfinite(value) else None for name, value in report.items()}
        revive(layout, coupled, self.model.initial)
        return Coupled(coupled, examples, moments, merged, torch.nonzero(moved)[:, 0].tolist(), finite)

    def starts(self, adapters: Tensor) -> Tensor:
        """What clients are sent: their personal adapters, cut to their own ranks."""
        ranks = self.experiment.client.ranks
        if ranks is None:
            return adapters
        own = [ranks[client % len(ranks)] for client in range(len(adapters))]
        return restrict(self.model.layout, adapters, torch.tensor(own))

    def shared(self, state: State) -> dict[str, Tensor]:
        """What goes to all clients alike, if asked for: what was added to the base, and the tasks' mean adapters."""
        merged = {"merged": state.merged} if self.experiment.coupling.into_base else {}
        if not self.experiment.client.regularizer.needs_tasks:
            return merged
        suite = self.experiment.suite
        tasks = [suite.task_of(client) for client in range(suite.num_clients)]
        rows = [[client for client, t in enumerate(tasks) if t == task] for task in suite.tasks]
        return merged | {"tasks": torch.stack([state.adapters[mine].mean(0) for mine in rows])}
