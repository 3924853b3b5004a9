"""What a person sees while it runs."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WIDE = 60  # columns that the bar takes with all that is beside it
INDENT = " " * 4
STAGES = ("single_task", "personal", "fused_received", "realigned")
COLUMNS = {"round": 9, "loss": 8, "single": 8, "personal": 10, "fused": 7, "realigned": 11, "NMSE": 9, "believed": 10}


class Terminal:
    """A table of the rounds, and a bar with clients and the time left; plain lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self.progress: Progress | None = None
        self.num_rounds = 0
        self.last_round = self.rows = 0

    def started(self, history: Sequence[Mapping[str, Any]], num_rounds: int) -> None:
        """Show the bar, or say where a resumed run continues."""
        self.num_rounds = num_rounds
        if history:
            self.console.print(f"continuing after round {history[-1]['round']}")
        if self.console.is_terminal and len(history) < num_rounds:
            what, counted, left = TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn()
            columns = [what, BarColumn(), counted, TextColumn("clients"), TimeElapsedColumn(), left, TextColumn("left")]
            if self.console.width < WIDE:
                columns = [what, counted, left]
            self.progress = Progress(*columns, console=self.console)
            self.bar = self.progress.add_task("starting", total=None)
            self.progress.start()

    def warn(self, sentence: str) -> None:
        """Say what a person should know before it begins."""
        self._say(sentence.split(" "))

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
        """One row of the table, or one line."""
        means = {re.sub("_.*", "", stage): record["mean"][stage] for stage in STAGES if stage in record["mean"]}
        means = {name: f"{value:.3f}".removeprefix("0") for name, value in means.items()}
        if self.progress is not None and self.console.width >= sum(COLUMNS.values()):
            self._row(record, means)
        else:
            if means.get("realigned") == means.get("fused"):
                means.pop("realigned", None)
            parts = [f"loss {_loss(record)}", *(f"{name} {value}" for name, value in means.items())]
            self._say([f"round {record['round']}/{self.num_rounds}", *parts], "  ")
        if not record["learnt"]:
            self._say(f"  {_why_kept(record)}: the last model is kept".split(" "))
        for client, reason in record["dropped"].items():
            self._say(f"  client {client} dropped: {reason}".split(" "))

    def _row(self, record: Mapping[str, Any], means: Mapping[str, str]) -> None:
        """A row of the table; the first has the header above it."""
        if not self.rows:
            self.console.print("".join(name.rjust(width) for name, width in COLUMNS.items()), style="bold")
        self.rows += 1
        nmse = "–" if record["nmse_db"] is None else f"{record['nmse_db']:.1f} dB"
        texts = {
            "round": f"{record['round']}/{self.num_rounds}",
            "loss": _loss(record),
            **means,
            "NMSE": nmse,
            "believed": f"{record['believed']}/{len(record['clients'])}",
        }
        self.console.print("".join(texts.get(name, "–").rjust(width) for name, width in COLUMNS.items()), markup=False)

    def _say(self, parts: Sequence[str], between: str = " ") -> None:
        """Print on one line, or on a terminal on as many as it takes, without breaking a part."""
        lines = [parts[0]]
        for part in parts[1:]:
            if self.console.is_terminal and len(lines[-1] + between + part) > self.console.width:
                lines.append(INDENT + part)
            else:
                lines[-1] += between + part
        self.console.print("\n".join(lines), markup=False)

    def concluded(self, results: Mapping[str, Any]) -> None:
        """The table of results says it."""

    def close(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()


def _why_kept(record: Mapping[str, Any]) -> str:
    """Why a round taught nothing."""
    if not record["refused"]:
        return "too little arrived"
    judged = len({*record["refused"], *record["heard"]})
    return f"the guard refused {len(record['refused'])} of the {judged} uploads that arrived, which left too few"


def _loss(record: Mapping[str, Any]) -> str:
    """Of a round; a record that was read from `metrics.jsonl` has null for what is not finite."""
    return "–" if record["train_loss"] is None else f"{record['train_loss']:.2f}"
