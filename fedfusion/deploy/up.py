"""`fedfusion deploy up` and `down`: start the processes of a deployment, wait until its devices are there, end all."""

import contextlib
import datetime
import time
from collections.abc import Callable, Mapping, Sequence

from fedfusion.deploy import members, services
from fedfusion.deploy.certificates import check_certificates
from fedfusion.deploy.folder import Deployment, Device
from fedfusion.federation.tls import reach
from fedfusion.types import FedfusionError

ONLINE_S = 150.0  # two heartbeats' expiry and a start
Say = Callable[[str], None]


def up(deployment: Deployment, nodes: int | None, say: Say) -> None:
    """Start SuperLink, SuperExec and the first `nodes` devices on this machine, and wait until these are online.

    Raises
    ------
    FedfusionError
        If something is wrong with certificates, settings or ports, or a process does not start. Nothing is left then.
    """
    devices = chosen(deployment, nodes)
    check(deployment, devices, {device.name: deployment.node_port(device) for device in devices})
    home, since = deployment.home, datetime.datetime.now(datetime.UTC)
    deployment.write_connection()
    try:
        services.start(home, services.superlink(deployment))
        wait_server(deployment)
        say(f"SuperLink  https://{deployment.address}")
        members.register(deployment, deployment.devices())
        services.start(home, services.superexec(deployment))
        for device in devices:
            services.start(home, services.supernode(device, deployment.address, deployment.node_port(device)))
        wait_online(deployment, devices, since, say)
    except BaseException:
        services.stop(home)
        raise
    warn(deployment, say)


def warn(deployment: Deployment, say: Say) -> None:
    """Say who may do what, where other machines reach the SuperLink."""
    if deployment.hosts:
        say(
            f"everyone who reaches port {deployment.port} may submit runs, and so run code of their own on the "
            "devices, whatever their node.toml allows fedfusion's app: let only your devices reach it"
        )


def down(deployment: Deployment, say: Say) -> None:
    """Stop runs, SuperNodes, SuperExec and SuperLink, with all that they have started."""
    if "superlink" in services.running(deployment.home):
        with contextlib.suppress(FedfusionError):  # a SuperLink that does not answer is ended all the same
            for run_id in members.going(deployment):
                members.stop(deployment, run_id)
                say(f"run {run_id} stopped")
    for name in services.stop(deployment.home):
        say(f"{name} stopped")


def chosen(deployment: Deployment, nodes: int | None) -> list[Device]:
    """The first `nodes` devices; None is all."""
    devices = deployment.devices()
    if nodes is not None and not 0 <= nodes <= len(devices):
        raise FedfusionError(
            f"--nodes {nodes}: {deployment.home} has keys of {len(devices)} devices (start at most as many here, or "
            f"make another deployment, of more: fedfusion deploy init --dir FOLDER --nodes {nodes})"
        )
    return devices[:nodes]


def check(deployment: Deployment, devices: Sequence[Device], ports: Mapping[str, int]) -> None:
    """Refuse to start what could not run.

    Parameters
    ----------
    deployment, devices
        What is to be started, and which of its devices on this machine.
    ports
        That these devices need here, by what needs it; that of the SuperLink is looked at in any case.

    Raises
    ------
    FedfusionError
        With one sentence for everything that is wrong.
    """
    if names := services.running(deployment.home):
        raise FedfusionError(f"this deployment is up already: {', '.join(names)} (see fedfusion deploy status)")
    if (deployment.home / "compose.yaml").is_file():
        raise FedfusionError(
            f"this deployment is up already, in containers (first: fedfusion deploy down --dir {deployment.home})"
        )
    check_certificates(deployment.home)
    wrong = []
    for device in deployment.devices():
        wrong += device.missing(device.public_key, *((device.key, device.authority) if device in devices else ()))
    for device in devices:
        try:
            device.settings()
        except FedfusionError as error:
            wrong += str(error).splitlines()
        if device.authority.is_file() and device.authority.read_bytes() != (deployment.home / "ca.crt").read_bytes():
            wrong.append(
                f"{device.name}: {device.authority} is not the certificate of this deployment's authority (copy "
                f"{deployment.home / 'ca.crt'} there)"
            )
    for what, port in {"the SuperLink": deployment.port, **ports}.items():
        if holder := services.holder(port):
            wrong.append(
                f"port {port}, which {what} needs, is taken by {holder} (end it, or change port in "
                f"{deployment.home / 'deploy.toml'})"
            )
    if wrong:
        raise FedfusionError("\n".join(wrong))


def wait_server(deployment: Deployment) -> None:
    """Wait until the SuperLink answers.

    Raises
    ------
    FedfusionError
        If it does not, with its last words.
    """
    try:
        services.wait_until(lambda: reach(deployment.address, deployment.home / "ca.crt"))
    except FedfusionError as error:
        raise FedfusionError(f"{error}\n{services.last_words(deployment.home, ['superlink'])}") from error


def wait_online(deployment: Deployment, devices: Sequence[Device], since: datetime.datetime, say: Say) -> None:
    """Wait until each device has been activated after `since`, and say so.

    Raises
    ------
    FedfusionError
        If some are not there in time, with their last words.
    """
    missing, known, deadline = list(devices), {}, time.monotonic() + ONLINE_S
    while missing:
        with contextlib.suppress(FedfusionError):  # a SuperLink that is starting afresh
            known = members.states(deployment)
        for device in [d for d in missing if fresh(known.get(members.node_id(d) or "", {}), since)]:
            missing.remove(device)
            say(f"{device.name:<10} online")
        if missing and time.monotonic() > deadline:
            names = [device.name for device in missing]
            raise FedfusionError(
                f"{', '.join(names)} not online after {ONLINE_S:g} s\n{services.last_words(deployment.home, names)}"
            )
        if missing:
            time.sleep(1.0)


def fresh(node: dict[str, str], since: datetime.datetime) -> bool:
    """Whether the SuperLink has a node online that was activated after `since`, not only the memory of a former one."""
    if node.get("status") != "online":
        return False
    activated = datetime.datetime.strptime(node["online-at"], "%Y-%m-%d %H:%M:%S%z")
    return activated >= since.replace(microsecond=0)
