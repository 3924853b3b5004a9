import os
import subprocess
import sys

import pytest
from command import SMALL

from fedfusion.config import CONF, build, for_clients, resolve, to_json
from fedfusion.tracking import MLflow, TensorBoard, Trackio, Untracked, WandB
from fedfusion.tracking.library import Library, identity
from fedfusion.types import FedfusionError
from fedfusion.validation import ConfigErrors

LIBRARIES = {"tensorboard": TensorBoard, "trackio": Trackio, "mlflow": MLflow, "wandb": WandB}
EXTRAS = {"tensorboard": "tensorboard", "trackio": "track", "mlflow": "mlflow", "wandb": "wandb"}
RESULTS = {"metrics": {"mean": {"base": 0.5}}, "wall_time_s": 2.0, "peak_memory_mb": 3}


def record(server_round):
    return {"round": server_round, "train_loss": server_round / 10}


class Kept:
    """A library that keeps everything in lists, and fails when it is told to."""

    def __init__(self, last=0):
        self.last, self.logged, self.final, self.status, self.broken = last, [], None, None, False

    def last_round(self):
        return self.last

    def log(self, values, server_round):
        if self.broken:
            raise ConnectionError("the server is away\nand more")
        print("a library talks")
        self.logged.append((server_round, values))

    def conclude(self, values, server_round):
        self.final = server_round, values

    def close(self, status):
        self.status = status


def test_rounds_are_logged_in_order_and_once():
    kept = Kept(last=1)
    library = Library("mlflow", lambda: kept)
    library.started([record(1), record(2)], 4)
    library.exchanged(3, 1, 4)
    library.finished(record(3))
    assert kept.logged == [(2, {"train_loss": 0.2}), (3, {"train_loss": 0.3})]
    library.concluded(RESULTS)
    library.close()
    assert kept.final == (3, {"final/mean/base": 0.5, "final/wall_time_s": 2.0, "final/peak_memory_mb": 3.0})
    assert kept.status == "finished"


def test_a_run_that_ends_early_has_failed():
    kept = Kept()
    library = Library("mlflow", lambda: kept)
    library.started([], 2)
    library.close()
    assert kept.status == "failed" and kept.final is None


def test_a_library_that_fails_ends_no_run_and_is_offered_the_rounds_again(caplog):
    kept = Kept()
    library = Library("mlflow", lambda: kept)
    library.started([], 3)
    kept.broken = True
    library.finished(record(1))
    library.finished(record(2))
    assert "tracker=mlflow failed" in caplog.text and "the server is away" in caplog.text
    assert "and more" not in caplog.text and kept.logged == []
    kept.broken = False
    library.finished(record(3))
    assert [server_round for server_round, _ in kept.logged] == [1, 2, 3]
    kept.broken = True
    library.finished(record(4))
    kept.broken = False
    library.concluded(RESULTS)
    assert [server_round for server_round, _ in kept.logged] == [1, 2, 3, 4] and kept.final[0] == 4


def test_a_library_that_cannot_be_opened_is_refused():
    def opening():
        raise ConnectionError("no route to host")

    with pytest.raises(FedfusionError, match="tracker=mlflow cannot be opened: ConnectionError: no route to host"):
        Library("mlflow", opening)


def test_what_a_library_prints_is_no_output_of_the_run(capsys):
    library = Library("mlflow", Kept)
    library.finished(record(1))
    out, err = capsys.readouterr()
    assert out == "" and "a library talks" in err


def test_runs_of_the_same_name_differ(tmp_path):
    assert identity(tmp_path / "a" / "run") != identity(tmp_path / "b" / "run")
    assert identity(tmp_path / "run") == identity(tmp_path / "run")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_package_that_is_missing_is_refused_with_the_command_that_installs_it(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == name else object())
    with pytest.raises(ConfigErrors) as refused:
        resolve([f"tracker={name}"])
    assert f"tracker={name} needs the package {name}" in str(refused.value)
    assert f"pip install 'fedfusion[{EXTRAS[name]}]' (or set tracker=none)" in str(refused.value)
    assert f"pip install 'fedfusion[{EXTRAS[name]}]'" in (CONF / "tracker" / f"{name}.yaml").read_text()


def test_the_command_line_refuses_a_missing_package_before_anything_is_made(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'wandb' else find(name, *rest)\n"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "fedfusion", "run", *SMALL, "tracker=wandb", f"run_dir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 2 and not folder.exists()
    assert done.stderr.startswith("error: tracker=wandb needs the package wandb") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "uri, said",
    [
        ("mlruns", "tracker.uri=mlruns is no address (give http://HOST:PORT"),
        ("sqlite:///mlflow.db", "below the working folder (name it by its whole path, as sqlite:////"),
    ],
)
def test_an_address_that_depends_on_the_working_folder_is_refused(uri, said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with pytest.raises(ConfigErrors) as refused:
        resolve(["tracker=mlflow", f"tracker.uri='{uri}'"])
    assert said in str(refused.value)


@pytest.mark.parametrize("uri", ["http://host:5000", "https://host/mlflow", "sqlite:////tmp/mlflow.db"])
def test_addresses_that_mlflow_knows(uri, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    assert build(resolve(["tracker=mlflow", f"tracker.uri='{uri}'"])).tracker == MLflow(uri=uri)


def test_nobody_is_told_by_default(tmp_path):
    experiment = build(resolve([]))
    assert experiment.tracker == Untracked()
    tracker = experiment.tracker.open(tmp_path, {})
    tracker.started([record(1)], 2)
    tracker.exchanged(2, 0, 1)
    tracker.finished(record(2))
    tracker.concluded(RESULTS)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_clients_are_not_told_where_the_server_reports(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    given = to_json(resolve(["tracker=mlflow", "tracker.uri='http://name:password@host'"]))
    assert "password" in given and "password" not in for_clients(given)
    assert build(for_clients(given)).tracker == Untracked()


def test_no_library_is_imported_before_it_is_chosen():
    wanted = "import sys, fedfusion.tracking, fedfusion.apps; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", wanted], capture_output=True, text=True, check=True)
    assert "fedfusion.tracking.wandb" in done.stdout.split() and not {*LIBRARIES} & {*done.stdout.split()}
