import datetime
import json
import socket
import subprocess
import sys

import psutil
import pytest
from typer.testing import CliRunner

from fedfusion.cli import app
from fedfusion.deploy import init, services
from fedfusion.deploy.certificates import write_authority, write_server
from fedfusion.deploy.cli import on_devices
from fedfusion.deploy.up import check
from fedfusion.types import FedfusionError

DAY = datetime.timedelta(days=1)
PORT = 42300


def deploy(*arguments):
    return CliRunner().invoke(app, ["deploy", *arguments])


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return init.create(tmp_path / "deploy", 2, [], PORT)


def test_help_imports_nothing_heavy():
    code = "import sys, fedfusion.deploy.cli; print([m for m in ('torch', 'flwr', 'cryptography') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_run_on_devices_is_attacked_and_jammed_only_where_that_is_asked_for(tmp_path):
    here = f"federation.home={tmp_path}"
    assert on_devices(["seed=1"], tmp_path, False) == [
        "federation=devices", here, "attack=none", "channel=ideal", "seed=1",
    ]  # fmt: skip
    chosen = ["channel=awgn", "attack=ipm"]
    assert on_devices(chosen, tmp_path, False) == ["federation=devices", here, *chosen]
    assert on_devices(["federation=inline"], tmp_path, False) == ["attack=none", "channel=ideal", "federation=inline"]
    assert on_devices(["rounds=9"], tmp_path, True) == ["federation=devices", here, "rounds=9"]
    assert on_devices([], tmp_path / "a b", True)[1] == f"federation.home='{tmp_path}/a b'"


@pytest.mark.parametrize("verb", ["up", "down", "status"])
def test_without_a_deployment_the_command_that_makes_one_is_named(verb, tmp_path):
    done = deploy(verb, "--dir", str(tmp_path / "none"))
    assert done.exit_code == 2 and "make one: fedfusion deploy init" in done.stderr


def test_what_was_made_and_ended_is_one_json_document(tmp_path):
    home = tmp_path / "deploy"
    made = json.loads(deploy("init", "--dir", str(home), "--port", str(PORT), "--json").stdout)
    assert made == {
        "folder": str(home), "hosts": [], "port": PORT, "devices": [str(home / "nodes" / f"node-{i}") for i in (0, 1)],
    }  # fmt: skip
    rotated = json.loads(deploy("init", "--dir", str(home), "--rotate", "--host", "10.0.0.1", "--json").stdout)
    assert rotated == made | {"hosts": ["10.0.0.1"]}
    ended = deploy("down", "--dir", str(home), "--json")
    assert json.loads(ended.stdout) == {"folder": str(home), "containers_removed": False} and ended.exit_code == 0


def test_a_run_without_a_deployment_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = deploy("run", "run_dir=run")
    assert done.exit_code == 2 and "there is no deployment in federation.home=" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_superlink_is_refused_before_it_starts(deployment, tmp_path):
    done = deploy("run", "run_dir=run")
    assert done.exit_code == 2 and f"no SuperLink answers at 127.0.0.1:{PORT}" in done.stderr
    assert not (tmp_path / "run").exists()


def refused(deployment, *words):
    """`deploy up` says all of `words`, exits with 2, and leaves nothing running."""
    done = deploy("up", "--plain")
    assert done.exit_code == 2 and services.running(deployment.home) == [], done.output
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.output


def test_devices_whose_settings_make_no_sense_are_refused_by_name_and_all_at_once(deployment):
    file = deployment.device(1).settings_file
    file.write_text(file.read_text().replace('data-path = "data"', ""))
    deployment.device(0).settings_file.write_text("fast = true")
    refused(deployment, "node-0: 'fast' is no setting", "node-1: 'data-path' is missing (name the folder of its own d")


def test_a_device_that_trusts_another_authority_is_refused_by_name(deployment, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_authority(other)
    deployment.device(1).authority.write_bytes((other / "ca.crt").read_bytes())
    refused(deployment, "node-1: ", "is not the certificate of this deployment's authority")


@pytest.mark.parametrize("file", ["key", "key.pub", "ca.crt"])
def test_a_device_without_one_of_its_files_is_refused_by_name(deployment, file):
    path = deployment.device(1).folder / file
    path.unlink()
    deployment.device(1).registration.write_text("7 of-a-key-that-was\n")
    refused(deployment, f"node-1: {path} is missing")
    facts = json.loads(deploy("status", "--json").stdout)
    assert [device["name"] for device in facts["devices"]] == ["node-0", "node-1"]


def test_a_device_that_runs_elsewhere_leaves_its_public_key_here(deployment):
    device = deployment.device(1)
    for path in (device.key, device.authority):
        path.unlink()
    check(deployment, deployment.devices()[:1], {})
    device.public_key.unlink()
    with pytest.raises(FedfusionError, match="^node-1: .*key.pub is missing [^\\n]*$"):
        check(deployment, deployment.devices()[:1], {})


def test_a_deployment_in_containers_is_not_started_beside_them(deployment):
    (deployment.home / "compose.yaml").touch()
    refused(deployment, "up already, in containers (first: fedfusion deploy down")


@pytest.mark.parametrize("days, word", [(-400, "expired at"), (2, "set the clock")])
def test_a_certificate_that_does_not_hold_now_is_refused(deployment, days, word):
    write_server(deployment.home, [], datetime.datetime.now(datetime.UTC) + days * DAY)
    refused(deployment, word)


@pytest.mark.parametrize("port, what", [(PORT, "the SuperLink"), (PORT + 2, "node-1")])
def test_a_port_that_is_taken_is_refused_with_who_has_it(deployment, port, what):
    with socket.create_server(("127.0.0.1", port)):
        refused(deployment, f"port {port}, which {what} needs, is taken by {psutil.Process().name()}", "change port in")


def test_more_devices_than_there_are_keys_are_refused(deployment):
    done = deploy("up", "--plain", "--nodes", "3")
    assert done.exit_code == 2 and "has keys of 2 devices" in done.stderr
    assert "fedfusion deploy init --dir FOLDER --nodes 3" in done.stderr


def test_down_without_anything_running_is_no_error(deployment):
    assert deploy("down").exit_code == 0 and deploy("down").exit_code == 0


def test_status_of_what_does_not_run_is_an_exit_code_and_tells_why(deployment):
    file = deployment.device(1).settings_file
    file.write_text(file.read_text() + 'tasks = "emnist"')
    done = deploy("status", "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 1 and facts["superlink"]["healthy"] is False
    assert "no SuperLink answers" in facts["superlink"]["problem"]
    assert [(d["name"], d["state"], d["tasks"]) for d in facts["devices"]] == [
        ("node-0", "unknown", "all"), ("node-1", "unknown", "emnist"),
    ]  # fmt: skip
    said = deploy("status")
    assert said.exit_code == 1 and "not there" in said.stdout and "tasks: emnist" in said.stdout


@pytest.mark.parametrize(
    "address, why", [("localhost", "give host and port"), (f"127.0.0.1:{PORT}", "no SuperLink answers")]
)
def test_a_device_that_cannot_reach_its_superlink_says_so(deployment, address, why):
    done = deploy("node", str(deployment.device(0).folder), "--superlink", address)
    assert done.exit_code == 2 and why in done.stderr


@pytest.mark.parametrize("file", ["key", "ca.crt"])
def test_a_device_whose_folder_is_not_whole_says_so(deployment, file):
    path = deployment.device(0).folder / file
    path.unlink()
    done = deploy("node", str(path.parent), "--superlink", f"127.0.0.1:{PORT}")
    assert done.exit_code == 2 and f"node-0: {path} is missing" in done.stderr
