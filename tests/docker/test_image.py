import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from command import fedfusion
from packaging.requirements import Requirement

from fedfusion.deploy.compose import render

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
HEALTH, LATER = ROOT / "docker" / "health.py", ROOT / "docker" / "later.py"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_the_linter_has_nothing_to_say(tmp_path):
    assert subprocess.run([HADOLINT, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True).stdout == ""
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("USER 10001:10001", "USER root"))
    assert "DL3002" in subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True).stdout


def ignored(path):
    """Whether .dockerignore keeps a path of the checkout out of the image; its last rule that fits decides."""
    out = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        name = rule.lstrip("!")
        if not rule or rule.startswith("#"):
            continue
        if (
            name == "*"
            or path == name
            or path.startswith(f"{name}/")
            or (name[:3] == "**/" and name[3:] in path.split("/"))
        ):
            out = not rule.startswith("!")
    return out


def test_everything_that_is_copied_is_there_and_not_ignored():
    sources = [source for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for source in line.split()]
    assert {"conf", "fedfusion", "pyproject.toml", "constraints.txt", "docker/health.py"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and not ignored(source)
    assert all(map(ignored, [".git", "runs/a", "tests/tiny.py", ".venv/bin/python", "docker/compose.yaml"]))
    assert ignored("fedfusion/__pycache__/apps.cpython-311.pyc") and not ignored("fedfusion/assets/digits.npz")


def test_every_dependency_of_the_package_is_pinned():
    lines = (ROOT / "docker" / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    torch = Requirement((ROOT / "constraints.txt").read_text().strip())
    pinned = {pin.name: next(iter(pin.specifier)).version for pin in [*pins, torch]}
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        needed = Requirement(text)
        name = re.sub(r"[-_.]+", "-", needed.name).lower()
        assert name in pinned and needed.specifier.contains(pinned[name], prereleases=True)


def test_it_is_nobody_with_rights_that_runs():
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert re.findall(r"^USER (\S+)$", last, re.M) == ["10001:10001"] and "sudo" not in DOCKERFILE
    assert DOCKERFILE.count("FROM ${BASE}") == 2 and "COPY --from=build" in last and "pip install" not in last


def healthy(address, authority=None):
    environment = os.environ | {"HEALTH": address} | ({"HEALTH_CA": str(authority)} if authority else {})
    return subprocess.run([sys.executable, HEALTH], env=environment, capture_output=True, text=True)


class Service(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_health_check_asks_the_service():
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    assert healthy(f"http://{address}/health").returncode == 0 == healthy(address).returncode
    sick = healthy(f"http://{address}/other")
    assert sick.returncode == 1 and "503" in sick.stderr and "Traceback" not in sick.stderr
    server.shutdown()
    server.server_close()
    for gone in (f"http://{address}/health", address):
        assert healthy(gone).returncode == 1 and "Connection refused" in healthy(gone).stderr


def later(wait_s, *command, **settings):
    return subprocess.Popen(
        [sys.executable, LATER, str(wait_s), *command], stderr=subprocess.PIPE, text=True, **settings
    )


def test_the_exit_code_is_that_of_the_command():
    with later(600, "true") as process:
        assert process.wait(60) == 0
    with later(0.1, "sh", "-c", "exit 3") as process:
        assert process.wait(60) == 3
        assert "sh ended with 3; it is started again in 0.1 s" in process.stderr.read()


@pytest.mark.parametrize("command", ["echo runs >&2; exec sleep 600", "exit 3"])
def test_it_can_be_stopped_while_it_runs_and_while_it_waits(command):
    with later(600, "sh", "-c", command) as process:
        first = process.stderr.readline()
        assert first in ("runs\n", "sh ended with 3; it is started again in 600 s\n") and process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


PORT = 43200


def local(text, port, folder, secrets):
    """What a container is told, with the addresses and paths of this machine."""
    here = {f"/run/secrets/{name}": str(folder / secret["file"]) for name, secret in secrets.items()}
    here |= {"superlink:8000": f"127.0.0.1:{port}", "localhost:8000": f"127.0.0.1:{port}", "0.0.0.0": "127.0.0.1"}
    here |= {"--port=8000": f"--port={port}", "127.0.0.1:8000": f"127.0.0.1:{port}"}
    here |= {"127.0.0.1:8001": f"127.0.0.1:{port + 1}", "--port=9094": f"--port={port + 2}"}
    here |= {"127.0.0.1:9094": f"127.0.0.1:{port + 2}", "/opt/fedfusion/libexec/later.py": str(LATER)}
    here |= {"/node/node.toml": str(folder / "nodes/node-0/node.toml"), "/node/data": str(folder)}
    here |= {"/var/lib/fedfusion": str(folder)}
    for there in sorted(here, key=len, reverse=True):
        text = text.replace(there, here[there])
    return text


def environment(home):
    """What the image has in its environment."""
    switches = dict(re.findall(r"(FLWR_[A-Z_]+)=([\d.]+)", DOCKERFILE))
    assert switches["FLWR_TELEMETRY_ENABLED"] == "0" and switches["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | switches | {"FLWR_HOME": str(home), "PATH": path}


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_the_commands_of_the_compose_file_start_and_become_healthy(tls, tmp_path):
    """There is no engine in a test: they run as processes, with the addresses and paths of this machine."""
    folder, port = tmp_path / "deploy", PORT + 10 * tls
    fedfusion("deploy", "init", "--dir", str(folder), "--nodes", "1", "--port", str(port), check=True)
    file = yaml.safe_load(render(1, tls=tls))
    secrets, processes, words = file.get("secrets", {}), [], {}
    try:
        for name, service in file["services"].items():
            facts = service.get("environment", {"HEALTH": re.search(r"HEALTH=(\S+)", DOCKERFILE)[1]})
            address, authority = (local(facts.get(key, ""), port, folder, secrets) for key in ("HEALTH", "HEALTH_CA"))
            with (tmp_path / name).open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [local(argument, port, folder, secrets) for argument in service["command"]],
                        env=environment(tmp_path / f"{name}.flower"), cwd=folder / "nodes/node-0", stdout=log,
                        stderr=subprocess.STDOUT, start_new_session=True,
                    )
                )  # fmt: skip
            wait(
                lambda address=address, authority=authority: healthy(address, authority).returncode == 0,
                tmp_path / name,
            )
            if tls and name == "superlink":
                register(folder, port, tmp_path / "cli")
        wait(lambda: "SuperNode ID" in (tmp_path / "node-0").read_text(), tmp_path / "node-0")
        words = {name: (tmp_path / name).read_text() for name in file["services"]}
        assert "Activated node_id" in words["superlink"]
        assert ("insecure" in words["node-0"].lower()) != tls
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait(holds, log):
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def register(folder, port, home):
    """Let the SuperLink know the key of the device."""
    home.mkdir()
    connection = f'[superlink.ours]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{folder}/ca.crt"\n'
    (home / "config.toml").write_text(connection)
    command = [Path(sys.executable).with_name("flwr"), "supernode", "register", folder / "nodes/node-0/key.pub", "ours"]
    subprocess.run(command, env=environment(home), check=True, capture_output=True)
