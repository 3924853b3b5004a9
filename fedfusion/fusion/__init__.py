"""Across tasks: one multi-task vector.

Examples
--------
>>> import torch
>>> from fedfusion.fusion import TaskArithmetic
>>> from fedfusion.rng import generator
>>> from fedfusion.types import Evidence, Layout
>>> task_vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
>>> TaskArithmetic(coefficient=0.5)(task_vectors, Layout.of({"w": torch.zeros(1, 2)}), Evidence(generator(0)))
tensor([0.5000, 1.0000])
"""

from fedfusion.fusion.breadcrumbs import Breadcrumbs
from fedfusion.fusion.byom import Byom
from fedfusion.fusion.channel_aware import ChannelAware
from fedfusion.fusion.consensus import Consensus
from fedfusion.fusion.dare import Dare
from fedfusion.fusion.emr import Emr
from fedfusion.fusion.isotropic import Isotropic
from fedfusion.fusion.learned import Learned
from fedfusion.fusion.linear import TaskArithmetic
from fedfusion.fusion.metagpt import MetaGpt
from fedfusion.fusion.pcb import Pcb
from fedfusion.fusion.precision import PrecisionWeighted
from fedfusion.fusion.ties import Ties
from fedfusion.fusion.tsv import TsvM

__all__ = [
    "Breadcrumbs",
    "Byom",
    "ChannelAware",
    "Consensus",
    "Dare",
    "Emr",
    "Isotropic",
    "Learned",
    "MetaGpt",
    "Pcb",
    "PrecisionWeighted",
    "TaskArithmetic",
    "Ties",
    "TsvM",
]
