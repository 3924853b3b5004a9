import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from fedfusion.deploy.supervisor import HOME, alive, log_file, members, pid_file

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("started", os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def eventually(found, seconds=20.0):
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)


def pids(home):
    """The processes, and their children, that the service has told of, the last first."""
    lines = log_file(home, "x").read_text().splitlines()
    return [tuple(map(int, line.split()[1:])) for line in lines if line.startswith("started")][::-1]


@pytest.fixture
def service(tmp_path):
    """Starts a supervised command; all of it is gone at the end."""
    started = []

    def start(delay_s, code=PARENT):
        for folder in ("pids", "logs"):
            (tmp_path / folder).mkdir(exist_ok=True)
        command = [sys.executable, "-m", "fedfusion.deploy.supervisor", str(tmp_path), "x", str(delay_s), str(tmp_path)]
        environment = os.environ | {HOME: str(tmp_path)}
        started.append(subprocess.Popen([*command, sys.executable, "-c", code], env=environment))
        eventually(lambda: alive(tmp_path, "x"))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for process in members(tmp_path):
        process.kill()


def test_a_command_that_is_killed_is_started_again_and_its_orphans_end(service, tmp_path):
    service(0.2)
    eventually(lambda: log_file(tmp_path, "x").exists() and pids(tmp_path))
    ((process, orphan),) = pids(tmp_path)
    os.kill(process, signal.SIGKILL)
    eventually(lambda: len(pids(tmp_path)) == 2)
    assert not psutil.pid_exists(orphan)
    assert "x ended with code -9, and is started again in 0.2 s" in log_file(tmp_path, "x").read_text()


def test_it_waits_before_it_starts_again_but_not_before_it_ends(service, tmp_path):
    supervisor = service(60, "print('started 1 2', flush=True)")
    eventually(lambda: log_file(tmp_path, "x").exists() and "again in 60 s" in log_file(tmp_path, "x").read_text())
    time.sleep(0.5)
    assert len(pids(tmp_path)) == 1
    supervisor.terminate()
    assert supervisor.wait(20) == 0 and len(pids(tmp_path)) == 1


def test_sigterm_ends_everything_and_takes_the_pid_file_away(service, tmp_path):
    supervisor = service(0.2)
    eventually(lambda: log_file(tmp_path, "x").exists() and pids(tmp_path))
    supervisor.terminate()
    assert supervisor.wait(20) == 0
    assert not [pid for pid in pids(tmp_path)[0] if psutil.pid_exists(pid)] and len(pids(tmp_path)) == 1
    assert not pid_file(tmp_path, "x").exists() and alive(tmp_path, "x") is None and not list(members(tmp_path))


def test_sighup_starts_the_command_afresh_at_once(service, tmp_path):
    supervisor = service(60)
    eventually(lambda: log_file(tmp_path, "x").exists() and pids(tmp_path))
    former = pids(tmp_path)[0]
    supervisor.send_signal(signal.SIGHUP)
    eventually(lambda: len(pids(tmp_path)) == 2)
    assert not [pid for pid in former if psutil.pid_exists(pid)] and supervisor.poll() is None


def test_a_pid_that_now_belongs_to_somebody_else_is_not_taken_for_a_supervisor(tmp_path):
    (tmp_path / "pids").mkdir()
    pid_file(tmp_path, "x").write_text(str(os.getpid()))
    assert alive(tmp_path, "x") is None
