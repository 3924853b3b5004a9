"""What a person sees while it runs, and `metrics.jsonl`."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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

    def close(self) -> None:
        """The run is over, one way or the other."""
        ...


class Jsonl:
    """One line per round in `metrics.jsonl`. On resume the file is rewritten from the checkpoint's history."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def started(self, history: Sequence[Mapping[str, Any]], num_rounds: int) -> None:
        """Start the file with the rounds that are done already."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")  # a write that fails leaves the file as it was
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history))
        temporary.replace(self.path)

    def exchanged(self, server_round: int, done: int, total: int) -> None:
        """Not recorded."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Append the round."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


class Terminal:
    """A bar with rounds, clients and the time left; plain lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self.progress: Progress | None = None
        self.num_rounds = 0
        self.last_round = 0

    def started(self, history: Sequence[Mapping[str, Any]], num_rounds: int) -> None:
        """Show the bar, or say where a resumed run continues."""
        self.num_rounds = num_rounds
        if history:
            self.console.print(f"continuing after round {history[-1]['round']}")
        if self.console.is_terminal and len(history) < num_rounds:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("clients"))
            self.progress = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left"), console=self.console
            )
            self.bar = self.progress.add_task("starting", total=None)
            self.progress.start()

    def warn(self, sentence: str) -> None:
        """Say what a person should know before it begins."""
        self.console.print(sentence, markup=False)

    def exchanged(self, server_round: int, done: int, total: int) -> None:
        """Move the bar; without a terminal, one line when a round begins."""
        if self.progress is not None:
            rounds = self.num_rounds - server_round + 1
            if server_round != self.last_round and not self.last_round:
                self.progress.update(self.bar, total=rounds * total, completed=0)
                self.first_round = server_round
            completed = (server_round - self.first_round) * total + done
            self.progress.update(self.bar, description=f"round {server_round}/{self.num_rounds}", completed=completed)
        elif server_round != self.last_round:
            self.console.print(f"round {server_round}/{self.num_rounds}: {total} clients train")
        self.last_round = server_round

    def finished(self, record: Mapping[str, Any]) -> None:
        """One line per round."""
        stages = ("single_task", "personal", "fused_received", "realigned")  # a line of 80 characters
        means = {re.sub("_.*", "", stage): record["mean"][stage] for stage in stages if stage in record["mean"]}
        if means.get("realigned") == means.get("fused"):
            means.pop("realigned", None)
        parts = [f"{name} {value:.3f}".replace(" 0.", " .") for name, value in means.items()]
        parts.insert(0, f"loss {record['train_loss']:.2f}")
        self.console.print(f"round {record['round']}/{self.num_rounds}  {'  '.join(parts)}")
        if not record["learnt"]:
            self.console.print("  too little arrived: the last model is kept")
        for client, reason in record["dropped"].items():
            self.console.print(f"  client {client} dropped: {reason}", markup=False)

    def close(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()
