"""Which client gets which samples: equal shares, or what the partitioners of flwr-datasets make."""

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedfusion.rng import generator, seed_of
from fedfusion.types import FedfusionError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Iid:
    """Equal shares at random: the first clients have one row more where the rows cannot be divided evenly.

    What `IidPartitioner` of flwr-datasets makes, without the seconds that its import takes.
    """

    def __call__(self, order: Tensor, parts: int) -> tuple[Tensor, ...]:
        """The shuffled rows `order [n]` in `parts`."""
        return order.tensor_split(parts)


def split(
    table: "Dataset | Mapping[str, Sequence[Any]]", task: str, parts: int, partitioner: Callable[..., Any], seed: int
) -> tuple[Tensor, ...]:
    """Indices of each of `parts` clients into the rows of `table`, which are shuffled by `seed` first.

    Parameters
    ----------
    table
        The rows of one task, or their columns; a partitioner may look at any, and at `label` in classification.
    task
        Its name, for the shuffling and for errors.
    parts
        Number of clients.
    partitioner
        :class:`Iid`, or any partitioner of flwr-datasets: called with `num_partitions=parts`, and with a `seed` of its
        own unless it has one. One that knows no `num_partitions` (by natural ids) makes as many parts as it likes,
        which are dealt to the clients in turn.
    seed
        Names the shuffling.

    Raises
    ------
    FedfusionError
        If the partitioner refuses, or leaves a client without data.
    """
    labels = "partition", task
    rows = len(next(iter(table.values()))) if isinstance(table, Mapping) else len(table)
    order = torch.randperm(rows, generator=generator(seed, *labels))
    if rows < parts:
        raise _empty(rows, task, rows, parts)
    if isinstance(partitioner, Iid):
        return partitioner(order, parts)
    from datasets import Dataset

    table = Dataset.from_dict(dict(table)) if isinstance(table, Mapping) else table
    accepted, fixed = inspect.signature(partitioner).parameters, getattr(partitioner, "keywords", {})
    column = fixed.get("partition_by")
    if column is not None and column not in table.column_names:
        raise FedfusionError(
            f"suite.partitioner.partition_by={column}: the rows of task '{task}' have no such column "
            f"(choose among {', '.join(table.column_names)}, or another partition)"
        )
    given = {"num_partitions": parts, "seed": seed_of(seed, *labels)}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # Dirichlet warns of every new try, natural ids draw a progress bar
            divide = partitioner(**{name: given[name] for name in given if name in accepted and name not in fixed})
            divide.dataset = table.add_column("_index", list(range(len(table)))).select(order)
            made = [divide.load_partition(i)["_index"][:] for i in range(divide.num_partitions)]
    except (ValueError, KeyError, TypeError) as error:
        raise FedfusionError(
            f"suite.partitioner: cannot divide the {rows} rows of task '{task}' among {parts} clients "
            f"({str(error).strip().splitlines()[0]}; choose another partition, or lower suite.clients_per_task)"
        ) from error
    shares = [[row for part in made[i::parts] for row in part] for i in range(parts)]
    if [] in shares:
        raise _empty(shares.index([]), task, rows, parts)
    return tuple(torch.tensor(share, dtype=torch.long) for share in shares)


def _empty(client: int, task: str, rows: int, parts: int) -> FedfusionError:
    return FedfusionError(
        f"suite.partitioner: client {client} of task '{task}' is left without data ({rows} rows for {parts} clients; "
        f"lower suite.clients_per_task={parts}, or choose an evener partition)"
    )
