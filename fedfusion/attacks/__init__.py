"""What compromised clients learn from, and what they send.

Examples
--------
>>> import torch
>>> from fedfusion.attacks import Adversary, SignFlipping
>>> from fedfusion.rng import generator
>>> from fedfusion.types import Updates
>>> uploads, last = Updates.of(torch.tensor([[1.0], [2.0], [3.0]])), torch.zeros(3, 1)
>>> Adversary(f=1, upload=SignFlipping())(uploads, [0], generator(0), last).vectors
tensor([[-1.],
        [ 2.],
        [ 3.]])
"""

from fedfusion.attacks.adversary import Adversary, Poison, Upload
from fedfusion.attacks.alie import ALittleIsEnough
from fedfusion.attacks.amplified import Amplified
from fedfusion.attacks.backdoor import Backdoor
from fedfusion.attacks.bit_flips import BitFlips
from fedfusion.attacks.erasure import Erasure
from fedfusion.attacks.factor_rescaling import FactorRescaling
from fedfusion.attacks.fang import Fang
from fedfusion.attacks.free_rider import FreeRider
from fedfusion.attacks.garbage import Garbage
from fedfusion.attacks.gaussian import Gaussian
from fedfusion.attacks.ipm import InnerProductManipulation
from fedfusion.attacks.label_flip import LabelFlip
from fedfusion.attacks.mimic import Mimic
from fedfusion.attacks.min_max import MinMax, MinSum
from fedfusion.attacks.optimal import OptimalALittleIsEnough, OptimalInnerProductManipulation
from fedfusion.attacks.replay import Replay
from fedfusion.attacks.scaling import Scaling
from fedfusion.attacks.sign_flipping import SignFlipping
from fedfusion.attacks.task_hijack import TaskHijack

__all__ = [
    "ALittleIsEnough",
    "Adversary",
    "Amplified",
    "Backdoor",
    "BitFlips",
    "Erasure",
    "FactorRescaling",
    "Fang",
    "FreeRider",
    "Garbage",
    "Gaussian",
    "InnerProductManipulation",
    "LabelFlip",
    "Mimic",
    "MinMax",
    "MinSum",
    "OptimalALittleIsEnough",
    "OptimalInnerProductManipulation",
    "Poison",
    "Replay",
    "Scaling",
    "SignFlipping",
    "TaskHijack",
    "Upload",
]
