"""What the server measures: the fused adapter on every task, and its loss on the root set."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion.client.train import evaluate
from fedfusion.lora.model import LoraModel
from fedfusion.lora.product import CoreSpace
from fedfusion.server.store import Store
from fedfusion.tasks.heads import Head, HeadSource, LanguageHead, PrototypeHead, Prototypes
from fedfusion.types import Layout, Probe, Samples, TaskSuite, TrustedSuite, concatenate

Scores = dict[str, dict[str, float]]  # task -> accuracy, loss


@runtime_checkable
class Decoding(Protocol):
    """A suite whose responses are text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response."""
        ...


@runtime_checkable
class Unlabelled(Protocol):
    """A suite of which the server may hold more rows, without labels."""

    def unlabelled_rows(self, task: str, seed: int) -> Samples:
        """Those rows of a task; there may be none."""
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
    store
        Where scores are kept, and looked up before anything is measured.
    """

    def __init__(
        self,
        suite: TaskSuite,
        model: LoraModel,
        seed: int,
        head: HeadSource | None = None,
        store: Store | None = None,
    ) -> None:
        self.suite = suite
        self.model = self.wide = model
        self.seed = seed
        self.store = store
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
            scores = {task: self.single(task, adapter) for task in self.suite.tasks}
            self.last = adapter.clone(), scores
        return self.last[1]

    def single(self, task: str, adapter: Tensor) -> dict[str, float]:
        """Accuracy and loss of `adapter [d]` on the test set of one task."""
        return self._measured(self.model, adapter, task)

    def accuracy(self, task: str, adapter: Tensor, samples: Samples) -> float:
        """Accuracy of `adapter [d]` on other samples of one task."""
        return evaluate(self.model, adapter, samples, self.heads[task])["accuracy"]

    def held_out_loss(self, adapter: Tensor) -> float:
        """Mean over tasks of the loss of `adapter [d]` on labelled samples that no head was made of."""
        suite = self.suite
        assert isinstance(suite, TrustedSuite)
        rows = {task: suite.trusted_rows(task, self.seed) for task in suite.tasks}
        return mean([evaluate(self.model, adapter, rows[task], self.heads[task])["loss"] for task in suite.tasks])

    def personal(self, model: LoraModel, adapters: Tensor, clients: Sequence[int]) -> dict[int, dict[str, float]]:
        """Accuracy and loss of the own adapter `adapters [N, d]` of each of `clients` on its own task."""
        known: dict[tuple[str, bytes], dict[str, float]] = {}  # clients may share an adapter
        scores = {}
        for client in clients:
            task = self.suite.task_of(client)
            key = task, hashlib.sha256(adapters[client].numpy().tobytes()).digest()
            if key not in known:
                known[key] = self._measured(model, adapters[client], task)
            scores[client] = known[key]
        return scores

    def _measured(self, model: LoraModel, adapter: Tensor, task: str) -> dict[str, float]:
        """Accuracy and loss of an adapter on the test set of a task, where the store has them not yet."""
        head = self.heads[task]

        def measure() -> dict[str, float]:
            return evaluate(model, adapter, self.suite.test(task), head)

        if self.store is None:
            return measure()
        parts = (head.to_tensor(),) if isinstance(head, PrototypeHead) else ()
        layout = repr((model.layout.names, model.layout.shapes))
        return self.store.scores(self.store.key("scores", task, layout, adapter, *parts), measure)

    def exact_match(self, model: LoraModel, adapter: Tensor, task: str, rows: int) -> float:
        """Share of the first `rows` test samples whose generated response begins with the given one, end included."""
        generated, given = self._responses(model, adapter, task, rows)
        return mean([made[: len(right)] == right for made, right in zip(generated, given, strict=True)])

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
        return mean([scorer.score(decode(right), decode(made))["rougeL"].fmeasure for made, right in pairs])

    def _responses(
        self, model: LoraModel, adapter: Tensor, task: str, rows: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of the generated and of the given responses to the first `rows` test samples."""
        samples = self.suite.test(task)
        samples = samples.take(torch.arange(min(rows, len(samples))))
        given = [row[row != -100].tolist() for row in samples.labels]
        return model.generate(adapter, samples, max(map(len, given))), given

    def probe(self, core: CoreSpace | None = None) -> Probe:
        """The root sets of all tasks together, as a function of an adapter, or of coordinates in `core`."""
        return self._probe(self.roots, core)

    def unlabelled(self, core: CoreSpace | None = None) -> Probe:
        """All that the server holds of all tasks, the root sets too, with the labels hidden; see :meth:`probe`."""
        held = {}
        for task, root in self.roots.items():
            more = [self.suite.unlabelled_rows(task, self.seed)] if isinstance(self.suite, Unlabelled) else []
            held[task] = hide(concatenate([root, *more]))
        return self._probe(held, core)

    def _probe(self, held: Mapping[str, Samples], core: CoreSpace | None) -> Probe:
        if core is None:
            return RootProbe(self.model, held, self.heads)
        model = self._carrier(core.rank)
        return InCoordinates(RootProbe(model, held, self.heads), core, model.layout)

    def _carrier(self, rank: int) -> LoraModel:
        """A model for adapters of this rank; which one depends on nothing else, as equal bits need it."""
        if rank <= self.model.layout.rank:
            return self.model
        if rank != self.wide.layout.rank:
            engine: Literal["cohort", "peft"] = "peft" if self.model.cohort is None else "cohort"
            self.wide = LoraModel(self.model.model, self.seed, rank, engine)  # on the same base
        return self.wide


class RootProbe:
    """The samples that the server holds of each task, as a function of the adapter: a :class:`Probe`.

    Parameters
    ----------
    model
        The model that carries the adapter.
    held
        The samples of each task.
    heads
        The head of each task, in the same order.
    """

    def __init__(self, model: LoraModel, held: Mapping[str, Samples], heads: Mapping[str, Head]) -> None:
        self.model = model
        self.heads = [heads[task] for task in held]
        self.samples = concatenate(list(held.values()))
        self.tasks = torch.cat([torch.full((len(part),), i) for i, part in enumerate(held.values())])

    def __len__(self) -> int:
        return len(self.samples)

    def logits(self, vector: Tensor, rows: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Logits `[m, C]` and labels `[m]` of each task at adapter `vector [d]`; one per token where labels are tokens.

        Samples come sorted by task, in the order of `rows` within a task.
        """
        rows = rows[torch.argsort(self.tasks[rows], stable=True)]
        samples = self.samples.take(rows).trimmed()
        owner = torch.zeros(len(rows), dtype=torch.long)
        features, labels, of = self.model.features(vector[None], samples, owner)
        tasks = self.tasks[rows][of]
        return {i: (self.heads[i](features[tasks == i]), labels[tasks == i]) for i in tasks.unique().tolist()}

    def loss(self, vector: Tensor, rows: Tensor) -> Tensor:
        """Mean cross-entropy of adapter `vector [d]` on the samples `rows`."""
        parts = self.logits(vector, rows).values()
        sums = [F.cross_entropy(logits, labels, reduction="sum") for logits, labels in parts]
        return sum(sums, torch.zeros(())) / sum(len(labels) for _, labels in parts)

    def entropy(self, vector: Tensor, rows: Tensor) -> Tensor:
        """Mean entropy of the predictions of adapter `vector [d]` on the samples `rows`, in nats."""
        parts = [F.log_softmax(logits, -1) for logits, _ in self.logits(vector, rows).values()]
        return -sum(((p.exp() * p).sum() for p in parts), torch.zeros(())) / sum(map(len, parts))


@dataclass(frozen=True)
class InCoordinates:
    """A probe as a function of the coordinates `[D]` of a fused task vector, whose adapter is exact.

    Attributes
    ----------
    probe
        The same as a function of the adapter.
    core
        The space of the coordinates.
    layout
        That of the adapter, of rank `core.rank` or more.
    """

    probe: Probe
    core: CoreSpace
    layout: Layout

    def __len__(self) -> int:
        return len(self.probe)

    @property
    def tasks(self) -> Tensor:
        """Index `[n]` of the task that each sample belongs to."""
        return self.probe.tasks

    def logits(self, vector: Tensor, rows: Tensor) -> Mapping[int, tuple[Tensor, Tensor]]:
        """As :meth:`RootProbe.logits`, at coordinates `vector [D]`."""
        return self.probe.logits(self.core.embed(vector, self.layout), rows)

    def loss(self, vector: Tensor, rows: Tensor) -> Tensor:
        """As :meth:`RootProbe.loss`, at coordinates `vector [D]`."""
        return self.probe.loss(self.core.embed(vector, self.layout), rows)

    def entropy(self, vector: Tensor, rows: Tensor) -> Tensor:
        """As :meth:`RootProbe.entropy`, at coordinates `vector [D]`."""
        return self.probe.entropy(self.core.embed(vector, self.layout), rows)


def hide(samples: Samples) -> Samples:
    """The same samples with `-1` for every label, which no loss accepts.

    Of a response only its first token is kept as a place to predict at: any later one is predicted from those
    before it, which are labels too.
    """
    if samples.labels.dim() == 1:
        return Samples(samples.inputs, torch.full_like(samples.labels, -1))
    given = samples.labels != -100
    first = given & (given.cumsum(1) == 1)
    return Samples(samples.inputs, torch.where(first, -1, -100))


def mean(values: Sequence[float]) -> float:
    """The mean; there must be one value at least."""
    return sum(values) / len(values)


def summary(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean and worst accuracy over the tasks."""
    accuracies = [score["accuracy"] for score in scores.values()]
    if not accuracies:
        return {"mean": 0.0, "worst": 0.0}
    return {"mean": sum(accuracies) / len(accuracies), "worst": min(accuracies)}
