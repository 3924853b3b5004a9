"""Coefficients of task vectors, learnt on the server's samples."""

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from fedfusion.fusion.groups import Granularity, Groups
from fedfusion.types import Evidence, FedfusionError, Layout, Probe


@dataclass(frozen=True)
class Learned:
    r"""A coefficient for every task and group of coordinates, learnt on samples that the server holds.

    .. math:: \tau = \sum_t C_t \odot \tau_t, \qquad
              \frac{\partial L}{\partial C_{tg}} = \sum_{i \in g} \frac{\partial L}{\partial \tau_i} \tau_{t,i}

    The loss is a sum over tasks, with one batch of each per step. The fused vector is the only leaf of the graph, and
    one task is in it at a time: memory does not grow with the number of tasks. `steps=0` is task arithmetic.

    ============ =================== ============ ========= ======= ===================================
    method       `granularity`       `weights`    `loss`    `space` and, as published
    ============ =================== ============ ========= ======= ===================================
    AdaMerging   `layer` or `task`   `clamped`    `entropy` `core`  `coefficient=0.3`
    aTLAS        `layer` or `block`  `free`       `labels`  `core`  `coefficient=0`
    ScaLearn     `row` or `layer`    `free`       `labels`  `right` `coefficient=2/T`, `dropout=0.3`
    Concrete     `element` or `row`  `concrete`   `entropy` `right` `coefficient=0.3`, `shared=true`
    MHR          `block`             `normalised` `labels`  `right` `coefficient=null`
    ============ =================== ============ ========= ======= ===================================

    They are published for one target task each (aTLAS, ScaLearn, MHR) or for all (AdaMerging, Concrete); here it is
    always all. Gradients are local: a start near a good coefficient of task arithmetic matters more than the rate.
    Samples on which the heads were fitted say little of the adapter, so `entropy` wants others (`suite.unlabelled`).

    Parameters
    ----------
    granularity, blocks
        What shares a coefficient, see :meth:`Groups.split <fedfusion.fusion.groups.Groups.split>`. Rows are outputs
        of the module in space `right`, and directions in which the tasks' products write in space `core`.
    shared
        One coefficient for all tasks.
    weights
        `free`: any number. `clamped`: in [0, 1]. `normalised`: a sigmoid of each logit over their sum over tasks,
        times `coefficient * T`. `concrete`: a relaxed Bernoulli mask over its mean, times `coefficient`; learnt on
        draws of it, and then its probability.
    loss
        `entropy` of predictions, which needs no labels, or cross-entropy with `labels`.
    coefficient
        Where all coefficients start; null is `1/T`.
    steps, lr, batch_size
        Of AdamW, the learning rate decaying linearly to zero; samples of each task in a step.
    weight_decay
        Pull towards the start. `0` is none.
    dropout
        Share of the coefficients that are zero in a step; the others grow in turn.
    temperature
        Of the relaxed Bernoulli mask.
    space
        The coordinates: `core`, `left`, `right` or `dense`.

    Notes
    -----
    A loss that is not finite ends the learning: the last coefficients whose loss was finite are kept.

    References
    ----------
    Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024,
    https://arxiv.org/abs/2310.02575; Zhang et al., "Knowledge Composition using Task Vectors with Learned Anisotropic
    Scaling" (aTLAS), NeurIPS 2024, https://arxiv.org/abs/2407.02880; Frohmann et al., "ScaLearn: Simple and Highly
    Parameter-Efficient Task Transfer by Learning to Scale", ACL Findings 2024, https://arxiv.org/abs/2310.01217; Tang
    et al., "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion", 2023,
    https://arxiv.org/abs/2312.06173; Caccia et al., "Multi-Head Adapter Routing for Cross-Task Generalization" (MHR),
    NeurIPS 2023, https://arxiv.org/abs/2211.03831
    """

    granularity: Granularity = "layer"
    blocks: int = 8
    shared: bool = False
    weights: Literal["free", "clamped", "normalised", "concrete"] = "clamped"
    loss: Literal["entropy", "labels"] = "entropy"
    coefficient: float | None = 0.3
    steps: int = 30
    lr: float = 0.05
    batch_size: int = 16
    weight_decay: float = 0.0
    dropout: float = 0.0
    temperature: float = 0.5
    space: Literal["core", "left", "right", "dense"] = "core"

    @property
    def data(self) -> Literal["unlabelled", "few labels"]:
        """What it needs beside the task vectors."""
        return "unlabelled" if self.loss == "entropy" else "few labels"

    def __post_init__(self) -> None:
        start, wrong = self.coefficient, None
        if start is not None and not 0 <= start < inf:
            wrong = f"coefficient must be finite and at least 0, or null, got {start}"
        elif start == 0 and self.weights in ("normalised", "concrete"):
            wrong = f"coefficient=0 leaves nothing to learn with weights={self.weights} (set it to 0.3)"
        elif start is not None and start > 1 and self.weights == "clamped":
            wrong = f"coefficient={start} is outside [0, 1], where weights=clamped keeps it (choose weights=free)"
        elif self.weights == "normalised" and self.shared:
            wrong = "weights=normalised divides by the sum over tasks, and shared=true leaves one (set it to false)"
        elif self.weights == "concrete" and self.granularity == "task":
            wrong = "weights=concrete divides by the mean, and granularity=task leaves one number (choose layer or row)"
        elif self.steps < 0:
            wrong = f"steps must be at least 0, got {self.steps}"
        elif not 0 <= self.dropout < 1:
            wrong = f"dropout must be in [0, 1), got {self.dropout}"
        elif not 0 <= self.weight_decay < inf:
            wrong = f"weight_decay must be finite and at least 0, got {self.weight_decay}"
        for key in ("blocks", "batch_size", "lr", "temperature"):
            if not 0 < getattr(self, key) < inf:
                wrong = f"{key} must be positive and finite, got {getattr(self, key)}"
        if wrong:
            raise FedfusionError(f"fusion.{wrong}")

    def __call__(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """The fused vector `[D]` of `task_vectors [T, D]`."""
        groups = Groups.split(layout, self.granularity, self.blocks)
        return groups.combine(self.coefficients(task_vectors, layout, evidence), task_vectors)

    def coefficients(self, task_vectors: Tensor, layout: Layout, evidence: Evidence) -> Tensor:
        """What is learnt: `C [T, G]`, in which `layer` gives one column per entry of `layout`.

        Raises
        ------
        FedfusionError
            If the server holds no samples.
        """
        if evidence.probe is None:
            raise FedfusionError(
                f"fusion.loss={self.loss} learns from the server's samples: there are none here (run it in a "
                "federation, or choose a rule that needs no data)"
            )
        groups = Groups.split(layout, self.granularity, self.blocks)
        start = 1 / len(task_vectors) if self.coefficient is None else self.coefficient
        vectors = task_vectors.sum(0, keepdim=True) if self.shared else task_vectors
        shift = vectors.new_zeros(len(vectors), groups.count, requires_grad=True)
        sound = shift.detach().clone()
        optimizer = torch.optim.AdamW([shift], weight_decay=self.weight_decay)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            chosen = self._weights(shift, start, groups, evidence.rng)
            loss, gradient = self._gradient(groups.combine(chosen.detach(), vectors), evidence.probe, evidence.rng)
            slopes = groups.slopes(gradient, vectors)
            if not (loss.isfinite() and slopes.isfinite().all()):
                shift = sound
                break
            sound = shift.detach().clone()
            optimizer.zero_grad()
            chosen.backward(slopes)
            optimizer.step()
            if self.weights == "clamped":
                shift.data.clamp_(-start, 1 - start)
        return self._weights(shift.detach(), start, groups, None).expand(len(task_vectors), -1)

    def _weights(self, shift: Tensor, start: float, groups: Groups, rng: torch.Generator | None) -> Tensor:
        """Coefficients `[T, G]` at `shift` from the start, of themselves or of logits; noisy where `rng` is given."""
        weights = start + shift
        if self.weights == "normalised":
            weights = start * len(shift) * shift.sigmoid() / shift.sigmoid().sum(0)
        if self.weights == "concrete":
            noise = None if rng is None else torch.rand(shift.shape, generator=rng, dtype=shift.dtype).logit(1e-6)
            mask = shift.sigmoid() if noise is None else ((shift + noise) / self.temperature).sigmoid()
            share = torch.bincount(groups.of).to(mask.dtype) / len(groups.of)
            weights = start * mask / (mask @ share)[:, None]
        if self.dropout and rng is not None:
            weights = weights * (torch.rand(shift.shape, generator=rng) >= self.dropout) / (1 - self.dropout)
        return weights

    def _gradient(self, fused: Tensor, probe: Probe, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Loss on a batch of every task, and its gradient `[D]` at `fused [D]`."""
        leaf, tasks = fused.requires_grad_(), probe.tasks
        measure, total = (probe.entropy if self.loss == "entropy" else probe.loss), torch.zeros(())
        for task in tasks.unique():  # backward at once, so that the graph of one task is there at a time
            mine = torch.nonzero(tasks == task)[:, 0]
            loss = measure(leaf, mine[torch.randperm(len(mine), generator=rng)[: self.batch_size]])
            loss.backward()
            total = total + loss.detach()
        assert leaf.grad is not None
        return total, leaf.grad
