"""`flwr run` on a SuperLink of our own, in Flower's simulation runtime."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
from omegaconf import DictConfig

from fedfusion.federation.grid import python_path
from fedfusion.tracking import Terminal
from fedfusion.types import FedfusionError, RunFailed

STARTUP_S = 120
SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_ADDRESS": "local",  # or a simulation joins whatever Ray runs on the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
PYPROJECT = """\
[project]
name = "fedfusion-run"
version = "{fedfusion}"
description = "One run of fedfusion."
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41,<2"]

[tool.flwr.app]
publisher = "fedfusion"
fab-format-version = 1
flwr-version-target = "{flwr}"

[tool.flwr.app.components]
serverapp = "fedfusion.apps:server_app"
clientapp = "fedfusion.apps:client_app"

[tool.flwr.app.config]
config = ""
overrides = ""
"""


@dataclass(frozen=True)
class Flower:
    """Run under Flower: a SuperLink in simulation mode, `flwr run`, and stop it afterwards.

    Telemetry, update check and run-time dependency installation are off; nothing is written outside the run folder.
    Flower's engine never replaces an actor that died, so a client that kills its process takes others with it there;
    `inline` and `ray` lose only that client.

    Parameters
    ----------
    port
        Of the SuperLink, on this machine's loopback.
    actors
        Clients that run at the same time, one CPU each.
    """

    port: int = 39391
    actors: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535 or self.actors < 1:
            raise FedfusionError(
                "federation.port must be between 1 and 65535 and federation.actors at least 1, "
                f"got {self.port}, {self.actors}"
            )

    simulated: ClassVar = True  # every node hosts all clients

    def check(self) -> None:
        """Refuse to start where Ray is missing or the port is taken."""
        if importlib.util.find_spec("ray") is None:
            raise FedfusionError(
                "federation=flower simulates with Ray, which is not installed: pip install 'fedfusion[simulation]'"
            )
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise FedfusionError(f"port {self.port} is taken (choose another with federation.port)")

    def launch(self, cfg: DictConfig) -> None:
        """Start the SuperLink, submit the run, wait for its end, and stop the SuperLink."""
        from fedfusion.config import build, to_json

        experiment = build(cfg)
        run_dir = Path(str(experiment.run_dir)).resolve()
        home = run_dir / ".flower"
        app = app_folder(home, to_json(cfg))
        (home / "config.toml").write_text(f'[superlink.ours]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n')
        environment = environment_of(home)
        superlink = self._superlink(home, environment)
        try:
            nodes = experiment.suite.num_clients if experiment.server.stock else self.actors
            size = (
                f"num-supernodes={nodes} client-resources-num-cpus=1 "
                f"client-resources-num-gpus=0.0 init-args-num-cpus={self.actors}"
            )
            command = [tool("flwr"), "run", str(app), "ours", "--stream"]
            command += ["--run-config", str(home / "run.toml"), "--federation-config", size]
            self._follow(command, environment, run_dir, experiment.rounds)
        finally:
            _stop(superlink)
            shutil.rmtree(home, ignore_errors=True)

    def _superlink(self, home: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        command = [
            tool("flower-superlink"),
            "--insecure",
            "--simulation",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        command += ["--disable-runtime-dependency-installation"]
        with (home / "superlink.log").open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=home)
        deadline = time.monotonic() + STARTUP_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1):
                    return process
            except OSError:
                time.sleep(0.2)
        process.kill()
        last = (home / "superlink.log").read_text().strip().splitlines()[-1:]
        raise FedfusionError(f"Flower's SuperLink did not start on port {self.port}: {''.join(last) or 'no output'}")

    def _follow(self, command: list[str], environment: Mapping[str, str], run_dir: Path, rounds: int) -> None:
        """Run `flwr run`, its output going to run.log; a client that hangs for good keeps Flower from ending it."""
        log, results = run_dir / "run.log", run_dir / "results.json"
        results.unlink(missing_ok=True)
        said = size_of(log)
        with log.open("a") as file:
            process = subprocess.Popen(command, env=dict(environment), stdout=file, stderr=subprocess.STDOUT)
        try:
            follow(run_dir, rounds, lambda: process.poll() is not None)
        finally:
            process.terminate()
        if not results.is_file():
            errors = raised(log, said)
            raise RunFailed(f"the run under Flower ended without a result: {errors[-1] if errors else 'see'} ({log})")


def follow(run_dir: Path, rounds: int, ended: Callable[[], bool]) -> None:
    """Show the rounds as they reach `metrics.jsonl`, until there are results or `ended` says that none will come."""
    metrics, results = run_dir / "metrics.jsonl", run_dir / "results.json"
    terminal, seen = Terminal(), _lines(metrics)
    terminal.started([json.loads(line) for line in seen], rounds)
    try:
        while True:
            over = results.is_file() or ended()
            lines = _lines(metrics)
            for line in lines[len(seen) :]:
                terminal.finished(json.loads(line))
            seen = lines
            if over:
                return
            time.sleep(0.5)
    finally:
        terminal.close()


def raised(log: Path, since: int) -> list[str]:
    """The errors of ours that a log tells of after its first `since` bytes."""
    with log.open("rb") as file:
        file.seek(since)
        return re.findall(r"(?<![\w/.-])fedfusion(?:\.\w+)*\.[A-Z]\w*: (.+)", file.read().decode(errors="replace"))


def size_of(log: Path) -> int:
    """Bytes in a log that may not exist yet."""
    return log.stat().st_size if log.is_file() else 0


def environment_of(home: Path) -> dict[str, str]:
    """The environment of Flower's processes: those of this Python, `home` their own, the network left alone."""
    paths = {
        "FLWR_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": python_path(),
    }
    return os.environ | SWITCHES | paths


def app_folder(home: Path, config: str) -> Path:
    """A Flower app that consists of a pyproject.toml: the code is the installed package."""
    app = home / "app"
    app.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in ("fedfusion", "flwr")}
    (app / "pyproject.toml").write_text(PYPROJECT.format_map(versions))
    (app / "LICENSE").write_text("Apache-2.0\n")
    (home / "run.toml").write_text(f"config = {json.dumps(config)}\n")
    return app


def _stop(superlink: subprocess.Popen[bytes]) -> None:
    """End the SuperLink and all it has started: the simulation would train on without it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(superlink.pid).children(recursive=True)
        for process in (superlink, *started):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(started, timeout=10)
        for process in alive:
            process.kill()
    superlink.kill()
    superlink.wait()


def tool(name: str) -> str:
    """A command of this very Python environment."""
    return str(Path(sys.executable).with_name(name))


def _lines(path: Path) -> list[str]:
    """The complete lines of a file that may still grow."""
    return path.read_text().split("\n")[:-1] if path.is_file() else []
