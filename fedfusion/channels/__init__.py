"""What is received of what was sent."""

from fedfusion.channels.aircomp import AirComp as AirComp
from fedfusion.channels.awgn import Awgn as Awgn
from fedfusion.channels.fading import Flat as Flat
from fedfusion.channels.ideal import Ideal as Ideal
from fedfusion.channels.jammer import Jammer as Jammer
from fedfusion.channels.mimo import Mimo as Mimo
from fedfusion.channels.packet import Packet as Packet
from fedfusion.channels.path_loss import UMi as UMi
from fedfusion.channels.phy import Tr38901 as Tr38901
from fedfusion.channels.receiver import Receiver as Receiver
