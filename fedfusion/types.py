"""The nouns of fedfusion: what is uploaded, what is received, and the stages in between.

Everything the server does is linear algebra on one matrix. Its rows are the uploaded task vectors,
flattened by a fixed :class:`Layout`; each stage of the round is a plain callable on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from fedfusion.errors import FedfusionError as FedfusionError
from fedfusion.errors import RunFailed as RunFailed


@dataclass(frozen=True)
class Pair:
    """One LoRA module: the entries that hold `A [r, in]` and `B [out, r]`, and the factor `scale` on `B A`."""

    module: str
    a: int
    b: int
    scale: float


@dataclass(frozen=True)
class Layout:
    """Adapter state dict <-> flat vector `[d]`, and which entries are LoRA pairs.

    Attributes
    ----------
    names, shapes
        The entries in the order in which they are flattened.
    pairs
        One :class:`Pair` per adapted module. Entries outside every pair are plain parameters.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    pairs: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, state: Mapping[str, Tensor], scale: float = 1.0) -> "Layout":
        """The layout of a state dict; `x.lora_A.weight` and `x.lora_B.weight` in it are a pair, with `scale`."""
        names, a, b = tuple(state), ".lora_A.weight", ".lora_B.weight"
        modules = [name.removesuffix(a) for name in names if name.endswith(a) and name.removesuffix(a) + b in state]
        pairs = tuple(Pair(m, names.index(m + a), names.index(m + b), scale) for m in modules)
        return cls(names, tuple(tuple(tensor.shape) for tensor in state.values()), pairs)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each entry starts; one more than there are entries, the last being `d`."""
        offsets = [0]
        for shape in self.shapes:
            offsets.append(offsets[-1] + prod(shape))
        return tuple(offsets)

    @property
    def rank(self) -> int:
        """The largest rank of its pairs; zero where there are none."""
        return max((self.shapes[pair.a][0] for pair in self.pairs), default=0)

    @property
    def dim(self) -> int:
        """Length `d` of the flat vector."""
        return self.offsets[-1]

    def entry(self, vectors: Tensor, index: int) -> Tensor:
        """Entry `index` of `vectors [..., d]` as a view `[..., *shape]`."""
        part = vectors[..., self.offsets[index] : self.offsets[index + 1]]
        return part.unflatten(-1, self.shapes[index])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """The state dict whose tensors are views of `vector [d]`."""
        return {name: self.entry(vector, i) for i, name in enumerate(self.names)}

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """The flat vector `[d]` of a state dict; the inverse of :meth:`unflatten`.

        Raises
        ------
        FedfusionError
            If an entry is missing or its shape differs.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            found = tuple(state[name].shape) if name in state else None
            if found != shape:
                raise FedfusionError(f"the adapter's entry '{name}' has shape {found}, the layout expects {shape}")
        return torch.cat([state[name].detach().reshape(-1).float() for name in self.names])

    def difference(self, other: "Layout") -> str | None:
        """The first entry whose shape differs from `other`, in words, or None when they agree."""
        ours, theirs = (dict(zip(layout.names, layout.shapes, strict=True)) for layout in (self, other))
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                return f"'{name}' is {ours.get(name, 'absent')} here and {theirs.get(name, 'absent')} there"
        return None


