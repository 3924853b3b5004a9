"""What all tracking libraries have in common: what they are told, and what happens when one of them fails."""

import contextlib
import hashlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedfusion.tracking import numbers
from fedfusion.types import FedfusionError
from fedfusion.validation import first_line


class LibraryRun(Protocol):
    """A run that a tracking library keeps open."""

    def last_round(self) -> int:
        """The last round that it holds already; 0 is none."""
        ...

    def log(self, values: Mapping[str, float], server_round: int) -> None:
        """Keep the numbers of a round."""
        ...

    def conclude(self, values: Mapping[str, float], server_round: int) -> None:
        """Keep the numbers of the whole run, which ended with this round."""
        ...

    def close(self, status: str) -> None:
        """The run is `finished` or `failed`."""
        ...


class Library:
    """A tracker that hands numbers on to a library.

    A library that cannot be opened ends the run before it begins. One that fails later does not: it is offered the
    rounds that it did not take again with the next one, and on `--resume`.

    Parameters
    ----------
    name
        As the config group `tracker` has it.
    opening
        Opens the library's run, or continues it.

    Raises
    ------
    FedfusionError
        If it cannot be opened.
    """

    def __init__(self, name: str, opening: Callable[[], LibraryRun]) -> None:
        self.name = name
        self.waiting: list[Mapping[str, Any]] = []
        self.status = "failed"
        try:
            with _into_the_log():
                self.run = opening()
                self.last = self.run.last_round()
        except Exception as error:  # whatever a library raises
            raise FedfusionError(
                f"tracker={name} cannot be opened: {type(error).__name__}: {first_line(error)} (mend its settings, see "
                f"fedfusion ls tracker/{name}, or choose tracker=none)"
            ) from error

    def started(self, history: Sequence[Mapping[str, Any]], num_rounds: int) -> None:
        """Log the rounds that the library does not hold yet."""
        self.waiting = list(history)
        self._offer()

    def exchanged(self, server_round: int, done: int, total: int) -> None:
        """Not logged."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Log the round."""
        self.waiting.append(record)
        self._offer()

    def concluded(self, results: Mapping[str, Any]) -> None:
        """Log the results."""
        self.status = "finished"
        self._offer()
        with self._forgiven():
            self.run.conclude(numbers.of_results(results), self.last)

    def close(self) -> None:
        """Say how the run ended."""
        with self._forgiven():
            self.run.close(self.status)

    def _offer(self) -> None:
        with self._forgiven():
            while self.waiting:
                server_round = self.waiting[0]["round"]
                if server_round > self.last:
                    self.run.log(numbers.of_round(self.waiting[0]), server_round)
                    self.last = server_round
                del self.waiting[0]

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        """Let a run of hours outlive its tracker."""
        try:
            with _into_the_log():
                yield
        except Exception as error:  # whatever a library raises
            logging.getLogger("fedfusion").warning(
                "tracker=%s failed, and metrics.jsonl has what it has not: %s: %s",
                self.name,
                type(error).__name__,
                first_line(error),
            )


@contextlib.contextmanager
def _into_the_log() -> Iterator[None]:
    """Libraries print what they do; what a run prints is its results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def require(name: str, extra: str) -> None:
    """Refuse a library that is not installed.

    Raises
    ------
    FedfusionError
        With the command that installs it.
    """
    if importlib.util.find_spec(name) is None:
        raise FedfusionError(
            f"tracker={name} needs the package {name}, which is not installed: pip install 'fedfusion[{extra}]' "
            "(or set tracker=none)"
        )


def identity(run_dir: Path) -> str:
    """What tells a run from others in a store they share, also where their folders have the same name."""
    return hashlib.sha256(str(run_dir).encode()).hexdigest()[:12]
