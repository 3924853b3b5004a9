import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from command import SMALL, TESTS, fedfusion, results
from hub_server import TOKEN, Hub
from huggingface_hub import ModelCard
from peft_folders import base, three
from typer.testing import CliRunner

from fedfusion import hub
from fedfusion.cli import app
from fedfusion.types import FedfusionError, RunFailed

# huggingface_hub gives httpx bytes in a way that will end
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def server(monkeypatch):
    """A hub that this process talks to, and whose token it has."""
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def adapter(tmp_path):
    """What an adapter's folder looks like from outside."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# A\n")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("repo", ["name", "a/b/c", "/name", "user/", "user/na me", "user/-name", "https://hf.co/a/b"])
def test_what_cannot_be_a_repository_is_refused(server, repo):
    with pytest.raises(FedfusionError, match=rf"^push_to_hub={re.escape(repo)} cannot be the name .* \(give user/name"):
        hub.check(repo)


def test_no_token_and_no_network_are_refused(server, monkeypatch, tmp_path):
    hub.check("user/na-me_1.0")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(FedfusionError, match="needs a token .*hf auth login"):
        hub.check("user/name")
    (tmp_path / "token").write_text("hf_stored")
    hub.check("user/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FedfusionError, match="HF_HUB_OFFLINE=1 forbids .unset it"):
        hub.check("user/name")


def test_a_push_makes_a_private_repository_and_later_ones_leave_it_as_it_is(server, adapter, capfd):
    assert hub.push(adapter, "user/name") == f"{server.address}/user/name"
    assert server.private == {"user/name": True} and server.files["user/name"] == contents(adapter)
    server.private["user/name"] = False
    (adapter / "adapter_model.safetensors").write_bytes(b"other")
    hub.push(adapter, "user/name")
    assert server.private == {"user/name": False} and server.files["user/name"] == contents(adapter)
    assert capfd.readouterr() == ("", "")


def test_a_push_that_fails_says_why_and_what_tries_it_again(server, adapter, monkeypatch):
    before = contents(adapter)
    server.refuses_commits = True
    with pytest.raises(RunFailed) as caught:
        hub.push(adapter, "user/name")
    assert str(caught.value) == (
        "push_to_hub=user/name: You have read access but not the required permissions (nothing is lost; to try again: "
        f"hf upload user/name {adapter} . --private)"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(RunFailed, match="Invalid credentials"):
        hub.push(adapter, "user/name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match="refused .nothing is lost"):
        hub.push(adapter, "user/name")
    assert contents(adapter) == before and server.files["user/name"] == {}


def test_the_configuration_of_a_run_is_refused_before_anything_is_loaded():
    refused = CliRunner().invoke(app, ["validate", "push_to_hub=me"])
    assert refused.exit_code == 2 and "error: push_to_hub=me cannot be the name" in refused.output


def test_a_merge_is_refused_before_it_is_made_and_pushed_once_it_is(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    sources = three(tmp_path, base(tmp_path / "base", "vit"))
    command = ["merge", *sources, "--out", str(tmp_path / "merged"), "--push-to-hub"]
    refused = CliRunner().invoke(app, [*command, "name"])
    assert refused.exit_code == 2 and "cannot be the name" in refused.output and not (tmp_path / "merged").exists()
    done = CliRunner().invoke(app, [*command, "user/merged"])
    assert done.exit_code == 0 and f"is on the hub: {server.address}/user/merged" in done.stderr
    assert server.files["user/merged"] == contents(tmp_path / "merged") and server.private["user/merged"]


@pytest.mark.slow
def test_a_run_survives_a_push_that_fails_and_what_it_says_repeats_it(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    with Hub() as server:
        settings = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        for name, value in (settings | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}).items():
            monkeypatch.setenv(name, value)
        server.refuses_commits = True
        failed = fedfusion("run", *SMALL, f"run_dir={run_dir}", "push_to_hub=user/name")
        assert failed.returncode == 1 and "worst task" in failed.stdout and "Traceback" not in failed.stderr
        assert results(run_dir)["metrics"]["rounds"] and server.files == {"user/name": {}}
        again = shlex.split(re.search(r"to try again: (.*)\)\n", failed.stderr)[1])
        server.refuses_commits = False
        subprocess.run([Path(sys.executable).with_name(again[0]), *again[1:]], check=True, capture_output=True)
        pushed = contents(run_dir / "adapter")
        assert server.files["user/name"] == pushed and {"README.md", "heads.safetensors"} < pushed.keys()
        card = ModelCard(pushed["README.md"].decode())
        assert card.data.model_name == "user/name" and 'adapter = "user/name"' in card.text

        done = fedfusion("run", "--resume", str(run_dir), "push_to_hub=user/other", check=True)
        assert f"{server.address}/user/other" in done.stderr and server.files["user/other"].keys() == pushed.keys()

        code = "import fedfusion, sys; fedfusion.run(resume=sys.argv[1], overrides=['push_to_hub=user/third'])"
        environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
        subprocess.run([sys.executable, "-c", code, run_dir], env=environment, check=True, capture_output=True)
        assert server.files["user/third"].keys() == pushed.keys()
