"""The local loop: the LoRA fine-tuning of a cohort of clients, and the evaluation of any adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfusion.lora.cohort import buckets
from fedfusion.lora.curvature import Moments, curvature
from fedfusion.lora.model import LoraModel
from fedfusion.regularizers import Unregularized
from fedfusion.rng import generator
from fedfusion.tasks.heads import Head
from fedfusion.types import FedfusionError, Regularizer, Samples, concatenate

PREFIX_BYTES = 2**29  # what a cohort's samples may take as hidden states below the first adapted layer


@dataclass(frozen=True)
class Job:
    """One client's part of a round.

    Attributes
    ----------
    client
        Its id.
    start : [d]
        The adapter it was given.
    data
        Its training samples.
    head
        What turns features into labels.
    """

    client: int
    start: Tensor
    data: Samples
    head: Head


@dataclass(frozen=True)
class Trained:
    """What a client's training gave: its update `[d]`, its mean loss, its head as it left it, and its statistics.

    `curvature` has the moments of inputs and gradients by module, and is empty unless `client.statistics` asks for it.
    """

    update: Tensor
    loss: float
    head: Head
    curvature: Mapping[str, Moments] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalTraining:
    """AdamW on the adapters of a cohort, the learning rate decaying linearly to zero within each round.

    Parameters
    ----------
    steps
        Local steps per round.
    epochs
        Instead of `steps`: passes over each client's own data, so that clients differ in their number of steps.
    batch_size
        Samples per client and step; the data is reshuffled when it runs out.
    lr
        Learning rate at the start of each round.
    max_grad_norm
        The gradient of each client's adapter is clipped to this norm.
    regularizer
        The client's side of multi-task learning: a penalty added to the loss.
    sharpness_rho
        Radius of sharpness-aware minimisation: the gradient is taken `rho` uphill, for flat minima. `0` is none.
    train_head
        Train the head too, from the frozen one; it stays with its task and is never fused. The mean of a task's
        heads, as sent, goes to its clients: heads cross no attack and no simulated channel.
    ranks
        LoRA ranks of the clients, `ranks[client % len(ranks)]`, each at most `model.lora.r`; null is all alike.
    threads
        Torch threads of the process. Sums change their order with it: keep it fixed for equal bits.
    engine
        `cohort`: clients train together, stacked over one frozen base. `peft`: one after another, through peft's
        own modules, for adapters that the cohort engine cannot stack.
    cohort_size
        How many clients, in the order of their ids, are sent to a node together. `1` computes what a device does.
    max_tokens
        At most as many tokens go through the model at once, which bounds memory and keeps products in the cache.
    statistics
        `curvature`: with its update each client sends the second moments `[n, n]` of the inputs and `[m, m]` of the
        gradients of every adapted layer, see :func:`fedfusion.lora.curvature.curvature`, for fusion rules that weigh
        by them. They are larger than the update, cross no attack and no simulated channel, and tell more of the data.
    statistics_rows
        Samples per client that they are taken from, at most.
    mods
        Flower's client mods around each client's own update, the first the outermost, by `_target_`; functions with
        `_partial_: true`. See :func:`fedfusion.client.privacy.protected`.

    References
    ----------
    Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021,
    https://arxiv.org/abs/2010.01412
    """

    steps: int = 25
    epochs: float | None = None
    batch_size: int = 16
    lr: float = 1e-3
    max_grad_norm: float = 1.0
    regularizer: Regularizer = field(default_factory=Unregularized)
    sharpness_rho: float = 0.0
    train_head: bool = False
    ranks: Sequence[int] | None = None
    threads: int = 1
    engine: Literal["cohort", "peft"] = "cohort"
    cohort_size: int = 8
    max_tokens: int = 4096
    statistics: Literal["none", "curvature"] = "none"
    statistics_rows: int = 256
    mods: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "threads", "cohort_size", "max_tokens", "statistics_rows"):
            if getattr(self, name) < 1:
                raise FedfusionError(f"client.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise FedfusionError(f"client.{name} must be positive, got {getattr(self, name)}")
        if self.epochs is not None and not self.epochs > 0:
            raise FedfusionError(f"client.epochs must be positive or null, got {self.epochs}")
        if not self.sharpness_rho >= 0:
            raise FedfusionError(f"client.sharpness_rho must be at least 0, got {self.sharpness_rho}")
        if self.ranks is not None and (not self.ranks or min(self.ranks) < 1):
            raise FedfusionError(f"client.ranks must be ranks of at least 1 or null, got {list(self.ranks)}")

    def __call__(
        self,
        model: LoraModel,
        jobs: Sequence[Job],
        *,
        seed: int,
        server_round: int,
        tasks: Tensor | None = None,
        own: Mapping[int, int] | None = None,
    ) -> list[Trained]:
        """Train the cohort `jobs` together.

        Parameters
        ----------
        tasks : [T, d]
            Mean adapter of each task, for regularisers that need it.
        own
            The row of `tasks` that is each client's own.
        """
        steps = [self._steps(job) for job in jobs]
        by_steps = sorted(range(len(jobs)), key=lambda i: -steps[i])  # those that go on longest come first
        cohort = _Cohort(self, model, [jobs[i] for i in by_steps], [steps[i] for i in by_steps], seed, server_round)
        regularize = cohort.penalty(tasks, own)
        for step in range(cohort.steps[0]):
            batch = cohort.draw(step)
            gradient, losses = cohort.gradient(batch, regularize)
            if self.sharpness_rho:
                ascent = self.sharpness_rho * F.normalize(gradient, dim=1)
                with torch.no_grad():
                    cohort.params.data[: len(gradient)] += ascent
                gradient, _ = cohort.gradient(batch, regularize)
                with torch.no_grad():
                    cohort.params.data[: len(gradient)] -= ascent
            cohort.step(step, gradient, losses)
        trained = cohort.trained()
        results = [trained[by_steps.index(i)] for i in range(len(jobs))]
        if self.statistics == "none":
            return results
        draws = [generator(seed, "curvature", server_round, job.client) for job in jobs]
        parts = zip(jobs, results, draws, strict=True)
        return [replace(result, curvature=self._curvature(model, job, result, rng)) for job, result, rng in parts]

    def _curvature(self, model: LoraModel, job: Job, result: Trained, rng: torch.Generator) -> dict[str, Moments]:
        """The statistics of a client at the adapter and the head that it trained."""
        adapter, rows = job.start + result.update, self.statistics_rows
        return curvature(model, adapter, job.data, result.head, rows=rows, rng=rng, max_tokens=self.max_tokens)

    def _steps(self, job: Job) -> int:
        if self.epochs is None:
            return self.steps
        return max(1, ceil(self.epochs * len(job.data) / min(self.batch_size, len(job.data))))


class _Cohort:
    """The state of a cohort while it trains; clients are sorted by their number of steps, the most first."""

    def __init__(
        self, plan: LocalTraining, model: LoraModel, jobs: list[Job], steps: list[int], seed: int, server_round: int
    ) -> None:
        self.plan, self.model, self.jobs, self.steps = plan, model, jobs, steps
        self.data = [job.data for job in jobs]
        seen, held = sum(steps) * plan.batch_size, sum(map(len, self.data))
        if seen > held and sum(map(model.prefix_bytes, self.data)) <= PREFIX_BYTES:
            self.data = [model.with_prefix(data, plan.max_tokens) for data in self.data]
        self.start = torch.stack([job.start for job in jobs])
        self.params = nn.Parameter(self.start.clone())
        self.frozen = [slice(model.layout.offsets[i], model.layout.offsets[i + 1]) for i in model.frozen]
        self.rows = [nn.Parameter(row) for row in self.params.data]  # views: one optimiser state per client
        self.heads = [job.head.trainable() if plan.train_head else job.head for job in jobs]
        groups = [{"params": [row, *head.parameters()]} for row, head in zip(self.rows, self.heads, strict=True)]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.lr, weight_decay=0.0, fused=True)
        self.shuffles = [generator(seed, "shuffle", server_round, job.client) for job in jobs]
        self.dropouts = [generator(seed, "dropout", server_round, job.client) for job in jobs]
        self.orders = [torch.empty(0, dtype=torch.long) for _ in jobs]
        self.losses = torch.zeros(len(jobs))

    def draw(self, step: int) -> tuple[Samples, Tensor]:
        """The next batch of every client that is still training, one below the other, and whose rows they are."""
        parts = []
        for k, data in enumerate(self.data):
            if step >= self.steps[k]:
                break
            n = len(data)
            while len(self.orders[k]) < min(self.plan.batch_size, n):
                self.orders[k] = torch.cat([self.orders[k], torch.randperm(n, generator=self.shuffles[k])])
            rows, self.orders[k] = self.orders[k].split(
                [min(self.plan.batch_size, len(self.orders[k])), max(0, len(self.orders[k]) - self.plan.batch_size)]
            )
            parts.append(self.data[k].take(rows))
        owner = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
        return concatenate(parts), owner

    def gradient(
        self, batch: tuple[Samples, Tensor], regularize: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Gradient `[k, d]` of each client's mean loss, and the losses `[k]`."""
        samples, owner = batch
        active = int(owner[-1]) + 1
        self.params.grad = None
        self.optimizer.zero_grad()  # of heads
        losses = torch.zeros(active)
        dropout = self.dropouts if self.model.dropout else None
        share = 1.0 / _positions(samples, owner, active)
        for rows in buckets(samples, owner, self.plan.max_tokens, self.model.image_tokens, whole=dropout is not None):
            part, mine = samples.take(rows).trimmed(), owner[rows]
            each, of, _ = _losses(self.model, self.params, part, mine, self.heads, dropout)
            weighted = torch.zeros(active).index_add(0, of, each) * share
            weighted.sum().backward()
            losses += weighted.detach()
        assert self.params.grad is not None
        gradient = self.params.grad[:active]
        if regularize is not None:
            gradient += regularize(self.params.data[:active])
        for part in self.frozen:
            gradient[:, part] = 0.0
        return gradient, losses

    def penalty(self, tasks: Tensor | None, own: Mapping[int, int] | None) -> Callable[[Tensor], Tensor] | None:
        """The gradient of the regulariser at the adapters `[k, d]` of the clients still training; None without one."""
        regularizer, layout = self.plan.regularizer, self.model.layout
        if isinstance(regularizer, Unregularized):
            return None
        others = torch.zeros(0, layout.dim) if tasks is None else tasks
        rows = torch.tensor([own[job.client] if own else 0 for job in self.jobs])

        def gradient(params: Tensor) -> Tensor:
            leaf, k = params.detach().requires_grad_(), len(params)
            return torch.autograd.grad(regularizer(leaf, self.start[:k], others, rows[:k], layout).sum(), leaf)[0]

        return gradient

    def step(self, step: int, gradient: Tensor, losses: Tensor) -> None:
        """Clip each client's gradient and take its step."""
        active = len(gradient)
        norms = gradient.norm(dim=1, keepdim=True)
        gradient *= (self.plan.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        for k, row in enumerate(self.rows):
            row.grad = gradient[k] if k < active else None
            for parameter in self.heads[k].parameters() if k >= active else ():
                parameter.grad = None  # of a client that has finished
            self.optimizer.param_groups[k]["lr"] = self.plan.lr * (1 - step / self.steps[k])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses[:active] += losses

    def trained(self) -> list[Trained]:
        """Update, loss and head of each client."""
        updates = self.params.data - self.start
        return [
            Trained(updates[k].clone(), float(self.losses[k]) / self.steps[k], self.heads[k].detach())
            for k in range(len(self.jobs))
        ]


@torch.no_grad()
def evaluate(model: LoraModel, adapter: Tensor, data: Samples, head: Head, max_tokens: int = 4096) -> dict[str, float]:
    """Accuracy and mean cross-entropy of `adapter [d]` on `data`.

    Where labels are tokens, a sample counts as right when every token of its response is the likeliest one, its end
    included: the same as an exact match of greedy decoding.
    """
    owner = torch.zeros(len(data), dtype=torch.long)
    wrong, total, positions = torch.zeros(len(data)), 0.0, 0
    for rows in buckets(data, owner, max_tokens, model.image_tokens):
        part = data.take(rows).trimmed()
        each, _, (of, right) = _losses(model, adapter[None], part, owner[rows], [head])
        wrong[rows] = torch.zeros(len(rows)).index_add(0, of, (~right).float())
        total, positions = total + float(each.double().sum()), positions + len(each)
    return {"accuracy": float((wrong == 0).double().mean()), "loss": total / max(1, positions)}


def _losses(
    model: LoraModel,
    adapters: Tensor,
    samples: Samples,
    owner: Tensor,
    heads: Sequence[Head],
    dropout: list[torch.Generator] | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Cross-entropy `[m]` at every labelled position, whose it is, and of which sample and whether it is right."""
    features, labels, rows = model.features(adapters, samples, owner, dropout)
    of = owner[rows]
    distinct = {id(head): head for head in heads}
    which = torch.tensor([list(distinct).index(id(head)) for head in heads])[of]
    parts, right, order = [], [], []
    for i, head in enumerate(distinct.values()):
        mine = torch.nonzero(which == i)[:, 0]
        logits = head(features[mine])
        parts.append(F.cross_entropy(logits, labels[mine], reduction="none"))
        right.append(logits.detach().argmax(-1) == labels[mine])
        order.append(mine)
    back = torch.argsort(torch.cat(order))
    return torch.cat(parts)[back], of, (rows, torch.cat(right)[back])


def _positions(samples: Samples, owner: Tensor, num_clients: int) -> Tensor:
    """How many labelled positions each client has in a batch, `[k]`."""
    labels = samples.labels
    each = torch.ones(len(samples)) if labels.dim() == 1 else (labels[:, 1:] != -100).sum(1).float()
    return torch.zeros(num_clients).index_add(0, owner, each).clamp_min(1)
