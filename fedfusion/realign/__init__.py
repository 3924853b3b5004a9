"""Repairs of the fused model with a few samples.

What a realigner repairs is seen through a :class:`fedfusion.types.Probe`, samples as a function of the adapter. Here
their loss is the distance to a known one.

Examples
--------
>>> import torch
>>> from fedfusion.realign import FewShot
>>> from fedfusion.rng import generator
>>> from fedfusion.types import Layout, Repair
>>> class Parabola:
...     tasks = torch.zeros(4)
...     def __len__(self):
...         return 4
...     def loss(self, adapter, rows):
...         return (adapter - 1).square().sum()
>>> fused = torch.zeros(2)
>>> repair = Repair(generator(0), Parabola(), Layout.of({"w": fused}), base=fused)
>>> FewShot(steps=200, lr=0.1)(fused, repair).round(decimals=2)
tensor([1., 1.])
"""

from fedfusion.realign.few_shot import FewShot
from fedfusion.realign.unaligned import Unaligned

__all__ = [
    "FewShot",
    "Unaligned",
]
