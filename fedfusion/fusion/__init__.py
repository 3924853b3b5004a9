"""Across tasks: one multi-task vector."""

from fedfusion.fusion.byom import Byom as Byom
from fedfusion.fusion.isotropic import Isotropic as Isotropic
from fedfusion.fusion.linear import TaskArithmetic as TaskArithmetic
from fedfusion.fusion.precision import PrecisionWeighted as PrecisionWeighted
from fedfusion.fusion.tsv import TsvM as TsvM
