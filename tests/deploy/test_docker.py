import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from fedfusion.deploy import docker, init
from fedfusion.types import FedfusionError

PORT = 42700
ENGINE = """#!{python}
import pathlib, sys
with pathlib.Path({log!r}).open("a") as file:
    print(*sys.argv[1:], file=file)
sys.exit("no space left" if "up" in sys.argv else 0)
"""


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return init.create(tmp_path / "deploy", 2, [], PORT)


@pytest.fixture
def called(tmp_path, monkeypatch):
    """There is no engine in a test: a command that cannot start containers, and what it was told."""
    (tmp_path / "bin").mkdir()
    command, log = tmp_path / "bin" / "docker", tmp_path / "called"
    command.write_text(ENGINE.format(python=sys.executable, log=str(log)))
    command.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return lambda: log.read_text().splitlines()


def test_two_deployments_never_share_containers_and_volumes(deployment, tmp_path):
    other = init.create(tmp_path / "other", 1, [], PORT)
    assert docker.project(deployment) != docker.project(other) and docker.project(other).startswith("fedfusion-")
    assert docker.project(other) == docker.project(other)
    former = docker.project(other)
    shutil.rmtree(other.home)
    assert docker.project(init.create(other.home, 1, [], PORT)) != former


def test_a_start_that_fails_leaves_no_container(deployment, called):
    with pytest.raises(FedfusionError, match="docker compose up failed: no space left"):
        docker.up(deployment, None, print)
    assert not (deployment.home / "compose.yaml").exists()
    assert called()[-1] == f"compose --file {deployment.home / 'compose.yaml'} down --remove-orphans"


def test_what_a_start_needs_is_looked_at_before(deployment, called):
    deployment.device(1).authority.unlink()
    with pytest.raises(FedfusionError, match="node-1: .*ca.crt is missing"):
        docker.up(deployment, None, print)
    assert not (deployment.home / "compose.yaml").exists()


@pytest.mark.parametrize("hosts, ports", [([], f"127.0.0.1:{PORT}:8000"), (["10.0.0.1"], f"{PORT}:8000")])
def test_a_deployment_without_hosts_is_not_published(tmp_path, called, monkeypatch, hosts, ports):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(docker, "down", lambda _: True)  # which would remove the file
    deployment = init.create(tmp_path / "deploy", 1, hosts, PORT)
    with pytest.raises(FedfusionError, match="docker compose up failed"):
        docker.up(deployment, None, print)
    file = yaml.safe_load((deployment.home / "compose.yaml").read_text())
    assert file["services"]["superlink"]["ports"] == [ports] and file["name"] == docker.project(deployment)
    assert file["services"]["superexec"]["volumes"] == [f"{Path('runs').resolve()}:{Path('runs').resolve()}"]


def test_containers_are_not_forgotten_where_docker_does_not_answer(deployment, monkeypatch):
    assert docker.down(deployment) is False
    (deployment.home / "compose.yaml").touch()
    monkeypatch.setattr(docker, "available", lambda: False)
    with pytest.raises(FedfusionError, match="Docker does not answer, and has containers of"):
        docker.down(deployment)


def scripted(tmp_path, monkeypatch, script):
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "docker").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    "script, works",
    [
        ("exit 0", True),
        ('[ "$1" = compose ]', False),
        ('[ "$1" = info ]', False),
        ('[ "$1" = compose ] || exec sleep 60', False),
        ("exec sleep 60", False),
    ],
)
def test_an_engine_is_there_if_it_and_compose_answer_in_time(script, works, tmp_path, monkeypatch):
    scripted(tmp_path, monkeypatch, script)
    assert docker.available(answer_s=10.0 if works else 0.5) is works


def test_without_the_command_there_is_no_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not docker.available()
