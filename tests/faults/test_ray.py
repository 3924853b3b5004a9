"""Processes that are really killed in the middle of training."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from command import SMALL, TESTS, fedfusion, results
from raycluster import two_nodes
from recovery import recovered, told

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
RUN = [*SMALL, "client._target_=faulty.Faulty", "client.cohort_size=1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "inline"
    fedfusion("run", *RUN, f"run_dir={folder}", check=True)
    return results(folder)["metrics"]


def start(tmp_path, faults, *arguments):
    """A run in the background, with these faults of clients."""
    chosen = ["federation=ray", *arguments, f"run_dir={tmp_path / 'run'}", f"+client.marker={tmp_path / 'marker'}"]
    chosen.append(f"+client.faults={{{','.join(f'{client}:{fault}' for client, fault in faults.items())}}}")
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "fedfusion", "run", *RUN, *chosen]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pid_of(tmp_path, client, process):
    """The process that trains a client which stalls, once it does."""
    marker, until = tmp_path / f"marker-{client}", time.monotonic() + 300
    while not (marker.exists() and marker.read_text().endswith("\n")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    return int(marker.read_text())


def ended(tmp_path, process):
    """The metrics and the log of a run that has to end well."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return results(tmp_path / "run")["metrics"], (tmp_path / "run" / "run.log").read_text()


def test_an_actor_killed_while_it_trains_changes_nothing(undisturbed, tmp_path, record_property):
    process = start(tmp_path, {1: "stall once"})
    os.kill(pid_of(tmp_path, 1, process), signal.SIGKILL)
    killed = time.time()
    metrics, log = ended(tmp_path, process)
    assert metrics == undisturbed and log.count("another starts in 1 s") == 1
    recovered(record_property, tmp_path / "run", killed, "a Ray actor is killed while it trains")


def test_a_node_killed_while_it_trains_changes_nothing(undisturbed, tmp_path, record_property):
    with two_nodes() as (address, second):
        process = start(tmp_path, {0: "stall once", 1: "stall once"}, f"federation.address={address}")
        pids = {pid_of(tmp_path, client, process) for client in (0, 1)}
        theirs = psutil.Process(second.pid).children(recursive=True)
        assert len(pids & {child.pid for child in theirs}) == 1  # one trains on each node
        next(child for child in theirs if child.name() == "raylet").kill()
        killed = time.time()
        (tmp_path / "marker-go").touch()
        metrics, log = ended(tmp_path, process)
    assert metrics == undisturbed and "another starts in 1 s" in log
    recovered(record_property, tmp_path / "run", killed, "a node of a Ray cluster is killed")


def test_a_client_that_hangs_is_dropped_at_its_deadline_as_inline(tmp_path, record_property):
    faults = ["+client.faults={2:hang}", "deadline_s=15", "min_clients=2"]
    fedfusion("run", *RUN, *faults, f"run_dir={tmp_path / 'inline'}", check=True)
    process = start(tmp_path, {2: "hang"}, *faults[1:])
    metrics, log = ended(tmp_path, process)
    assert metrics == results(tmp_path / "inline")["metrics"]
    for record in metrics["rounds"]:
        assert record["dropped"] == {"2": "did not answer within 15 s"} and record["believed"] == 3
    assert log.count("did not answer within 15 s; another starts in 0 s") == 2
    told(record_property, "a client hangs, in every round", "its uploads, at `deadline_s`")


def test_a_straggler_is_overtaken_where_that_is_wanted(undisturbed, tmp_path, record_property):
    process = start(tmp_path, {3: "stall once"}, "federation.speculate=0.9")
    metrics, log = ended(tmp_path, process)
    assert metrics == undisturbed and "(1 such messages so far)" in log
    assert "another starts" not in log and not (tmp_path / "marker-go").exists()
    told(record_property, "a client hangs once, and `federation.speculate=0.9`", "nothing")
