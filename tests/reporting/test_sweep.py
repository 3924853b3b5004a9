import io
import json
import re
import subprocess
import sys
from pathlib import Path

import grids
import pages
import pytest
from rich.console import Console

from fedfusion.reporting import sweep, sweep_plots
from fedfusion.reporting.figures import figures

RESILIENCE = Path(__file__).parents[2] / "experiments" / "resilience" / "budget.json"


def printed(facts, width):
    console = Console(width=width, record=True, file=io.StringIO())
    sweep.show(facts, console)
    return console.export_text()


def made(facts, folder):
    """The page, checked as every page is."""
    sweep.make(facts, folder)
    return pages.check((folder / "report.html").read_text())


def test_what_the_page_of_100_cells_says(tmp_path):
    facts = grids.budget() | {"question": "Which defence holds?", "warnings": ["2 runs were continued."]}
    root = made(facts, tmp_path)
    assert root.all("h1")[0].text == "Which defence holds?"
    page = root.text
    assert sweep.answer(facts) in page and "task_aware keeps the worst task best: accuracy 0.860" in page
    assert facts["command"] in page and "rounds=1" in page and "2 runs were continued." in page
    assert [e.text for e in root.all("h2")] == ["Command", "Warnings", "Figures", "Tables", "Environment"]
    environment = {e.all("dt")[0].text: e.all("dd")[0].text for e in root.all("dl")[0].children}
    assert environment == {
        "cells": "100", "runs": "100", "local trainings": "2", "wall time": "321 s", "wall time of all runs": "200 s",
        "python": "3.11.9", "threads": "2", "fedfusion": "0.1.0",
    }  # fmt: skip
    tables = [e.text for e in root.all("caption")]
    assert tables[1:] == [
        "ipm: worst task, fused received, by share of Byzantine clients",
        "ipm: every point, fused received",
    ]
    assert (tmp_path / "report.html").stat().st_size < 3e6
    assert "What the chosen grid sets" not in page, "none was chosen"


def test_the_page_holds_the_chosen_grid(tmp_path):
    grid = "# one question\nrounds: 1 # and <why>\n"
    root = made(grids.budget() | {"grid": grid}, tmp_path)
    (shown,) = [e for e in root.all("details") if e.all("summary")[0].text == "What the chosen grid sets"]
    assert shown.all("code")[0].parts == [grid]


def test_every_picture_says_what_it_shows_and_is_in_files_beside(tmp_path):
    root = made(grids.jammed(), tmp_path)
    pictures = [e for e in root.all("svg") if not e.inside("svg")]
    names = {e.attributes["aria-labelledby"].partition("-title")[0] for e in pictures}
    assert names == {"worst", "mean", "nmse", "by-mbit", "by-energy-j", "heat-channel-jammer-jsr-db-fusion"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{n}.{end}" for n in names for end in ("png", "pdf")
    }
    for name in names:
        assert b"/FontFile2" in (tmp_path / "plots" / f"{name}.pdf").read_bytes(), "text of a PDF is text"
    said = {e.children[0].text: e.children[1].text for e in pictures}
    assert "fusion=tsv 0.637, fusion=linear 0.517" in said["Accuracy on the worst task by channel.jammer.jsr_db"]


def test_the_same_facts_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sweep.make(grids.jammed(), tmp_path / name)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


def test_a_value_in_brackets_is_printed_as_it_is(capsys):
    facts = grids.sweep({"suite.tasks": ["[a]", "[a,b]"], "rounds": ["1", "2"]}, lambda p: 0.5)
    sweep.show(facts)
    printed = capsys.readouterr().out
    assert "suite.tasks=[a] " in printed and "suite.tasks=[a,b] " in printed


