"""What this machine has: versions, threads, GPU, Ray, ports, caches, Docker."""

import importlib.util
import os
import platform
import shutil
import socket

import torch
from huggingface_hub import constants

from fedfusion.federation.flower import Flower
from fedfusion.server.run import versions


def examine() -> dict[str, str]:
    """One finding per line, each with what to do where something is missing."""
    findings = {"python": platform.python_version()}
    findings |= {name: version or "not installed" for name, version in versions().items()}
    if importlib.util.find_spec("ray") is None:
        findings["ray"] = "not installed; federation=ray and =flower need it: pip install 'fedfusion[simulation]'"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings["cores"] = str(cores)
    findings["torch threads"] = f"{torch.get_num_threads()} by default; client.threads sets them in a run"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    findings["gpu"] = ", ".join(gpus) or "none"
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", Flower.port)) == 0
    findings["port"] = f"{Flower.port} is {'taken; choose another with federation.port' if taken else 'free'}"
    findings["hub cache"] = f"{constants.HF_HUB_CACHE}{' (offline)' if constants.HF_HUB_OFFLINE else ''}"
    findings["docker"] = shutil.which("docker") or "not found; only deployment in containers needs it"
    return findings
