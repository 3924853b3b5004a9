"""A sweep: one run for every cell of a grid, and what is found over all of them."""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import Any

from fedfusion.composition import CONF, options, searched
from fedfusion.server.store import sources
from fedfusion.sweep.folder import Folder, facts
from fedfusion.sweep.plan import DIGITS, Cell, Plan, plan, separate
from fedfusion.sweep.screen import Screen
from fedfusion.sweep.settings import Settings
from fedfusion.sweep.workers import Work, done, multirun, place, run

__all__ = ["Cell", "Folder", "Plan", "Settings", "Work", "facts", "plan", "run", "separate", "sweep"]


def sweep(
    overrides: Sequence[str],
    out: Path | None = None,
    do: Callable[[Work], str] = run,
    where: Callable[[], Executor] | None = None,
) -> dict[str, Any]:
    """Run every cell of a grid into `out`, and write sweep.json, sweep.csv, plots/, README.md and report.html there.

    What is finished in `out` is not run again, what was begun is continued, what failed or is damaged is run anew.

    Parameters
    ----------
    overrides
        Those of a run, of which any may have several values; `sweep=<name>` for a grid of `conf/sweep/`;
        `sweep.<key>` for how it is run, see :class:`fedfusion.sweep.settings.Settings`; and overrides of Hydra's own.
    out
        The folder; None is `sweeps/`, the name of the grid, and a hash of the overrides.
    do
        What does a run; it returns why that failed, or nothing.
    where
        What makes a place where one run at a time happens; None is as the settings say.

    Returns
    -------
    dict
        What is in sweep.json; of a dry run, with `estimate_s`, the seconds that what is left will take.

    Raises
    ------
    FedfusionError
        Before anything is run: for everything that is wrong with any cell, and where `out` holds another sweep.
    KeyboardInterrupt
        If it was stopped by hand; sweep.json then holds what is finished.
    """
    started, screen = time.monotonic(), Screen()
    given, settings = separate(overrides)
    texts = [str(o.input_line) for o in given]
    name = next((str(o.value()) for o in given if o.key_or_group == "sweep"), "grid")
    folder = Folder((out or Path("sweeps") / f"{name}-{_hash(texts)[:8]}").resolve())
    key = _hash([*texts, str(Path.cwd()), sources(), *_options(searched(given))])
    with screen.checking() as told:
        planned = folder.planned(key) or plan(given, told)
    with folder.alone():
        folder.adopt(planned, key, ["fedfusion", "sweep", *texts])
        states = {cell.run: folder.state(cell) for cell in planned.runs}
        screen.planned(planned, states, folder.path)
        todo = [cell for cell in planned.runs if states[cell.run] != "finished"]
        if settings.dry_run:
            screen.cells(planned, states)
            todo = todo[: len(todo) == len(states)]
        try:
            _run(folder, planned, todo, settings, screen, do, where)
        finally:
            found = folder.facts(planned, folder.seconds() + (time.monotonic() - started if todo else 0))
            folder.conclude(found)
        if settings.dry_run:
            found["estimate_s"] = folder.estimate(planned, settings.at_once(_threads(planned)))
            screen.estimated(found["estimate_s"])
    return found


def _run(
    folder: Folder,
    planned: Plan,
    todo: Sequence[Cell],
    settings: Settings,
    screen: Screen,
    do: Callable[[Work], str],
    where: Callable[[], Executor] | None,
) -> None:
    """Do the runs of `todo`, and tell the screen."""
    for cell in todo:
        if said := folder.prepare(cell):
            screen.say(said)
    trainings = {"trainings": str(folder.trainings)} if settings.share else {}
    work = {c.run: Work({**planned.configs[c.run], **trainings}, c.overrides, folder.run(c)) for c in todo}
    if todo and any(text.startswith("hydra/launcher=") for text in planned.hydra):
        return multirun(planned.hydra, planned.cells, work, folder.path, folder.failed)
    cells = {cell.run: cell for cell in todo}
    threads = _threads(planned)
    ends = done(work, settings.at_once(threads), where or (lambda: place(settings, threads)), do)
    with screen.running(len(todo)), closing(ends):
        for name, error, seconds in ends:
            if error:
                folder.failed(cells[name], error)
            screen.ended(folder.outcome(cells[name], planned.attack), seconds)
            if error and settings.fail_fast:
                screen.say("sweep.fail_fast: no other cell is run")
                return


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:DIGITS]


def _options(own: Sequence[Path]) -> list[str]:
    """Digests of all that a configuration can be composed of."""
    found = [CONF / "config.yaml", *(path for files in options(own).values() for path in files.values())]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in found]


def _threads(planned: Plan) -> int:
    """How many threads a run has."""
    return max(config["client"]["threads"] for config in planned.configs.values())
