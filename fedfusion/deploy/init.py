"""`fedfusion deploy init`: a new deployment folder, or new keys and certificates in one."""

import datetime
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from fedfusion.deploy import members, services
from fedfusion.deploy.certificates import check_hosts, write_authority, write_device_key, write_server
from fedfusion.deploy.folder import DEPLOY_TOML, NODE_TOML, Deployment
from fedfusion.deploy.up import Say, wait_online
from fedfusion.types import FedfusionError


def create(folder: Path, nodes: int, hosts: Sequence[str], port: int) -> Deployment:
    """Make a deployment of `nodes` devices: authority, server certificate, and a folder for each device.

    Raises
    ------
    FedfusionError
        If one exists there already, or the numbers or hosts make no sense.
    """
    home = folder.resolve()
    if (home / "deploy.toml").exists():
        raise FedfusionError(
            f"{folder} holds a deployment already, which devices trust (choose another --dir, or make new keys and a "
            f"new certificate of the same authority: fedfusion deploy init --dir {folder} --rotate)"
        )
    if nodes < 1:
        raise FedfusionError(f"--nodes must be at least 1, got {nodes}")
    if not 1 <= port <= 65535 - nodes:
        raise FedfusionError(f"--port must be between 1 and {65535 - nodes} with {nodes} nodes after it, got {port}")
    check_hosts(hosts)
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    (home / "nodes").mkdir(mode=0o700, exist_ok=True)
    write_authority(home)
    write_server(home, hosts)
    (home / "superexec.secret").unlink(missing_ok=True)
    secret = os.open(home / "superexec.secret", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(secret, "w") as file:
        file.write(secrets.token_hex(32))
    deployment = Deployment(home, tuple(hosts), port)
    for index in range(nodes):
        device = deployment.device(index)
        device.folder.mkdir(mode=0o700, exist_ok=True)
        (device.folder / "data").mkdir(mode=0o700, exist_ok=True)
        device.settings_file.write_text(NODE_TOML.format(partition=index, partitions=nodes))
        shutil.copy(home / "ca.crt", device.authority)
        write_device_key(device.folder)
    deployment.write_connection()
    _write_settings(deployment)  # the last: with it, it is a deployment
    return deployment


def rotate(folder: Path, hosts: Sequence[str] | None, say: Say) -> Deployment:
    """Make a new server certificate and new device keys; a SuperLink that runs is told, and all start afresh.

    Parameters
    ----------
    folder
        Of the deployment.
    hosts
        Further names and addresses of the SuperLink; those that it has remain.
    say
        Is told of each device that is online again.

    Raises
    ------
    FedfusionError
        If there is no deployment, a host makes no sense, a run is going on, or the deployment has to be down for it.
    """
    deployment = Deployment.at(folder)
    check_hosts(hosts or [])
    home, running = deployment.home, services.running(deployment.home)
    if (home / "compose.yaml").is_file():
        raise FedfusionError(f"{folder} runs in containers (first: fedfusion deploy down --dir {folder})")
    if hosts and not deployment.hosts and "superlink" in running:
        raise FedfusionError(
            f"--host {hosts[0]}: the SuperLink runs, and listens on this machine alone; with a host it listens on all "
            f"interfaces (first: fedfusion deploy down --dir {folder})"
        )
    if "superlink" in running and (busy := members.going(deployment)):
        raise FedfusionError(f"run {busy[0]} is going on (wait for its end, or fedfusion deploy down --dir {folder})")
    if hosts:
        deployment = Deployment(home, tuple(dict.fromkeys((*deployment.hosts, *hosts))), deployment.port)
        _write_settings(deployment)
    write_server(home, deployment.hosts)
    for device in deployment.devices():
        write_device_key(device.folder)
    if "superlink" in running:
        since = datetime.datetime.now(datetime.UTC)
        members.register(deployment, deployment.devices())
        for name in reversed(running):  # the SuperLink first
            services.afresh(home, name)
        wait_online(deployment, [device for device in deployment.devices() if device.name in running], since, say)
    return deployment


def _write_settings(deployment: Deployment) -> None:
    text = DEPLOY_TOML.format(hosts=json.dumps(list(deployment.hosts)), port=deployment.port)
    (deployment.home / "deploy.toml").write_text(text)
