"""`fedfusion deploy node`: one device, started on the device itself."""

import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from fedfusion.deploy import services
from fedfusion.deploy.folder import Device
from fedfusion.deploy.supervisor import alive, log_file
from fedfusion.federation.tls import reach
from fedfusion.types import FedfusionError

REFUSALS = 2  # the first may be for a former connection that has not expired
ENDS = (signal.SIGTERM, signal.SIGHUP)  # of the service manager or the terminal that this was started in


def serve(folder: Path, address: str, port: int, say: Callable[[str], None]) -> None:
    """Run the SuperNode of the device in `folder` until this process is ended.

    Raises
    ------
    FedfusionError
        If its settings, its certificate or its key are not in order, or it runs already.
    """
    home = folder.resolve()
    device = Device(home.name, home)
    device.settings()
    if missing := device.missing(device.key, device.authority):
        raise FedfusionError("\n".join(missing))
    if supervisor := alive(home, device.name):
        raise FedfusionError(f"{device.name} runs already (process {supervisor.pid}; end that, or leave it running)")
    if not re.fullmatch(r"\S+:\d+", address):
        raise FedfusionError(f"--superlink {address}: give host and port, as in 192.168.0.1:8000")
    reach(address, device.authority)
    if holder := services.holder(port):
        raise FedfusionError(f"port {port} is taken by {holder} (choose another with --port)")
    log = log_file(home, device.name)
    said = log.stat().st_size if log.is_file() else 0
    former = [signal.signal(number, _end) for number in ENDS]
    try:
        services.start(home, services.supernode(device, address, port))
        _wait_accepted(device, log, said, say)
        while alive(home, device.name):
            time.sleep(0.5)
    finally:
        services.stop(home)
        for number, handler in zip(ENDS, former, strict=True):
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _wait_accepted(device: Device, log: Path, said: int, say: Callable[[str], None]) -> None:
    """Wait until the SuperLink has accepted the device's key."""
    refused = 0
    while alive(device.folder, device.name):
        words = log.read_bytes()[said:].decode(errors="replace")
        if "SuperNode ID:" in words:
            say(f"{device.name} online; its log is {log}")
            return
        if len(re.findall("is started again in", words)) > refused:
            refused += 1
            if refused == REFUSALS:
                raise FedfusionError(
                    f"the SuperLink refuses {device.public_key}: it is not registered there (fedfusion deploy up "
                    f"registers the keys of its deployment folder; has that changed?)\n"
                    f"{services.last_words(device.folder, [device.name])}"
                )
            say(
                f"the SuperLink refuses {device.name}; if it was cut off a moment ago, its former connection has to "
                f"expire: it tries again in {services.NODE_DELAY_S:g} s"
            )
        time.sleep(0.5)
