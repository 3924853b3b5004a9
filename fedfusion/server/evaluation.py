"""What the server measures: the fused adapter on every task, and its loss on the root set."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion.client.train import evaluate
from fedfusion.lora.model import LoraModel
from fedfusion.tasks.heads import Head, HeadSource, LanguageHead, PrototypeHead, Prototypes
from fedfusion.types import Samples, TaskSuite, concatenate

Scores = dict[str, dict[str, float]]  # task -> accuracy, loss


@runtime_checkable
class Decoding(Protocol):
    """A suite whose responses are text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response."""
        ...


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
    head
        What turns features into labels; where labels are tokens, it is the model's own output embeddings.
    """

    def __init__(self, suite: TaskSuite, model: LoraModel, seed: int, head: HeadSource | None = None) -> None:
        self.suite = suite
        self.model = model
        self.base = model.initial  # B = 0: the base model itself
        self.last: tuple[Tensor, Scores] | None = None
        self.roots = {task: suite.root(task, seed) for task in suite.tasks}
        head = head or Prototypes()
        self.heads: dict[str, Head] = {
            task: LanguageHead(model.output) if root.labels.dim() == 2 else head(model, suite, task, root)
            for task, root in self.roots.items()
        }

    def adopt(self, heads: Mapping[str, Tensor]) -> None:
        """Use heads that clients have trained from now on."""
        self.last = None
        self.heads |= {task: PrototypeHead.from_tensor(tensor) for task, tensor in heads.items()}

    def __call__(self, adapter: Tensor) -> Scores:
        """Accuracy and loss of `adapter [d]` on the test set of every task; the last one asked for is remembered."""
        if self.last is None or not torch.equal(self.last[0], adapter):
            scores = {t: evaluate(self.model, adapter, self.suite.test(t), self.heads[t]) for t in self.suite.tasks}
            self.last = adapter.clone(), scores
        return self.last[1]

    def personal(self, model: LoraModel, adapters: Tensor, clients: Sequence[int]) -> dict[int, dict[str, float]]:
        """Accuracy and loss of the own adapter `adapters [N, d]` of each of `clients` on its own task."""
        known: dict[tuple[str, bytes], dict[str, float]] = {}  # clients may share an adapter
        scores = {}
        for client in clients:
            task = self.suite.task_of(client)
            key = task, hashlib.sha256(adapters[client].numpy().tobytes()).digest()
            if key not in known:
                known[key] = evaluate(model, adapters[client], self.suite.test(task), self.heads[task])
            scores[client] = known[key]
        return scores

    def exact_match(self, model: LoraModel, adapter: Tensor, task: str, rows: int) -> float:
        """Share of the first `rows` test samples whose generated response begins with the given one, end included."""
        generated, given = self._responses(model, adapter, task, rows)
        return _mean([made[: len(right)] == right for made, right in zip(generated, given, strict=True)])

    def rouge_l(self, model: LoraModel, adapter: Tensor, task: str, rows: int) -> float:
        """Mean ROUGE-L of the generated responses to the first `rows` test samples: the F1 of words in common order.

        Words are of a to z and 0 to 9, in lower case, not stemmed. A response is cut after as many tokens as the
        longest of the given ones has.

        References
        ----------
        Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop Text Summarization Branches Out,
        2004, https://aclanthology.org/W04-1013
        """
        from rouge_score.rouge_scorer import RougeScorer

        assert isinstance(self.suite, Decoding)
        scorer, decode = RougeScorer(["rougeL"], use_stemmer=False), self.suite.decode
        pairs = zip(*self._responses(model, adapter, task, rows), strict=True)
        return _mean([scorer.score(decode(right), decode(made))["rougeL"].fmeasure for made, right in pairs])

    def _responses(
        self, model: LoraModel, adapter: Tensor, task: str, rows: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of the generated and of the given responses to the first `rows` test samples."""
        samples = self.suite.test(task)
        samples = samples.take(torch.arange(min(rows, len(samples))))
        given = [row[row != -100].tolist() for row in samples.labels]
        return model.generate(adapter, samples, max(map(len, given))), given

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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summary(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean and worst accuracy over the tasks."""
    accuracies = [score["accuracy"] for score in scores.values()]
    if not accuracies:
        return {"mean": 0.0, "worst": 0.0}
    return {"mean": sum(accuracies) / len(accuracies), "worst": min(accuracies)}
