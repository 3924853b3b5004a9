"""Each client's next personal adapter, pulled towards its relatives."""

from fedfusion.coupling.isolated import Isolated as Isolated
