"""Before aggregation: rows made alike, or fewer.

Examples
--------
>>> import torch
>>> from fedfusion.preaggregators import NNM
>>> from fedfusion.rng import generator
>>> NNM(f=1)(torch.tensor([[0.0], [1.0], [9.0]]), generator(0))
tensor([[0.5000],
        [0.5000],
        [5.0000]])
"""

from fedfusion.preaggregators.arc import ARC
from fedfusion.preaggregators.bucketing import Bucketing
from fedfusion.preaggregators.nnm import NNM
from fedfusion.preaggregators.static_clipping import StaticClipping
from fedfusion.preaggregators.unmixed import Unmixed

__all__ = [
    "ARC",
    "Bucketing",
    "NNM",
    "StaticClipping",
    "Unmixed",
]
