"""Each client's next personal adapter, pulled towards its relatives or replaced by a common one."""

from fedfusion.coupling.adjacency import Adjacency as Adjacency
from fedfusion.coupling.adjacency import FromFile as FromFile
from fedfusion.coupling.adjacency import Random as Random
from fedfusion.coupling.adjacency import Shuffled as Shuffled
from fedfusion.coupling.adjacency import Similarity as Similarity
from fedfusion.coupling.adjacency import Task as Task
from fedfusion.coupling.adjacency import Uniform as Uniform
from fedfusion.coupling.average import Average as Average
from fedfusion.coupling.average import ProductAverage as ProductAverage
from fedfusion.coupling.isolated import Isolated as Isolated
from fedfusion.coupling.laplacian import Laplacian as Laplacian
from fedfusion.coupling.stacking import Stacking as Stacking
