"""Disks that fill up, files that change, processes that are killed while they write: nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command import SMALL, TESTS, fedfusion, results
from recovery import told

pytestmark = pytest.mark.slow
FOUR = [*SMALL, "rounds=4"]
ADAPTER = "adapter/adapter_model.safetensors"
SIZE_MB = 12


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "whole"
    fedfusion("run", *FOUR, f"run_dir={folder}", check=True)
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a few MB, for the run folder alone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no permission to mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def start(folder, *overrides):
    command = [sys.executable, "-m", "fedfusion", "run", *FOUR, f"run_dir={folder}", *overrides]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(process, holds):
    while not holds() and process.poll() is None:
        time.sleep(0.002)


def fill(path):
    """Take all the space that is left, and say how much it was."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return path.stat().st_size


def equal(folder, other):
    assert results(folder)["metrics"] == results(other)["metrics"]
    assert (folder / ADAPTER).read_bytes() == (other / ADAPTER).read_bytes()
    assert (folder / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


def test_a_disk_that_fills_up_in_the_middle_ends_the_run_and_room_lets_it_go_on(
    undisturbed, small_disk, record_property
):
    folder, ballast = small_disk / "run", small_disk / "ballast"
    process = start(folder)
    wait_for(process, (folder / "checkpoints" / "round-0001").exists)
    fill(ballast)
    _, said = process.communicate(timeout=200)
    last = max((folder / "checkpoints").iterdir())
    assert process.returncode == 1 and "Traceback" not in said
    assert "No space left on device (0.0 MB free)" in said and f"cannot write {folder}/" in said
    assert f"Last good checkpoint: {last}" in said and f"fedfusion run --resume {folder}" in said
    assert not list(folder.rglob(".round-*")) and not (folder / "results.json").exists()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["round"] <= int(last.name[-4:])
    ballast.unlink()
    fedfusion("run", "--resume", str(folder), check=True)
    equal(folder, undisturbed)
    told(record_property, "the disk is full", "nothing; the run ends and names `--resume`")


def test_a_disk_that_is_full_at_the_end_keeps_the_adapter_of_the_earlier_run(undisturbed, small_disk, tmp_path):
    """Three rounds were finished; for the adapters of the fourth there is no room any more."""
    folder = small_disk / "run"
    fedfusion("run", *FOUR, "rounds=3", f"run_dir={folder}", check=True)
    before = (folder / ADAPTER).read_bytes(), results(folder)["metrics"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedfusion", "run", "--resume", str(folder), "rounds=4"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    wait_for(process, (folder / "checkpoints" / "round-0004").exists)
    fill(small_disk / "ballast")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1 and "Traceback" not in said and "No space left on device" in said
    assert f"Last good checkpoint: {folder / 'checkpoints' / 'round-0004'}" in said
    assert ((folder / ADAPTER).read_bytes(), results(folder)["metrics"]) == before
    (small_disk / "ballast").unlink()
    fedfusion("run", "--resume", str(folder), check=True)
    equal(folder, undisturbed)


def test_a_run_folder_that_may_not_grow_is_named(tmp_path):
    """A limit on the size of files, as a quota has it, where nothing may be mounted."""
    folder = tmp_path / "run"
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); "
    code = limit + "from fedfusion.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *FOUR, f"run_dir={folder}"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(TESTS)}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"cannot write {folder}/checkpoints/round-0001: File too large (" in done.stderr
    assert "Last good checkpoint: none" in done.stderr and not list((folder / "checkpoints").iterdir())


@pytest.mark.parametrize("harm", ["truncated", "tampered", "missing"])
def test_killed_while_writing_and_then_tampered_with(harm, undisturbed, tmp_path, record_property):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(process, (folder / "checkpoints" / "round-0002").exists)
    wait_for(process, lambda: list((folder / "checkpoints").glob(".round-*")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    last = max((folder / "checkpoints").glob("round-*"))
    state = last / "state.safetensors"
    if harm == "missing":
        state.unlink()
    elif harm == "truncated":
        os.truncate(state, state.stat().st_size // 2)
    else:
        with state.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"evil")
    done = fedfusion("run", "--resume", str(folder), check=True)
    assert f"continuing after round {int(last.name[-4:]) - 1}" in done.stdout
    assert f"damaged checkpoint {last}: state.safetensors" in done.stdout
    equal(folder, undisturbed)
    told(record_property, f"killed while it writes, and a checkpoint is {harm}", "one round, computed again")
    assert not list(folder.rglob(".*.tmp"))


def test_a_run_of_which_no_checkpoint_is_intact_does_not_begin_anew(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    for state in (folder / "checkpoints").glob("*/state.safetensors"):
        os.truncate(state, 100)
    done = fedfusion("run", "--resume", str(folder), "rounds=5")
    assert done.returncode == 2 and "no checkpoint is intact" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()
