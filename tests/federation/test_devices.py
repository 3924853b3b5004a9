import sys

import pytest

from fedfusion.federation import Devices
from fedfusion.federation.devices import flwr, last_round
from fedfusion.types import FedfusionError


def test_restarts_below_zero_are_refused():
    with pytest.raises(FedfusionError, match="federation.restarts must be at least 0, got -1"):
        Devices(restarts=-1)


def test_without_a_deployment_the_commands_that_make_one_are_named(tmp_path):
    with pytest.raises(FedfusionError, match="federation.home=.*none .*fedfusion deploy init, fedfusion deploy up"):
        Devices(home=str(tmp_path / "none")).check()


def test_a_run_that_cannot_go_on_names_its_last_checkpoint(tmp_path):
    assert last_round(tmp_path) == "no round was finished"
    for name in ("round-0002", "round-0010", ".round-0011.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    words = last_round(tmp_path)
    assert f"{tmp_path}/checkpoints/round-0010; continue with: fedfusion deploy run --resume {tmp_path}" in words


@pytest.mark.parametrize(
    "script, why",
    [
        ('print(\'{"success": false, "error-message": "Using SuperLink\\\\n\\\\nno such run"}\')', "no such run$"),
        ("import sys; sys.exit('it fell over')", "it fell over"),
        ("", "no answer"),
        ("import time; time.sleep(60)", "did not answer within 2 s"),
    ],
)
def test_what_flower_says_is_an_error_of_ours(script, why, tmp_path, monkeypatch):
    command = tmp_path / "flwr"
    command.write_text(f"#!{sys.executable}\n{script}\n")
    command.chmod(0o700)
    monkeypatch.setattr("fedfusion.federation.devices.tool", lambda name: str(tmp_path / name))
    monkeypatch.setattr("fedfusion.federation.devices.ANSWER_S", 2)
    with pytest.raises(FedfusionError, match=f"^flwr list: ?.*{why}|^flwr list {why}"):
        flwr(["list"], {})
