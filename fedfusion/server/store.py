"""What was computed once, on disk, by the hash of everything that made it: runs of one sweep share it."""

import hashlib
import importlib.metadata
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from logging import WARNING
from pathlib import Path
from typing import Any, Self

import torch
from flwr.common import log
from torch import Tensor

import fedfusion
from fedfusion.composition import PATHS
from fedfusion.config import Experiment
from fedfusion.server.lock import locked
from fedfusion.types import FedfusionError
from fedfusion.validation import flat

DIGEST = 32  # bytes of the SHA-256 that a file begins with
COMPUTING = ("torch", "peft", "transformers", "datasets", "numpy")
AT_THE_SERVER = (  # keys that no client reads, and that change nothing of what a model scores
    "rounds", "fraction", "min_clients", "deadline_s", "round_deadline_s", "evaluation", "fused_rank", "keep",
    "rouge_rows", "aggregate_within", "server", "run_dir", "trainings", "tracker", "push_to_hub", "channel", "guard",
    "coupling", "server_optimizer", "preaggregator", "aggregator", "fusion", "realign", "federation",
)  # fmt: skip


def trained_by(config: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    """What of a configuration clients read: all but the stages at the server.

    An attack counts where it poisons data; others act on the uploads, at the server.
    """
    without = {*AT_THE_SERVER, *(() if experiment.attack.poisons else ("attack",))}
    return {key: value for key, value in config.items() if key not in without}


def files(config: Mapping[str, Any]) -> list[Any]:
    """Path, size and time of every file behind the paths of a configuration: of data, of a model, of a graph."""
    named = flat(config)
    roots = [Path(path) for key in PATHS if isinstance(path := named.get(key), str)]
    found = [path for root in roots for path in sorted([root, *root.rglob("*")]) if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]


@cache
def sources() -> str:
    """The SHA-256 of the package's own code."""
    digest, package = hashlib.sha256(), Path(fedfusion.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Store:
    """A folder of files, each named after the hash of what made its content.

    A file begins with the SHA-256 of the rest; one that is damaged is made again, and so is what cannot be written.
    Several processes may use the folder.

    Parameters
    ----------
    folder
        Is made where there is none.
    made_by
        What all keys have in common.
    """

    def __init__(self, folder: Path, made_by: str) -> None:
        self.folder = folder
        self.made_by = made_by
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FedfusionError(f"trainings={folder}: cannot be made ({error.strerror}; name another)") from error

    @classmethod
    def of(cls, config: Mapping[str, Any], experiment: Experiment) -> Self | None:
        """The store of a resolved configuration, if it names one.

        All keys have in common what local training and test scores depend on: the configuration, the files behind its
        paths, our code, and the packages that compute. Code of one's own is known by its name alone. Flower's own
        strategies train otherwise, and share nothing; nor does a round with a deadline, which cannot wait for others.
        """
        if config["trainings"] is None or experiment.server.stock or experiment.round_deadline_s is not None:
            return None
        versions = {package: importlib.metadata.version(package) for package in COMPUTING}
        made_by = [trained_by(config, experiment), files(config), sources(), versions]
        return cls(Path(config["trainings"]), json.dumps(made_by, sort_keys=True))

    def key(self, kind: str, *parts: str | bytes | Tensor) -> str:
        """The name of what `parts` make; it begins with its `kind`."""
        digest = hashlib.sha256()
        for part in (self.made_by, *parts):
            content = _bytes(part)
            digest.update(len(content).to_bytes(8) + content)
        return f"{kind}-{digest.hexdigest()[:40]}"

    def get(self, key: str) -> bytes | None:
        """What is stored under `key`, if anything, and if it is intact."""
        try:
            content = (self.folder / key).read_bytes()
        except OSError:
            return None
        return content[DIGEST:] if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST] else None

    def put(self, key: str, content: bytes) -> None:
        """Store, whole or not at all; a disk that is full costs nobody a result."""
        temporary = self.folder / f".{key}.{uuid.uuid4().hex}"
        try:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(self.folder / key)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            log(WARNING, "%s is not stored, and will be made again: %s", key, error.strerror)

    def scores(self, key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What was measured under `key` before, or is now."""
        if (known := self.get(key)) is not None:
            return json.loads(known)
        scores = measure()
        self.put(key, json.dumps(scores).encode())  # floats come back bit by bit
        return scores

    def vector(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """What was made under `key` before, or is now: `[d]`, float32."""
        if (known := self.get(key)) is not None:
            return torch.frombuffer(bytearray(known), dtype=torch.float32)
        vector = make()
        self.put(key, _bytes(vector))
        return vector

    @contextmanager
    def alone(self, key: str) -> Iterator[bool]:
        """Whether no other process is making `key`; while the block lasts, none begins to."""
        with locked(self.folder / f".{key}.lock") as mine:
            yield mine


def _bytes(part: str | bytes | Tensor) -> bytes:
    if isinstance(part, Tensor):
        return part.detach().contiguous().numpy().tobytes()
    return part.encode() if isinstance(part, str) else part
