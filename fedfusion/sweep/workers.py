"""Runs of a sweep, several at a time: in processes of this machine, on Ray, or by a launcher of Hydra's."""

import contextlib
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fedfusion.composition import CONF
from fedfusion.federation.places import RayTasks, process
from fedfusion.sweep.plan import Cell
from fedfusion.sweep.settings import Settings
from fedfusion.types import FedfusionError

QUIET = ("hydra.sweep.subdir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
DIED = (
    "the process of this run died (killed by the system if memory ran out: lower sweep.jobs; a script that sweeps "
    "needs if __name__ == '__main__')"
)


@dataclass(frozen=True)
class Work:
    """What a worker needs to do a run.

    Parameters
    ----------
    config
        Resolved and checked.
    overrides
        What it was made of.
    folder
        Of the run.
    """

    config: Mapping[str, Any]
    overrides: Sequence[str]
    folder: Path


def run(work: Work) -> str:
    """Do a run, or continue it; returns why it failed, or nothing. Whatever it prints goes nowhere."""
    from fedfusion.api import launch

    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            launch(OmegaConf.create(dict(work.config)), work.overrides, work.folder, report=False)
        shutil.rmtree(work.folder / "checkpoints", ignore_errors=True)  # there is nothing left to continue
    except FedfusionError as error:
        return str(error)
    except Exception:
        return traceback.format_exc().strip()
    return ""


def place(settings: Settings, threads: int) -> Executor:
    """Where one run at a time happens."""
    return RayTasks(threads) if settings.on == "ray" else process(threads)


def done(
    work: Mapping[str, Work], at_once: int, place: Callable[[], Executor], do: Callable[[Work], str] = run
) -> Generator[tuple[str, str, float], None, None]:
    """Name, error if any, and seconds of each run as it ends; `at_once` at a time.

    A worker that is killed costs its run alone. When the caller goes no further, whatever runs is ended.
    """
    others = set(multiprocessing.active_children())
    left, free = list(work.items()), [place() for _ in range(min(at_once, len(work)))]
    running: dict[Future[str], tuple[str, Executor, float]] = {}
    try:
        while left or running:
            while left and free:
                name, one = left.pop(0)
                here = free.pop()
                try:
                    running[here.submit(do, one)] = name, here, time.monotonic()
                except BrokenProcessPool:  # it died between two runs
                    here.shutdown(wait=False)
                    left.insert(0, (name, one))
                    free.append(place())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, here, started = running.pop(future)
                try:
                    error = future.result()
                    free.append(here)
                except BrokenProcessPool:
                    here.shutdown(wait=False)
                    error = DIED
                    free.append(place())
                except Exception as raised:
                    error = f"{type(raised).__name__}: {raised}"
                    free.append(here)
                yield name, error, time.monotonic() - started
    finally:
        for here in (*free, *(here for _, here, _ in running.values())):
            here.shutdown(wait=False, cancel_futures=True)
        if running:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()


def multirun(
    arguments: Sequence[str],
    cells: Sequence[Cell],
    work: Mapping[str, Work],
    out: Path,
    failed: Callable[[Cell, str], None],
) -> None:
    """Have the launcher that Hydra is told of do the runs, and `failed` write down why one failed.

    It says itself how far it is.
    """

    def job(_: DictConfig) -> None:
        cell = cells[HydraConfig.get().job.num]
        if cell.run in work and not cell.repeats and (error := run(work[cell.run])):
            failed(cell, error)

    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)
    with _argv(["fedfusion", "--multirun", *arguments, f"hydra.sweep.dir='{out}'", *QUIET]):
        main()


@contextlib.contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    """What a `hydra.main` reads its overrides from."""
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before
