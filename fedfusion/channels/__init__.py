"""What is received of what was sent."""

from fedfusion.channels.awgn import Awgn as Awgn
from fedfusion.channels.ideal import Ideal as Ideal