def test_readme_has_question_answer_tables_and_plots(tmp_path):
    facts = grids.budget()
    sweep.make(facts, tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith(
        f"# What do attack.fraction and defence change?\n\n{sweep.answer(facts)}\n\n    {facts['command']}\n"
    )
    assert "- `defence`: mean, median, krum, fltrust, task_aware" in page
    assert "| task_aware | 0.905 | 0.900 |" in page and "| task_aware | 0.45 | 0.860 | 0.796 to 0.924 |" in page
    images = re.findall(r"!\[(.*?)\]\((.*?)\)", page)
    assert [path for _, path in images] == [
        "plots/worst.png",
        "plots/mean.png",
        "plots/heat-attack-fraction-defence.png",
    ]
    assert all(re.search(r"\d\.\d", alt) and (tmp_path / path).is_file() for alt, path in images)


def test_what_failed_and_what_is_still_to_run_is_said(tmp_path):
    facts = grids.budget()
    facts["cells"][0]["error"] = "Traceback\nValueError: <too> hot"
    facts["cells"][1]["error"] = "did not finish"
    facts["cells"][2]["error"] = "not run yet"
    facts |= figures(facts)
    root = made(facts, tmp_path)
    (table,) = [e for e in root.all("table") if e.all("caption")[0].text == "What failed"]
    assert [e.text for e in table.all("tr")[1].children] == [
        "attack.fraction=0 defence=mean seed=0", f"{0:012x}", "ValueError: <too> hot",
    ]  # fmt: skip
    assert len(table.all("tr")) == 2
    assert [e.text for e in root.all("ul")[1].all("li")] == [
        "2 of 100 cells have not finished; the numbers are of those that have.",
        "1 of 100 cells failed; means are over those that did not.",
        "Intervals are over 2 seeds, where Student's t is 12.7: of 3 it is 4.3, and they tell far more.",
    ]
    assert "Run 000000000000 failed: ValueError: <too> hot" in printed(facts, 80)


def test_a_sweep_of_which_nothing_has_finished_has_a_page_that_says_so(tmp_path):
    facts = grids.budget()
    for cell in facts["cells"]:
        cell["error"] = "not run yet"
    root = made(facts | figures(facts), tmp_path)
    assert "No run of this sweep has finished" in root.text and not root.all("svg")
    assert "No run of this sweep has finished" in printed(facts | figures(facts), 80)


def test_nothing_is_called_accuracy_where_answers_are_matched(tmp_path):
    for facts in (grids.budget(attacks=("ipm", "alie")), grids.jammed()):
        for cell in facts["cells"]:
            cell["measure"] = "exact match"
        folder = tmp_path / facts["budget"]
        assert "xact match" in made(facts, folder).text
        shown = [made(facts, folder).text, printed(facts, 80), (folder / "README.md").read_text()]
        assert not [text for text in shown if re.search("accurac", text, re.IGNORECASE)]
        labels = [axes.get_ylabel() for plot in sweep_plots.pictures(facts) for axes in plot.figure.axes]
        assert "exact match, worst task" in labels and not [text for text in labels if "accuracy" in text]


def test_what_is_swept_is_escaped(tmp_path):
    axes = {"attack.tasks": ["[<b>]", "[]"], "attack.f": ["0", "1"]}
    root = made(grids.sweep(axes, lambda p: 0.5) | {"question": "<script>?"}, tmp_path)
    assert root.all("h1")[0].text == "<script>?" and not root.all("script") and not root.all("b")


def test_a_sweep_of_before_there_were_questions_is_shown(tmp_path):
    older = json.loads(RESILIENCE.read_text())
    for key in ("question", "fixed"):
        older.pop(key, None)
    (tmp_path / "sweep.json").write_text(json.dumps(older))
    facts = sweep.load(tmp_path)
    root = made(facts, tmp_path)
    assert root.all("h1")[0].text == "What do attack, attack.fraction and defence change?"
    assert "One seed: there are no intervals" in root.text and "0.327 above the undefended run" in root.text
    assert sweep.fixed(facts) == ["sweep=defences", "seed=0"]
    assert "task_aware  0.909" in re.sub(r" +", "  ", printed(facts, 80)).replace("task  aware", "task_aware")


@pytest.mark.parametrize("width", [80, 40])
def test_what_is_printed_fits_and_breaks_no_number(width):
    for facts in (grids.budget(attacks=("ipm", "alie")), grids.jammed(), json.loads(RESILIENCE.read_text())):
        facts |= figures(facts)
        text = printed(facts, width)
        assert max(map(len, text.splitlines())) <= width and "…" not in text
        numbers = {cell for _, _, rows in sweep.tables(facts) for row in rows for cell in row[1:]}
        assert not [number for number in numbers if not re.search(rf"(?<!\S){re.escape(number)}(?!\S)", text)]
        names = {word for _, header, rows in sweep.tables(facts) for row in [header, *rows] for word in row[0].split()}
        assert not [name for name in names if len(name) <= width // 2 and name not in text]


def test_without_a_terminal_there_is_no_colour(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(grids.budget()))
    code = (
        "import sys, pathlib; from fedfusion.reporting import sweep; sweep.show(sweep.load(pathlib.Path(sys.argv[1])))"
    )
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"COLUMNS": "40"}):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, timeout=100,
            env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), **environment},
        )  # fmt: skip
        coloured = re.findall(r"\x1b\[[0-9;]*(?:3[0-9]|4[0-9])m", done.stdout)
        assert not coloured and "task_aware" in done.stdout
        plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        assert max(map(len, plain.splitlines())) <= int(environment.get("COLUMNS", 80))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["budget", "jammed"])
def test_the_page_in_a_browser(name, width, dark, tmp_path):
    sweep.make(grids.budget(attacks=("ipm", "alie", "erasure")) if name == "budget" else grids.jammed(), tmp_path)
    seen = pages.chromium(tmp_path / "report.html", tmp_path, width, dark)
    assert seen.content <= seen.window == width and seen.picture.stat().st_size > 10_000
    assert (seen.background == "rgb(255, 255, 255)") != dark
