"""What was computed once, on disk, by the hash of everything that made it: runs of one sweep share it."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fedfusion.types import FedfusionError

COMPUTING = ("fedfusion", "torch", "peft", "transformers")
DIGEST = 32  # bytes of the SHA-256 that a file begins with
AT_THE_SERVER = (  # keys that no client reads, and that change nothing of what a model scores
    "rounds", "fraction", "min_clients", "deadline_s", "round_deadline_s", "evaluation", "fused_rank", "rouge_rows",
    "aggregate_within", "server", "run_dir", "trainings", "tracker", "push_to_hub", "channel", "guard", "coupling",
    "server_optimizer", "preaggregator", "aggregator", "fusion", "realign", "federation",
)  # fmt: skip


def trained_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration clients read: all but the stages at the server.

    An attack counts where it poisons data; others act on the uploads, at the server.
    """
    without = {*AT_THE_SERVER, *(() if config["attack"].get("data") else ("attack",))}
    return {key: value for key, value in config.items() if key not in without}


class Store:
    """A folder of files, each named after the hash of what made its content.

    A file begins with the SHA-256 of the rest; one that is damaged is made again. Several processes may use the folder.

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
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """The store of a resolved configuration, if it names one.

        All keys have in common what local training and test scores depend on, and the packages that compute. Flower's
        own strategies train otherwise, and share nothing.
        """
        if config["trainings"] is None or config["server"]["strategy"].get("_target_"):
            return None
        versions = {package: importlib.metadata.version(package) for package in COMPUTING}
        return cls(Path(config["trainings"]), json.dumps([trained_by(config), versions], sort_keys=True))

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
        except FileNotFoundError:
            return None
        return content[DIGEST:] if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST] else None

    def put(self, key: str, content: bytes) -> None:
        """Store, whole or not at all."""
        temporary = self.folder / f".{key}.{os.getpid()}"
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        temporary.replace(self.folder / key)

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
        with (self.folder / f".{key}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _bytes(part: str | bytes | Tensor) -> bytes:
    if isinstance(part, Tensor):
        return part.detach().contiguous().numpy().tobytes()
    return part.encode() if isinstance(part, str) else part
