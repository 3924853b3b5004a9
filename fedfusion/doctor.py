"""What this machine has, whether it is enough, and how to mend what is not."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedfusion.console import entry

NAMES = 20  # columns of a name
FREE_GB = 1.0
DOCKER_S = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    name, value
        What it is, and how it was found.
    ok
        Whether all is well.
    fix
        What to do, where something is missing, or where more is possible.
    needed
        Whether every run needs it.
    """

    name: str
    value: str
    ok: bool = True
    fix: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Everything that was found; what builds on torch and Flower only where they are there."""
    packages = list(_packages())
    findings = [*packages, _ray(), _folder(), _space(), _docker()]
    if all(finding.ok for finding in packages if finding.needed):
        findings += [_threads(), _gpu(), _port(), _hub()]
    return findings


def show(findings: Sequence[Finding]) -> str:
    """What a person reads: one entry each, and what to do below it."""
    lines = []
    for finding in findings:
        mark = "" if finding.ok else "PROBLEM: "
        lines.append(entry(finding.name, f"{mark}{finding.value}", NAMES))
        if finding.fix:
            lines.append(entry("", f"-> {finding.fix}", NAMES))
    return "\n".join(lines)


def _packages() -> Iterator[Finding]:
    """Python and the packages that fedfusion needs, and those of its extras, in the versions that it asks for."""
    needs = importlib.metadata.metadata("fedfusion")
    yield Finding("fedfusion", needs["Version"])
    asked = SpecifierSet(needs["Requires-Python"])
    wanted, found = f"fedfusion needs Python {asked}: make an environment with one", platform.python_version()
    yield Finding("python", found, found in asked, "" if found in asked else wanted, needed=True)
    for requirement in map(Requirement, needs.get_all("Requires-Dist") or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)
        for extra in needs.get_all("Provides-Extra") or []:
            optional = requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
            if optional and extra != "dev" and not requirement.extras and requirement.name != "fedfusion":
                yield _package(requirement, extra)


def _package(requirement: Requirement, extra: str | None = None) -> Finding:
    command = (
        f"pip install 'fedfusion[{extra}]'" if extra else f"pip install '{requirement.name}{requirement.specifier}'"
    )
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, "not installed", extra is not None, command, needed=extra is None)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, version, needed=extra is None)
    return Finding(requirement.name, f"{version}, but needed is {requirement.specifier}", False, command, extra is None)


def _ray() -> Finding:
    if importlib.util.find_spec("ray") is None:
        return Finding(
            "ray", "not installed; federation=ray and =flower need it", fix="pip install 'fedfusion[simulation]'"
        )
    return Finding("ray", importlib.metadata.version("ray"))


def _folder() -> Finding:
    """Runs are written below the current folder."""
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            return Finding("current folder", f"{here} can be written", needed=True)
    except OSError as error:
        fix = "change to a folder of yours, or set run_dir= to one"
        return Finding("current folder", f"{here} cannot be written ({error.strerror})", False, fix, needed=True)


def _space() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    fix = "" if free >= FREE_GB else f"make room for {FREE_GB:.0f} GB, or set run_dir= to a folder on another disk"
    return Finding("free space", f"{free:.1f} GB in the current folder", not fix, fix)


def _docker() -> Finding:
    """Whether an engine answers: the command alone starts no container."""
    only = "; only fedfusion deploy up in containers needs it"
    if shutil.which("docker") is None:
        return Finding("docker", f"not installed{only}", fix="fedfusion deploy up --plain does without")
    command = ["docker", "info", "--format", "{{.ServerVersion}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOCKER_S)
    except subprocess.TimeoutExpired:
        why = f"its engine has not answered within {DOCKER_S} s"
    else:
        if done.returncode == 0:
            return Finding("docker", f"engine {done.stdout.strip()}")
        why = f"its engine does not answer ({(done.stderr.strip().splitlines() or ['no reason given'])[0]})"
    return Finding("docker", why + only, False, "start the engine, or use fedfusion deploy up --plain")


def _threads() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    fix = f"set OMP_NUM_THREADS={cores}; runs take client.threads=" if threads > cores else ""
    return Finding("torch threads", f"{threads} on {cores} cores; runs take client.threads", not fix, fix)


def _gpu() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        return Finding("gpu", ", ".join(names))
    if shutil.which("nvidia-smi"):
        fix = "install a build of torch with CUDA that fits the driver, see https://pytorch.org/get-started/locally"
        return Finding("gpu", f"torch {torch.__version__} does not see the one that nvidia-smi is for", False, fix)
    return Finding("gpu", "none; everything runs on the CPU")


def _port() -> Finding:
    from fedfusion.federation.flower import Flower

    use = "the SuperLink of federation=flower"
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", Flower.port)) == 0
    if taken:
        return Finding("port", f"{Flower.port}, for {use}, is taken", False, "choose another with federation.port=")
    return Finding("port", f"{Flower.port}, for {use}, is free")


def _hub() -> Finding:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        fix = "to fetch models and data that are not in it, unset HF_HUB_OFFLINE"
        return Finding("hub cache", f"{constants.HF_HUB_CACHE}, offline", fix=fix)
    return Finding("hub cache", f"{constants.HF_HUB_CACHE}, online")
