"""What the server makes of the change of the personal adapters in one round.

Examples
--------
>>> import torch
>>> from fedfusion.optimizers import FedAvgM
>>> step, moments = FedAvgM(momentum=0.9)(torch.ones(1, 2), torch.ones(1, 1, 2))
>>> step
tensor([[1.9000, 1.9000]])
"""

from fedfusion.optimizers.fedadam import FedAdam
from fedfusion.optimizers.fedavgm import FedAvgM
from fedfusion.optimizers.plain import Plain

__all__ = [
    "FedAdam",
    "FedAvgM",
    "Plain",
]
