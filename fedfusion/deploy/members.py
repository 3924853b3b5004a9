"""What the SuperLink knows: the devices whose keys it accepts, and the runs."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from fedfusion.deploy.folder import Deployment, Device
from fedfusion.federation.devices import CONNECTION, flwr
from fedfusion.federation.flower import environment_of
from fedfusion.types import FedfusionError


def states(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """What the SuperLink says of each node whose key it accepts, by id: `status`, `online-at`, and more."""
    answer = flwr(["supernode", "list", CONNECTION], environment_of(deployment.flower))
    return {node["node-id"]: node for node in answer["nodes"] if node["status"] != "unregistered"}


def runs(deployment: Deployment) -> list[dict[str, Any]]:
    """All runs that the SuperLink remembers, the newest first."""
    found: list[dict[str, Any]] = flwr(["list", CONNECTION], environment_of(deployment.flower))["runs"]
    return found


def going(deployment: Deployment) -> list[str]:
    """The ids of the runs that have not finished."""
    return [run["run-id"] for run in runs(deployment) if not run["status"].startswith("finished")]


def stop(deployment: Deployment, run_id: str) -> None:
    """Stop a run."""
    flwr(["stop", run_id, CONNECTION], environment_of(deployment.flower))


def node_id(device: Device) -> str | None:
    """The id under which the SuperLink knows the device's present key, as far as this folder knows."""
    found, key = _registration(device)
    return found if key and key == _digest(device) else None


def register(deployment: Deployment, devices: Iterable[Device]) -> None:
    """Let the SuperLink accept the keys of `devices`, and no longer the former key of any of them.

    Raises
    ------
    FedfusionError
        If it refuses one.
    """
    environment, known = environment_of(deployment.flower), states(deployment)
    for device in devices:
        former, key = _registration(device)
        if former in known and key == _digest(device):
            continue
        if former in known:
            flwr(["supernode", "unregister", former, CONNECTION], environment)
        try:
            answer = flwr(["supernode", "register", str(device.public_key), CONNECTION], environment)
        except FedfusionError as error:
            raise FedfusionError(
                f"{device.name}: the SuperLink does not accept {device.public_key}: {re.sub('^.*: ', '', str(error))} "
                "(is it another device's, or one that was unregistered? make new keys: fedfusion deploy init --rotate)"
            ) from error
        device.registration.write_text(f"{answer['node-id']} {_digest(device)}\n")


def _registration(device: Device) -> tuple[str, str]:
    """The last id that the device was given, and the digest of the key that it was given for."""
    words = device.registration.read_text().split() if device.registration.is_file() else []
    return (words[0], words[1]) if len(words) == 2 else ("", "")


def _digest(device: Device) -> str:
    """Of its public key; empty where that is not in its folder."""
    file = device.public_key
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
