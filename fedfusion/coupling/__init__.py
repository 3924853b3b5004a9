"""Each client's next personal adapter, pulled towards its relatives or replaced by a common one.

Examples
--------
>>> import torch
>>> from fedfusion.coupling import Laplacian, Task
>>> from fedfusion.rng import generator
>>> from fedfusion.types import Clients
>>> adapters, clients = torch.tensor([[0.0], [1.0], [5.0]]), Clients.of(["a", "a", "b"], torch.zeros(1))
>>> Laplacian(Task(), strength=0.25)(adapters, torch.arange(3), torch.ones(3) / 3, clients, generator(0))[0]
tensor([[0.2500],
        [0.7500],
        [5.0000]])
"""

from fedfusion.coupling.adjacency import Adjacency, FromFile, Random, Shuffled, Similarity, Task, Uniform
from fedfusion.coupling.average import Average, ProductAverage
from fedfusion.coupling.isolated import Isolated
from fedfusion.coupling.laplacian import Laplacian
from fedfusion.coupling.stacking import Stacking

__all__ = [
    "Adjacency",
    "Average",
    "FromFile",
    "Isolated",
    "Laplacian",
    "ProductAverage",
    "Random",
    "Shuffled",
    "Similarity",
    "Stacking",
    "Task",
    "Uniform",
]
