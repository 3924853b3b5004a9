"""Nobody else is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Untracked:
    """Tell nobody beside the terminal and `metrics.jsonl`."""

    def check(self) -> None:
        """Nothing can be missing."""

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> "Untracked":
        """There is nothing to open."""
        return self

    def started(self, history: Sequence[Mapping[str, Any]], num_rounds: int) -> None:
        """Not told."""

    def exchanged(self, server_round: int, done: int, total: int) -> None:
        """Not told."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Not told."""

    def concluded(self, results: Mapping[str, Any]) -> None:
        """Not told."""

    def close(self) -> None:
        """Nothing is open."""
