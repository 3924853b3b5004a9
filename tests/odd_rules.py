"""Rules that misbehave, fusion that asks the samples, and a channel that reports nothing, for tests."""

from dataclasses import dataclass

import torch

from fedfusion.types import ChannelReport


@dataclass(frozen=True)
class Infinite:
    """Divides by zero."""

    space = "core"
    data = "none"

    def __call__(self, task_vectors, layout, evidence):
        return task_vectors.sum(0) / 0


@dataclass(frozen=True)
class Spoiler:
    """A realigner that spoils what is to be repaired; the base too, or only what is not the base."""

    what: str
    base_too: bool

    data = "none"
    needs_tasks = False

    def __call__(self, fused, repair):
        if not self.base_too and torch.equal(fused, repair.base):
            return fused
        return fused[1:] if self.what == "shape" else fused / 0


@dataclass(frozen=True)
class Best:
    """The one task vector with the lowest loss on the samples of all tasks, or the lowest entropy."""

    data: str = "few labels"

    space = "core"

    def __call__(self, task_vectors, layout, evidence):
        probe = evidence.probe
        labels = [labels for _, labels in probe.logits(task_vectors[0], torch.arange(len(probe))).values()]
        assert self.data == "few labels" or (torch.cat(labels) == -1).all()
        measure = probe.loss if self.data == "few labels" else probe.entropy
        return task_vectors[int(torch.stack([measure(v, torch.arange(len(probe))) for v in task_vectors]).argmin())]


@dataclass(frozen=True)
class Muffled:
    """A channel that says nothing of what it does."""

    superposes = False

    def __call__(self, updates, rng):
        return updates.with_vectors(updates.vectors * 0.5), ChannelReport()


@dataclass(frozen=True)
class Swapped:
    """An attack of one's own that poisons data, and has none of the keys of ours."""

    level: int = 1
    poisons = True
    remembers = False

    def byzantine(self, tasks, rng):
        return (0,)

    def poison(self, samples, num_classes, rng):
        return samples

    def triggered(self, samples, num_classes):
        return None

    def __call__(self, updates, byzantine, rng, last):
        return updates
