import stat

import pytest
from typer.testing import CliRunner

from fedfusion.cli import app
from fedfusion.deploy import init
from fedfusion.deploy.folder import Deployment
from fedfusion.types import FedfusionError


def deploy(*arguments):
    return CliRunner().invoke(app, ["deploy", *arguments])


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
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    again = deploy("init", "--dir", str(home))
    assert again.exit_code == 2 and "holds a deployment already" in again.stderr and "--rotate" in again.stderr
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    done = deploy("init", "--dir", str(home), "--rotate", "--host", "edge.example.org")
    assert done.exit_code == 0 and "new keys of 2 devices" in done.stdout
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"server.crt", "server.key", "key", "key.pub", "deploy.toml"}
    assert Deployment.at(home).hosts == ("edge.example.org",) and Deployment.at(home).port == 42200


@pytest.mark.parametrize("nodes, port, why", [(0, 42200, "--nodes must"), (2, 65534, "--port must"), (2, 0, "0$")])
def test_numbers_that_make_no_sense_leave_nothing_behind(tmp_path, nodes, port, why):
    with pytest.raises(FedfusionError, match=why):
        init.create(tmp_path / "deploy", nodes, [], port)
    assert not (tmp_path / "deploy").exists()


def test_there_is_nothing_to_rotate_where_there_is_no_deployment(tmp_path):
    with pytest.raises(FedfusionError, match="there is no deployment"):
        init.rotate(tmp_path, None, print)
