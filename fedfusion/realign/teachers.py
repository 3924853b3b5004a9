"""What a student learns from single-task adapters."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion.types import Probe

SCORED = 64  # samples that go through the model at once


@dataclass(frozen=True)
class Teachers:
    """The loss of a student of single-task adapters, `tasks [d]` by index, as far as `weights` go, and of labels."""

    probe: Probe
    tasks: Mapping[int, Tensor]
    weights: Mapping[int, float]

    @classmethod
    def of(cls, probe: Probe, tasks: Mapping[int, Tensor], doubt: float) -> "Teachers":
        """Teachers that are followed as far as the labels of the samples speak for them."""
        weights = {}
        for task, adapter in tasks.items():
            right, guessed = agreement(probe, adapter, task)
            weights[task] = max(0.0, (right - guessed) / (1 - guessed)) ** doubt if guessed < 1 else 0.0
        return cls(probe, tasks, weights)

    def loss(self, adapter: Tensor, rows: Tensor) -> Tensor:
        """Mean divergence from the teachers and the labels on the samples `rows`."""
        total, count = torch.zeros(()), 0
        for task, (logits, labels) in self.probe.logits(adapter, rows).items():
            target = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
            if weight := self.weights.get(task, 0.0):
                with torch.no_grad():
                    taught, _ = self.probe.logits(self.tasks[task], rows[self.probe.tasks[rows] == task])[task]
                target = weight * taught.softmax(-1) + (1 - weight) * target
            total = total + F.cross_entropy(logits, target, reduction="sum")
            count += len(labels)
        return total / count


def accuracy(probe: Probe, adapter: Tensor) -> float:
    """Mean over tasks of the share of the samples that `adapter [d]` is right on."""
    shares = [agreement(probe, adapter, task)[0] for task in probe.tasks.unique().tolist()]
    return sum(shares) / len(shares)


@torch.no_grad()
def agreement(probe: Probe, adapter: Tensor, task: int) -> tuple[float, float]:
    """The share of a task's samples that `adapter [d]` is right on, and what guessing among its classes would give."""
    right, classes = [torch.zeros(0)], 1
    for rows in torch.nonzero(probe.tasks == task)[:, 0].split(SCORED):
        logits, labels = probe.logits(adapter, rows)[task]
        right.append((logits.argmax(-1) == labels).float())
        classes = logits.shape[-1]
    return float(torch.cat(right).double().mean()), 1 / classes