@dataclass(frozen=True)
class Updates:
    """What was uploaded in one round; a row is one (client, task).

    Attributes
    ----------
    layout
        How a row is laid out.
    vectors : [n, d]
        What each client uploads: its adapter minus what was broadcast to it.
    start : [n, d]
        What was broadcast to each client; `start + vectors` are the adapters themselves.
    clients, tasks
        Client id and task name of each row.
    num_examples
        Training examples behind each row.
    metrics
        What each client measured (loss, accuracy of its own adapter on its own task).
    sizes
        How many entries of each row are sent, from the first on; empty where all are.
    """

    layout: Layout
    vectors: Tensor
    start: Tensor
    clients: tuple[int, ...]
    tasks: tuple[str, ...]
    num_examples: tuple[int, ...]
    metrics: tuple[Mapping[str, float], ...]
    sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, vectors: Tensor, tasks: Sequence[str] = (), layout: Layout | None = None) -> "Updates":
        """Uploads `vectors [n, d]` of as many clients, who start from zero and hold one example each.

        Without `tasks` they share one, and without `layout` a row is one plain parameter.
        """
        n, d = vectors.shape
        return cls(
            layout=layout or Layout(("parameter",), ((d,),)),
            vectors=vectors,
            start=torch.zeros_like(vectors),
            clients=tuple(range(n)),
            tasks=tuple(tasks) or ("task",) * n,
            num_examples=(1,) * n,
            metrics=({},) * n,
        )

    def __len__(self) -> int:
        return len(self.clients)

    def with_vectors(self, vectors: Tensor) -> "Updates":
        """The same rows with other contents."""
        return replace(self, vectors=vectors)

    def keep(self, rows: Sequence[int]) -> "Updates":
        """Only the given rows, in the given order."""
        if list(rows) == list(range(len(self))):
            return self
        index = torch.tensor(list(rows), dtype=torch.long)
        return replace(
            self,
            vectors=self.vectors[index],
            start=self.start[index],
            clients=tuple(self.clients[i] for i in rows),
            tasks=tuple(self.tasks[i] for i in rows),
            num_examples=tuple(self.num_examples[i] for i in rows),
            metrics=tuple(self.metrics[i] for i in rows),
            sizes=tuple(self.sizes[i] for i in rows) if self.sizes else (),
        )


@dataclass(frozen=True)
class ChannelReport:
    """What the uplink did.

    Attributes
    ----------
    per_client
        Figures by name, one per row sent. All linear: `nmse` (`||received - sent||^2 / ||sent||^2`), `expected_nmse`
        (as the theory predicts it), `reported_nmse` (as the receiver believes it), `cosine`, `sign_agreement`, `snr`,
        `sinr` (its mean in dB over the upload), `rate` (bit per channel use that the SINR allows), `outage` (share of
        the channel uses in coherence blocks below the outage rate), `mcs` and `bler` (of packets), `goodput` (bit per
        channel use that were decoded), `erased_share`, `bits` (of packets and of side information; analog symbols are
        none), `air_time_s`, `latency_s` (in virtual time, from the start of the uplink), `energy_j`. A name is absent
        where the model does not say it.
    erased
        Clients of which nothing is believed to have arrived, and why.
    jamming
        Figures of the round as a whole: `power` is what the jammer spent per symbol, over thermal noise, and `gap`
        by how much its objective misses the optimum at most.
    """

    per_client: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    erased: Mapping[int, str] = field(default_factory=dict)
    jamming: Mapping[str, float] = field(default_factory=dict)

    @property
    def nmse(self) -> tuple[float, ...]:
        """NMSE of each row."""
        return self.per_client.get("nmse", ())


@dataclass(frozen=True)
class GuardReport:
    """What the server refused, with the reason for each client, and whose upload it clipped."""

    refused: Mapping[int, str] = field(default_factory=dict)
    clipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Model inputs by argument name, each `[n, ...]`, and labels.

    Attributes
    ----------
    inputs
        Arguments of the model's forward. Text is padded on the right, as its `attention_mask [n, T]` says.
    labels
        Classes `[n]`, or the tokens `[n, T]` of a response, aligned with `input_ids`, and -100 everywhere else.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Samples":
        """The samples at `index`."""
        return Samples({name: tensor[index] for name, tensor in self.inputs.items()}, self.labels[index])

    @property
    def lengths(self) -> Tensor | None:
        """Number of tokens `[n]` of each sample, None where samples are not text."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.sum(1)

    def pad(self, length: int) -> "Samples":
        """The same samples with `length` token columns: padding is cut off or added, tokens are not."""

        def fit(tensor: Tensor, value: int) -> Tensor:
            beyond = (0, 0) * (tensor.dim() - 2)
            return torch.nn.functional.pad(tensor, (*beyond, 0, length - tensor.shape[1]), value=value)

        inputs = {name: fit(tensor, 0) for name, tensor in self.inputs.items()}
        return Samples(inputs, fit(self.labels, -100) if self.labels.dim() == 2 else self.labels)

    def trimmed(self) -> "Samples":
        """The same samples without the columns in which every one is padding."""
        return self if self.lengths is None else self.pad(int(self.lengths.max()))


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Samples of several sets below each other, text padded to the longest of them."""
    if parts[0].lengths is not None:
        longest = max(part.inputs["attention_mask"].shape[1] for part in parts)
        parts = [part.pad(longest) for part in parts]
    inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    return Samples(inputs, torch.cat([part.labels for part in parts]))


