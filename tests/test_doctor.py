import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command import fedfusion

from fedfusion import __version__, doctor
from fedfusion.doctor import examine, show


def found(name):
    (finding,) = [finding for finding in examine() if finding.name == name]
    return finding


def test_what_is_not_fine_names_what_to_do():
    for finding in examine():
        assert finding.value and (finding.ok or finding.fix)


def test_every_package_that_fedfusion_asks_for_is_looked_at():
    names = {finding.name for finding in examine()}
    assert {"python", "torch", "flwr", "typer", "peft", "rouge-score", "sionna-no-rt", "ray"} < names
    assert not {"pytest", "ruff"} & names  # only those who develop it need them


@pytest.fixture
def needs(monkeypatch):
    """Make fedfusion ask for something else."""

    def ask(*requirements, python=">=3.11"):
        text = [f"Name: fedfusion\nVersion: {__version__}\nRequires-Python: {python}\nProvides-Extra: more"]
        message = importlib.metadata._adapters.Message(
            __import__("email").message_from_string(
                "\n".join([*text, *(f"Requires-Dist: {requirement}" for requirement in requirements)])
            )
        )
        real = importlib.metadata.metadata
        monkeypatch.setattr(doctor.importlib.metadata, "metadata", lambda n: message if n == "fedfusion" else real(n))

    return ask


def test_a_package_that_is_too_old_or_not_there_is_needed_and_its_command_is_named(needs):
    needs("numpy>=99", "no-such-package>=1", "torch>=2.6")
    old, absent = found("numpy"), found("no-such-package")
    assert not old.ok and old.needed and old.fix == "pip install 'numpy>=99'" and "needed is >=99" in old.value
    assert not absent.ok and absent.needed and absent.value == "not installed"
    assert "port" not in {finding.name for finding in examine()}  # what builds on packages is left out then


def test_an_extra_that_is_not_installed_is_no_problem(needs):
    needs("no-such-package>=1; extra == 'more'", "numpy>=99; extra == 'more'")
    absent, old = found("no-such-package"), found("numpy")
    assert absent.ok and not absent.needed and absent.fix == "pip install 'fedfusion[more]'"
    assert not old.ok and not old.needed and old.fix == "pip install 'fedfusion[more]'"


def test_an_older_python_is_refused(needs):
    needs(python=">=99")
    assert not found("python").ok and found("python").needed and "Python >=99" in found("python").fix


def test_a_folder_that_cannot_be_written_ends_every_run(monkeypatch):
    monkeypatch.chdir("/proc")
    folder = found("current folder")
    assert not folder.ok and folder.needed and "run_dir=" in folder.fix and "/proc" in folder.value
    space = found("free space")
    assert not space.ok and not space.needed and "run_dir=" in space.fix


def test_a_port_that_is_taken_is_named_with_its_use(monkeypatch):
    from fedfusion.federation.flower import Flower

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(Flower, "port", server.getsockname()[1])
        port = found("port")
        assert not port.ok and str(Flower.port) in port.value and "federation=flower" in port.value
        assert "federation.port=" in port.fix
    assert found("port").ok


@pytest.mark.parametrize(
    "script, ok, said",
    [
        (None, True, "not installed"),
        ("echo 27.1", True, "engine 27.1"),
        ("echo no daemon >&2; exit 1", False, "no daemon"),
        ("sleep 60", False, "has not answered"),
    ],
)
def test_docker_is_asked_and_not_only_looked_for(script, ok, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "DOCKER_S", 0.5)
    if script:
        (tmp_path / "docker").write_text(
            f"#!{shutil.which('sh', path='/bin:/usr/bin')}\nPATH=/bin:/usr/bin\n{script}\n"
        )
        (tmp_path / "docker").chmod(0o755)
    docker = found("docker")
    assert docker.ok is ok and said in docker.value and not docker.needed
    assert ok or "--plain" in docker.fix


def test_a_gpu_that_torch_does_not_see_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("gpu").ok
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert not found("gpu").ok and "CUDA" in found("gpu").fix


def test_more_threads_than_cores_are_a_problem(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: len(os.sched_getaffinity(0)) + 1)
    assert not found("torch threads").ok and "OMP_NUM_THREADS=" in found("torch threads").fix


def test_the_cache_says_whether_it_is_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert found("hub cache").value.endswith(", offline") and "HF_HUB_OFFLINE" in found("hub cache").fix
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert found("hub cache").value.endswith(", online") and not found("hub cache").fix


def test_problems_are_marked_and_followed_by_what_to_do(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = show([doctor.Finding("port", "1 is taken", False, "choose another"), doctor.Finding("gpu", "none")])
    assert [line.split() for line in shown.splitlines()] == [
        ["port", "PROBLEM:", "1", "is", "taken"], ["->", "choose", "another"], ["gpu", "none"],
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("folder, code", [(None, 0), (Path("/proc"), 1)])
def test_the_exit_code_says_whether_a_run_could_work(folder, code):
    done = fedfusion("doctor", "--json", cwd=folder)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == code and set(findings["torch"]) >= {"name", "value", "ok", "fix"}
    assert findings["fedfusion"]["value"] == __version__ and findings["current folder"]["ok"] is (code == 0)


def test_it_can_be_asked_where_torch_is_broken(tmp_path):
    """Of all verbs, this one must not need what it looks for."""
    (tmp_path / "torch.py").write_text("raise ImportError('broken')\n")
    code = "import sys; import fedfusion.doctor; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "False\n"
