"""Across tasks: one multi-task vector."""

from fedfusion.fusion.breadcrumbs import Breadcrumbs as Breadcrumbs
from fedfusion.fusion.byom import Byom as Byom
from fedfusion.fusion.channel_aware import ChannelAware as ChannelAware
from fedfusion.fusion.consensus import Consensus as Consensus
from fedfusion.fusion.dare import Dare as Dare
from fedfusion.fusion.emr import Emr as Emr
from fedfusion.fusion.isotropic import Isotropic as Isotropic
from fedfusion.fusion.learned import Learned as Learned
from fedfusion.fusion.linear import TaskArithmetic as TaskArithmetic
from fedfusion.fusion.metagpt import MetaGpt as MetaGpt
from fedfusion.fusion.pcb import Pcb as Pcb
from fedfusion.fusion.precision import PrecisionWeighted as PrecisionWeighted
from fedfusion.fusion.ties import Ties as Ties
from fedfusion.fusion.tsv import TsvM as TsvM
