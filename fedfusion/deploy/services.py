"""The processes of a deployment on this machine: how each is started, and how all are ended."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedfusion.deploy.folder import Deployment, Device
from fedfusion.deploy.supervisor import HOME, alive, end, log_file, members, pid_file
from fedfusion.federation.flower import STARTUP_S, environment_of, tool
from fedfusion.types import FedfusionError

SERVER_DELAY_S = 3.0
NODE_DELAY_S = 60.0  # a SuperNode's key is refused until the heartbeats of its former connection have expired
POLL_S = "0.5"  # how often a SuperExec looks for work
STOPPED_S = 40.0  # what a supervisor has to end everything of its own
WORDS = 4  # last lines of a log


@dataclass(frozen=True)
class Service:
    """One supervised process.

    Attributes
    ----------
    name
        Of its log and its pid file.
    delay_s
        Seconds between an end and the next start.
    folder, command
        What runs, and where.
    flower
        What Flower keeps here instead of in the user's home.
    """

    name: str
    delay_s: float
    folder: Path
    command: list[str]
    flower: Path


def superlink(deployment: Deployment) -> Service:
    """The server, which devices reach: TLS, keys of devices, its state in a file."""
    home = deployment.home
    command = [tool("flower-superlink"), "--isolation", "process", "--enable-supernode-auth"]
    command += ["--host", "0.0.0.0" if deployment.hosts else "127.0.0.1", "--port", str(deployment.port)]
    command += ["--database", str(home / "state.db"), "--disable-runtime-dependency-installation"]
    command += ["--superexec-auth-secret-file", str(home / "superexec.secret")]
    command += ["--ssl-ca-certfile", str(home / "ca.crt")]
    command += ["--ssl-certfile", str(home / "server.crt"), "--ssl-keyfile", str(home / "server.key")]
    return Service("superlink", SERVER_DELAY_S, home, command, deployment.flower)


def superexec(deployment: Deployment) -> Service:
    """What starts server apps, apart from the SuperLink, so that they survive its end."""
    command = [tool("flower-superexec"), "--runtime-api-address", deployment.address]
    command += ["--superexec-auth-secret-file", str(deployment.home / "superexec.secret")]
    command += ["--root-certificates", str(deployment.home / "ca.crt")]
    return Service("superexec", SERVER_DELAY_S, deployment.home, command, deployment.flower)


def supernode(device: Device, address: str, port: int) -> Service:
    """One device: its key, its settings, and the SuperLink at `address`."""
    command = [tool("flower-supernode"), "--superlink", address, "--root-certificates", str(device.authority)]
    command += ["--auth-supernode-private-key", str(device.key), "--node-config", str(device.settings_file)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return Service(device.name, NODE_DELAY_S, device.folder, command, device.folder / ".flower")


def supervised(home: Path, service: Service) -> list[str]:
    """The command line of a service's supervisor."""
    command = [sys.executable, "-m", "fedfusion.deploy.supervisor", str(home), service.name, f"{service.delay_s:g}"]
    return [*command, str(service.folder), *service.command]


def environment(home: Path, service: Service) -> dict[str, str]:
    """The environment of a service and of all that it starts."""
    return environment_of(service.flower) | {HOME: str(home), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL_S}


def start(home: Path, service: Service) -> None:
    """Start a service under its supervisor, which outlives this process."""
    for file in (pid_file(home, service.name), log_file(home, service.name)):
        file.parent.mkdir(mode=0o700, exist_ok=True)
    with open(os.devnull) as nothing, log_file(home, service.name).open("ab") as log:
        process = subprocess.Popen(
            supervised(home, service),
            env=environment(home, service),
            cwd=home,
            stdin=nothing,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while alive(home, service.name) is None and process.poll() is None:
        time.sleep(0.05)


def running(home: Path) -> list[str]:
    """The names of the services whose supervisors run."""
    return sorted(file.stem for file in (home / "pids").glob("*.pid") if alive(home, file.stem))


def stop(home: Path) -> list[str]:
    """End all services, SuperNodes first, and whatever else is left of the deployment; say which services ran."""
    stopped = running(home)
    servers = ("superexec", "superlink")
    for group in ([name for name in stopped if name not in servers], servers[:1], servers[1:]):
        end([process for name in group if (process := alive(home, name))], STOPPED_S)
    end(list(members(home)))
    for file in (home / "pids").glob("*.pid"):
        file.unlink(missing_ok=True)
    return stopped


def holder(port: int) -> str | None:
    """Who listens on a port of this machine: a process in words, or None."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return None
    for process in psutil.process_iter():
        try:
            if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections("inet")):
                return f"{process.name()} (process {process.pid})"
        except (psutil.Error, OSError):
            continue
    return "another process"


def afresh(home: Path, name: str) -> None:
    """Let a supervisor start its command afresh."""
    if supervisor := alive(home, name):
        supervisor.send_signal(signal.SIGHUP)


def wait_until(holds: Callable[[], None], timeout_s: float = STARTUP_S) -> None:
    """Wait until `holds` raises nothing; after `timeout_s` seconds, let what it raises through."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return holds()
        except FedfusionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def last_words(home: Path, names: Iterable[str]) -> str:
    """The last lines of the logs of some services, for a person who asks why."""
    words = []
    for name in names:
        file = log_file(home, name)
        said = re.sub(r"\x1b\[[0-9;]*m", "", file.read_text(errors="replace")) if file.is_file() else ""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        words += [f"{name}: {line}" for line in lines[-WORDS:]]
    return "\n".join(words)
