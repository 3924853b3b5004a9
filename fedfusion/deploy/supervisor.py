"""One process of a deployment, started again whenever it ends.

`python -m fedfusion.deploy.supervisor HOME NAME DELAY_S FOLDER COMMAND...` writes `pids/NAME.pid` and `logs/NAME.log`
in HOME and runs COMMAND in FOLDER. SIGTERM ends it and all that it has started, SIGHUP starts the command afresh.
"""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

HOME = "FEDFUSION_DEPLOYMENT"  # in the environment of every process of a deployment: its folder
SERVICE = "FEDFUSION_SERVICE"  # and of which service it is a part
GRACE_S = 10.0  # what a process has to end by itself


def members(home: Path, service: str | None = None) -> Iterator[psutil.Process]:
    """The processes of a deployment, or of one of its services; those whose parent has died, too."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(HOME) == str(home) and service in (None, environment.get(SERVICE)):
                yield process


def end(processes: list[psutil.Process], grace_s: float = GRACE_S) -> None:
    """Ask processes to end, and kill those that have not after `grace_s` seconds."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_s)


def pid_file(home: Path, name: str) -> Path:
    """Where the supervisor of a service writes its process id."""
    return home / "pids" / f"{name}.pid"


def log_file(home: Path, name: str) -> Path:
    """Where a service and its supervisor write what they have to say."""
    return home / "logs" / f"{name}.log"


def alive(home: Path, name: str) -> psutil.Process | None:
    """The supervisor of a service, if it runs."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(pid_file(home, name).read_text()))
        if process.environ().get(HOME) == str(home) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


class Supervisor:
    """Keeps one command running.

    Parameters
    ----------
    home, name
        Folder of the deployment, and name of the service in it.
    delay_s
        Seconds between an end and the next start.
    folder, command
        What runs, and where.
    """

    def __init__(self, home: Path, name: str, delay_s: float, folder: Path, command: list[str]) -> None:
        self.home, self.name, self.delay_s, self.folder, self.command = home, name, delay_s, folder, command
        self.stopping = self.afresh = False

    def stop(self, *_: int | FrameType | None) -> None:
        """End with all that was started."""
        self.stopping = True

    def restart(self, *_: int | FrameType | None) -> None:
        """Start the command afresh, at once."""
        self.afresh = True

    def run(self) -> None:
        """Run the command until told to stop."""
        environment = os.environ | {SERVICE: self.name}
        with log_file(self.home, self.name).open("ab", buffering=0) as log:
            while not self.stopping:
                child = subprocess.Popen(
                    self.command, env=environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
                )
                while child.poll() is None and not (self.stopping or self.afresh):
                    time.sleep(0.1)
                if child.poll() is None:
                    end([psutil.Process(child.pid)])
                code, asked = child.wait(), self.afresh
                end(list(members(self.home, self.name)))
                if self.stopping:
                    break
                self.afresh = False
                delay_s = 0.0 if asked else self.delay_s
                said = f"{self.name} ended with code {code}, and is started again in {delay_s:g} s"
                log.write(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} {said}\n".encode())
                until = time.monotonic() + delay_s
                while time.monotonic() < until and not (self.stopping or self.afresh):
                    time.sleep(0.1)
                self.afresh = False


def main() -> None:
    """Supervise what the command line names."""
    home, name, delay_s, folder, *command = sys.argv[1:]
    supervisor = Supervisor(Path(home), name, float(delay_s), Path(folder), command)
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, supervisor.stop)
    signal.signal(signal.SIGHUP, supervisor.restart)
    pid_file(supervisor.home, name).write_text(str(os.getpid()))
    try:
        supervisor.run()
    finally:
        pid_file(supervisor.home, name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
