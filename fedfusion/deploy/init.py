"""`fedfusion deploy init`: a new deployment folder, or new keys and certificates in one."""

import datetime
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from fedfusion.deploy import members, services
from fedfusion.deploy.certificates import write_authority, write_device_key, write_server
from fedfusion.deploy.folder import DEPLOY_TOML, NODE_TOML, Deployment
from fedfusion.deploy.up import Say, wait_online
from fedfusion.types import FedfusionError

PORT = 8000
NODES = 2


def create(folder: Path, nodes: int, hosts: Sequence[str], port: int) -> Deployment:
    """Make a deployment of `nodes` devices: authority, server certificate, and a folder for each device.

    Raises
    ------
    FedfusionError
        If one exists there already, or the numbers make no sense.
    """
    home = folder.resolve()
    if (home / "deploy.toml").exists() or (home / "ca.key").exists():
        raise FedfusionError(
            f"{folder} holds a deployment already, which devices trust (choose another --dir, or make new keys and a "
            f"new certificate of the same authority: fedfusion deploy init --dir {folder} --rotate)"
        )
    if nodes < 1:
        raise FedfusionError(f"--nodes must be at least 1, got {nodes}")
    if not 1 <= port <= 65535 - nodes:
        raise FedfusionError(f"--port must be between 1 and {65535 - nodes} with {nodes} nodes after it, got {port}")
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    (home / "nodes").mkdir(mode=0o700)
    write_authority(home)
    write_server(home, hosts)
    secret = os.open(home / "superexec.secret", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(secret, "w") as file:
        file.write(secrets.token_hex(32))
    (home / "deploy.toml").write_text(DEPLOY_TOML.format(hosts=json.dumps(list(hosts)), port=port))
    deployment = Deployment.at(home)
    for index in range(nodes):
        device = deployment.device(index)
        device.folder.mkdir(mode=0o700)
        (device.folder / "data").mkdir(mode=0o700)
        device.settings_file.write_text(NODE_TOML.format(partition=index, partitions=nodes))
        shutil.copy(home / "ca.crt", device.authority)
        write_device_key(device.folder)
    deployment.write_connection()
    return deployment


def rotate(folder: Path, hosts: Sequence[str] | None, say: Say) -> Deployment:
    """Make a new server certificate and new device keys; a SuperLink that runs is told, and all start afresh.

    Raises
    ------
    FedfusionError
        If there is no deployment, or a run is going on.
    """
    deployment = Deployment.at(folder)
    home, running = deployment.home, services.running(deployment.home)
    if "superlink" in running and (busy := members.going(deployment)):
        raise FedfusionError(f"run {busy[0]} is going on (wait for its end, or fedfusion deploy down --dir {folder})")
    if hosts:
        deployment = Deployment(home, tuple(hosts), deployment.port)
        (home / "deploy.toml").write_text(DEPLOY_TOML.format(hosts=json.dumps(list(hosts)), port=deployment.port))
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
