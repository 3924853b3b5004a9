"""Trackio: its database on this machine, or a Hugging Face Space."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedfusion.tracking.library import Library, identity, require
from fedfusion.validation import flat

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # environment variables that would send it away


@dataclass(frozen=True)
class Trackio:
    """A run of Trackio's; `trackio show --project fedfusion` shows it among the others of this machine.

    The database is where Trackio keeps those of all runs: in `$TRACKIO_DIR`, or `~/.cache/huggingface/trackio`.

    Parameters
    ----------
    project
        The Trackio project.
    space
        A Hugging Face Space to send it to; null is this machine alone, whatever the environment says.
    """

    project: str = "fedfusion"
    space: str | None = None

    def check(self) -> None:
        """Refuse to start without Trackio."""
        require("trackio", extra="track")

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> Library:
        """Begin a run that is named after the run folder, or continue it."""
        return Library("trackio", partial(_Run, self, run_dir, config))


class _Run:
    def __init__(self, settings: Trackio, run_dir: Path, config: Mapping[str, Any]) -> None:
        with contextlib.nullcontext() if settings.space else _on_this_machine():
            import trackio

            self.run = trackio.init(
                project=settings.project,
                name=f"{run_dir.name}-{identity(run_dir)[:6]}",  # the database may know other folders of the same name
                space_id=settings.space,
                resume="allow",
                config={key: value for key, value in flat(config).items() if not key.startswith("_")},
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.finish = trackio.finish

    def last_round(self) -> int:
        return self.run._next_step - 1  # of no public interface does a Space tell, too

    def log(self, values: Mapping[str, float], server_round: int) -> None:
        self.run.log(dict(values), step=server_round)

    def conclude(self, values: Mapping[str, float], server_round: int) -> None:
        self.run.log(dict(values), step=server_round)

    def close(self, status: str) -> None:
        self.run.log({"status": status}, step=max(self.run._next_step - 1, 0))
        self.finish()


@contextlib.contextmanager
def _on_this_machine() -> Iterator[None]:
    """Trackio asks the Hub who is logged in, and the environment where to send runs, before it keeps one here."""
    from huggingface_hub import constants

    environment, offline = dict(os.environ), constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        os.environ.update({name: environment[name] for name in ELSEWHERE if name in environment})