@dataclass(frozen=True)
class Clients:
    """All `N` clients, heard or not, as the server knows them.

    Attributes
    ----------
    layout
        How an adapter is laid out.
    tasks
        Task of each client.
    initial : [d]
        The adapter that everyone started from.
    relation : [N, N]
        How related their tasks are by construction, in [0, 1]; one for the same task, and where nothing is known
        of other tasks, zero for them.
    """

    layout: Layout
    tasks: tuple[str, ...]
    initial: Tensor
    relation: Tensor

    @classmethod
    def of(cls, tasks: Sequence[str], initial: Tensor, layout: Layout | None = None) -> "Clients":
        """Clients with these `tasks`, related where they share one; without `layout`, `initial` is one parameter."""
        relation = torch.tensor([[float(task == other) for other in tasks] for task in tasks])
        return cls(layout or Layout(("parameter",), ((len(initial),),)), tuple(tasks), initial, relation)


class Attack(Protocol):
    """Who is Byzantine, what they learn from, and what they send."""

    @property
    def poisons(self) -> bool:
        """Whether Byzantine clients learn from other data than their own."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether it needs what was uploaded in the round before."""
        ...

    def byzantine(self, tasks: Sequence[str], rng: torch.Generator) -> tuple[int, ...]:
        """The Byzantine clients, in order, of all clients, whose `tasks` are given; drawn once per run."""
        ...

    def __call__(self, updates: Updates, byzantine: Sequence[int], rng: torch.Generator, last: Tensor) -> Updates:
        """What is sent instead of `updates`; rows may be missing. `last [n, d]` are their uploads a round ago."""
        ...

    def poison(self, samples: Samples, num_classes: int, rng: torch.Generator) -> Samples:
        """The training data of a Byzantine client, from what it really holds."""
        ...

    def triggered(self, samples: Samples, num_classes: int) -> Samples | None:
        """Test samples that carry its trigger, labelled with what it wants, or None where it has no trigger."""
        ...


class Channel(Protocol):
    """What is received of what was sent."""

    @property
    def superposes(self) -> bool:
        """Whether only the sum of what the clients of a task send is received, so that single rows are not known."""
        ...

    def __call__(self, updates: Updates, rng: torch.Generator) -> tuple[Updates, ChannelReport]: ...


class Root(Protocol):
    """Labelled samples of each task that the server holds, and no head was made of, as judges of uploads."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the tasks, in a fixed order."""
        ...

    @property
    def tasks(self) -> Tensor:
        """Index `[S]` of the task that each prediction belongs to."""
        ...

    def base(self) -> Tensor:
        """Loss `[S]` of the base model at each prediction."""
        ...

    def losses(self, updates: Updates) -> Tensor:
        """Loss `[n, S]` at each prediction of the adapter that each upload makes."""
        ...

    def project(self, updates: Updates, energy: float) -> Updates:
        """Uploads whose products act on nothing but what their layer is given on samples of their task.

        It is the subspace with the share `energy` of the energy of those inputs.
        """
        ...


class Guard(Protocol):
    """What the server refuses or clips."""

    @property
    def needs_root(self) -> bool:
        """Whether it needs the server's samples."""
        ...

    @property
    def needs_rows(self) -> bool:
        """Whether it judges single clients, so that sums over the air tell it too little."""
        ...

    def __call__(self, updates: Updates, root: Root) -> tuple[Updates, GuardReport]: ...


