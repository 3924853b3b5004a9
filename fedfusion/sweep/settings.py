"""How a sweep is run: `sweep.jobs=4 sweep.fail_fast=true`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_type_hints

from hydra.core.override_parser.types import Override
from pydantic import TypeAdapter, ValidationError

from fedfusion.validation import ConfigErrors, nearest

PREFIX = "sweep."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `sweep.KEY=VALUE` sets; nothing of it changes a result.

    Parameters
    ----------
    jobs
        Runs at the same time, each in a process of its own with `client.threads` threads; null is as many as there
        are cores for.
    on
        Where they run: `processes` of this machine, or `ray` tasks, on this machine or on a cluster that
        `RAY_ADDRESS` names. `hydra/launcher=joblib` or `=submitit_slurm` has a launcher of Hydra's do it instead.
    share
        Whether runs that differ only behind the upload share their local training.
    fail_fast
        Whether the first run that fails ends the sweep.
    dry_run
        Print what would be run, run the first cell for an estimate of the time, and end.
    """

    jobs: int | None = None
    on: Literal["processes", "ray"] = "processes"
    share: bool = True
    fail_fast: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ConfigErrors([f"sweep.jobs must be at least 1 or null, got {self.jobs}"])

    def at_once(self, threads: int) -> int:
        """How many runs there are at the same time, each with as many `threads`."""
        return self.jobs or max(1, len(os.sched_getaffinity(0)) // threads)

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Self:
        """The settings that `overrides` make.

        Raises
        ------
        ConfigErrors
            For keys that do not exist, and values that do not fit, one sentence each.
        """
        hints, given, errors = get_type_hints(cls), dict[str, Any](), []
        for o in overrides:
            name = o.key_or_group.removeprefix(PREFIX)
            if name not in hints:
                known = [PREFIX + field.name for field in fields(cls)]
                errors.append(f"{o.input_line}: a sweep has no '{o.key_or_group}' ({nearest(o.key_or_group, known)})")
                continue
            try:
                given[name] = TypeAdapter(hints[name]).validate_python(o.value())
            except ValidationError as error:
                errors.append(f"{o.input_line}: {error.errors()[0]['msg'].lower()}")
        if errors:
            raise ConfigErrors(errors)
        return cls(**given)
