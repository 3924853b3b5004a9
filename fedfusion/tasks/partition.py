"""Which client gets which samples, by the partitioners of flwr-datasets."""

from collections.abc import Callable

import torch
from datasets import Dataset
from flwr_datasets.partitioner import Partitioner
from torch import Tensor


def split(labels: Tensor, parts: int, partitioner: Callable[..., Partitioner]) -> list[Tensor]:
    """Indices of each of `parts` clients into `labels [n]`.

    Parameters
    ----------
    labels
        Labels of the samples; a partitioner may look at the column `label`.
    parts
        Number of clients.
    partitioner
        Called with `num_partitions=parts`; any partitioner of flwr-datasets (iid, Dirichlet, shards, ...).
    """
    divide = partitioner(num_partitions=parts)
    divide.dataset = Dataset.from_dict({"index": list(range(len(labels))), "label": labels.tolist()})
    return [torch.tensor(divide.load_partition(i)["index"], dtype=torch.long) for i in range(parts)]
