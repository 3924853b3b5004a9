"""The local loop: one client's LoRA fine-tuning, and the evaluation of any adapter."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion.lora.model import LoraModel
from fedfusion.rng import generator, seed_of
from fedfusion.types import FedfusionError, Samples

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """Adam on the adapter, the learning rate decaying linearly to zero within each round.

    Parameters
    ----------
    steps
        Local steps per round.
    batch_size
        Samples per step; the data is reshuffled when it runs out.
    lr
        Learning rate at the start of each round.
    weight_decay
        Strength of the pull towards what was broadcast, `weight_decay * (params - start)`, added to the gradient
        before it is clipped. `0` is none.
    max_grad_norm
        Gradients are clipped to this norm.
    threads
        Torch threads of the process. Sums change their order with it: keep it fixed for equal bits.
    engine
        `peft`: the clients of a node train one after another on one shared base.
    """

    steps: int = 25
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    threads: int = 1
    engine: Literal["peft"] = "peft"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise FedfusionError(f"client.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise FedfusionError(f"client.{name} must be positive, got {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise FedfusionError(f"client.weight_decay must be at least 0, got {self.weight_decay}")

    def __call__(
        self, model: LoraModel, start: Tensor, data: Samples, head: Head, *, seed: int, server_round: int, client: int
    ) -> tuple[Tensor, float]:
        """Train from `start [d]` on `data`.

        Returns
        -------
        update, loss
            The adapter minus `start`, `[d]`, and the mean training loss.
        """
        model.write(start)
        model.module.train()
        optimizer = torch.optim.AdamW([model.flat], lr=self.lr, weight_decay=0.0, fused=True)
        shuffle = generator(seed, "shuffle", server_round, client)
        order = torch.empty(0, dtype=torch.long)
        total = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "dropout", server_round, client))
            for step in range(self.steps):
                while len(order) < min(self.batch_size, len(data)):
                    order = torch.cat([order, torch.randperm(len(data), generator=shuffle)])
                batch, order = data.take(order[: self.batch_size]), order[self.batch_size :]
                optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
                model.gradient.zero_()
                loss = F.cross_entropy(head(model.features(batch.inputs)), batch.labels)
                loss.backward()
                if self.weight_decay:
                    model.gradient.add_(model.flat.data - start, alpha=self.weight_decay)
                torch.nn.utils.clip_grad_norm_([model.flat], self.max_grad_norm)
                optimizer.step()
                total += float(loss.detach())
        return model.read() - start, total / self.steps


@torch.no_grad()
def evaluate(model: LoraModel, adapter: Tensor, data: Samples, head: Head, batch_size: int = 64) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of `adapter [d]` on `data`."""
    model.write(adapter)
    model.module.eval()
    hits, loss = 0, 0.0
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.take(rows)
        logits = head(model.features(batch.inputs))
        hits += int((logits.argmax(-1) == batch.labels).sum())
        loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
    return hits / len(data), loss / len(data)
