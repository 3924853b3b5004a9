"""Within one task: many clients, one vector.

Examples
--------
>>> import torch
>>> from fedfusion.aggregators import Krum, Mean
>>> from fedfusion.rng import generator
>>> vectors, weights = torch.tensor([[0.0], [0.1], [0.2], [0.1], [9.0]]), torch.full((5,), 0.2)
>>> Krum(f=1)(vectors, weights, generator(0))
tensor([0.1000])
>>> Mean()(vectors, weights, generator(0))
tensor([1.8800])
"""

from fedfusion.aggregators.bulyan import Bulyan
from fedfusion.aggregators.caf import CAF
from fedfusion.aggregators.centered_clipping import CenteredClipping
from fedfusion.aggregators.cge import CGE
from fedfusion.aggregators.fltrust import FLTrust
from fedfusion.aggregators.geometric_median import GeometricMedian
from fedfusion.aggregators.krum import Krum, MultiKrum
from fedfusion.aggregators.mda import MDA
from fedfusion.aggregators.meamed import MeaMed
from fedfusion.aggregators.mean import Mean
from fedfusion.aggregators.median import Median
from fedfusion.aggregators.monna import MoNNA
from fedfusion.aggregators.trimmed_mean import TrimmedMean

__all__ = [
    "Bulyan",
    "CAF",
    "CGE",
    "CenteredClipping",
    "FLTrust",
    "GeometricMedian",
    "Krum",
    "MDA",
    "MeaMed",
    "Mean",
    "Median",
    "MoNNA",
    "MultiKrum",
    "TrimmedMean",
]
