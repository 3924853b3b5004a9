"""A deployment of real processes on this machine, and runs on it that are watched and disturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from command import SMALL, TESTS

from fedfusion.deploy.supervisor import members

RUN = [*SMALL, "client.cohort_size=1"]
FIELD = ["attack=none", "channel=ideal"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
PATIENCE_S = 900.0  # for a machine that others use, too


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fedfusion", *map(str, arguments)]


def deploy(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    words = command("deploy", *arguments, "--dir", home)
    return subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE_S, cwd=home.parent)


def eventually(found, what: str):
    """What `found` returns once it is something."""
    until = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < until, f"{what}: it did not come to pass"
        time.sleep(0.1)
    return value


def process(home: Path, service: str, program: str) -> psutil.Process | None:
    """The process of a service that runs `program`, such as flwr-serverapp."""
    for found in members(home, service):
        if any(word.endswith(f"/{program}") or word == program for word in found.cmdline()):
            return found
    return None


def kill(home: Path, service: str, program: str) -> float:
    """Kill -9, and when, on the system's clock."""
    found = eventually(lambda: process(home, service, program), program)
    found.send_signal(signal.SIGKILL)
    killed = time.time()
    eventually(lambda: process(home, service, program) != found, f"the end of {program}")
    return killed


class Run:
    """`fedfusion deploy run` in a process of its own, with what it has printed so far."""

    def __init__(self, home: Path, run_dir: Path, *arguments: str) -> None:
        self.home, self.folder, self.printed = home, run_dir, run_dir.with_suffix(".out")
        with self.printed.open("w") as file:
            words = command("deploy", "run", "--dir", home, *arguments)
            self.process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT)

    def after_round(self, number: int) -> "Run":
        """Wait for a checkpoint."""
        path = self.folder / "checkpoints" / f"round-{number:04d}"
        eventually(lambda: path.is_dir() or self.process.poll() is not None, str(path))
        assert path.is_dir(), self.printed.read_text()
        return self

    def end(self) -> int:
        return self.process.wait(PATIENCE_S)

    def metrics(self) -> dict:
        assert self.end() == 0, self.printed.read_text()
        return json.loads((self.folder / "results.json").read_text())["metrics"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
