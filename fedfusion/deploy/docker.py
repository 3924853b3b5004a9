"""A deployment in containers, where there is a Docker engine with the compose plugin."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from fedfusion.deploy import members
from fedfusion.deploy.compose import render
from fedfusion.deploy.folder import Deployment
from fedfusion.deploy.up import check, chosen, wait_online, wait_server, warn
from fedfusion.types import FedfusionError

CHECKOUT = Path(__file__).parent.parent.parent
ANSWER_S = 10.0  # within which an engine must


def available(answer_s: float = ANSWER_S) -> bool:
    """Whether `docker compose` works here, and an engine answers within so many seconds."""
    if shutil.which("docker") is None:
        return False
    try:
        return all(
            subprocess.run(["docker", *arguments], capture_output=True, timeout=answer_s).returncode == 0
            for arguments in (["compose", "version"], ["info"])
        )
    except subprocess.TimeoutExpired:
        return False


def up(deployment: Deployment, nodes: int | None, say: Callable[[str], None]) -> None:
    """Write `compose.yaml` into the deployment folder, start its containers, and wait until the devices are online.

    Run folders are written to `runs` in the present folder, under the same path in the containers.

    Raises
    ------
    FedfusionError
        If a certificate, setting or port is not in order, there is no image, or Docker fails. No container is left
        then.
    """
    devices = chosen(deployment, nodes)
    check(deployment, devices, {})
    since = datetime.datetime.now(datetime.UTC)
    runs = Path("runs").resolve()
    runs.mkdir(exist_ok=True)
    text = render(
        len(devices),
        name=project(deployment),
        names=[device.name for device in devices],
        port=deployment.port,
        public=bool(deployment.hosts),
        data=[device.settings()["data-path"] for device in devices],
        runs=str(runs),
        context=_context(),
    )
    (deployment.home / "compose.yaml").write_text(text)
    deployment.write_connection()
    try:
        _compose(deployment, "up", "--detach", "--wait", "superlink")
        wait_server(deployment)
        say(f"SuperLink  https://{deployment.address}")
        members.register(deployment, deployment.devices())
        _compose(deployment, "up", "--detach", "--wait")
        wait_online(deployment, devices, since, say)
    except BaseException:
        with contextlib.suppress(FedfusionError):
            down(deployment)
        raise
    say(f"runs       {runs}: a run_dir elsewhere stays in its container")
    warn(deployment, say)


def down(deployment: Deployment) -> bool:
    """Remove the containers of a deployment, if it runs in any; say whether it did.

    Raises
    ------
    FedfusionError
        Where Docker does not answer, or fails.
    """
    file = deployment.home / "compose.yaml"
    if not file.is_file():
        return False
    if not available():
        raise FedfusionError(f"Docker does not answer, and has containers of {file} (start it, or remove that file)")
    _compose(deployment, "down", "--remove-orphans")
    file.unlink()
    return True


def project(deployment: Deployment) -> str:
    """The name of its containers and volumes: no deployment elsewhere, or later here, inherits the keys in them."""
    told = bytes(deployment.home) + (deployment.home / "ca.crt").read_bytes()
    return f"fedfusion-{hashlib.sha256(told).hexdigest()[:12]}"


def _context() -> str | None:
    """The checkout to build the image from, where there is none yet."""
    image = f"fedfusion:{importlib.metadata.version('fedfusion')}"
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0:
        return None
    if (CHECKOUT / "docker" / "Dockerfile").is_file():
        return str(CHECKOUT)
    raise FedfusionError(f"Docker has no image {image} (build it in a checkout of fedfusion, or use --plain)")


def _compose(deployment: Deployment, *arguments: str) -> None:
    file = deployment.home / "compose.yaml"
    command = ["docker", "compose", "--file", str(file), *arguments]
    owner = {"FEDFUSION_UID": str(os.getuid()), "FEDFUSION_GID": str(os.getgid())}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | owner)
    if done.returncode:
        raise FedfusionError(f"docker compose {arguments[0]} failed: {done.stderr.strip()}")
