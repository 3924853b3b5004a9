"""Where a run happens: in this process, on Ray, or under Flower."""

from fedfusion.federation.flower import Flower as Flower
from fedfusion.federation.inline import Inline as Inline
from fedfusion.federation.ray import Ray as Ray
