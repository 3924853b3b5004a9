import io
import re

import pytest
from rich.console import Console

from fedfusion.tracking import Terminal

RECORD = {
    "round": 1,
    "train_loss": 0.5,
    "learnt": False,
    "heard": [],
    "refused": [],
    "mean": {"single_task": 0.9},
    "dropped": {"3": "gone [x]"},
}
STAGES = {"single_task": 0.9, "personal": 0.91, "fused_clean": 0.6, "fused_received": 0.7, "realigned": 0.8}
LONG = {
    **RECORD,
    "mean": STAGES,
    "dropped": {"12": "was erased on its way, and the message that said so never came back in time"},
}


def on_a_terminal(width, history=(), rounds=3):
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=width, force_terminal=True, soft_wrap=True, highlight=False))
    terminal.started(history, rounds)
    return terminal, lambda: re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n")


def test_without_a_terminal_there_are_plain_lines():
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=40, soft_wrap=True))
    terminal.started([], 2)
    terminal.exchanged(1, 0, 4)
    terminal.exchanged(1, 4, 4)
    terminal.finished(LONG | {"dropped": RECORD["dropped"]})
    terminal.concluded({})
    terminal.close()
    said = out.getvalue().replace("\n", " ")
    assert said.count("round 1/2") == 2 and "client 3 dropped: gone [x]" in said
    assert "too little arrived: the last model is kept" in said


def test_output_that_is_no_terminal_has_one_line_per_round_however_narrow():
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=40, soft_wrap=True))
    terminal.started([], 2)
    terminal.finished(LONG)
    first = out.getvalue().splitlines()[0]
    assert first == "round 1/2  loss 0.50  single .900  personal .910  fused .700  realigned .800"


def test_on_a_terminal_there_is_a_bar_with_rounds_and_time():
    terminal, printed = on_a_terminal(100, [RECORD])
    for server_round in (2, 3):
        for done in range(5):
            terminal.exchanged(server_round, done, 4)
    terminal.close()
    assert "continuing after round 1" in printed() and "8/8 clients" in printed() and "round 3/3" in printed()


def test_on_a_wide_terminal_the_rounds_are_a_table():
    terminal, printed = on_a_terminal(80)
    heard = {**LONG, "nmse_db": -7.25, "believed": 15, "clients": list(range(16))}
    terminal.exchanged(1, 16, 16)
    terminal.finished(heard)
    terminal.finished({**heard, "round": 2, "nmse_db": None, "mean": {"single_task": 1.0}})
    terminal.close()
    lines = [line.rstrip() for line in printed().splitlines()]
    (header,) = (i for i, line in enumerate(lines) if "believed" in line)
    assert lines[header].split() == "round loss single personal fused realigned NMSE believed".split()
    first, second = (line for line in lines if "15/16" in line)
    assert first.split() == ["1/3", "0.50", ".900", ".910", ".700", ".800", "-7.2", "dB", "15/16"]
    assert second.split() == ["2/3", "0.50", "1.000", *"––––", "15/16"]
    assert {len(first), len(second), len(lines[header])} == {len(first)} and len(first) <= 80


def test_a_round_that_taught_nothing_says_whether_it_is_the_guard_that_left_too_few():
    def said(**record):
        out = io.StringIO()
        Terminal(Console(file=out, width=40, soft_wrap=True)).finished(RECORD | record)
        return out.getvalue()

    refused = "  the guard refused 2 of the 3 uploads that arrived, which left too few: the last model is kept\n"
    assert refused in said(refused=[1, 2], heard=[0])
    assert refused in said(refused=[1, 2], heard=[0, 1])  # sums over the air are heard and refused
    assert "the guard" not in said(heard=[0]) and "too little arrived: the last model is kept" in said(heard=[0])
    assert "the last model" not in said(refused=[1, 2], learnt=True)


@pytest.mark.parametrize("width", [60, 40])
def test_no_line_is_longer_than_the_terminal_and_no_word_is_broken(width):
    terminal, printed = on_a_terminal(width)
    for done in range(17):
        terminal.exchanged(1, done, 16)
    terminal.finished(LONG)
    terminal.warn("damaged checkpoint round-0001 (the round before it is used)")
    terminal.close()
    lines = printed().splitlines()
    assert max(map(len, lines)) <= width
    for words in ("loss 0.50", "single .900", "personal .910", "fused .700", "realigned .800", "16/48", "checkpoint"):
        assert any(words in line for line in lines)
    said = re.sub(r"\s+", " ", " ".join(line for line in lines if "/" not in line))
    assert "on its way, and the message that said so never came back in time" in said


@pytest.mark.parametrize("width", [60, 80])
def test_a_loss_that_the_record_of_a_round_has_not_is_left_open(width):
    terminal, printed = on_a_terminal(width)
    terminal.exchanged(1, 4, 4)
    terminal.finished({**LONG, "train_loss": None, "nmse_db": 1.0, "believed": 4, "clients": range(4)})
    terminal.close()
    assert any(words in printed() for words in ("loss –", "1/3       –"))
