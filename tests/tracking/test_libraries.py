import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from command import SMALL, TESTS, fedfusion, results

from fedfusion.tracking import numbers

TRACKERS = ["tensorboard", "trackio", "mlflow", "wandb"]


@pytest.fixture
def calls():
    """Connections to a proxy that all the network would be reached through."""
    found, listener = [], socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            found.append(connection.recv(200))
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    yield listener.getsockname()[1], found
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def kept(tracker, run_dir):
    command = [sys.executable, "-W", "ignore", str(TESTS / "tracked.py"), tracker, str(run_dir)]
    read = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=run_dir)
    assert read.returncode == 0, read.stderr
    return json.loads(read.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_library_keeps_what_metrics_jsonl_holds_once_through_failure_and_resume(
    tracker, tmp_path, calls, monkeypatch
):
    pytest.importorskip(tracker)
    port, connections = calls
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{port}")
    for name, value in {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_nobody", "NO_PROXY": "", "no_proxy": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "nobody/nothing")
    elsewhere, folder = tmp_path / "cwd", tmp_path / "a run"
    elsewhere.mkdir()
    faults = ["client._target_=faulty.Faulty", "+client.faults={0:raise}"]

    done = fedfusion(
        "run", *SMALL, *faults, "rounds=1", f"tracker={tracker}", f"run_dir='{folder}'", "--json", cwd=elsewhere
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["rounds"]  # nothing of a library beside it
    assert kept(tracker, folder)["status"] == "finished"

    done = fedfusion("run", "--resume", str(folder), "rounds=2", "min_clients=4", cwd=elsewhere)
    assert done.returncode == 1 and "3 uploads left" in done.stderr
    assert kept(tracker, folder)["status"] == "failed"

    fedfusion("run", "--resume", str(folder), "rounds=2", "min_clients=3", cwd=elsewhere, check=True)
    found = kept(tracker, folder)
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected: dict[str, list] = {}
    for record in rounds:
        for name, value in numbers.of_round(record).items():
            expected.setdefault(name, []).append([record["round"], pytest.approx(value, rel=1e-6)])
    assert len(expected["mean/realigned"]) == 2 and expected["dropped"][1][1] == 1
    assert {name: points for name, points in found["series"].items() if not name.startswith("final/")} == expected
    final = {name: points[-1] for name, points in found["series"].items() if name.startswith("final/")}
    of_results = numbers.of_results(results(folder))
    assert final == {name: [2, pytest.approx(value, rel=1e-6)] for name, value in of_results.items()}
    assert found["status"] == "finished" and found["seed"] == 0
    assert connections == []
    assert os.listdir(elsewhere) == []
    assert ("tracker=" in (folder / "run.log").read_text()) is False  # no warning


@pytest.mark.slow
@pytest.mark.parametrize("federation", ["flower", "ray"])
def test_a_server_app_of_another_process_tells_the_library(federation, tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    overrides = [f"federation={federation}", "tracker=tensorboard", f"run_dir={folder}"]
    port = ["federation.port=39871"] if federation == "flower" else []
    fedfusion("run", *SMALL, *overrides, *port, "rounds=1", check=True)
    found = kept("tensorboard", folder)
    assert found["status"] == "finished" and found["series"]["mean/realigned"][0][0] == 1


@pytest.mark.slow
def test_an_experiment_that_another_run_has_just_made_is_taken(tmp_path):
    pytest.importorskip("mlflow")
    program = (
        "import os, sys; from pathlib import Path; from fedfusion.tracking import MLflow\n"
        "os.environ['MLFLOW_DISABLE_TELEMETRY'] = 'true'\n"
        "from mlflow import MlflowClient\n"
        "look, made = MlflowClient.get_experiment_by_name, []\n"
        "def outrun(self, name):\n"
        "    found = look(self, name)\n"
        "    if found is None:\n"
        "        made.append(self.create_experiment(name))\n"
        "    return found\n"
        "MlflowClient.get_experiment_by_name = outrun\n"
        "library = MLflow(uri=sys.argv[1]).open(Path(sys.argv[2]), {'seed': 1})\n"
        "print(*made, library.run.client.get_run(library.run.id).info.experiment_id)\n"
        "library.close()\n"
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [sys.executable, "-W", "ignore", "-c", program, uri, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path)
    theirs, ours = done.stdout.split()
    assert theirs == ours


@pytest.mark.slow
def test_a_database_that_runs_share_keeps_them_apart(tmp_path):
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    program = (
        "import sys; from pathlib import Path; from fedfusion.tracking import MLflow\n"
        "for folder in ('a/run', 'b/run', 'a/run'):\n"
        "    library = MLflow(uri=sys.argv[1]).open(Path(sys.argv[2]) / folder, {'seed': 1})\n"
        "    print(library.run.id, library.last)\n"
        "    library.finished({'round': 1, 'train_loss': 0.5})\n"
        "    library.close()\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, uri, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path)
    (a, none), (b, also_none), (again, one) = (line.split() for line in done.stdout.splitlines())
    assert a == again and a != b and (none, also_none, one) == ("0", "0", "1")
