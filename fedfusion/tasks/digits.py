"""`digits8`: eight tasks made from real handwritten digits, small enough to ship with the package."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedfusion import assets
from fedfusion.rng import generator
from fedfusion.tasks.partition import split
from fedfusion.types import FedfusionError, Samples

SPLITS = {"root": 200, "validation": 200, "test": 397}  # the other 1000 are for training


def _occlude(x: Tensor, rng: torch.Generator) -> Tensor:
    """A black square of 8 by 8 pixels somewhere."""
    rows, columns = (torch.randint(0, 25, (len(x), 1), generator=rng) for _ in range(2))
    line = torch.arange(32)
    hidden = ((line >= rows) & (line < rows + 8))[:, :, None] & ((line >= columns) & (line < columns + 8))[:, None]
    return x.masked_fill(hidden[:, None], 0.0)


def _shear(x: Tensor, rng: torch.Generator) -> Tensor:
    """The upper edge pushed to the right by a third of the width."""
    theta = torch.tensor([[1.0, 0.35, 0.0], [0.0, 1.0, 0.0]]).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def _noise(x: Tensor, rng: torch.Generator) -> Tensor:
    """White noise, a quarter of the grey range."""
    return (x + 0.25 * torch.randn(x.shape, generator=rng)).clamp(0, 1)


Domain = Callable[[Tensor, torch.Generator], Tensor]
DIGITS = range(10)
LOOPS = (1, 0, 0, 0, 1, 0, 1, 0, 2, 1)

TASKS: Mapping[str, tuple[Domain, tuple[int, ...]]] = {
    "upright-digit": (lambda x, _: x, tuple(DIGITS)),
    "mirrored-parity": (lambda x, _: x.flip(3), tuple(d % 2 for d in DIGITS)),
    "flipped-size": (lambda x, _: x.flip(2), tuple(int(d >= 5) for d in DIGITS)),
    "rotated-thirds": (lambda x, _: x.rot90(1, (2, 3)), tuple(d % 3 for d in DIGITS)),
    "noisy-prime": (_noise, tuple(int(d in (2, 3, 5, 7)) for d in DIGITS)),
    "inverted-strokes": (lambda x, _: 1 - x, tuple(int(d in (1, 4, 7)) for d in DIGITS)),
    "sheared-loops": (_shear, LOOPS),
    "occluded-quarters": (_occlude, tuple(d % 4 for d in DIGITS)),
}

NAMES: Mapping[str, tuple[str, ...]] = {
    "upright-digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "mirrored-parity": ("even digit", "odd digit"),
    "flipped-size": ("digit below five", "digit of five or more"),
    "rotated-thirds": ("multiple of three", "multiple of three plus one", "multiple of three plus two"),
    "noisy-prime": ("digit that is not prime", "prime digit"),
    "inverted-strokes": ("digit with curves", "digit of straight strokes"),
    "sheared-loops": ("digit without loops", "digit with one loop", "digit with two loops"),
    "occluded-quarters": ("multiple of four", *(f"multiple of four plus {n}" for n in ("one", "two", "three"))),
}


@lru_cache(maxsize=1)
def _images() -> dict[str, tuple[Tensor, Tensor]]:
    """The four splits: images `[n, 1, 32, 32]` in [0, 1] and digits `[n]`, the same for every task and seed."""
    path = assets.find("digits.npz")
    if path is None:
        raise FedfusionError(
            "suite=digits8: digits.npz is not there (install the package itself, pip install fedfusion)"
        )
    with np.load(path) as archive:
        images, digits = torch.from_numpy(archive["images"]), torch.from_numpy(archive["digits"]).long()
    enlarged = F.interpolate(images[:, None].float() / 16, size=(32, 32), mode="bilinear", align_corners=False)
    order = torch.randperm(len(digits), generator=generator(0, "digits8", "split"))
    sizes = [*SPLITS.values(), len(digits) - sum(SPLITS.values())]
    return {
        name: (enlarged[index], digits[index])
        for name, index in zip([*SPLITS, "train"], order.split(sizes), strict=True)
    }


@lru_cache(maxsize=64)
def _task(task: str, part: str) -> Samples:
    images, digits = _images()[part]
    domain, labels = TASKS[task]
    pixels = domain(images, generator(0, "digits8", task, part))
    return Samples({"pixel_values": (pixels - 0.5) / 0.5}, torch.tensor(labels)[digits])


@dataclass(frozen=True)
class Digits8:
    """Eight classification tasks on 1,797 handwritten digits, differing in domain and in label set.

    Upright: which digit (10 classes); mirrored: odd or even (2); upside down: five or more (2); rotated by 90
    degrees: remainder by 3 (3); under noise: prime or not (2); inverted: straight strokes only or curves (2);
    sheared: number of loops (3); occluded: remainder by 4 (4). The images are 8x8, enlarged to 32x32 and split
    once: 1000 to train on, 200 the root set is drawn from, 200 to choose hyper-parameters on, 397 to test.

    Parameters
    ----------
    partitioner
        Divides a task's training data among its clients.
    tasks
        Which of the eight, in which order.
    clients_per_task
        The first `clients_per_task` clients hold the first task, and so on.
    shots
        Labelled samples per class that the server holds of each task.
    unlabelled
        Further samples of each task that the server holds without labels, drawn from the same 200.
    trusted
        Further labelled samples of each task by which the server judges uploads, drawn from the same 200.

    References
    ----------
    Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, https://doi.org/10.24432/C50P49
    """

    partitioner: Callable[..., Any]
    tasks: Sequence[str] = tuple(TASKS)
    clients_per_task: int = 2
    shots: int = 3
    unlabelled: int = 0
    trusted: int = 0
    _shares: dict[tuple[str, int], tuple[Tensor, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise FedfusionError(f"suite.tasks: there is no task '{task}' (choose among {', '.join(TASKS)})")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise FedfusionError(f"suite.tasks must name at least one task, and none twice, got {list(self.tasks)}")
        if self.clients_per_task < 1:
            raise FedfusionError(f"suite.clients_per_task must be at least 1, got {self.clients_per_task}")
        if not 1 <= self.shots <= 10:
            raise FedfusionError(f"suite.shots must be between 1 and 10 (the root pool is small), got {self.shots}")
        left = SPLITS["root"] - self.shots * max(map(self.num_classes, self.tasks))
        if min(self.unlabelled, self.trusted) < 0 or self.unlabelled + self.trusted > left:
            raise FedfusionError(
                f"suite.unlabelled and suite.trusted must be at least 0 and together at most {left}, what "
                f"suite.shots={self.shots} leaves of the root pool of each task, got {self.unlabelled}, {self.trusted}"
            )

    @property
    def num_clients(self) -> int:
        """Number of tasks times `clients_per_task`."""
        return len(self.tasks) * self.clients_per_task

    def task_of(self, client: int) -> str:
        """The task of a client."""
        return self.tasks[client // self.clients_per_task]

    def num_classes(self, task: str) -> int:
        """Number of labels of a task."""
        return max(TASKS[task][1]) + 1

    def class_names(self, task: str) -> tuple[str, ...]:
        """What the labels of a task are called, in the order of their ids."""
        return NAMES[task]

    def relation(self, task: str, other: str) -> float:
        """One for a task and itself; all are of the same digits, and none is closer to another by construction."""
        return float(task == other)

    def check(self, seed: int = 0) -> None:
        """Refuse a partition that leaves a client without data."""
        for client in range(self.num_clients):
            self.train(client, seed)

    def train(self, client: int, seed: int) -> Samples:
        """The client's share of its task's 1000 training images."""
        task = self.task_of(client)
        samples = _task(task, "train")
        if (task, seed) not in self._shares:
            table = {"label": samples.labels.tolist()}
            self._shares[task, seed] = split(table, task, self.clients_per_task, self.partitioner, seed)
        return samples.take(self._shares[task, seed][client % self.clients_per_task])

    def root(self, task: str, seed: int) -> Samples:
        """`shots` samples of each class, drawn from the root pool by `seed`."""
        return _task(task, "root").take(self._drawn(task, seed))

    def unlabelled_rows(self, task: str, seed: int) -> Samples:
        """`unlabelled` samples, drawn from what the root set leaves of its pool by `seed`."""
        return _task(task, "root").take(self._left(task, seed)[: self.unlabelled])

    def trusted_rows(self, task: str, seed: int) -> Samples:
        """`trusted` labelled samples, drawn from what both leave."""
        return _task(task, "root").take(self._left(task, seed)[self.unlabelled : self.unlabelled + self.trusted])

    def validation(self, task: str) -> Samples:
        """Held-out training images on which hyper-parameters may be chosen."""
        return _task(task, "validation")

    def test(self, task: str) -> Samples:
        """The 397 test images as this task sees them."""
        return _task(task, "test")

    def _left(self, task: str, seed: int) -> Tensor:
        """What the root set leaves of its pool, in the order in which it is drawn from."""
        order = torch.randperm(SPLITS["root"], generator=generator(seed, "unlabelled", task))
        return order[~torch.isin(order, self._drawn(task, seed))]

    def _drawn(self, task: str, seed: int) -> Tensor:
        """Indices of the root set into its pool."""
        labels = _task(task, "root").labels
        order = torch.randperm(len(labels), generator=generator(seed, "root", task))
        return torch.cat([order[labels[order] == c][: self.shots] for c in range(self.num_classes(task))])
