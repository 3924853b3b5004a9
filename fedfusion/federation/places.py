"""Where whole runs happen: in another process of this machine, or as tasks of Ray."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import torch

from fedfusion.federation.ray import connect
from fedfusion.types import FedfusionError


def process(threads: int) -> Executor:
    """A process that stays, for one run after another; its `threads` are those of its numerical libraries."""
    spawn = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    return ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(threads, list(sys.path)))


def _begin(threads: int, path: list[str]) -> None:
    """Leave an interrupt to the process that started this one, end with that one, and import what it could."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path[:] = path
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class RayTasks(Executor):
    """Calls functions as tasks of Ray, on this machine or on the cluster that `RAY_ADDRESS` names.

    Parameters
    ----------
    cpus
        What Ray reserves for each, and the threads it may use.

    Raises
    ------
    FedfusionError
        If Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, cpus: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise FedfusionError("sweep.on=ray needs Ray: pip install 'fedfusion[simulation]'") from error
        self.ray, self.cpus = ray, cpus
        try:
            self.ours = connect(os.environ.get("RAY_ADDRESS"), cpus)
        except FedfusionError as error:
            raise FedfusionError(str(error).replace("federation.address", "RAY_ADDRESS")) from error

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Call a function as a task."""
        return self.ray.remote(num_cpus=self.cpus, max_retries=1)(function).remote(*arguments, **named).future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave Ray, which ends the tasks that still run; not if it was there before."""
        if self.ours:
            self.ray.shutdown()