class Coupling(Protocol):
    """Each client's next personal adapter, pulled towards its relatives or replaced by a common one."""

    @property
    def into_base(self) -> bool:
        """Whether the mean of the products goes into everybody's base instead."""
        ...

    @property
    def needs_rows(self) -> bool:
        """Whether single uploads matter, beyond the mean of those of a task."""
        ...

    @property
    def averages_factors(self) -> bool:
        """Whether `A` and `B` are averaged for themselves, so that they must go on from what was broadcast."""
        ...

    def __call__(
        self, adapters: Tensor, heard: Tensor, weights: Tensor, clients: Clients, rng: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Next adapters `[N, d]` of all clients, and what there is to report of the step.

        `adapters [N, d]` holds what this round's uploads say of the clients `heard [n]` and what the server knew
        before of all others; `weights [n]` sum to one over those heard.
        """
        ...


class ServerOptimizer(Protocol):
    """What the server makes of the change of the personal adapters in one round."""

    @property
    def num_moments(self) -> int:
        """How many tensors like the adapters it keeps from round to round."""
        ...

    def __call__(self, change: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Step `[N, d]` and next moments `[num_moments, N, d]`, from `change [N, d]` and those before."""
        ...


class Aggregator(Protocol):
    """Many clients, one vector: within a task, or across all of them."""

    @property
    def linear(self) -> bool:
        """Whether it is the weighted mean, which needs no single products."""
        ...

    @property
    def needs_root(self) -> bool:
        """Whether it needs a vector that can be trusted."""
        ...

    @property
    def f(self) -> int:
        """How many Byzantine rows it is meant for; zero where it is not a parameter."""
        ...

    @property
    def inequality(self) -> str:
        """What `n` and `f` must satisfy, in symbols, as `n >= 2f + 3`."""
        ...

    @property
    def min_rows(self) -> int:
        """The smallest `n` that does."""
        ...

    def __call__(self, vectors: Tensor, weights: Tensor, rng: torch.Generator, trusted: Tensor | None = None) -> Tensor:
        """One vector `[d]` of `vectors [n, d]`.

        `weights [n]` sum to one; they are what clients claim, so that only the mean believes them. `trusted [d]` is
        an update that the server made itself.
        """
        ...


@runtime_checkable
class PreAggregator(Protocol):
    """Makes rows alike, or fewer, before they are aggregated."""

    @property
    def f(self) -> int:
        """How many Byzantine rows it is meant for; zero where it is not a parameter."""
        ...

    @property
    def inequality(self) -> str:
        """What `n` and `f` must satisfy, in symbols."""
        ...

    @property
    def min_rows(self) -> int:
        """The smallest `n` that does."""
        ...

    def rows(self, n: int) -> int:
        """How many rows it makes of `n`."""
        ...

    def __call__(self, vectors: Tensor, rng: torch.Generator) -> Tensor:
        """The rows `[m, d]` that go on, of `vectors [n, d]`, which themselves stay as they are."""
        ...


class Probe(Protocol):
    """A few samples that the server holds, as a function of one vector: an adapter `[d]`, or a fused task vector."""

    def __len__(self) -> int: ...

    @property
    def tasks(self) -> Tensor:
        """Index `[n]` of the task that each sample belongs to."""
        ...

    def logits(self, vector: Tensor, rows: Tensor) -> Mapping[int, tuple[Tensor, Tensor]]:
        """For each task among the samples `rows`: logits `[m, C]` and labels `[m]`, differentiable in `vector`."""
        ...

    def loss(self, vector: Tensor, rows: Tensor) -> Tensor:
        """Mean cross-entropy on the samples `rows`."""
        ...

    def entropy(self, vector: Tensor, rows: Tensor) -> Tensor:
        """Mean entropy of the predictions on the samples `rows`, in nats; it needs no labels."""
        ...


@dataclass(frozen=True)
class Evidence:
    """What a fusion rule may use beside the task vectors.

    Attributes
    ----------
    rng
        The generator of the rule's own draws.
    tasks
        Which of the run's tasks the rows are, by index; empty where they are all, in order.
    nmse : [T]
        Error of each task's upload relative to its power, as the receiver believes; None where nothing is known.
    probe
        The server's samples, as a function of the fused vector `[D]`; None where it has none.
    curvature
        By entry of the layout: `inputs [T, q, q]` and `gradients [T, p, p]`, the second moments of what goes into
        the layer and of the loss gradient at its output, in the coordinates of the task vectors; empty where clients
        send none.
    """

    rng: torch.Generator
    tasks: tuple[int, ...] = ()
    nmse: Tensor | None = None
    probe: Probe | None = None
    curvature: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Fusion(Protocol):
    """Across tasks: one multi-task vector."""

    @property
    def space(self) -> Literal["core", "left", "right", "dense"]:
        """The coordinates it works in, see :class:`fedfusion.lora.product.CoreSpace`."""
        ...

    @property
    def data(self) -> Literal["none", "unlabelled", "few labels", "client statistics"]:
        """What it needs beside the task vectors."""
        ...

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """The fused vector `[D]` of `task_vectors [T, D]`, whose entries are one matrix per module."""
        ...


@runtime_checkable
class Serving(Protocol):
    """A fusion rule that has something better for a device that knows its task."""

    def served(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """One vector per task, `[T, D]`."""
        ...


@dataclass(frozen=True)
class Repair:
    """What a realigner may use beside the fused adapter.

    Attributes
    ----------
    rng
        The generator of its draws.
    probe
        The server's samples, as a function of the adapter `[d]`.
    layout
        Of the adapter.
    base : [d]
        The adapter whose product is zero, from which the control starts.
    tasks : [d]
        Adapters of the single tasks as received, by index of the task; none unless the realigner `needs_tasks`.
    """

    rng: torch.Generator
    probe: Probe
    layout: Layout
    base: Tensor
    tasks: Mapping[int, Tensor] = field(default_factory=dict)


class Realigner(Protocol):
    """Repairs the fused adapter with a few samples."""

    @property
    def data(self) -> Literal["none", "unlabelled", "few labels"]:
        """Which samples of the server it is given."""
        ...

    @property
    def needs_tasks(self) -> bool:
        """Whether it learns from the adapters of the single tasks, as received."""
        ...

    def __call__(self, fused: Tensor, repair: Repair) -> Tensor:
        """The repaired adapter `[d]` of `fused [d]`, which itself stays as it is."""
        ...


class Regularizer(Protocol):
    """The client's side of multi-task learning: a penalty on its adapter."""

    @property
    def needs_tasks(self) -> bool:
        """Whether the adapters of all tasks must be broadcast."""
        ...

    def __call__(self, params: Tensor, anchor: Tensor, tasks: Tensor, own: Tensor, layout: Layout) -> Tensor:
        """Penalty `[K]` of the adapters `params [K, d]` of K clients.

        `anchor [K, d]` is what was broadcast to each, `tasks [T, d]` the mean adapter of each task (`[0, d]` unless
        `needs_tasks`), `own [K]` the row of `tasks` that is the client's own.
        """
        ...


class TaskSuite(Protocol):
    """The data: tasks, who holds them, and the few-shot root set."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks, in a fixed order."""
        ...

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        ...

    def task_of(self, client: int) -> str:
        """The task of a client."""
        ...

    def num_classes(self, task: str) -> int:
        """Number of labels of a task; zero where the response is text."""
        ...

    def relation(self, task: str, other: str) -> float:
        """How related two tasks are by construction, in [0, 1]; one for a task and itself, zero if unknown."""
        ...

    def train(self, client: int, seed: int) -> Samples:
        """The training data of one client."""
        ...

    def root(self, task: str, seed: int) -> Samples:
        """The few labelled samples that the server holds."""
        ...

    def test(self, task: str) -> Samples:
        """The test data of a task."""
        ...


@runtime_checkable
class CheckedSuite(Protocol):
    """A suite that can say what is wrong with its data without a model."""

    def check(self, seed: int) -> None:
        """Raise a FedfusionError that says what is wrong."""


@runtime_checkable
class TrustedSuite(Protocol):
    """A suite of which the server holds more labelled rows, to judge uploads by."""

    def trusted_rows(self, task: str, seed: int) -> Samples:
        """Those rows of a task; there may be none."""
        ...
