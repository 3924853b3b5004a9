"""Rounds on disk: written whole or not at all, and checked before they are believed."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedfusion.types import FedfusionError, RunFailed

KEEP = 2  # the last round, and the one before it
FILES = ("state.safetensors", "round.json")
CHECKSUMS = "SHA256SUMS"  # as `sha256sum -c` reads it


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: temporary name, fsync, rename. A write that fails leaves `path` as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        _sync(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def folders(run_dir: Path) -> Iterator[Path]:
    """A temporary folder whose folders replace those of the same name in `run_dir`, once all of them are written."""
    temporary = run_dir / ".folders.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        for folder in temporary.iterdir():
            shutil.rmtree(run_dir / folder.name, ignore_errors=True)
            folder.rename(run_dir / folder.name)
        _sync(run_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Checkpoints:
    """The folder `checkpoints/` of a run: `round-0003/{state.safetensors, round.json, SHA256SUMS}`.

    Every random draw is named by its round, so the state of a round is all that resuming needs.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"
        self.damaged: list[str] = []  # what the last load passed over, and why

    def save(self, server_round: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Write one round under a temporary name, flush it, rename it, and drop the rounds before the last two.

        Raises
        ------
        RunFailed
            If it cannot be written; what was there before is untouched.
        """
        final = self.folder / f"round-{server_round:04d}"
        temporary = self.folder / f".round-{server_round:04d}.tmp"
        with self.writing(final):
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
                save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary / FILES[0])
                (temporary / FILES[1]).write_text(json.dumps(facts))
                sums = [f"{_sha256(temporary / name)}  {name}\n" for name in FILES]
                (temporary / CHECKSUMS).write_text("".join(sums))
                for file in (*temporary.iterdir(), temporary):
                    _sync(file)
                shutil.rmtree(final, ignore_errors=True)  # of a run that went on from before it, as it was damaged
                temporary.rename(final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            _sync(self.folder)
            for old in self.rounds()[:-KEEP]:
                shutil.rmtree(old)
        return final

    def rounds(self) -> list[Path]:
        """The folders of the rounds on disk, the oldest first."""
        return sorted(self.folder.glob("round-*"), key=round_of)

    def latest(self) -> Path | None:
        """The folder of the last round that is intact, if any."""
        return next((folder for folder in reversed(self.rounds()) if not _damage(folder)), None)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the last round that was finished, if any.

        A round whose files are not what was written is passed over, and the one before it is used.

        Raises
        ------
        FedfusionError
            If there are rounds, and none of them is intact.
        """
        damaged = self.damaged = []
        for folder in reversed(self.rounds()):
            if not (damage := _damage(folder)):
                return load_file(folder / FILES[0]), json.loads((folder / FILES[1]).read_text())
            damaged.append(f"{folder}: {damage}")
        if damaged:
            raise FedfusionError(
                f"no checkpoint is intact: {'; '.join(damaged)} (restore one from a copy, or start a new run; to begin "
                f"this one again, remove {self.folder})"
            )
        return None

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Say what became of the run when `path` cannot be written.

        Raises
        ------
        RunFailed
            For a disk that is full, a quota, a missing permission: path, reason, free space, the last good checkpoint,
            and how to go on.
        """
        try:
            yield
        except BrokenPipeError:  # nobody reads the terminal any more
            raise
        except (OSError, SafetensorError) as error:
            run_dir = self.folder.parent
            raise RunFailed(
                f"cannot write {path}: {_reason(error)} ({_free(run_dir)} free). "
                f"Last good checkpoint: {self.latest() or 'none'}. "
                f"Make room, or mend what is named, and continue with: fedfusion run --resume {run_dir}"
            ) from error


def round_of(folder: Path) -> int:
    """The number of the round in a checkpoint's folder."""
    return int(folder.name.removeprefix("round-"))


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of a round, in words, or None where they are what was written."""
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
        written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for name in FILES:
            found, expected = _sha256(folder / name), written.get(name, "")
            if found != expected:
                return f"{name} has SHA-256 {found[:12]}..., {CHECKSUMS} says {expected[:12] or 'nothing'}..."
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot be read ({error})"
    return None


def _reason(error: OSError | SafetensorError) -> str:
    """What the system said; safetensors has its number in words."""
    if number := re.search(r"os error (\d+)", str(error)):
        return os.strerror(int(number[1]))
    return getattr(error, "strerror", None) or str(error)


def _free(folder: Path) -> str:
    """Free space of the disk of `folder`."""
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB"
    except OSError:
        return "unknown space"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
