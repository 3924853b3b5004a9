"""Where a run happens: in this process, on Ray, under Flower, or on devices."""

from fedfusion.federation.devices import Devices
from fedfusion.federation.flower import Flower
from fedfusion.federation.inline import Inline
from fedfusion.federation.ray import Ray

__all__ = [
    "Devices",
    "Flower",
    "Inline",
    "Ray",
]
