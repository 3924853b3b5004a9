"""Which client gets which samples, by the partitioners of flwr-datasets."""

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable

import torch
from datasets import Dataset
from flwr_datasets.partitioner import Partitioner
from torch import Tensor

from fedfusion.rng import generator, seed_of
from fedfusion.types import FedfusionError


def split(
    table: Dataset, task: str, parts: int, partitioner: Callable[..., Partitioner], seed: int
) -> tuple[Tensor, ...]:
    """Indices of each of `parts` clients into the rows of `table`, which are shuffled by `seed` first.

    Parameters
    ----------
    table
        The rows of one task; a partitioner may look at any column of it, and at `label` in classification.
    task
        Its name, for the shuffling and for errors.
    parts
        Number of clients.
    partitioner
        Any partitioner of flwr-datasets: called with `num_partitions=parts`, and with a `seed` of its own unless it
        has one. One that knows no `num_partitions` (by natural ids) makes as many parts as it likes, which are
        dealt to the clients in turn.
    seed
        Names the shuffling.

    Raises
    ------
    FedfusionError
        If the partitioner refuses, or leaves a client without data.
    """
    labels = "partition", task
    order = torch.randperm(len(table), generator=generator(seed, *labels))
    accepted, fixed = inspect.signature(partitioner).parameters, getattr(partitioner, "keywords", {})
    column = fixed.get("partition_by")
    if column is not None and column not in table.column_names:
        raise FedfusionError(
            f"suite.partitioner.partition_by={column}: the rows of task '{task}' have no such column "
            f"(choose among {', '.join(table.column_names)}, or another partition)"
        )
    if len(table) < parts:
        raise _empty(len(table), task, len(table), parts)
    given = {"num_partitions": parts, "seed": seed_of(seed, *labels)}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # Dirichlet warns of every new try, natural ids draw a progress bar
            divide = partitioner(**{name: given[name] for name in given if name in accepted and name not in fixed})
            divide.dataset = table.add_column("_index", list(range(len(table)))).select(order)
            made = [divide.load_partition(i)["_index"][:] for i in range(divide.num_partitions)]
    except (ValueError, KeyError, TypeError) as error:
        raise FedfusionError(
            f"suite.partitioner: cannot divide the {len(table)} rows of task '{task}' among {parts} clients "
            f"({str(error).strip().splitlines()[0]}; choose another partition, or lower suite.clients_per_task)"
        ) from error
    shares = [[row for rows in made[i::parts] for row in rows] for i in range(parts)]
    if [] in shares:
        raise _empty(shares.index([]), task, len(table), parts)
    return tuple(torch.tensor(share, dtype=torch.long) for share in shares)


def _empty(client: int, task: str, rows: int, parts: int) -> FedfusionError:
    return FedfusionError(
        f"suite.partitioner: client {client} of task '{task}' is left without data ({rows} rows for {parts} clients; "
        f"lower suite.clients_per_task={parts}, or choose an evener partition)"
    )
