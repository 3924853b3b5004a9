"""What is received of what was sent.

Examples
--------
>>> import torch
>>> from fedfusion.channels import Awgn
>>> from fedfusion.rng import generator
>>> from fedfusion.types import Updates
>>> received, report = Awgn(snr_db=20.0)(Updates.of(torch.ones(2, 10_000)), generator(0))
>>> received.vectors.shape, [round(error, 3) for error in report.nmse]
(torch.Size([2, 10000]), [0.01, 0.01])
"""

from fedfusion.channels.aircomp import AirComp
from fedfusion.channels.awgn import Awgn
from fedfusion.channels.fading import Flat
from fedfusion.channels.ideal import Ideal
from fedfusion.channels.jammer import Jammer
from fedfusion.channels.mimo import Mimo
from fedfusion.channels.packet import Packet
from fedfusion.channels.path_loss import UMi
from fedfusion.channels.phy import Tr38901
from fedfusion.channels.receiver import Receiver

__all__ = [
    "AirComp",
    "Awgn",
    "Flat",
    "Ideal",
    "Jammer",
    "Mimo",
    "Packet",
    "Receiver",
    "Tr38901",
    "UMi",
]
