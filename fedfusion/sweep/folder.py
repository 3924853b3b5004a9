"""The folder of a sweep: what was planned, what became of each run, and what is found over all of them."""

import contextlib
import csv
import itertools
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from fedfusion.reporting import sweep as report
from fedfusion.server.checkpoint import Checkpoints, write_atomically
from fedfusion.server.lock import locked
from fedfusion.server.store import files
from fedfusion.strict_json import dumps, unworded, worded
from fedfusion.sweep.plan import Cell, Plan, digest, identity
from fedfusion.types import FedfusionError
from fedfusion.validation import flat

SCHEMA_VERSION = 2
NOT_RUN = "not run yet"
State = Literal["finished", "failed", "begun", "damaged", "another", "new"]


class Folder:
    """`plan.json`, `runs/<hash>/`, `trainings/`, and what is made of them: `sweep.json`, `sweep.csv`, a report.

    Parameters
    ----------
    path
        Need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainings = path / "trainings"

    def run(self, cell: Cell) -> Path:
        """The folder of a cell's run."""
        return self.path / "runs" / cell.run

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and hold its lock, which ends with this process however it ends.

        Raises
        ------
        FedfusionError
            If it cannot be written, holds something else than a sweep, or another process sweeps in it.
        """
        if not (self.path / "plan.json").exists() and self._others():
            raise FedfusionError(
                f"--out {self.path} exists and holds no sweep, but {self._others()[0]}: it is not written over "
                "(choose another)"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".lock").touch()
        except OSError as error:
            raise FedfusionError(
                f"--out {self.path}: cannot be written ({error.strerror}; choose a folder that can, with --out)"
            ) from error
        with locked(self.path / ".lock") as mine:
            if not mine:
                raise FedfusionError(f"another process sweeps in {self.path} (wait for it, or end it)")
            yield

    def _others(self) -> list[str]:
        """What is in the folder beside the lock."""
        there = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        return [name for name in there if name != ".lock"]

    def planned(self, key: str | None = None) -> Plan | None:
        """The plan in the folder, if there is one; where `key` is given, if that made it, from files as they are now.

        Raises
        ------
        FedfusionError
            If it cannot be read, or another version wrote it.
        """
        try:
            stored = json.loads((self.path / "plan.json").read_text())
            if stored["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"it has schema version {stored['schema_version']}, this is {SCHEMA_VERSION}")
            plan = Plan.of({**stored["plan"], "configs": unworded(stored["plan"]["configs"])})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FedfusionError(
                f"{self.path / 'plan.json'} cannot be read ({error}; remove it and sweep again: finished runs are kept)"
            ) from error
        return plan if key is None or [key, _inputs(plan)] == [stored["key"], stored["inputs"]] else None

    def adopt(self, plan: Plan, key: str, command: Sequence[str]) -> None:
        """Make `plan` that of the folder. It may add runs to the one before, and take none away.

        Raises
        ------
        FedfusionError
            If the folder holds runs that are not in `plan`, with both hashes and a key that differs.
        """
        before = self.planned()
        if before is not None and (lost := sorted(before.configs.keys() - plan.configs.keys())):
            raise FedfusionError(
                f"--out {self.path} holds another sweep: its plan has the hash {before.hash}, this one {plan.hash}; "
                f"{len(lost)} of its {len(before.configs)} runs are not among these "
                f"({_difference(before, plan, lost[0])}). Choose another --out, or remove the folder"
            )
        stored = {"schema_version": SCHEMA_VERSION, "key": key, "inputs": _inputs(plan), "command": shlex.join(command)}
        write_atomically(self.path / "plan.json", dumps(worded(stored | {"plan": plan.to_dict()}), indent=1) + "\n")

    def state(self, cell: Cell) -> State:
        """What became of a cell's run so far."""
        folder = self.run(cell)
        if not folder.exists():
            return "new"
        failed = (folder / "error.txt").exists()
        if failed and not (folder / "config.yaml").exists():
            return "failed"
        try:
            config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
            if identity(config, cell.byzantine) != cell.run:
                return "another"
            if failed:
                return "failed"
            if not (folder / "results.json").exists():
                return "begun"
            report.measured(json.loads((folder / "results.json").read_text()))
        except Exception:  # whatever a damaged file holds
            return "damaged"
        return "finished"

    def prepare(self, cell: Cell) -> str | None:
        """Make the folder of a run ready to begin or to continue in; a sentence where it held something else.

        Raises
        ------
        FedfusionError
            If another process runs in it.
        """
        folder = self.run(cell)
        if not folder.exists():
            return None
        with locked(folder / ".lock") as mine:
            if not mine:
                raise FedfusionError(f"another process runs in {folder} (wait for it, or end it)")
            state = self.state(cell)
            if state == "another":
                aside = next(path for i in itertools.count(1) if not (path := Path(f"{folder}.{i}")).exists())
                folder.rename(aside)
                return f"{folder} held a run of another configuration, which is in {aside.name} now: it is run again"
            (folder / "error.txt").unlink(missing_ok=True)
            if state == "damaged":
                shutil.rmtree(folder)
                return f"{folder} is damaged: it is run again"
            if Checkpoints(folder).latest() is None:
                shutil.rmtree(folder)
        return None

    def failed(self, cell: Cell, error: str) -> None:
        """Write down why a run failed."""
        self.run(cell).mkdir(parents=True, exist_ok=True)
        (self.run(cell) / "error.txt").write_text(error + "\n")

    def _told(self) -> dict[str, Any]:
        """What sweep.json says, if it can be read."""
        try:
            return dict(json.loads((self.path / "sweep.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def seconds(self) -> float:
        """How long the sweep took until now, as far as that was written down."""
        return float(self._told().get("wall_time_s", 0.0))

    def estimate(self, plan: Plan, at_once: int) -> float | None:
        """Seconds for what is left: each training once, and for each run what one took beside it; None if unknown."""
        states = {cell.run: self.state(cell) for cell in plan.runs}
        ended = {cell.run: cell for cell in plan.runs if states[cell.run] == "finished"}
        if not ended:
            return None
        found = [json.loads((self.run(cell) / "results.json").read_text()) for cell in ended.values()]
        training = max(each.get("training_s", 0.0) for each in found)
        beside = sum(each["wall_time_s"] - each.get("training_s", 0.0) for each in found) / len(found)
        trainings = {cell.training for cell in plan.runs} - {cell.training for cell in ended.values()}
        places = max(1, min(at_once, len(states) - len(ended)))
        trained = -(-len(trainings) // places) * training  # one takes as long as all at the same time
        return trained + (len(states) - len(ended)) * beside / places

    def facts(self, plan: Plan, wall_time_s: float = 0.0) -> dict[str, Any]:
        """What is known of the sweep by now, as in sweep.json."""
        done = next((self.run(cell) for cell in plan.cells if self.state(cell) == "finished"), None)
        of_one = json.loads((done / "results.json").read_text()) if done else {}
        facts: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "command": json.loads((self.path / "plan.json").read_text())["command"],
            "question": plan.question,
            "grid": plan.grid,
            "fixed": list(plan.fixed),
            "trainings": plan.trainings,
            "wall_time_s": round(wall_time_s, 1),
            "versions": of_one.get("versions", {}),
            "machine": of_one.get("machine", {}),
            "warnings": [],
            "axes": {key: list(values) for key, values in plan.axes.items()},
            "cells": [self.outcome(cell, plan.attack) for cell in plan.cells],
        }
        return facts | report.figures(facts)

    def outcome(self, cell: Cell, attack: str) -> dict[str, Any]:
        """What is known of a cell, from the files of its run."""
        folder, state = self.run(cell), self.state(cell)
        facts: dict[str, Any] = {
            "attack": cell.point.get("attack", attack),
            "point": dict(cell.point),
            "run": cell.run,
            "repeats": cell.repeats,
            "overrides": list(cell.overrides),
            "error": None,
        }
        if state == "finished":
            return facts | report.measured(json.loads((folder / "results.json").read_text()))
        said = {"failed": lambda: (folder / "error.txt").read_text().strip(), "begun": lambda: "did not finish"}
        return facts | {"error": said.get(state, lambda: NOT_RUN)()}

    def conclude(self, facts: Mapping[str, Any]) -> None:
        """Write sweep.json, sweep.csv and the report, where they do not say this already."""
        untimed = {**facts, "wall_time_s": 0}
        same = {**self._told(), "wall_time_s": 0} == json.loads(dumps(untimed))
        if same and ((self.path / "report.html").exists() or not facts["points"]):
            return
        write_atomically(self.path / "sweep.json", dumps(facts, indent=1) + "\n")
        rows = [report.row(cell) for cell in facts["cells"]]
        with (self.path / "sweep.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
        if facts["points"]:
            report.make(facts, self.path)


def _inputs(plan: Plan) -> str:
    """A digest of the configurations, where the text "inf" is not the number, and of the files that they name."""
    return digest([plan.configs, sorted({json.dumps(files(config)) for config in plan.configs.values()})])


def facts(out: Path) -> dict[str, Any]:
    """What is known by now of the sweep in a folder, finished or not.

    Raises
    ------
    FedfusionError
        If there is no sweep in it.
    """
    folder = Folder(out)
    plan = folder.planned()
    if plan is None:
        raise FedfusionError(f"{out}: there is no plan.json of a sweep in it")
    return folder.facts(plan, folder.seconds())


def _difference(before: Plan, after: Plan, run: str) -> str:
    """A key of a lost run that the same cell has otherwise now."""
    lost = next(cell for cell in before.cells if cell.run == run)
    same = next((cell for cell in after.cells if cell.point == lost.point), None)
    if same is None:
        return "as " + " ".join(f"{key}={value}" for key, value in lost.point.items())
    theirs, ours = flat(dict(before.configs[run])), flat(dict(after.configs[same.run]))
    key = next(key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key))
    return f"'{key}' is {theirs.get(key)!r} there and {ours.get(key)!r} here"
