import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command import SMALL, TESTS, fedfusion, results

FOUR = [*SMALL, "rounds=4"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "whole"
    fedfusion("run", *FOUR, f"run_dir={folder}", check=True)
    return folder


def killed(folder, when):
    """Start a run in `folder` and `kill -9` it as soon as `when()` holds."""
    command = [sys.executable, "-m", "fedfusion", "run", *FOUR, f"run_dir={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(TESTS)})
    while not when() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_two_rounds_and_resume_equal_four(uninterrupted, tmp_path):
    folder = tmp_path / "half"
    fedfusion("run", *FOUR, "rounds=2", f"run_dir={folder}", check=True)
    done = fedfusion("run", "--resume", str(folder), "rounds=4", check=True)
    assert "continuing after round 2" in done.stdout
    assert results(folder)["metrics"] == results(uninterrupted)["metrics"]
    assert (folder / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_kill_9_and_resume_equal_an_uninterrupted_run(uninterrupted, tmp_path):
    folder = tmp_path / "killed"
    killed(folder, lambda: (folder / "checkpoints" / "round-0001").exists())
    assert not (folder / "results.json").exists()
    fedfusion("run", "--resume", str(folder), check=True)
    assert results(folder)["metrics"] == results(uninterrupted)["metrics"]
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (uninterrupted / adapter).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [9, 10, 11, 12, 13])
def test_kill_9_at_any_moment(uninterrupted, tmp_path, seconds):
    folder = tmp_path / "killed"
    end = time.monotonic() + seconds
    killed(folder, lambda: time.monotonic() > end)
    if not (folder / "overrides.yaml").exists():
        done = fedfusion("run", "--resume", str(folder))  # killed before the run had begun
        assert done.returncode == 2 and "there is no config.yaml in it" in done.stderr
        return
    fedfusion("run", "--resume", str(folder), check=True)
    assert results(folder)["metrics"] == results(uninterrupted)["metrics"]


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("seed=7", "'seed' is 7 here and 0 in the run"),
        ("model.lora.r=4", "'model.lora.r' is 4 here and 8 in the run"),
        ("channel=ideal", "'channel._target_' is"),
    ],
)
def test_resume_refuses_what_would_change_the_past(uninterrupted, override, sentence):
    done = fedfusion("run", "--resume", str(uninterrupted), override)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_resume_refuses_an_adapter_of_another_layout(uninterrupted, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(uninterrupted, folder)
    for name in ("config.yaml", "overrides.yaml"):
        text = (folder / name).read_text()
        (folder / name).write_text(
            text.replace("  r: 8", "  r: 4") if name == "config.yaml" else text + "- model.lora.r=4\n"
        )
    done = fedfusion("run", "--resume", str(folder), "rounds=5")
    assert (
        done.returncode == 2
        and "the layout of its adapters differs" in done.stderr
        and "(4, 128) here and (8, 128) there" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_resume_of_nothing_is_one_sentence(tmp_path):
    done = fedfusion("run", "--resume", str(tmp_path))
    assert done.returncode == 2 and "there is no config.yaml in it" in done.stderr
