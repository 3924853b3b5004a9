"""The client's side of multi-task learning: a penalty on its adapter."""

from fedfusion.regularizers.orthogonal import Orthogonal as Orthogonal
from fedfusion.regularizers.proximal import Proximal as Proximal
from fedfusion.regularizers.unregularized import Unregularized as Unregularized
