import io
import json
import re

from rich.console import Console

from fedfusion.tracking import Jsonl, Terminal

RECORD = {"round": 1, "train_loss": 0.5, "learnt": False, "mean": {"single_task": 0.9}, "dropped": {"3": "gone [x]"}}


def test_jsonl_has_one_line_per_round_and_is_rewritten_on_resume(tmp_path):
    log = Jsonl(tmp_path / "metrics.jsonl")
    log.started([], 2)
    log.finished({"round": 1})
    log.finished({"round": 2, "half": "written before a crash"})
    log.started([{"round": 1}], 2)
    log.finished({"round": 2})
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == [{"round": 1}, {"round": 2}]


def test_without_a_terminal_there_are_plain_lines():
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=80))
    terminal.started([], 2)
    terminal.exchanged(1, 0, 4)
    terminal.exchanged(1, 4, 4)
    terminal.finished(RECORD)
    terminal.close()
    assert out.getvalue().replace("\n", " ").split("  client")[0].count("round 1/2") == 2
    assert "round 1/2  loss 0.50  single .900" in out.getvalue() and "client 3 dropped: gone [x]" in out.getvalue()
    assert "too little arrived: the last model is kept" in out.getvalue()


def test_on_a_terminal_there_is_a_bar_with_rounds_and_time():
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=100, force_terminal=True))
    terminal.started([RECORD], 3)
    for server_round in (2, 3):
        for done in range(5):
            terminal.exchanged(server_round, done, 4)
    terminal.close()
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "continuing after round 1" in printed and "8/8 clients" in printed and "round 3/3" in printed
