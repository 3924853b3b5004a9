"""What the adapters of a finished run look like: who is whose relative, and in how many directions a task changed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedfusion.coupling.adjacency import Adjacency
from fedfusion.lora.product import spectrum
from fedfusion.rng import generator
from fedfusion.types import Clients, Layout

NODES = 64  # of a graph that a person can read; with more clients, tasks take their place


def relation(adjacency: Adjacency, clients: Clients, adapters: Tensor, seed: int, rounds: int) -> dict[str, Any]:
    """The weights between clients, as the adapters are after the last round.

    Returns
    -------
    dict
        `tasks`, that of each node; `of`, `clients` or `tasks`; `weights`, a row for each node: how much it is pulled
        by each of the others. Between tasks they are means over pairs of clients, within a task too.
    """
    weights = adjacency(clients, adapters, generator(seed, "coupling", rounds))
    names = list(clients.tasks)
    if len(names) <= NODES:
        return {"of": "clients", "tasks": names, "weights": _rounded(weights)}
    tasks = list(dict.fromkeys(names))
    member = torch.tensor([[name == task for name in names] for task in tasks], dtype=torch.float64)
    pairs = member @ (1 - torch.eye(len(names), dtype=torch.float64)) @ member.T
    return {"of": "tasks", "tasks": tasks, "weights": _rounded(member @ weights @ member.T / pairs.clamp_min(1))}


def spectra(
    layout: Layout, adapters: Tensor, examples: Tensor, tasks: Sequence[str], fused: tuple[Layout, Tensor]
) -> dict[str, list[float]]:
    """Singular values of what each task learned, the mean over its clients that were heard, and of the fused model.

    Returns
    -------
    dict
        By task, and `fused`, where there are products: see :func:`fedfusion.lora.product.spectrum`.
    """
    found: dict[str, list[float]] = {}
    for task in dict.fromkeys(tasks):
        heard = [client for client, own in enumerate(tasks) if own == task and examples[client] > 0]
        found[task] = energies(layout, adapters[heard], examples[heard] / examples[heard].sum()) if heard else []
    found["fused"] = energies(fused[0], fused[1][None], torch.ones(1))
    return {name: shares for name, shares in found.items() if shares}


def energies(layout: Layout, vectors: Tensor, weights: Tensor) -> list[float]:
    """:func:`fedfusion.lora.product.spectrum` as numbers for a file."""
    return [round(share, 6) for share in spectrum(layout, vectors, weights).tolist()]


def _rounded(weights: Tensor) -> list[list[float]]:
    return [[round(weight, 4) for weight in row] for row in weights.tolist()]
