import json
import os
import shutil
from pathlib import Path

import grids
import pages
import pytest
from command import fedfusion

from fedfusion.reporting import rebuild
from fedfusion.types import FedfusionError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def unread(folder):
    raise AssertionError(f"{folder} has a sweep.json")


@pytest.fixture
def one(tmp_path):
    """A sweep of 100 cells."""
    return write(tmp_path / "one", grids.budget())


def write(folder, facts):
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(facts))
    return folder


def run_of(folder):
    """A finished run, as it was written before there were reports of its kind."""
    (folder / "adapter").mkdir(parents=True)
    shutil.copy(EXPERIMENTS / "quickstart" / "results.json", folder / "results.json")
    return folder


def test_a_sweep_is_rebuilt(one):
    (page,) = rebuild.rebuild([one, one], unread)
    assert page == one / "report.html" and "task_aware keeps the worst task best" in pages.check(page.read_text()).text
    assert (one / "README.md").is_file() and (one / "plots" / "worst.pdf").is_file()


def test_a_run_is_rebuilt(tmp_path):
    folder = run_of(tmp_path / "run")
    assert rebuild.rebuild([folder], unread) == [folder / "report.html"]
    pages.check((folder / "report.html").read_text())


def test_of_a_sweep_that_has_not_ended_there_is_what_is_done(tmp_path):
    facts, folder = grids.budget(), tmp_path / "begun"
    folder.mkdir()
    (folder / "plan.json").write_text("{}")
    rebuild.rebuild([folder], lambda asked: facts if asked == folder else unread(asked))
    assert "task_aware" in (folder / "report.html").read_text()


def test_nothing_is_written_where_one_folder_holds_nothing(one, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FedfusionError, match=r"empty holds neither results.json, .* nor sweep.json or plan.json"):
        rebuild.rebuild([one, tmp_path / "empty"], unread)
    with pytest.raises(FedfusionError, match="nowhere: no such folder"):
        rebuild.rebuild([tmp_path / "nowhere"], unread)
    assert not (one / "report.html").exists()


def test_a_run_that_has_not_ended_says_how_it_goes_on(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(FedfusionError, match="results.json"):
        rebuild.rebuild([tmp_path], unread)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"axes": {}, "cells": [{}]}', '{"axes": 3, "cells": []}'])
def test_a_damaged_sweep_is_a_sentence(content, one):
    (one / "sweep.json").write_text(content)
    with pytest.raises(
        FedfusionError, match=r"one/sweep.json is not what a sweep writes .* --out .*one: what is finished"
    ):
        rebuild.rebuild([one], unread)


def test_a_run_that_has_not_ended_is_not_compared(tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(FedfusionError, match="results.json"):
        rebuild.compare([run_of(tmp_path / "run"), begun], tmp_path / "compare.html", unread)


def test_a_comparison_is_one_page_and_never_overwrites(one, tmp_path):
    two, out = write(tmp_path / "two", grids.budget()), tmp_path / "compare.html"
    assert rebuild.compare([one, two], out, unread).kind == "sweeps"
    before = out.read_bytes()
    with pytest.raises(FedfusionError, match="compare.html exists already and is never overwritten"):
        rebuild.compare([one, two], out, unread)
    assert out.read_bytes() == before and not (one / "report.html").exists()
    with pytest.raises(FedfusionError, match="is in a folder that does not exist"):
        rebuild.compare([one, two], tmp_path / "no" / "compare.html", unread)


def test_what_cannot_be_compared(one, tmp_path):
    out, run = tmp_path / "compare.html", run_of(tmp_path / "run")
    with pytest.raises(FedfusionError, match="--compare needs 2 to 26 different folders, got 1"):
        rebuild.compare([one, one.parent / "." / "one"], out, unread)
    with pytest.raises(FedfusionError, match=r"only runs with runs.*one is a sweep.*run is a run"):
        rebuild.compare([one, run], out, unread)
    assert not out.exists()


@pytest.mark.slow
def test_the_command(one, tmp_path):
    said = fedfusion("report", "one", cwd=tmp_path, check=True).stdout
    assert said.strip() == "one/report.html" and (one / "report.html").is_file()
    write(tmp_path / "two", grids.budget())
    found = json.loads(fedfusion("report", "one", "two", "--compare", "--json", cwd=tmp_path, check=True).stdout)
    assert found["page"] == "compare.html" and found["members"] == {"A": "one", "B": "two"} and found["tables"]
    assert json.loads(fedfusion("report", "one", "--json", cwd=tmp_path, check=True).stdout) == {
        "reports": ["one/report.html"]
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty holds neither results.json"),
        (["one", "--compare"], "--compare needs 2 to 26 different folders, got 1"),
        (["one", "run", "--compare"], "only runs with runs, or sweeps with sweeps, can be compared"),
        (["one", "jammed", "--compare"], "one and jammed are sweeps over different axes"),
        (["one", "--out", "x.html"], "--out x.html names the page of --compare"),
        (["one", "two", "--compare", "--out", "taken.html"], "taken.html exists already and is never overwritten"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(one, arguments, sentence, tmp_path):
    write(tmp_path / "two", grids.budget())
    write(tmp_path / "jammed", grids.jammed())
    run_of(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.html").write_text("mine")
    done = fedfusion("report", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert sentence in " ".join(done.stderr.split()), done.stderr
    assert (tmp_path / "taken.html").read_text() == "mine" and not list(tmp_path.glob("*/report.html"))


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_a_sentence(one, tmp_path):
    (one / "plots").write_text("a file where a folder is to be")  # root may write into any folder
    done = fedfusion("report", "one", cwd=tmp_path)
    assert done.returncode == 2 and "cannot write" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_browser_is_asked_to_open_it(one, tmp_path):
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    before = os.environ.get("BROWSER")
    os.environ["BROWSER"] = str(browser)
    try:
        fedfusion("report", "one", "--open", cwd=tmp_path, check=True)
    finally:
        os.environ.pop("BROWSER")
        os.environ |= {"BROWSER": before} if before else {}
    assert (tmp_path / "opened").read_text().strip() == (one / "report.html").resolve().as_uri()
