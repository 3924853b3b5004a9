"""The reports of folders that exist: of runs, of sweeps, and of several side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfusion.reporting import compare_runs, compare_sweeps, report, sweep
from fedfusion.reporting.comparison import MOST, Comparison
from fedfusion.types import FedfusionError

RUN, SWEEP, PLAN = "results.json", "sweep.json", "plan.json"

Read = Callable[[Path], Mapping[str, Any]]  # the facts of a sweep that has not ended, from its folder


def rebuild(folders: Sequence[Path], unfinished: Read) -> list[Path]:
    """Write the report of each run or sweep anew, and say where.

    Parameters
    ----------
    folders
        Of runs and of sweeps.
    unfinished
        What reads the folder of a sweep that has a plan but no sweep.json.

    Raises
    ------
    FedfusionError
        If a folder holds neither, before anything is written; or if it cannot be written.
    """
    kinds = {folder: kind(folder) for folder in folders}
    for folder, of in kinds.items():
        if of == "sweep":
            sweep.make(facts(folder, unfinished), folder)
        else:
            report.make(folder)
    return [folder / "report.html" for folder in kinds]


def compare(folders: Sequence[Path], out: Path, unfinished: Read) -> Comparison:
    """Put runs, or sweeps over the same axes, side by side into one page.

    Parameters
    ----------
    folders
        Of runs, or of sweeps.
    out
        The page to write.
    unfinished
        As in :func:`rebuild`.

    Raises
    ------
    FedfusionError
        If there are fewer than two folders or more than 26, or some of either kind, or `out` exists.
    """
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    if not 2 <= len(distinct) <= MOST:
        raise FedfusionError(
            f"--compare needs 2 to {MOST} different folders, got {len(distinct)} (name more, or fewer)"
        )
    kinds = {folder: kind(folder) for folder in distinct}
    if len(set(kinds.values())) > 1:
        said = ", ".join(f"{folder} is a {of}" for folder, of in kinds.items())
        raise FedfusionError(f"only runs with runs, or sweeps with sweeps, can be compared: {said}")
    if out.exists() or not out.parent.is_dir():
        why = "exists already and is never overwritten" if out.exists() else "is in a folder that does not exist"
        raise FedfusionError(f"{out} {why} (choose another with --out FILE)")
    if "sweep" in kinds.values():
        found = compare_sweeps.compare({folder: facts(folder, unfinished) for folder in distinct})
    else:
        found = compare_runs.compare(distinct)
    found.write(out)
    return found


def kind(folder: Path) -> str:
    """`run` or `sweep`, by what the folder holds.

    Raises
    ------
    FedfusionError
        If it holds neither.
    """
    if (folder / SWEEP).is_file() or (folder / PLAN).is_file():
        return "sweep"
    if (folder / RUN).is_file() or (folder / "config.yaml").is_file():
        return "run"
    if not folder.is_dir():
        raise FedfusionError(f"{folder}: no such folder (give the folder of a run or of a sweep)")
    raise FedfusionError(
        f"{folder} holds neither {RUN}, which a run writes at its end, nor {SWEEP} or {PLAN} of a sweep: there "
        "is nothing to report (give the folder that fedfusion run or fedfusion sweep named)"
    )


def facts(folder: Path, unfinished: Read) -> Mapping[str, Any]:
    """The facts of a sweep, ended or not."""
    return sweep.load(folder) if (folder / SWEEP).is_file() else unfinished(folder)
