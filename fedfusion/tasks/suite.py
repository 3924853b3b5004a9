"""Tasks from a source of rows: encoded, divided among clients, with a few rows for the server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor

from fedfusion.rng import generator
from fedfusion.tasks.encode import Encoder, Image, Instruct, Text
from fedfusion.tasks.partition import split
from fedfusion.tasks.source import SPLITS, Folder, Source, where
from fedfusion.types import FedfusionError, Samples


@dataclass(frozen=True, eq=False)
class Suite:
    """Tasks whose rows come from `source` and become samples by `encoder`.

    Parameters
    ----------
    source
        Where the rows come from.
    encoder
        How a row becomes a sample; it decides whether the tasks are classification or instructions.
    partitioner
        Divides a task's training data among its clients.
    tasks
        Which tasks of the source, in which order; empty: all.
    clients_per_task
        The first `clients_per_task` clients hold the first task, and so on.
    shots
        Labelled samples that the server holds of each task: per class in classification, else in all. They are
        drawn from the source's `root` rows, or else from the training rows, which no client then holds.
    max_train, max_test
        Rows of a task that are used at most, drawn once for all seeds; null: all.
    unlabelled
        Further rows of each task that the server holds without labels, drawn from the same rows as the labelled
        ones; no client holds them.
    trusted
        Further rows with labels, drawn as those, by which the server judges uploads.
    """

    source: Source
    encoder: Encoder
    partitioner: Callable[..., Any]
    tasks: Sequence[str] = ()
    clients_per_task: int = 1
    shots: int = 8
    max_train: int | None = None
    max_test: int | None = None
    unlabelled: int = 0
    trusted: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks) or tuple(self.source.tasks))
        for task in self.tasks:
            if task not in self.source.tasks:
                near = get_close_matches(str(task), self.source.tasks, n=3, cutoff=0.0)
                raise FedfusionError(f"suite.tasks: there is no task '{task}' (nearest are {', '.join(near)})")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise FedfusionError(f"suite.tasks must name at least one task, and none twice, got {list(self.tasks)}")
        for key in ("clients_per_task", "shots", "max_train", "max_test"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise FedfusionError(f"suite.{key} must be at least 1, got {value}")
        for key in ("unlabelled", "trusted"):
            if getattr(self, key) < 0:
                raise FedfusionError(f"suite.{key} must be at least 0, got {getattr(self, key)}")
        for name in ("_rows", "class_names", "_table", "_samples", "_drawn", "_further", "_shares"):
            object.__setattr__(self, name, cache(getattr(self, name)))  # once per suite, for all of its clients

    @property
    def num_clients(self) -> int:
        """Number of tasks times `clients_per_task`."""
        return len(self.tasks) * self.clients_per_task

    def task_of(self, client: int) -> str:
        """The task of a client."""
        return self.tasks[client // self.clients_per_task]

    def num_classes(self, task: str) -> int:
        """Number of labels of a task; zero where the response is text."""
        return len(self.class_names(task))

    def class_names(self, task: str) -> tuple[str, ...]:
        """What the labels of a task are called, in the order of their ids; empty where the response is text."""
        if "label" not in self.encoder.columns:
            return ()
        rows = self._rows(task, "train")
        assert rows is not None
        feature = rows.features["label"]
        if isinstance(feature, ClassLabel):
            return tuple(feature.names)
        values = set(rows["label"]) - {None}
        if all(isinstance(value, str) for value in values):
            return tuple(sorted(values))
        return tuple(map(str, range(len(values))))

    def relation(self, task: str, other: str) -> float:
        """How related two tasks are by construction, in [0, 1]; one for a task and itself, zero if unknown."""
        return 1.0 if task == other else self.source.relation(task, other)

    def train(self, client: int, seed: int) -> Samples:
        """The client's share of its task's training rows."""
        task = self.task_of(client)
        return self._present(task, "train").take(self._shares(task, seed)[client % self.clients_per_task])

    def everything(self, task: str) -> Samples:
        """All training rows of a task, whoever's they are: on a device with rows of its own, its client's."""
        return self._present(task, "train")

    def root(self, task: str, seed: int) -> Samples:
        """`shots` rows, of each class in classification, drawn by `seed`."""
        return self._present(task, self._pool(task)).take(self._drawn(task, seed))

    def unlabelled_rows(self, task: str, seed: int) -> Samples:
        """`unlabelled` rows, drawn by `seed` from where :meth:`root` is drawn, and none of those."""
        return self._present(task, self._pool(task)).take(self._further(task, seed)[: self.unlabelled])

    def trusted_rows(self, task: str, seed: int) -> Samples:
        """`trusted` rows with labels, drawn by `seed` from the same rows, and none of those or these."""
        return self._present(task, self._pool(task)).take(self._further(task, seed)[self.unlabelled :])

    def validation(self, task: str) -> Samples:
        """Rows on which hyper-parameters may be chosen, where the source has them."""
        return self._present(task, "validation")

    def test(self, task: str) -> Samples:
        """The test rows of a task."""
        return self._present(task, "test")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response; only where responses are text."""
        if not isinstance(self.encoder, Instruct):
            raise FedfusionError(f"suite: {type(self.encoder).__name__} encodes labels, not responses")
        return self.encoder.decode(ids)

    def check(self, seed: int = 0) -> None:
        """Read all rows of all tasks and divide them, without encoding any.

        Raises
        ------
        FedfusionError
            With one sentence for each thing that is wrong: in which file, which row (the first is row 1), and what.
        """
        attempts: list[Callable[[], object]] = [self.encoder.check]
        attempts += [partial(self._table, task, part) for task in self.tasks for part in SPLITS]
        attempts += [partial(self._shares, task, seed) for task in self.tasks]
        errors: dict[str, None] = {}
        for attempt in attempts:
            try:
                attempt()
            except FedfusionError as error:
                errors |= dict.fromkeys(str(error).splitlines())
        if errors:
            raise FedfusionError("\n".join(errors))

    def _present(self, task: str, part: str) -> Samples:
        samples = self._samples(task, part)
        if samples is None:
            raise FedfusionError(
                f"suite: task '{task}' has no {part} rows (add a file or split '{part}' to its source)"
            )
        return samples

    def _pool(self, task: str) -> str:
        """The split that the server's samples are drawn from."""
        return "train" if self._table(task, "root") is None else "root"

    def _samples(self, task: str, part: str) -> Samples | None:
        table = self._table(task, part)
        return None if table is None else self.encoder(table)

    def _drawn(self, task: str, seed: int) -> Tensor:
        """Indices of the server's samples into the rows they are drawn from."""
        pool = self._pool(task)
        table = self._table(task, pool)
        assert table is not None
        order = torch.randperm(len(table), generator=generator(seed, "root", task))
        names = self.class_names(task)
        labels = torch.tensor(table["label"][:])[order] if names else torch.zeros(len(table))
        chosen = [order[labels == c][: self.shots] for c in range(max(1, len(names)))]
        short = [c for c, rows in enumerate(chosen) if len(rows) < self.shots]
        if short:
            which = f"class '{names[short[0]]}' has" if names else "there are"
            raise FedfusionError(
                f"{where(self.source, task, pool)}: {which} {len(chosen[short[0]])} samples, fewer than "
                f"suite.shots={self.shots} (lower suite.shots, or add samples or raise suite.max_train)"
            )
        return torch.cat(chosen)

    def _further(self, task: str, seed: int) -> Tensor:
        """Indices of the server's unlabelled rows, then of its trusted ones, into the rows they are drawn from."""
        pool, drawn = self._pool(task), self._drawn(task, seed)
        table = self._table(task, pool)
        assert table is not None
        order = torch.randperm(len(table), generator=generator(seed, "unlabelled", task))
        left = order[~torch.isin(order, drawn)]
        wanted = self.unlabelled + self.trusted
        if len(left) < wanted:
            raise FedfusionError(
                f"{where(self.source, task, pool)}: {len(left)} rows are left beside the server's labelled ones, fewer "
                f"than suite.unlabelled={self.unlabelled} and suite.trusted={self.trusted} together (lower one of "
                "them, or add samples)"
            )
        return left[:wanted]

    def _shares(self, task: str, seed: int) -> tuple[Tensor, ...]:
        """Indices of each client's rows into the training rows of its task."""
        table, held = self._table(task, "train"), torch.cat([self._drawn(task, seed), self._further(task, seed)])
        assert table is not None
        free = torch.ones(len(table), dtype=torch.bool)
        if self._pool(task) == "train":
            free[held] = False
        rows = free.nonzero()[:, 0]
        return tuple(rows[s] for s in split(table.select(rows), task, self.clients_per_task, self.partitioner, seed))

    def _rows(self, task: str, part: str) -> Dataset | None:
        """The rows as the source has them."""
        rows = self.source.rows(task, part)
        if rows is None:
            return None
        place = where(self.source, task, part)
        if missing := [name for name in self.encoder.columns if name not in rows.column_names]:
            raise FedfusionError(
                f"{place}: no column '{missing[0]}' in it (suite.encoder needs {', '.join(self.encoder.columns)}; "
                f"it has {', '.join(rows.column_names)})"
            )
        if not len(rows):
            raise FedfusionError(f"{place}: there are no rows in it (add some, or leave the task out of suite.tasks)")
        return rows

    def _table(self, task: str, part: str) -> Dataset | None:
        """The rows that are used, checked, with labels counted from zero."""
        rows = self._rows(task, part)
        if rows is None:
            return None
        limit = {"train": self.max_train, "test": self.max_test}.get(part) or len(rows)
        order = torch.randperm(len(rows), generator=generator(0, "limit", task, part))
        chosen = order[:limit].sort().values if limit < len(rows) else torch.arange(len(rows))
        arrow: pa.Table = rows.select(chosen).with_format("arrow")[:].replace_schema_metadata(None)
        table = Dataset(arrow)
        problems = list(self.encoder.problems(table))
        if names := self.class_names(task):
            keys = _keys(rows.select(chosen))
            known = {name: i for i, name in enumerate(names)}
            problems += [(i, _unknown(key, names)) for i, key in enumerate(keys) if key not in known]
            ids = pa.array([known.get(key, -1) for key in keys], pa.int64())
            table = Dataset(arrow.set_column(arrow.schema.get_field_index("label"), "label", ids))
        if problems:
            place = where(self.source, task, part)
            found: dict[str, list[int]] = {}
            for i, text in problems:
                found.setdefault(text, []).append(int(chosen[i]) + 1)
            raise FedfusionError(
                "\n".join(
                    f"{place}, row {at[0]}: {text}" + (f", and {len(at) - 1} more rows" if len(at) > 1 else "")
                    for text, at in found.items()
                )
            )
        return table


