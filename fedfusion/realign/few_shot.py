"""A short tune of the fused adapter on the few samples that the server holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from fedfusion.lora.product import outside
from fedfusion.realign.teachers import SCORED, Teachers, accuracy
from fedfusion.types import FedfusionError, Layout, Probe, Repair

Loss = Callable[[Tensor, Tensor], Tensor]  # of an adapter `[d]` on rows of the samples


@dataclass(frozen=True)
class FewShot:
    r"""AdamW on the fused adapter over the server's samples of all tasks, learning rate decaying linearly to zero.

    Only the adapter moves: embeddings, heads and every other weight of the base stay frozen, which is the
    realignment of R-MTLLMF as far as it is known. `steps=0` and one scale of 1 are no realignment. Whether fusion
    earned anything is seen beside the control: the same tune from the base alone, without task vectors.

    Three losses say what is learnt from a sample `x` of task `t`:

    - `labels`: cross-entropy with its label (R-MTLLMF);
    - `entropy`: the entropy of the prediction, which needs no labels;
    - `teachers`: :math:`\mathrm{KL}(q \Vert p)` of the prediction `p` from
      :math:`q = w_t\, p_t(x) + (1 - w_t)\, \mathbb 1_y`, where the teacher `p_t` is the single-task adapter of task `t`
      as it was received. Its weight :math:`w_t = [(a_t - 1/C) / (1 - 1/C)]_+^\delta` is its accuracy `a_t` on the
      server's samples beyond that of guessing among `C` classes, to the power of `doubt`: teachers drowned in noise are
      not followed. The control has no teachers, and learns from labels.

    Parameters
    ----------
    steps, lr, batch_size
        Of AdamW.
    loss, doubt
        As above; a `doubt` of zero follows every teacher.
    schedule
        What a batch is drawn from: `pooled`, all samples together, so that tasks of many classes come more often;
        `balanced`, the same number of each task; `per_task`, one task after another in turn.
    modules
        Parts of names of the modules that move, as `[layers.3]` for a block; empty: all.
    share
        Of those, the share that moves: where the gradient of the loss is largest at the fused point, once, as the most
        was forgotten there.
    anchor
        Rate at which the adapter decays towards where it started, as weight decay does towards zero.
    scales, keep
        What the fused adapter's product is multiplied by before the tune: of several, the largest that is right on at
        least the share `keep` of those of the server's samples that the best of them is right on. Prototypes were made
        of these samples, so that the base is right on nearly all; noise moves the features away from them long before
        the task vectors do. `0` is the base, where the control starts.

    References
    ----------
    Djuhera et al., "R-MTLLMF: Resilient Multi-Task Large Language Model Fusion at the Wireless Edge", 2024,
    https://arxiv.org/abs/2411.18220 (its step counts and rates are not published; these are ours); distillation:
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531
    """

    steps: int = 30
    lr: float = 3e-4
    batch_size: int = 64
    loss: Literal["labels", "entropy", "teachers"] = "labels"
    doubt: float = 3.0
    schedule: Literal["pooled", "balanced", "per_task"] = "pooled"
    modules: Sequence[str] = ()
    share: float = 1.0
    anchor: float = 0.0
    scales: Sequence[float] = (1.0,)
    keep: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.lr < inf:
            raise FedfusionError(f"realign.lr must be positive and finite, got {self.lr}")
        if self.steps < 0 or self.batch_size < 1:
            raise FedfusionError(
                "realign.steps must be at least 0 and realign.batch_size at least 1, "
                f"got {self.steps}, {self.batch_size}"
            )
        for name in ("share", "keep"):
            if not 0 < getattr(self, name) <= 1:
                raise FedfusionError(f"realign.{name} must be in (0, 1], got {getattr(self, name)}")
        if not self.doubt >= 0:
            raise FedfusionError(f"realign.doubt must be at least 0, got {self.doubt}")
        if not self.scales or not all(0 <= scale < inf for scale in self.scales):
            raise FedfusionError(f"realign.scales must be at least one number, none negative, got {list(self.scales)}")
        if not 0 <= self.anchor * self.lr < 1:
            raise FedfusionError(
                f"realign.anchor={self.anchor} times realign.lr={self.lr} must be in [0, 1) (lower the anchor)"
            )

    @property
    def data(self) -> Literal["unlabelled", "few labels"]:
        """Which samples of the server it is given: scales are chosen by labels."""
        return "unlabelled" if self.loss == "entropy" and tuple(self.scales) == (1.0,) else "few labels"

    @property
    def needs_tasks(self) -> bool:
        """Whether it learns from the adapters of the single tasks, as received."""
        return self.loss == "teachers"

    def __call__(self, fused: Tensor, repair: Repair) -> Tensor:
        """Return the tuned adapter `[d]`."""
        start = self._start(fused, repair)
        if not self.steps:
            return start
        loss, probe = self._loss(repair), repair.probe
        moves = self._moves(start, repair.layout, probe, loss)
        adapter = start.clone().requires_grad_()
        optimizer = torch.optim.AdamW([adapter], lr=self.lr, weight_decay=0.0)
        for step in range(self.steps):
            lr = optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            optimizer.zero_grad(set_to_none=True)
            loss(adapter, self._rows(step, probe, repair.rng)).backward()
            assert adapter.grad is not None
            adapter.grad.masked_fill_(~moves, 0.0)
            optimizer.step()
            with torch.no_grad():
                adapter.lerp_(start, lr * self.anchor)
        return adapter.detach()

    def _start(self, fused: Tensor, repair: Repair) -> Tensor:
        """The fused adapter, scaled."""
        if tuple(self.scales) == (1.0,):
            return fused
        starts = [_scaled(fused, repair.base, repair.layout, scale) for scale in sorted(self.scales, reverse=True)]
        right = [accuracy(repair.probe, start) for start in starts]
        return next(start for start, share in zip(starts, right, strict=True) if share >= self.keep * max(right))

    def _rows(self, step: int, probe: Probe, rng: torch.Generator) -> Tensor:
        """The samples of a step."""
        if self.schedule == "pooled":
            return torch.randperm(len(probe), generator=rng)[: self.batch_size]
        present = probe.tasks.unique().tolist()
        chosen = [present[step % len(present)]] if self.schedule == "per_task" else present
        each = max(1, self.batch_size // len(chosen))
        own = [torch.nonzero(probe.tasks == task)[:, 0] for task in chosen]
        return torch.cat([rows[torch.randperm(len(rows), generator=rng)[:each]] for rows in own])

    def _loss(self, repair: Repair) -> Loss:
        if self.loss == "entropy":
            return repair.probe.entropy
        if self.loss == "labels" or not len(repair.tasks):
            return repair.probe.loss
        return Teachers.of(repair.probe, repair.tasks, self.doubt).loss

    def _moves(self, start: Tensor, layout: Layout, probe: Probe, loss: Loss) -> Tensor:
        """Which of the entries `[d]` are tuned.

        Raises
        ------
        FedfusionError
            If no module has a name with a part that is asked for.
        """
        owner = dict(zip(layout.names, layout.names, strict=True))
        for pair in layout.pairs:
            owner |= {layout.names[pair.a]: pair.module, layout.names[pair.b]: pair.module}
        modules = list(dict.fromkeys(owner.values()))
        chosen = [module for module in modules if not self.modules or any(part in module for part in self.modules)]
        if not chosen:
            raise FedfusionError(
                f"realign.modules={list(self.modules)}: no module of the adapter has such a name (there are "
                f"{', '.join(modules[:4])}{', ...' * (len(modules) > 4)})"
            )
        if self.share < 1:
            gradient = _gradient(start, probe, loss)
            slopes = dict.fromkeys(modules, 0.0)
            for i, name in enumerate(layout.names):
                slopes[owner[name]] += float(layout.entry(gradient, i).square().sum())
            chosen = sorted(chosen, key=lambda module: -slopes[module])[: max(1, round(self.share * len(chosen)))]
        moves = torch.zeros(layout.dim, dtype=torch.bool)
        for i, name in enumerate(layout.names):
            layout.entry(moves, i).fill_(owner[name] in chosen)
        return moves


def _gradient(adapter: Tensor, probe: Probe, loss: Loss) -> Tensor:
    """The gradient `[d]` of the mean loss on all samples."""
    point = adapter.clone().requires_grad_()
    for rows in torch.arange(len(probe)).split(SCORED):
        (loss(point, rows) * (len(rows) / len(probe))).backward()
    assert point.grad is not None
    return point.grad


def _scaled(adapter: Tensor, base: Tensor, layout: Layout, scale: float) -> Tensor:
    """`adapter [d]` with its products times `scale`, and what is outside of them as far from `base [d]`."""
    if scale == 0:
        return base
    scaled = adapter.clone()
    for pair in layout.pairs:
        layout.entry(scaled, pair.b).mul_(scale)
    for i in outside(layout):
        layout.entry(scaled, i).sub_(layout.entry(base, i)).mul_(scale).add_(layout.entry(base, i))
    return scaled
