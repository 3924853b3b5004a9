"""What a round leaves behind."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedfusion.server.evaluation import Scores


@dataclass
class State:
    """All that a round leaves behind.

    Attributes
    ----------
    adapters : [num_clients, d]
        Each client's personal adapter as the server knows it: what it starts from in its next round.
    examples : [num_clients]
        Training examples behind it; zero until a first upload has been believed.
    fused, realigned : [d']
        Multi-task adapters of the fused rank: fused, then repaired.
    merged : [d'] or [0]
        What couplings have added to everybody's base.
    moments : [m, num_clients, d]
        What the server's optimiser keeps.
    heads
        `[C + 1, h]` by task, where heads are trained.
    uploads : [num_clients, d] or [0]
        What each client trained in the last round in which it was drawn, where an attack needs it.
    errors : [num_clients]
        NMSE of the upload behind each adapter, as the receiver believed; not a number where nothing is known.
    served : [d']
        By task, multi-task adapters for devices that know their task.
    curvature
        By `task.kind.module`, moments of inputs `[n, n]` and of gradients `[m, m]`, where clients send them.
    reference
        Scores that no round changes: of the base, and of the control.
    history
        One record per finished round.
    single_task
        Last score of each task's own adapters.
    personal
        Last score of each client's personal adapter, by client id.
    best : [d'] or [0]
        The realigned adapter of the round with the least `held_out_loss`, where that is asked for.
    seconds
        What earlier calls of a resumed run have taken.
    """

    TENSORS: ClassVar = ("adapters", "examples", "fused", "realigned", "merged", "moments", "uploads", "errors", "best")
    BY_TASK: ClassVar = ("heads", "served", "curvature")
    FACTS: ClassVar = ("reference", "history", "single_task", "personal", "seconds")

    adapters: Tensor
    examples: Tensor
    fused: Tensor
    realigned: Tensor
    merged: Tensor
    moments: Tensor
    uploads: Tensor
    errors: Tensor
    heads: dict[str, Tensor]
    served: dict[str, Tensor]
    curvature: dict[str, Tensor]
    reference: dict[str, Scores]
    history: list[dict[str, Any]] = field(default_factory=list)
    single_task: Scores = field(default_factory=dict)
    personal: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    best: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def best_round(self) -> int:
        """Number of the round of `best`; the last one where none is kept."""
        losses = [record["held_out_loss"] for record in self.history]
        return losses.index(min(losses)) + 1 if len(self.best) else len(self.history)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps as tensors."""
        by_task = {f"{kind}.{task}": t for kind in self.BY_TASK for task, t in getattr(self, kind).items()}
        return {name: getattr(self, name) for name in self.TENSORS} | by_task

    @classmethod
    def of(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> "State":
        """The state that a checkpoint holds."""
        kept: dict[str, Any] = {name: facts[name] for name in cls.FACTS} | {kind: {} for kind in cls.BY_TASK}
        for name, tensor in tensors.items():
            kind, _, task = name.partition(".")
            if kind in cls.BY_TASK:
                kept[kind][task] = tensor
            else:
                kept[name] = tensor
        return cls(**kept)
