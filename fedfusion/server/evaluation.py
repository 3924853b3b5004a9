"""What the server measures: the fused adapter on every task, and its loss on the root set."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion.client.train import evaluate
from fedfusion.lora.model import LoraModel
from fedfusion.tasks.heads import Head, LanguageHead, PrototypeHead
from fedfusion.types import Samples, TaskSuite, concatenate

Scores = dict[str, dict[str, float]]  # task -> accuracy, loss


class Evaluator:
    """Heads, test sets and root sets of a suite, on one model that carries adapters of the fused rank.

    Parameters
    ----------
    suite
        Where the data comes from.
    model
        The model on which adapters are evaluated.
    seed
        Names the draw of the root set.
    """

    def __init__(self, suite: TaskSuite, model: LoraModel, seed: int) -> None:
        self.suite = suite
        self.model = model
        self.base = model.initial  # B = 0: the base model itself
        self.roots = {task: suite.root(task, seed) for task in suite.tasks}
        self.heads: dict[str, Head] = {task: self._head(task, root) for task, root in self.roots.items()}

    @torch.no_grad()
    def _head(self, task: str, root: Samples) -> Head:
        """Prototypes of the base's features of the root set, or the output embeddings where labels are tokens."""
        if root.labels.dim() == 2:
            return LanguageHead(self.model.output)
        parts = [
            self.model.features(self.base[None], root.take(rows), torch.zeros(len(rows), dtype=torch.long))[0]
            for rows in torch.arange(len(root)).split(64)
        ]
        return PrototypeHead.fit(torch.cat(parts), root.labels, self.suite.num_classes(task))

    def adopt(self, heads: Mapping[str, Tensor]) -> None:
        """Use heads that clients have trained from now on."""
        self.heads |= {task: PrototypeHead.from_tensor(tensor) for task, tensor in heads.items()}

    def __call__(self, adapter: Tensor) -> Scores:
        """Accuracy and loss of `adapter [d]` on the test set of every task."""
        return {
            task: evaluate(self.model, adapter, self.suite.test(task), self.heads[task]) for task in self.suite.tasks
        }

    def personal(self, model: LoraModel, adapters: Tensor, clients: Sequence[int]) -> dict[int, dict[str, float]]:
        """Accuracy and loss of the own adapter `adapters [N, d]` of each of `clients` on its own task."""
        tasks = {client: self.suite.task_of(client) for client in clients}
        return {
            client: evaluate(model, adapters[client], self.suite.test(task), self.heads[task])
            for client, task in tasks.items()
        }

    def probe(self) -> "RootProbe":
        """The root sets of all tasks together, as the realigner sees them."""
        return RootProbe(self.model, self.roots, self.heads)


class RootProbe:
    """Mean cross-entropy on the root sets of all tasks, as a function of the adapter."""

    def __init__(self, model: LoraModel, roots: Mapping[str, Samples], heads: Mapping[str, Head]) -> None:
        self.model = model
        self.heads = list(heads.values())
        self.samples = concatenate(list(roots.values()))
        self.task = torch.cat([torch.full((len(root),), i) for i, root in enumerate(roots.values())])

    def __len__(self) -> int:
        return len(self.samples)

    def loss(self, adapter: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of `adapter [d]` on the root samples `rows`."""
        rows = rows[torch.argsort(self.task[rows], stable=True)]
        task = self.task[rows]
        owner = torch.zeros(len(rows), dtype=torch.long)
        features, labels, of = self.model.features(adapter[None], self.samples.take(rows), owner)
        total = torch.zeros(())
        for i in task.unique().tolist():
            mine = task[of] == i
            total = total + F.cross_entropy(self.heads[i](features[mine]), labels[mine], reduction="sum")
        return total / len(labels)


def summary(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean and worst accuracy over the tasks."""
    accuracies = [score["accuracy"] for score in scores.values()]
    if not accuracies:
        return {"mean": 0.0, "worst": 0.0}
    return {"mean": sum(accuracies) / len(accuracies), "worst": min(accuracies)}
