"""What the server measures: the fused adapter on every task, and its loss on the root set."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion.client.train import evaluate
from fedfusion.lora.model import LoraModel
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.types import Samples, TaskSuite

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
        self.base = model.read()  # B = 0: the base model itself
        self.roots = {task: suite.root(task, seed) for task in suite.tasks}
        self.heads = {task: self._head(task, root) for task, root in self.roots.items()}

    @torch.no_grad()
    def _head(self, task: str, root: Samples) -> PrototypeHead:
        self.model.module.eval()
        return PrototypeHead.fit(self.model.features(root.inputs), root.labels, self.suite.num_classes(task))

    def __call__(self, adapter: Tensor) -> Scores:
        """Accuracy and loss of `adapter [d]` on the test set of every task."""
        scores = {}
        for task in self.suite.tasks:
            accuracy, loss = evaluate(self.model, adapter, self.suite.test(task), self.heads[task])
            scores[task] = {"accuracy": accuracy, "loss": loss}
        return scores

    def probe(self) -> "RootProbe":
        """The root sets of all tasks together, as the realigner sees them."""
        return RootProbe(self.model, self.roots, self.heads)


class RootProbe:
    """Mean cross-entropy on the root sets of all tasks, as a function of the adapter."""

    def __init__(self, model: LoraModel, roots: Mapping[str, Samples], heads: Mapping[str, PrototypeHead]) -> None:
        self.model = model
        self.heads = list(heads.values())
        parts = list(roots.values())
        self.inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
        self.labels = torch.cat([part.labels for part in parts])
        self.task = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])

    def __len__(self) -> int:
        return len(self.labels)

    def loss(self, adapter: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of `adapter [d]` on the root samples `rows`."""
        self.model.module.eval()
        features = self.model.features({name: tensor[rows] for name, tensor in self.inputs.items()}, adapter)
        labels, task = self.labels[rows], self.task[rows]
        total = torch.zeros(())
        for i, head in enumerate(self.heads):
            mine = task == i
            if mine.any():
                total = total + F.cross_entropy(head(features[mine]), labels[mine], reduction="sum")
        return total / len(rows)


def summary(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean and worst accuracy over the tasks."""
    accuracies = [score["accuracy"] for score in scores.values()]
    return {"mean": sum(accuracies) / len(accuracies), "worst": min(accuracies)}
