import json
import logging
import subprocess
import sys
import warnings

import pytest
from command import SMALL

import fedfusion
from fedfusion.types import FedfusionError
from fedfusion.validation import ConfigErrors

ONE = [text for text in SMALL if not text.startswith(("realign", "rounds"))] + ["rounds=1", "realign=none"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return fedfusion.run([*ONE, f"run_dir='{tmp_path_factory.mktemp('api') / 'run'}'"])


def test_a_run_from_python_is_one_of_the_command_line(results):
    assert {path.name for path in results.folder.iterdir()} >= {
        "adapter", "personal", "results.json", "metrics.jsonl", "plots", "report.html", "run.log", "config.yaml",
    }  # fmt: skip
    assert results.facts["command"].startswith("fedfusion run 'suite.tasks=[upright-digit,flipped-size]'")
    assert results.facts == json.loads((results.folder / "results.json").read_text())


def test_results_are_loaded_again(results):
    again = fedfusion.Results.load(str(results.folder))
    assert again == results and again.metrics == results.metrics


def test_a_frame_has_a_row_for_every_task_and_stage(results):
    frame = results.to_frame()
    for task, stages in results.metrics["tasks"].items():
        for stage, scores in stages.items():
            (row,) = frame[(frame.task == task) & (frame.stage == stage)].to_dict("records")
            assert row["accuracy"] == scores["accuracy"] and row["loss"] == scores["loss"]
    assert len(frame) == sum(map(len, results.metrics["tasks"].values()))


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FedfusionError, match="there are no results of a run"):
        fedfusion.Results.load(tmp_path)


def test_what_is_wrong_is_raised_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(ConfigErrors, match="rounds must be at least 1, got 0"):
        fedfusion.run(["rounds=0", f"run_dir='{tmp_path / 'run'}'"])
    with pytest.raises(FedfusionError, match="exists already and is never overwritten"):
        fedfusion.run([f"run_dir='{tmp_path}'"])
    assert not list(tmp_path.iterdir())


def test_loggers_and_warnings_are_as_before_when_a_run_is_over(tmp_path):
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    before = (list(root.handlers), root.level, list(flower.handlers), flower.propagate, warnings.showwarning)
    from fedfusion.api import logged

    with (tmp_path / "log").open("w") as log, logged(log):
        flower.warning("said by flower")
        warnings.warn("said by a library", stacklevel=1)
        print("said on stderr", file=sys.stderr)
    after = (list(root.handlers), root.level, list(flower.handlers), flower.propagate, warnings.showwarning)
    said = (tmp_path / "log").read_text()
    assert after == before and all(f"said {by}" in said for by in ("by flower", "by a library", "on stderr"))


@pytest.mark.slow
def test_a_run_is_continued(tmp_path):
    folder = tmp_path / "run"
    one = fedfusion.run([*ONE, f"run_dir='{folder}'"])
    two = fedfusion.run(["rounds=2"], resume=folder)
    assert [r["round"] for r in two.metrics["rounds"]] == [1, 2] and two.metrics["rounds"][:1] == one.metrics["rounds"]


def test_the_package_alone_loads_no_torch():
    code = "import sys, fedfusion as f; print(sorted({'torch', 'flwr', 'hydra'} & sys.modules.keys()), f.run.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "run"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedfusion.nothing  # noqa: B018
