"""Clients that misbehave: the local loop of the package, broken on purpose. Chosen by `client._target_`."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedfusion.client.train import LocalTraining


@dataclass(frozen=True)
class Faulty(LocalTraining):
    faults: Mapping[str, str] = field(default_factory=dict)
    marker: str = ""

    def __call__(self, model, start, data, head, *, seed, server_round, client):
        fault = self.faults.get(str(client), "")
        if fault == "raise":
            raise RuntimeError("out of battery")
        if fault == "hang":
            time.sleep(60)
        if fault == "die" or (fault == "die once" and not Path(self.marker).exists()):
            Path(self.marker).touch()
            os._exit(1)
        update, loss = super().__call__(model, start, data, head, seed=seed, server_round=server_round, client=client)
        broken = {
            "poison": torch.full_like(update, torch.nan),
            "huge": torch.full_like(update, 1e30),
            "shape": update[:5],
            "dtype": update.double(),
        }
        return broken.get(fault, update), loss
