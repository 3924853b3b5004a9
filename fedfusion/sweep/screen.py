"""What a person sees of a sweep while it runs."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedfusion.reporting import sweep as report
from fedfusion.reporting import tables
from fedfusion.reporting.run_page import count
from fedfusion.sweep.plan import Plan

SHOWN = 12  # runs that ended last
WORDS = {
    "begun": "begun, will be continued",
    "failed": "failed, will be tried again",
    "damaged": "damaged",
    "another": "of another configuration, will be kept aside",
}


class Screen:
    """A live table of the last runs and a bar with the time left; plain lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.last: deque[tuple[str, Mapping[str, Any], float]] = deque(maxlen=SHOWN)
        self.failed = self.ran = self.total = 0
        self.live: Live | None = None
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("runs"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left"), console=self.console,
        )  # fmt: skip
        self.bar = self.progress.add_task("sweeping", total=None)

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        self.console.print(sentence, markup=False)

    @contextmanager
    def checking(self) -> Iterator[Any]:
        """While cells are checked; yields what is told how many are."""
        if not self.console.is_terminal:
            yield lambda done, total: None
            return
        with self.console.status("checking every cell") as status:
            yield lambda done, total: status.update(f"checking every cell: {done} of {total}")

    def planned(self, plan: Plan, states: Mapping[str, str], out: Path) -> None:
        """Say what will be run, and what need not be."""
        of = list(states.values()).count
        known = {"finished": "finished already", **WORDS}
        parts = [f"{of(state)} {words}" for state, words in known.items() if of(state)]
        shared = f"{count(plan.trainings, 'local training')} between them"
        self.say(f"{count(len(plan.cells), 'cell')}, {count(len(states), 'run')}, {shared}, into {out}")
        if parts:
            self.say("; ".join(parts))

    def cells(self, plan: Plan, states: Mapping[str, str]) -> None:
        """Print every cell, its run, and the training that it begins with."""
        rows = [
            [
                cell.run,
                *(cell.point[key] for key in plan.axes),
                cell.training[:6],
                "as above" if cell.repeats else states[cell.run],
            ]
            for cell in plan.cells
        ]
        self.say("")
        tables.show(self.console, ["run", *plan.axes, "training", ""], rows, justify="left")
        self.say("")

    def estimated(self, seconds: float | None) -> None:
        """Say how long what is left will take."""
        known = "cannot be said: the first run failed" if seconds is None else f"at most about {seconds / 60:.1f} min"
        self.say(f"time for what is left: {known}")

    @contextmanager
    def running(self, total: int) -> Iterator[None]:
        """While runs are done."""
        self.total = total
        self.progress.update(self.bar, total=total)
        if not (self.console.is_terminal and total):
            yield
            return
        with Live(self._view(), console=self.console, transient=True) as self.live:
            yield

    def ended(self, cell: Mapping[str, Any], seconds: float) -> None:
        """Show what became of a run. One that failed stays on the screen."""
        self.ran += 1
        failed = cell["error"] is not None
        self.failed += failed
        where = " ".join(f"{key}={value}" for key, value in cell["point"].items())
        self.last.append((where, cell, seconds))
        if failed or self.live is None:
            line = f"{self.ran:>4}/{self.total}  {where}  {report.in_short(cell)}  {seconds:.0f} s"
            self.console.print(line, style="red" if failed else None, markup=False)
        if failed:
            self.say(f"      its log: runs/{cell['run']}/run.log, error.txt")
        self.progress.update(self.bar, completed=self.ran, description=f"{self.failed} failed" if self.failed else "")
        if self.live is not None:
            self.live.update(self._view())

    def _view(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for name in ("cell", "what came of it", "s"):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        for where, cell, seconds in self.last:
            table.add_row(where, report.in_short(cell), f"{seconds:.0f}")
        return Group(table, self.progress)
