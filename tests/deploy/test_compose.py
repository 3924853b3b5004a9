import importlib.metadata
import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from fedfusion.deploy.compose import render

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests" / "docker" / "compose-spec.json").read_text())
COMMITTED = {
    "docker/compose.yaml": {"tls": False, "context": ".."},
    "docker/compose.tls.yaml": {"folder": "../deploy", "context": ".."},
}


def parsed(nodes=2, **settings):
    return yaml.safe_load(render(nodes, **settings))


@lru_cache
def offered(tool):
    """The flags of a command of Flower's, as it lists them itself."""
    done = subprocess.run([Path(sys.executable).with_name(tool), "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize("file", COMMITTED)
def test_the_committed_files_are_what_is_rendered(file):
    assert (ROOT / file).read_text() == render(2, file=file, **COMMITTED[file])


@pytest.mark.parametrize("nodes", [0, 1, 3])
@pytest.mark.parametrize(
    "settings", [{"tls": False}, {}, {"context": "..", "runs": "/home/me/runs", "data": ["/mnt/x"]}]
)
def test_it_is_a_compose_file_for_any_number_of_devices(nodes, settings):
    file = parsed(nodes, **settings)
    jsonschema.Draft202012Validator(SCHEMA).validate(file)
    assert set(file["services"]) == {"superlink", "superexec", *(f"node-{i}" for i in range(nodes))}
    used = {volume.partition(":")[0] for s in file["services"].values() for volume in s.get("volumes", [])}
    assert set(file.get("volumes", {})) == {name for name in used if "/" not in name}
    secrets = {secret for service in file["services"].values() for secret in service.get("secrets", [])}
    assert set(file.get("secrets", {})) == secrets


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_flower_knows_every_command_and_every_flag(tls):
    for service in parsed(1, tls=tls)["services"].values():
        command = service["command"]
        while not command[0].startswith("flower-"):
            command = command[1:]
        flags = {argument.partition("=")[0] for argument in command[1:]}
        assert flags and flags <= offered(command[0])


def test_nothing_of_a_container_can_be_changed_but_what_is_named():
    for tls in (False, True):
        for service in parsed(tls=tls)["services"].values():
            assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
            assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
            assert {entry.partition(":")[0] for entry in service["tmpfs"]} == {"/tmp", "/home/fedfusion"}


def test_the_laboratory_is_for_this_machine_and_knows_no_keys():
    text = render(2, tls=False, port=8123)
    file = yaml.safe_load(text)
    assert file["services"]["superlink"]["ports"] == ["127.0.0.1:8123:8000"] and '"127.0.0.1:8123"' in text
    assert all("--insecure" in service["command"] for service in file["services"].values())
    configs = [argument for argument in file["services"]["node-1"]["command"] if argument.startswith("--node-config")]
    assert configs == ['--node-config=data-path="/node/data" partition-id=1 num-partitions=2']


def test_with_tls_every_file_comes_from_the_folder_of_the_deployment():
    file = parsed(folder="/srv/deploy", port=9000, public=True)
    services, sources = file["services"], {name: secret["file"] for name, secret in file["secrets"].items()}
    assert sources == {
        "ca": "/srv/deploy/ca.crt",
        "server-certificate": "/srv/deploy/server.crt",
        "server-key": "/srv/deploy/server.key",
        "superexec": "/srv/deploy/superexec.secret",
        "node-0": "/srv/deploy/nodes/node-0/key",
        "node-1": "/srv/deploy/nodes/node-1/key",
    }
    assert not any("--insecure" in service["command"] for service in services.values())
    assert services["superlink"]["ports"] == ["9000:8000"]
    assert services["superlink"]["volumes"] == ["state:/var/lib/fedfusion"]
    assert "--database=/var/lib/fedfusion/state.db" in services["superlink"]["command"]
    assert "--enable-supernode-auth" in services["superlink"]["command"]
    assert all(service["user"] == "${FEDFUSION_UID:-10001}:${FEDFUSION_GID:-10001}" for service in services.values())


def test_only_a_deployment_with_hosts_is_reached_from_elsewhere():
    assert parsed()["services"]["superlink"]["ports"] == ["127.0.0.1:8000:8000"]
    assert parsed(public=True)["services"]["superlink"]["ports"] == ["8000:8000"]
    assert parsed(tls=False, public=True)["services"]["superlink"]["ports"] == ["127.0.0.1:8000:8000"]


def test_devices_have_the_names_of_their_folders():
    file = parsed(names=["node-1", "node-4"])
    assert list(file["services"])[2:] == ["node-1", "node-4"]
    assert file["services"]["node-4"]["volumes"][0] == "./nodes/node-4/node.toml:/node/node.toml:ro"
    assert file["secrets"]["node-4"]["file"] == "./nodes/node-4/key"


def test_a_service_is_given_the_secrets_that_it_reads_and_no_other():
    for name, service in parsed()["services"].items():
        read = {a.partition("/run/secrets/")[2] for a in service["command"] if "/run/secrets/" in a}
        assert read == set(service["secrets"])
        assert read & {"node-0", "node-1", "server-key"} == {"server-key" if name == "superlink" else name} - {
            "superexec"
        }


def test_a_device_finds_its_data_where_its_settings_say():
    services = parsed(3, folder="d", data=["data", "/mnt/photos", "more/photos"])["services"]
    assert [service["volumes"][1] for name, service in services.items() if name.startswith("node")] == [
        "d/nodes/node-0/data:/node/data:ro",
        "/mnt/photos:/mnt/photos:ro",
        "d/nodes/node-2/more/photos:/node/more/photos:ro",
    ]
    assert services["node-2"]["working_dir"] == "/node"
    assert services["node-2"]["volumes"][0] == "d/nodes/node-2/node.toml:/node/node.toml:ro"


def test_run_folders_are_a_volume_or_where_they_are_on_the_host():
    assert parsed()["services"]["superexec"]["volumes"] == ["runs:/work/runs"]
    file = parsed(runs="/home/me/runs")
    assert file["services"]["superexec"]["volumes"] == ["/home/me/runs:/home/me/runs"]
    assert set(file["volumes"]) == {"state"}


def test_a_supernode_waits_before_it_is_started_again():
    for name, service in parsed()["services"].items():
        if name.startswith("node"):
            script, wait_s = service["command"][1:3]
            assert script.endswith("/later.py") and float(wait_s) >= 60
        assert service["restart"] == "unless-stopped"  # with the machine, too


def test_the_image_is_that_of_the_version_unless_another_is_named():
    assert parsed()["services"]["superexec"]["image"] == f"fedfusion:{importlib.metadata.version('fedfusion')}"
    assert parsed(image="other:1")["services"]["node-0"]["image"] == "other:1"
    assert "build" not in parsed()["services"]["node-0"]
    assert parsed(context="..")["services"]["node-0"]["build"]["context"] == ".."
