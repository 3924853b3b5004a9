"""Where rows come from: folders of files, or data sets of the hub."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub.constants as hub
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.csv  # type: ignore[import-untyped]
import pyarrow.json  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, Features, Image, Value, load_dataset

from fedfusion.types import FedfusionError

SPLITS = ("train", "root", "validation", "test")
SUFFIXES = (".parquet", ".csv", ".jsonl", ".json")
KINDS = {"text": ("text", "label"), "image": ("image", "label"), "instruct": ("instruction", "input", "output")}
WRITTEN = ("text", "instruction", "output")  # columns in which nothing is as good as no row


class Source(Protocol):
    """Named tasks and their rows."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks, in a fixed order."""
        ...

    def rows(self, task: str, split: str) -> Dataset | None:
        """The rows of `train`, `root`, `validation` or `test`; None for a `root` or `validation` that is not there."""
        ...

    def relation(self, task: str, other: str) -> float:
        """How related two tasks are by construction, in [0, 1]."""
        ...


def where(source: Source, task: str, split: str) -> str:
    """The file of a task's rows, or the task and split if the source keeps no files."""
    return source.where(task, split) if isinstance(source, Folder | Hub) else f"task '{task}' ({split})"


@dataclass(frozen=True)
class Folder:
    """Tasks in files of your own.

    Either one sub-folder per task, each with `train` and `test` (and, if you like, `root` and `validation`) as
    `.parquet`, `.csv`, `.jsonl`, `.json` or as a folder of images `train/<class>/*`; or these files in `root`
    itself, with a column `task` that says which task a row belongs to (without it, they are one task). The columns
    are `text` and `label`; or `image` and `label`; or `instruction`, `input` and `output`.

    Parameters
    ----------
    root
        The folder.
    tasks
        Which tasks, in which order; empty: all, by name.
    """

    root: str
    tasks: Sequence[str] = ()
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise FedfusionError(
                f"suite.root={self.root}: there is no such folder (give one with a sub-folder per task, "
                "each with train and test files)"
            )
        object.__setattr__(self, "root", str(root))
        found = self._names()
        for task in self.tasks:
            if task not in found:
                near = get_close_matches(str(task), found, n=3, cutoff=0.0)
                raise FedfusionError(
                    f"suite.tasks: there is no task '{task}' in {root} (nearest are {', '.join(near)})"
                )
        object.__setattr__(self, "tasks", tuple(self.tasks) or found)
        files = dict.fromkeys(self._file(task, split) for task in self.tasks for split in SPLITS)
        object.__setattr__(self, "kind", _kind([path for path in files if path is not None]))

    def _names(self) -> tuple[str, ...]:
        root = Path(self.root)
        if train := _find(root, "train"):
            values = _table(train)["task"].unique().to_pylist() if "task" in _columns(train) else [root.name]
            if None in values:
                raise FedfusionError(f"{train}: the column task is empty in some rows (name the task of each)")
            return tuple(sorted(map(str, values)))
        found = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))))
        if not found:
            raise FedfusionError(
                f"suite.root={root}: no task in it (give it a sub-folder per task, each with train and test files)"
            )
        return found

    def _file(self, task: str, split: str) -> Path | None:
        root = Path(self.root)
        folder = root if _find(root, "train") else root / task
        path = _find(folder, split)
        if path is None and split in ("train", "test"):
            raise FedfusionError(
                f"{folder}: no {split} in it (add {split}{' or '.join(SUFFIXES)}, or a folder {split}/)"
            )
        return path

    def where(self, task: str, split: str) -> str:
        """The file that a task's rows are in."""
        path = self._file(task, split)
        return f"{path} (task '{task}')" if path and path.parent == Path(self.root) else str(path)

    def rows(self, task: str, split: str) -> Dataset | None:
        """The rows of one task, None if the file of that split is not there."""
        path = self._file(task, split)
        if path is None:
            return None
        if path.is_dir():
            return _images(path)
        table = _table(path)
        if path.parent == Path(self.root) and "task" in _columns(Path(str(self._file(task, "train")))):
            if "task" not in table.column_names:
                raise FedfusionError(f"{path}: there is no column task in it, but the train file has one (add it)")
            table = table.filter(pc.equal(table["task"].cast(pa.string()), task))
        return Dataset(table) if len(table) or split in ("train", "test") else None

    def relation(self, task: str, other: str) -> float:
        """One for a task and itself; nothing is known of others."""
        return float(task == other)


def _kind(paths: Iterable[Path]) -> str:
    """The one kind of data that all files hold."""
    kinds: dict[str, Path] = {}
    for path in paths:
        columns = _columns(path)
        kind = next((kind for kind, needed in KINDS.items() if set(needed) <= set(columns)), None)
        if kind is None:
            choice = "; ".join(", ".join(needed) for needed in KINDS.values())
            raise FedfusionError(f"{path}: its columns are {', '.join(columns)} (needed are {choice})")
        kinds.setdefault(kind, path)
    if len(kinds) > 1:
        (kind, path), (other, another) = list(kinds.items())[:2]
        raise FedfusionError(f"{path} holds {kind} data, {another} holds {other} data (choose by suite.tasks)")
    return next(iter(kinds))


