"""`metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfusion.strict_json import dumps


class Jsonl:
    """One line per round in `metrics.jsonl`. On resume the file is rewritten from the checkpoint's history."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def started(self, history: Sequence[Mapping[str, Any]], num_rounds: int) -> None:
        """Start the file with the rounds that are done already."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")  # a write that fails leaves the file as it was
        temporary.write_text("".join(dumps(record) + "\n" for record in history))
        temporary.replace(self.path)

    def exchanged(self, server_round: int, done: int, total: int) -> None:
        """Not recorded."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Append the round."""
        with self.path.open("a") as file:
            file.write(dumps(record) + "\n")

    def concluded(self, results: Mapping[str, Any]) -> None:
        """They have a file of their own."""

    def close(self) -> None:
        """Nothing is held open."""
