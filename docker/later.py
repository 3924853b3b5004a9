"""Run a command, and where it fails, wait before ending with its exit code: `later.py SECONDS COMMAND...`.

A container engine starts what has failed again at once. A SuperNode is refused until the heartbeats of its former
connection have expired, and has to wait that long.
"""

import signal
import subprocess
import sys
import threading


def run(wait_s: float, command: list[str]) -> int:
    """The exit code of `command`, `wait_s` seconds later if it failed, and at once where this process is to end."""
    ended, started = threading.Event(), list[subprocess.Popen[bytes]]()

    def end(number: int, _: object) -> None:
        ended.set()
        for process in started:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    started.append(subprocess.Popen(command))
    if ended.is_set():  # before there was anything to end
        started[0].terminate()
    code = started[0].wait()
    if code and not ended.is_set():
        print(f"{command[0]} ended with {code}; it is started again in {wait_s:g} s", file=sys.stderr, flush=True)
        ended.wait(wait_s)
    return 0 if ended.is_set() else code


if __name__ == "__main__":
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
