"""Completion as shells ask for it: a process that is told the words and prints what may follow."""

import os
import pty
import subprocess
import sys

import pytest

from fedfusion.composition import groups


def offered(*words, shell="bash", cwd=None):
    """What is offered for the last of the words."""
    asked = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": " ".join(words)},
        "fish": {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = os.environ | asked | {"_FEDFUSION_COMPLETE": f"complete_{shell}"}
    code = "import sys; from fedfusion.cli import app; app(prog_name='fedfusion')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode in (0, 1) and done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("verb", [["run"], ["sweep"], ["validate"], ["evaluate", "some"], ["deploy", "run"]])
def test_groups_and_keys_are_offered(verb):
    found = offered("fedfusion", *verb, "")
    assert {f"{group}=" for group in groups()} < set(found)
    assert {"channel.", "seed=0", "rounds=3", "run_dir=null"} < set(found)
    assert not [text for text in found if "_target_" in text or "torch" in text]


@pytest.mark.parametrize(
    "words, found",
    [
        (["chan"], ["channel=", "channel."]),
        (["channel", "="], ["aircomp", "awgn", "cell", "ideal", "mimo", "packet"]),  # as bash cuts it
        (["channel", "=", "m"], ["mimo"]),
        (["channel=m"], ["channel=mimo"]),
        (["adjacency=s"], ["adjacency=shuffled", "adjacency=similarity"]),
        (["attack=ipm,al"], ["attack=ipm,alie", "attack=ipm,alie_optimal"]),
        (["channel.j"], ["channel.jsr_db=22.0"]),
        (["channel.jsr_db", "="], ["22.0"]),
        (["channel", "=", "mimo", "channel.jammer.jsr"], ["channel.jammer.jsr_db=0.0"]),
        (["seed", "=", "1", "channel=mimo", "channel.jammer.jsr"], ["channel.jammer.jsr_db=0.0"]),
        (["channel=nonsense", "channel.j"], ["channel.jsr_db=22.0"]),  # what is there may be wrong yet
        (["model.freeze_a", "="], ["true", "false"]),
        (
            ["model.lor"],
            ["model.lora.r=8", "model.lora.lora_alpha=8", "model.lora.lora_dropout=0.0", "model.lora.target_modules="],
        ),
        (["suite.tasks", "="], []),  # a shell would read a list otherwise
        (["nothing.that.is"], []),
        (["nosuch", "="], []),
        (["channel.nosuch", "="], []),
        (["run_dir", "="], ["null"]),
    ],
)
def test_what_goes_on_as_it_was_begun_is_offered(words, found):
    assert offered("fedfusion", "run", *words) == found


def test_it_is_the_same_in_other_shells():
    assert offered("fedfusion", "run", "channel=a", shell="fish") == ["channel=aircomp", "channel=awgn"]
    assert '"channel=aircomp"' in " ".join(offered("fedfusion", "run", "channel=a", shell="zsh"))


def test_options_of_ones_own_are_offered(tmp_path):
    (tmp_path / "my" / "channel").mkdir(parents=True)
    (tmp_path / "my" / "channel" / "mine.yaml").write_text("_target_: mine.Mine\nloss: 0.5\n")
    assert offered("fedfusion", "run", "--config-dir", "my", "channel=mi", cwd=tmp_path) == [
        "channel=mimo",
        "channel=mine",
    ]
    assert offered("fedfusion", "run", "--config-dir", "my", "channel=mine", "channel.l", cwd=tmp_path) == [
        "channel.loss=0.5"
    ]
    assert "channel/mine" in offered("fedfusion", "ls", "--config-dir", "my", "channel/", cwd=tmp_path)
    assert offered("fedfusion", "run", "--config-dir", "none", "channel=mi", cwd=tmp_path) == ["channel=mimo"]


def test_verbs_and_what_is_listed_are_offered():
    assert {"run", "ls", "deploy"} <= set(offered("fedfusion", ""))
    assert offered("fedfusion", "ls", "fus") == ["fusion"]
    assert offered("fedfusion", "ls", "fusion/tie") == ["fusion/ties"]


def test_the_keys_are_found_without_torch():
    code = (
        "import sys, click; from fedfusion.completion import overrides\n"
        "context = click.Context(click.Command('run')); context.params = {'overrides': []}\n"
        "assert overrides(context, 'channel.'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell):
    assert f"_FEDFUSION_COMPLETE=complete_{shell}" in script(shell)


def test_a_real_bash_completes_what_is_typed(tmp_path):
    """With tabulator keys on a terminal: words are cut, offers put in, and no word is ended too early."""
    (tmp_path / "fedfusion").write_text(f'#!/bin/sh\nexec {sys.executable} -m fedfusion "$@"\n')
    (tmp_path / "fedfusion").chmod(0o755)
    (tmp_path / "rc").write_text(
        f"PS1='> '\nPATH={tmp_path}:$PATH\nbind 'set enable-bracketed-paste off'\n{script('bash')}\n"
    )
    master, slave = pty.openpty()
    command = ["bash", "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"]
    shell = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=tmp_path)
    os.close(slave)
    os.write(master, b"fedfusion run chan\t=mi\tfusion.co\t\x01echo \x05\rexit\r")
    seen = b""
    try:
        while part := os.read(master, 65536):
            seen += part
    except OSError:  # the shell has ended
        pass
    os.close(master)
    assert shell.wait() == 0
    assert "\nfedfusion run channel=mimo fusion.coefficient=0.7" in seen.decode().replace("\r", "")


def script(shell):
    environment = os.environ | {"_FEDFUSION_COMPLETE": f"source_{shell}"}
    return subprocess.run([sys.executable, "-m", "fedfusion"], capture_output=True, text=True, env=environment).stdout
