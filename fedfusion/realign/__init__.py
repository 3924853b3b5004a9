"""Repairs of the fused model with a few samples."""

from fedfusion.realign.few_shot import FewShot as FewShot
from fedfusion.realign.unaligned import Unaligned as Unaligned