def _find(folder: Path, split: str) -> Path | None:
    """The file or folder of a split."""
    found = [path for suffix in ("", *SUFFIXES) if (path := folder / f"{split}{suffix}").exists()]
    found = [path for path in found if path.suffix or path.is_dir()]
    if len(found) > 1:
        raise FedfusionError(f"{folder}: {found[0].name} and {found[1].name} are both there (keep one)")
    return found[0] if found else None


def _columns(path: Path) -> list[str]:
    """Names of the columns, without reading all rows where the format allows."""
    if path.is_dir():
        return ["image", "label"]
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path).names
        if path.suffix == ".csv":
            with pa.csv.open_csv(path) as reader:
                return reader.schema.names
        if path.suffix == ".jsonl":
            with path.open() as lines:
                return list(json.loads(next(lines, "{}")))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return _table(path).column_names


def _table(path: Path) -> pa.Table:
    return _cached_table(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _cached_table(path: Path, modified: int) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        if path.suffix == ".csv":
            return pa.csv.read_csv(path, parse_options=pa.csv.ParseOptions(newlines_in_values=True))
        if path.suffix == ".jsonl":
            return pa.json.read_json(path)
        return pa.Table.from_pylist(json.loads(path.read_text()))
    except (pa.ArrowException, OSError, ValueError, AttributeError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FedfusionError:
    return FedfusionError(f"{path}: cannot be read as {path.suffix[1:]} ({str(error).splitlines()[0]})")


def _images(folder: Path) -> Dataset:
    """One row per file of `folder/<class>/`."""
    files = sorted(p for p in folder.glob("*/*") if p.is_file() and not p.name.startswith("."))
    columns = {"image": [{"bytes": None, "path": str(p)} for p in files], "label": [p.parent.name for p in files]}
    return Dataset.from_dict(columns, features=Features({"image": Image(decode=False), "label": Value("string")}))


@dataclass(frozen=True)
class Hub:
    """Tasks that are data sets of the Hugging Face hub, read through `datasets.load_dataset` and its cache.

    Parameters
    ----------
    datasets
        For each task: `path` (`owner/name`), and optionally `name` (of a configuration), `revision`, `splits` (ours:
        theirs, where `train[:90%]` is also a split) and `columns` (ours: theirs). Rows whose text, instruction or
        output is empty are left out.
    """

    datasets: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        known = ("path", "name", "revision", "splits", "columns")
        for task, entry in self.datasets.items():
            key = f"suite.source.datasets.{task}"
            if unknown := [name for name in entry if name not in known]:
                raise FedfusionError(f"{key} has no key '{unknown[0]}' (choose among {', '.join(known)})")
            if not entry.get("path"):
                raise FedfusionError(f"{key}.path is missing (give the id of a data set, owner/name)")
            if unknown := [name for name in entry.get("splits") or {} if name not in SPLITS]:
                raise FedfusionError(f"{key}.splits has no key '{unknown[0]}' (choose among {', '.join(SPLITS)})")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The keys of `datasets`."""
        return tuple(self.datasets)

    def _split(self, task: str, split: str) -> str | None:
        default = split if split in ("train", "test") else None
        return (self.datasets[task].get("splits") or {}).get(split, default)

    def where(self, task: str, split: str) -> str:
        """Data set and split that a task's rows are in."""
        return f"{self.datasets[task]['path']} (suite.source.datasets.{task}, split {self._split(task, split)})"

    def rows(self, task: str, split: str) -> Dataset | None:
        """The rows of one task under our names of the columns, None for a split that is not named."""
        entry, theirs = self.datasets[task], self._split(task, split)
        if theirs is None:
            return None
        try:
            rows = load_dataset(entry["path"], entry.get("name"), split=theirs, revision=entry.get("revision"))
        except (OSError, ValueError, RuntimeError) as error:
            advice = (
                "HF_HUB_OFFLINE is set: unset it once, or choose other suite.tasks"
                if hub.HF_HUB_OFFLINE
                else ("compare path, name, revision and splits with its page on the hub")
            )
            raise FedfusionError(
                f"suite.source.datasets.{task}: cannot load '{entry['path']}' "
                f"({str(error).strip().splitlines()[0]}; {advice})"
            ) from error
        return _filled(_renamed(rows, entry.get("columns") or {}, self.where(task, split)), self.where(task, split))

    def relation(self, task: str, other: str) -> float:
        """One for a task and itself; nothing is known of others."""
        return float(task == other)


def _renamed(rows: Dataset, columns: Mapping[str, str], place: str) -> Dataset:
    for ours, theirs in columns.items():
        if theirs not in rows.column_names:
            raise FedfusionError(f"{place}: no column '{theirs}' for '{ours}' (it has {', '.join(rows.column_names)})")
    moved = {theirs: ours for ours, theirs in columns.items() if ours != theirs}
    covered = [name for name in moved.values() if name in rows.column_names and name not in moved]
    return rows.remove_columns(covered).rename_columns(moved)


def _filled(rows: Dataset, place: str) -> Dataset:
    """The rows in which something is written; public data is not the user's to repair."""
    written = [rows[name] for name in WRITTEN if name in rows.column_names]
    if not written:
        return rows
    kept = [i for i, values in enumerate(zip(*written, strict=True)) if all(str(v or "").strip() for v in values)]
    if len(kept) < len(rows):
        logging.getLogger(__name__).warning("%s: %d empty rows left out", place, len(rows) - len(kept))
    return rows.select(kept) if len(kept) < len(rows) else rows
