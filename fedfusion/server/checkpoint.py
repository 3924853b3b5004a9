"""Rounds on disk: written whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

KEEP = 2  # the last round, and the one before it


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


class Checkpoints:
    """The folder `checkpoints/` of a run: `round-0003/{state.safetensors, round.json}`.

    Every random draw is named by its round, so the state of a round is all that resuming needs.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"

    def save(self, server_round: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Write one round under a temporary name, flush it, rename it, and drop the rounds before the last two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"round-{server_round:04d}"
        temporary = self.folder / f".round-{server_round:04d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary / "state.safetensors")
        (temporary / "round.json").write_text(json.dumps(facts))
        for file in (*temporary.iterdir(), temporary):
            _sync(file)
        temporary.rename(final)
        _sync(self.folder)
        for old in self.rounds()[:-KEEP]:
            shutil.rmtree(old)
        return final

    def rounds(self) -> list[Path]:
        """The folders of the rounds on disk, the oldest first."""
        return sorted(self.folder.glob("round-*"))

    def latest(self) -> Path | None:
        """The folder of the last round that was finished, if any."""
        return self.rounds()[-1] if self.rounds() else None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the last round that was finished, if any."""
        latest = self.latest()
        if latest is None:
            return None
        return load_file(latest / "state.safetensors"), json.loads((latest / "round.json").read_text())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
