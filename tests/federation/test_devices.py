import sys

import pytest

from fedfusion.federation import Devices
from fedfusion.federation.devices import Submitted, flwr, last_round
from fedfusion.federation.flower import raised
from fedfusion.types import FedfusionError


def test_restarts_below_zero_are_refused():
    with pytest.raises(FedfusionError, match="federation.restarts must be at least 0, got -1"):
        Devices(restarts=-1)


def test_without_a_deployment_the_commands_that_make_one_are_named(tmp_path):
    with pytest.raises(FedfusionError, match="federation.home=.*none .*fedfusion deploy init, fedfusion deploy up"):
        Devices(home=str(tmp_path / "none")).check()


def test_a_run_that_cannot_go_on_names_its_last_checkpoint(tmp_path):
    assert last_round(tmp_path, "/field") == "no round was finished"
    for name in ("round-0002", "round-0010", ".round-0011.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    words = last_round(tmp_path, "/field")
    command = f"fedfusion deploy run --dir /field --resume {tmp_path}"
    assert f"{tmp_path}/checkpoints/round-0010; continue with: {command}" in words


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


def test_a_log_that_is_streamed_again_is_not_repeated(tmp_path, monkeypatch):
    command, log = tmp_path / "flwr", tmp_path / "run.log"
    command.write_text(f"#!{sys.executable}\nimport sys; print('the log of run', sys.argv[2])\n")
    command.chmod(0o700)
    monkeypatch.setattr("fedfusion.federation.devices.tool", lambda name: str(tmp_path / name))
    log.write_text("of the run before\n")
    run = Submitted("7", log, {})
    assert run.stream.wait(60) == 0
    run.stream = run._streamed()
    assert run.stream.wait(60) == 0 and log.read_text() == "of the run before\nthe log of run 7\n"


def test_an_error_of_ours_is_known_by_the_name_of_its_class(tmp_path):
    log = tmp_path / "run.log"
    log.write_text(
        "fedfusion.types.RunFailed: of a former run\n"
        "OSError: /home/me/fedfusion: No space left on device\n"
        "fedfusion.server.run: a logger\n"
        "/x/fedfusion.Old: Permission denied\n"
        "\x1b[91mERROR\x1b[0m: fedfusion.types.FedfusionError: no such task\n"
        "fedfusion.validation.ConfigErrors: rounds must be at least 1\n"
    )
    since = log.read_bytes().index(b"OSError")
    assert raised(log, since) == ["no such task", "rounds must be at least 1"]
