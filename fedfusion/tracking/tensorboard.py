"""TensorBoard: event files in the run folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedfusion.tracking.library import Library, require
from fedfusion.validation import flat


@dataclass(frozen=True)
class TensorBoard:
    """Event files in `tensorboard/` of the run folder; `tensorboard --logdir runs` shows them.

    Its tab of hyperparameters has the configuration and the final results.
    """

    def check(self) -> None:
        """Refuse to start without TensorBoard."""
        require("tensorboard", extra="tensorboard")

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> Library:
        """Begin another event file."""
        return Library("tensorboard", partial(_Events, run_dir / "tensorboard", config))


class _Events:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.config = flat(config)
        self.earlier = folder.is_dir()
        self.writer = SummaryWriter(str(folder))
        if not self.earlier:
            self.writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```", 0)

    def last_round(self) -> int:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        if not self.earlier:
            return 0
        events = EventAccumulator(self.writer.log_dir).Reload()
        return max((events.Scalars(tag)[-1].step for tag in events.Tags()["scalars"]), default=0)

    def log(self, values: Mapping[str, float], server_round: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, server_round)
        self.writer.flush()

    def conclude(self, values: Mapping[str, float], server_round: int) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.log(values, server_round)
        settings = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in self.config.items()}
        file: Any = self.writer.file_writer
        for summary in hparams(settings, dict(values)):
            file.add_summary(summary)

    def close(self, status: str) -> None:
        self.writer.add_text("status", status)
        self.writer.close()
