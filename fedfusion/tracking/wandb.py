"""Weights & Biases: files in the run folder, or its server."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fedfusion.tracking.library import Library, identity, require
from fedfusion.validation import flat


@dataclass(frozen=True)
class WandB:
    """A run of Weights & Biases, in `wandb/` of the run folder; `wandb sync` uploads it from there.

    It knows the numbers of the run alone: no code, no console, nothing about the machine.

    Parameters
    ----------
    project
        The project.
    entity
        Whose project it is; null is the default of the account.
    mode
        `offline` writes files; `online` sends them too, with the key of `wandb login` or `WANDB_API_KEY`.
    """

    project: str = "fedfusion"
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"

    def check(self) -> None:
        """Refuse to start without it."""
        require("wandb", extra="wandb")

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> Library:
        """Begin a run of the name of the run folder, or continue it."""
        return Library("wandb", partial(_Run, self, run_dir, config))


class _Run:
    def __init__(self, settings: WandB, run_dir: Path, config: Mapping[str, Any]) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self.run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=identity(run_dir),
            name=run_dir.name,
            mode=settings.mode,
            dir=str(run_dir),
            resume="allow",
            config=flat(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )
        self.told = run_dir / "wandb" / "last_round"  # what is offline cannot be asked

    def last_round(self) -> int:
        return int(self.told.read_text()) if self.told.is_file() else 0

    def log(self, values: Mapping[str, float], server_round: int) -> None:
        self.run.log(dict(values), step=server_round)
        self.told.write_text(str(server_round))

    def conclude(self, values: Mapping[str, float], server_round: int) -> None:
        self.run.summary.update(dict(values))

    def close(self, status: str) -> None:
        self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status == "finished" else 1)
