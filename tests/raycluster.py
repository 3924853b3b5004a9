"""A Ray cluster of two nodes on this machine, each with one CPU, started as a person would."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
START += ["--object-store-memory=200000000"]


@contextlib.contextmanager
def two_nodes():
    """Its address, and the process of the node that the driver does not join."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets need a short path
    address = f"127.0.0.1:{_free()}"
    head = [*START, "--head", f"--port={address.split(':')[1]}", f"--ray-client-server-port={_free()}"]
    started = []
    try:
        for name, command in (
            ("head", [*head, f"--temp-dir={folder}", "--include-dashboard=false"]),
            ("second", [*START, f"--address={address}"]),
        ):
            started.append(_start(command, folder / f"{name}.log"))
        yield address, started[1]
    finally:
        for process in reversed(started):
            process.terminate()  # its own processes go with it
            process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _start(command, log):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd="/")
    until = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    return process


def _free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
