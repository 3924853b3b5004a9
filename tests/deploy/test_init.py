import stat

import pytest
from typer.testing import CliRunner

from fedfusion.cli import app
from fedfusion.deploy import init
from fedfusion.deploy.folder import Deployment
from fedfusion.types import FedfusionError


def deploy(*arguments):
    return CliRunner().invoke(app, ["deploy", *arguments])


def contents(home):
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_deployment_is_private_from_the_beginning(tmp_path):
    deployment = init.create(tmp_path / "a" / "deploy", 2, ["10.0.0.1"], 42200)
    assert Deployment.at(deployment.home) == deployment and deployment.hosts == ("10.0.0.1",)
    devices = deployment.devices()
    for folder in (deployment.home, deployment.home / "nodes", deployment.flower, *(d.folder for d in devices)):
        assert mode(folder) == 0o700, folder
    for file in ("ca.key", "server.key", "superexec.secret"):
        assert mode(deployment.home / file) == 0o600, file
    for device in devices:
        assert mode(device.key) == 0o600 and mode(device.folder / "data") == 0o700
        assert device.authority.read_bytes() == (deployment.home / "ca.crt").read_bytes()
    assert devices[0].public_key.read_bytes() != devices[1].public_key.read_bytes()


def test_a_deployment_is_never_overwritten_but_rotated(tmp_path):
    home = tmp_path / "deploy"
    assert deploy("init", "--dir", str(home), "--port", "42200").exit_code == 0
    before = contents(home)
    again = deploy("init", "--dir", str(home))
    assert again.exit_code == 2 and "holds a deployment already" in again.stderr and "--rotate" in again.stderr
    assert contents(home) == before
    done = deploy("init", "--dir", str(home), "--rotate", "--host", "edge.example.org")
    assert done.exit_code == 0 and "new keys of 2 devices" in done.stdout, done.stderr
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"server.crt", "server.key", "key", "key.pub", "deploy.toml"}
    assert Deployment.at(home).hosts == ("edge.example.org",) and Deployment.at(home).port == 42200


def test_rotation_adds_hosts(tmp_path):
    home = init.create(tmp_path / "deploy", 1, ["10.0.0.1"], 42200).home
    for host in ("edge.example.org", "10.0.0.1"):
        assert deploy("init", "--dir", str(home), "--rotate", "--host", host).exit_code == 0
        assert Deployment.at(home).hosts == ("10.0.0.1", "edge.example.org")


@pytest.mark.parametrize("option", ["--nodes", "--port"])
def test_rotation_refuses_what_it_does_not_change(tmp_path, option):
    home = init.create(tmp_path / "deploy", 1, [], 42200).home
    before = contents(home)
    done = deploy("init", "--dir", str(home), "--rotate", option, "2")
    assert done.exit_code == 2 and option in done.stderr and contents(home) == before


def test_rotation_is_for_processes_and_not_for_containers(tmp_path):
    home = init.create(tmp_path / "deploy", 1, [], 42200).home
    (home / "compose.yaml").touch()
    before = contents(home)
    done = deploy("init", "--dir", str(home), "--rotate")
    assert done.exit_code == 2 and "runs in containers (first: fedfusion deploy down" in done.stderr
    assert contents(home) == before


def test_a_superlink_on_loopback_has_to_be_down_before_it_has_a_host(tmp_path, monkeypatch):
    home = init.create(tmp_path / "deploy", 1, [], 42200).home
    monkeypatch.setattr("fedfusion.deploy.services.running", lambda _: ["superlink"])
    before = contents(home)
    done = deploy("init", "--dir", str(home), "--rotate", "--host", "10.0.0.1")
    assert done.exit_code == 2 and "first: fedfusion deploy down" in done.stderr and contents(home) == before


def test_a_host_that_makes_no_sense_changes_nothing(tmp_path):
    done = deploy("init", "--dir", str(tmp_path / "deploy"), "--host", "münchen")
    assert done.exit_code == 2 and "'münchen': neither" in done.stderr and not (tmp_path / "deploy").exists()
    home = init.create(tmp_path / "deploy", 1, [], 42200).home
    before = contents(home)
    done = deploy("init", "--dir", str(home), "--rotate", "--host", "192.168.0.1:8000")
    assert done.exit_code == 2 and "neither" in done.stderr and contents(home) == before


def test_what_was_interrupted_can_be_made_again(tmp_path):
    former = init.create(tmp_path / "deploy", 2, [], 42200)
    secret = (former.home / "superexec.secret").read_text()
    (former.home / "deploy.toml").unlink()  # what is written last
    deployment = init.create(tmp_path / "deploy", 2, [], 42200)
    assert Deployment.at(deployment.home) == deployment and (deployment.home / "superexec.secret").read_text() != secret
    assert deployment.device(1).authority.read_bytes() == (deployment.home / "ca.crt").read_bytes()


@pytest.mark.parametrize("nodes, port, why", [(0, 42200, "--nodes must"), (2, 65534, "--port must"), (2, 0, "0$")])
def test_numbers_that_make_no_sense_leave_nothing_behind(tmp_path, nodes, port, why):
    with pytest.raises(FedfusionError, match=why):
        init.create(tmp_path / "deploy", nodes, [], port)
    assert not (tmp_path / "deploy").exists()


def test_there_is_nothing_to_rotate_where_there_is_no_deployment(tmp_path):
    with pytest.raises(FedfusionError, match="there is no deployment"):
        init.rotate(tmp_path, None, print)
