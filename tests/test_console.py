"""Output on real terminals of several widths, in pipes, and as JSON."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fedfusion.cli import app
from fedfusion.console import columns, entry, plain_errors, wrapped
from fedfusion.errors import FedfusionError, RunFailed

SLOW = pytest.mark.slow
CALLS = [
    ["ls", "channel"],
    ["ls", "fusion/ties"],
    ["ls", "a-group-that-does-not-exist-and-has-a-name-that-is-long"],
    pytest.param(["deploy", "status", "--dir", "nowhere"], marks=SLOW),
    pytest.param(["doctor"], marks=SLOW),
    pytest.param(["validate", "channel.jsr=3", "rounds=0", "fusion=tiles"], marks=SLOW),
    pytest.param(["run", "run_dir=/dev/null/x"], marks=SLOW),
]


def on_terminal(arguments, width, **environment):
    """What a person sees who calls fedfusion on a terminal of that width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    plain = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "TERM")}
    command = [sys.executable, "-m", "fedfusion", *arguments]
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=plain | environment)
    os.close(slave)
    seen = b""
    try:
        while part := os.read(master, 65536):
            seen += part
    except OSError:  # the other side has been closed
        pass
    os.close(master)
    assert child.wait() in (0, 1, 2)
    return seen.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("arguments", CALLS)
@pytest.mark.parametrize(
    "width, environment", [(80, {"TERM": "dumb"}), (40, {"TERM": "xterm-256color", "NO_COLOR": "1"})]
)
def test_lines_fit_the_terminal_and_hold_no_codes(arguments, width, environment):
    seen = on_terminal(arguments, width, **environment)
    assert "\x1b" not in seen and "Traceback" not in seen and seen.strip()
    long = [line for line in seen.splitlines() if len(line) > width]
    # of what is longer, there are only single words, and what is quoted as it is written
    yaml = set()
    if "/" in arguments[-1] and arguments[0] == "ls":
        yaml = {line for line in long if line.startswith(("#", "_target_", ".. ", "   "))}
    assert [line for line in long if " " in line.strip() and line not in yaml] == []


def test_the_width_is_that_of_the_terminal_or_else_eighty(monkeypatch):
    code = "from fedfusion.console import columns; print(columns())"
    monkeypatch.delenv("COLUMNS", raising=False)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "80\n"
    monkeypatch.setenv("COLUMNS", "57")
    assert columns() == 57
    monkeypatch.setenv("COLUMNS", "none")
    assert columns() == 80


@pytest.mark.parametrize("width", [20, 40, 59])
def test_a_narrow_terminal_has_the_text_below_its_name(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = entry("a-name", "some words that are put below it, line by line", 20, 2).splitlines()
    assert lines[0] == "  a-name" and all(line.startswith("    ") and len(line) <= width for line in lines[1:])
    assert entry("a-name", "", 20, 2) == "  a-name" and entry("", "text", 20, 2) == "    text"


def test_a_wide_terminal_has_it_beside(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = " ".join(f"word{i}" for i in range(20))
    first, *others = entry("a-name", text, 10, 2).splitlines()
    assert first.startswith("  a-name     word0 ") and all(line.startswith(" " * 13 + "word") for line in others)
    assert len(others) >= 2 and max(len(first), *map(len, others)) <= 60
    assert entry("a-name", "", 10, 2) == "  a-name"


def test_words_are_never_broken():
    text = "well-known https://example.org/a-very-long-address-that-does-not-fit end"
    assert wrapped(text, 20).split() == text.split()


@pytest.mark.parametrize("kind, code", [(FedfusionError, 2), (RunFailed, 1)])
def test_an_error_is_one_sentence_a_line_where_nobody_reads_it(kind, code, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    with pytest.raises(SystemExit) as end, plain_errors():
        raise kind("one " * 50 + "\ntwo")
    said = capsys.readouterr()
    assert end.value.code == code and said.out == "" and said.err == f"error: {'one ' * 50}\nerror: two\n"


def test_an_error_is_json_too_where_that_was_asked_for(capsys):
    with pytest.raises(SystemExit), plain_errors(as_json=True):
        raise RunFailed("one\ntwo")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": ["one", "two"], "exit_code": 1} and said.err.count("error: ") == 2


def verbs(command, path=()):
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from verbs(child, (*path, name))


VERBS = dict(verbs(get_command(app)))
WRONG = {  # calls that are refused, quickly
    ("run",): ["rounds=0"],
    ("sweep",): ["rounds=0,0", "seed=loud"],
    ("merge",): ["nowhere/a", "nowhere/b", "--out", "out"],
    ("evaluate",): ["nowhere"],
    ("validate",): ["rounds=0"],
    ("ls",): ["chanel"],
    ("report",): ["nowhere"],
    ("deploy", "init"): ["--nodes", "0"],
    ("deploy", "up"): [],
    ("deploy", "node"): ["nowhere", "--superlink", "127.0.0.1:1"],
    ("deploy", "run"): ["rounds=0"],
    ("deploy", "status"): [],
    ("deploy", "down"): [],
}


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_speaks_json(verb):
    assert any("--json" in option.opts for option in VERBS[verb].params)
    assert verb in WRONG or verb == ("doctor",)


@pytest.mark.parametrize("verb", [verb if verb == ("ls",) else pytest.param(verb, marks=SLOW) for verb in WRONG])
def test_every_refusal_is_one_json_document_and_sentences_for_people(verb, tmp_path):
    command = [sys.executable, "-m", "fedfusion", *verb, *WRONG[verb], "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    said = json.loads(done.stdout)
    sentences = said["errors"] if verb == ("validate",) else said["error"]
    assert done.returncode == 2 and said.get("exit_code", 2) == 2
    assert done.stderr.splitlines() == [f"error: {sentence}" for sentence in sentences] != []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["rnu"], "no verb 'rnu' (did you mean 'run'?)"),
        (["xxxxxxx"], "no verb 'xxxxxxx' (choose among: "),
        (["deploy", "initt"], "no verb 'initt' (did you mean 'init'?)"),
        (["run", "--rsume", "x"], "--rsume"),
        (["merge"], "Missing argument"),
        (["run", "--cfg", "hydra"], "'hydra' is not 'job'"),
    ],
)
def test_a_call_that_is_wrong_in_itself_is_json_too(arguments, said):
    done = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == found["exit_code"] == 2
    assert said in found["error"][0] and done.stderr == f"error: {found['error'][0]}\n"
    people = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert people.exit_code == 2 and said in people.stderr and people.stdout == ""