def _keys(rows: Dataset) -> list[str]:
    """The labels by name; numbers are their own names."""
    feature = rows.features["label"]
    if not isinstance(feature, ClassLabel):
        return [str(value) for value in rows["label"]]
    ids = range(feature.num_classes)
    return [feature.names[value] if value in ids else str(value) for value in rows["label"]]


def _unknown(key: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
    return (
        f"label {key} is none of the {len(names)} classes of the training rows, {shown} "
        "(count labels from 0 without gaps, or give all of them names)"
    )


class Files(Suite):
    """A :class:`Suite` on files of your own, encoded as their columns say.

    Parameters
    ----------
    root
        One sub-folder per task with `train` and `test` files (parquet, csv, jsonl, json) or image folders
        (`train/<class>/*`), or these files with a column `task`. The columns are `text` and `label`; or `image` and
        `label`; or `instruction`, `input` and `output`.
    model
        Whose tokenizer or image processor is used: `model.path`.
    partitioner, tasks, clients_per_task, shots, max_train, max_test, unlabelled, trusted
        As in :class:`Suite`.
    max_length
        Tokens after which text is cut.
    prompt, pad_with_eos
        For instructions, as in :class:`~fedfusion.tasks.encode.Instruct`.
    """

    def __init__(
        self,
        root: str,
        model: str,
        partitioner: Callable[..., Any],
        tasks: Sequence[str] = (),
        clients_per_task: int = 1,
        shots: int = 8,
        max_train: int | None = None,
        max_test: int | None = None,
        max_length: int = 256,
        prompt: str = "alpaca",
        pad_with_eos: bool = False,
        unlabelled: int = 0,
        trusted: int = 0,
    ) -> None:
        source = Folder(root, tasks)
        encoders: dict[str, Callable[[], Encoder]] = {
            "text": lambda: Text(model, max_length),
            "image": lambda: Image(model),
            "instruct": lambda: Instruct(model, prompt, max_length, pad_with_eos),
        }
        encoder, limits = encoders[source.kind](), (max_train, max_test)
        super().__init__(
            source, encoder, partitioner, source.tasks, clients_per_task, shots, *limits, unlabelled, trusted
        )
