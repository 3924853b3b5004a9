"""Who is whose relative: the weights `a_kl [N, N]` between clients, non-negative, zero on the diagonal, float64."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedfusion.lora.product import gram
from fedfusion.rng import generator
from fedfusion.types import Clients, FedfusionError

READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": lambda path: np.loadtxt(path, delimiter=",", ndmin=2),
    ".json": lambda path: json.loads(path.read_text()),
    ".npy": lambda path: np.load(path, allow_pickle=False),
}


class Adjacency(Protocol):
    """How much each pair of clients is related."""

    def __call__(self, clients: Clients, adapters: Tensor, rng: torch.Generator) -> Tensor:
        """Weights `[N, N]` between all clients, whose adapters are `adapters [N, d]`."""
        ...


@dataclass(frozen=True)
class Uniform:
    """All clients are alike: every weight is one, whatever the task."""

    def __call__(self, clients: Clients, adapters: Tensor, rng: torch.Generator) -> Tensor:
        """Ones off the diagonal."""
        n = len(clients.tasks)
        return _hollow(torch.ones(n, n))


@dataclass(frozen=True)
class Random:
    r"""Weights that know nothing of the tasks, as in MIRA's experiments, the same in every round.

    :math:`a = (U + U^\top) / 2` with independent entries of `U` uniform on [0, 1]: the letter says only "random", this
    is how its ancestor FedU draws them.

    Parameters
    ----------
    seed
        Names the draw, together with the number of clients and nothing else.

    References
    ----------
    Elbakary et al., "MIRA", IEEE Networking Letters 2025, https://doi.org/10.1109/LNET.2025.3539810
    """

    seed: int = 0

    def __call__(self, clients: Clients, adapters: Tensor, rng: torch.Generator) -> Tensor:
        """Weights drawn by `seed`; the round's `rng` is not touched."""
        n = len(clients.tasks)
        drawn = torch.rand(n, n, dtype=torch.float64, generator=generator(self.seed, "adjacency"))
        return _hollow((drawn + drawn.T) / 2)


@dataclass(frozen=True)
class Task:
    """What the suite knows: one for clients of the same task, between tasks how related they are by construction."""

    def __call__(self, clients: Clients, adapters: Tensor, rng: torch.Generator) -> Tensor:
        """`clients.relation` off the diagonal."""
        return _hollow(clients.relation)


@dataclass(frozen=True)
class Shuffled:
    """The control of :class:`Task`: the same weights, handed to the wrong clients.

    Degrees and eigenvalues are those of the truth, only who is related to whom is not: what :class:`Task` gains over
    this is due to the tasks.

    Parameters
    ----------
    seed
        Names the permutation of the clients; it is the same in every round.
    """

    seed: int = 0

    def __call__(self, clients: Clients, adapters: Tensor, rng: torch.Generator) -> Tensor:
        """`clients.relation` with permuted clients."""
        order = torch.randperm(len(clients.tasks), generator=generator(self.seed, "adjacency"))
        return _hollow(clients.relation[order][:, order])


@dataclass(frozen=True)
class Similarity:
    r"""What the adapters say themselves: the cosine of their LoRA products, where it is positive.

    .. math:: a_{kl} = \max\!\left(0, \frac{\langle s B_k A_k, s B_l A_l \rangle}
              {\lVert s B_k A_k \rVert \, \lVert s B_l A_l \rVert}\right)

    over all modules. A client that has not learnt anything (`B = 0`) has no relatives.
    """

    def __call__(self, clients: Clients, adapters: Tensor, rng: torch.Generator) -> Tensor:
        """Cosines of `adapters [N, d]`."""
        inner = gram(clients.layout, adapters)
        norms = inner.diagonal().clamp_min(0).sqrt()
        cosine = (inner / (norms[:, None] * norms)).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
        return _hollow((cosine + cosine.T) / 2)  # what rounding makes of a symmetric matrix need not be one


@dataclass(frozen=True)
class FromFile:
    """Weights from a file: `.csv`, `.npy`, or `.json` (a list of rows); they need not be symmetric.

    Row `k` says whose adapters pull client `k`. The diagonal is ignored.

    Parameters
    ----------
    path
        The file, `[N, N]`.

    Raises
    ------
    FedfusionError
        When it is first used: if it cannot be read, a weight is negative or not finite, or its size is not that of
        the clients. Only the server reads it.
    """

    path: str

    def __call__(self, clients: Clients, adapters: Tensor, rng: torch.Generator) -> Tensor:
        """The weights of the file."""
        n = len(clients.tasks)
        if self.weights.shape != (n, n):
            size = " x ".join(map(str, self.weights.shape))
            raise FedfusionError(
                f"coupling.adjacency.path: '{self.path}' is {size}, the {n} clients need {n} x {n} weights"
            )
        return _hollow(self.weights)

    @cached_property
    def weights(self) -> Tensor:
        """What the file holds."""
        path = Path(self.path)
        if not path.is_file():
            raise FedfusionError(f"coupling.adjacency.path: no file at '{self.path}' (give a .csv, .json or .npy)")
        if path.suffix not in READERS:
            raise FedfusionError(f"coupling.adjacency.path: '{self.path}' is not one of {', '.join(READERS)}")
        try:
            weights = torch.as_tensor(np.asarray(READERS[path.suffix](path), dtype=float))
            if weights.dim() != 2:
                raise ValueError(f"it has {weights.dim()} dimensions")
        except (ValueError, TypeError, OSError, EOFError) as error:
            raise FedfusionError(
                f"coupling.adjacency.path: '{self.path}' holds no matrix of numbers ({error})"
            ) from error
        wrong = ~(torch.isfinite(weights) & (weights >= 0))
        if wrong.any():
            where = ", ".join(str(i + 1) for i in torch.nonzero(wrong)[0].tolist())
            raise FedfusionError(
                f"coupling.adjacency.path: weights must be finite and at least 0, '{self.path}' has "
                f"{float(weights[wrong][0])} at ({where}), counted from one"
            )
        return weights


def _hollow(weights: Tensor) -> Tensor:
    """A float64 copy with zeros on the diagonal."""
    return weights.double().clone().fill_diagonal_(0)
