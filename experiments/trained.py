"""Clients that trained once, and what the server makes of their uploads, for experiments that vary only the server."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedfusion.client.train import Job, evaluate
from fedfusion.config import build, resolve
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import CoreSpace, Space
from fedfusion.rng import generator
from fedfusion.server.evaluation import Evaluator
from fedfusion.types import Evidence, Repair, Updates


class Trained:
    """The uploads of one seed: every client trains once from the initial adapter, for the steps of all rounds.

    Parameters
    ----------
    overrides
        Of the experiment.
    seed
        Names all its draws.
    cache
        Folder in which the uploads are kept.
    """

    def __init__(self, overrides: list[str], seed: int, cache: Path | None = None) -> None:
        experiment = build(resolve([*overrides, f"seed={seed}"]))
        torch.set_num_threads(1)
        self.experiment, self.suite, self.seed = experiment, experiment.suite, seed
        self.model = LoraModel(experiment.model, seed)
        self.wide = LoraModel(experiment.model, seed, rank=len(self.suite.tasks) * experiment.model.lora["r"])
        self.evaluator = Evaluator(self.suite, self.wide, seed, experiment.head)
        n = self.suite.num_clients
        tasks = tuple(self.suite.task_of(client) for client in range(n))
        file = cache / f"{seed}.pt" if cache else None
        vectors = torch.load(file) if file and file.exists() else self._train(tasks)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(vectors, file)
        start = self.model.initial.repeat(n, 1)
        self.sent = Updates(self.model.layout, vectors, start, tuple(range(n)), tasks, (1,) * n, ({},) * n)

    def _train(self, tasks: tuple[str, ...]) -> Tensor:
        plan, vectors = self.experiment.client, []
        plan = replace(plan, steps=self.experiment.rounds * plan.steps)
        for cohort in torch.arange(len(tasks)).split(plan.cohort_size):
            jobs = [
                Job(c, self.model.initial, self.suite.train(c, self.seed), self.evaluator.heads[tasks[c]])
                for c in cohort.tolist()
            ]
            vectors += [one.update for one in plan(self.model, jobs, seed=self.seed, server_round=1)]
        return torch.stack(vectors)

    def task_vectors(self, received: Updates, space: Space = "core") -> tuple[CoreSpace, Tensor]:
        """The mean of each task in product space, and the space."""
        adapters = received.start + received.vectors
        core = CoreSpace.of(self.model.layout, adapters, self.model.initial, space)
        products = core.project(self.model.layout, adapters)
        present = list(dict.fromkeys(received.tasks))
        return core, torch.stack([products[[t == task for t in received.tasks]].mean(0) for task in present])

    def accuracy(self, adapter: Tensor, part: str) -> dict[str, float]:
        """Accuracy by task of a fused adapter on `validation` or `test`."""
        heads, data = self.evaluator.heads, getattr(self.suite, part)
        return {task: evaluate(self.wide, adapter, data(task), heads[task])["accuracy"] for task in self.suite.tasks}

    def evidence(self) -> Evidence:
        """What rules that need no data may use."""
        return Evidence(generator(self.seed, "fusion", 1))

    def repair(self, tasks: Mapping[int, Tensor]) -> Repair:
        """What a realigner may use; `tasks` are the received adapters of the single tasks."""
        held = self.evaluator
        return Repair(generator(self.seed, "realign", 1), held.probe(), self.wide.layout, held.base, tasks)


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    found = list(values)
    return sum(found) / len(found)
