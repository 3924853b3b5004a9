"""`fedfusion deploy status`: the SuperLink, its certificate, its devices and its runs."""

from typing import Any

from fedfusion.console import entry
from fedfusion.deploy import members, services
from fedfusion.deploy.certificates import validity
from fedfusion.deploy.folder import Deployment, Device
from fedfusion.federation.tls import reach
from fedfusion.types import FedfusionError


def examine(deployment: Deployment) -> dict[str, Any]:
    """What is known of a deployment, as `fedfusion deploy status --json` prints it."""
    problem, known, runs = None, {}, []
    try:
        reach(deployment.address, deployment.home / "ca.crt")
        known, runs = members.states(deployment), members.runs(deployment)
    except FedfusionError as error:
        problem = str(error)
    first, last = validity(deployment.home)
    return {
        "superlink": {"address": deployment.address, "healthy": problem is None, "problem": problem},
        "certificate": {"from": f"{first:%Y-%m-%d %H:%M:%S}Z", "until": f"{last:%Y-%m-%d %H:%M:%S}Z"},
        "devices": [_device(device, known, problem) for device in deployment.devices()],
        "runs": [{"id": r["run-id"], "status": r["status"], "details": r["status-details"]} for r in runs],
        "services": services.running(deployment.home),
        "logs": str(deployment.home / "logs"),
    }


def _device(device: Device, known: dict[str, dict[str, Any]], problem: str | None) -> dict[str, Any]:
    """One device: whether it is there, and which tasks its owner allows."""
    found = known.get(members.node_id(device) or "")
    state = "unknown" if problem else found["status"] if found else "not registered"
    try:
        tasks, flaw = device.settings().get("tasks") or "all", None
    except FedfusionError as error:
        tasks, flaw = None, str(error)
    return {"name": device.name, "state": state, "tasks": tasks, "problem": flaw}


def show(facts: dict[str, Any]) -> list[str]:
    """The lines that a person reads."""
    link, certificate = facts["superlink"], facts["certificate"]
    known = [("SuperLink", f"{'healthy' if link['healthy'] else 'not there'}, https://{link['address']}")]
    known += [("", link["problem"])] if link["problem"] else []
    known.append(("certificate", f"from {certificate['from']} until {certificate['until']}"))
    for device in facts["devices"]:
        known.append((device["name"], f"{device['state']}, tasks: {device['tasks'] or device['problem']}"))
    known += [("run", f"{run['id']} {run['status']} {run['details']}".rstrip()) for run in facts["runs"]]
    known += [("processes", ", ".join(facts["services"]) or "none"), ("logs", facts["logs"])]
    return [entry(name, text, 14) for name, text in known]
