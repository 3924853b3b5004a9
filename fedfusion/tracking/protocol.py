"""What is told about a run."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tracker(Protocol):
    """Told about each round as it happens."""

    def started(self, history: Sequence[Mapping[str, Any]], num_rounds: int) -> None:
        """The run begins, or continues after the rounds in `history`."""
        ...

    def exchanged(self, server_round: int, done: int, total: int) -> None:
        """`done` of the `total` clients of this round have answered."""
        ...

    def finished(self, record: Mapping[str, Any]) -> None:
        """A round has ended and is safely on disk."""
        ...

    def concluded(self, results: Mapping[str, Any]) -> None:
        """The run has ended well, and these are its results, as `results.json` holds them."""
        ...

    def close(self) -> None:
        """The run is over, one way or the other."""
        ...
