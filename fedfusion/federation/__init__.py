"""Where a run happens: in this process, on Ray, under Flower, or on devices."""

from fedfusion.federation.devices import Devices as Devices
from fedfusion.federation.flower import Flower as Flower
from fedfusion.federation.inline import Inline as Inline
from fedfusion.federation.ray import Ray as Ray
