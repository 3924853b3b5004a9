"""Clients that misbehave, and stages that the package does not have. Chosen by `_target_`."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch

from fedfusion.client.train import LocalTraining


@dataclass(frozen=True)
class Faulty(LocalTraining):
    faults: Mapping[str, str] = field(default_factory=dict)
    marker: str = ""

    def __call__(self, model, jobs, **names):
        for fault in (self.faults.get(str(job.client), "") for job in jobs):
            if fault == "raise":
                raise RuntimeError("out of battery")
            if fault == "hang":
                time.sleep(60)
            if fault == "die" or (fault == "die once" and not Path(self.marker).exists()):
                Path(self.marker).touch()
                os._exit(1)
        for job in jobs:
            if self.faults.get(str(job.client)) == "stall once":
                self._stall(Path(f"{self.marker}-{job.client}"))
        trained = super().__call__(model, jobs, **names)
        return [self._broken(self.faults.get(str(job.client), ""), t) for job, t in zip(jobs, trained, strict=True)]

    def _stall(self, marker):
        """The first time: leave the process id in the marker, and wait for a file that lets it go on."""
        if not marker.exists():
            marker.write_text(f"{os.getpid()}\n")
            until = time.monotonic() + 120
            while time.monotonic() < until and not Path(f"{self.marker}-go").exists():
                time.sleep(0.1)

    def _broken(self, fault, trained):
        update = trained.update
        broken = {
            "poison": torch.full_like(update, torch.nan),
            "huge": torch.full_like(update, 1e30),
            "shape": update[:5],
            "dtype": update.double(),
        }
        return replace(trained, update=broken.get(fault, update))


@dataclass(frozen=True)
class Krum:
    """An aggregator that chooses one upload: what a sum over the air cannot serve."""

    linear: ClassVar[bool] = False

    def __call__(self, vectors, weights):
        return vectors[torch.cdist(vectors, vectors).sum(1).argmin()]
