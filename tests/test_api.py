import json
import logging
import subprocess
import sys
import warnings

import pytest
from command import SMALL
from omegaconf import OmegaConf

import fedfusion
from fedfusion.api import prepare
from fedfusion.config import resolve
from fedfusion.server.checkpoint import Checkpoints
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
    with pytest.raises(FedfusionError, match="nothing to report .give the folder"):
        fedfusion.Results.load(tmp_path)
    with pytest.raises(FedfusionError, match="no such folder"):
        fedfusion.Results.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["[]", "5", "{}", '{"metrics": {}}', "{", "\udcff"])
def test_results_that_are_none_are_refused(text, tmp_path):
    (tmp_path / "results.json").write_text(text, errors="surrogateescape")
    with pytest.raises(FedfusionError, match="results.json cannot be read: .*write it anew with"):
        fedfusion.Results.load(tmp_path)


@pytest.mark.parametrize("name", ["sweep.json", "plan.json"])
def test_of_a_sweep_it_is_said_where_its_results_are(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FedfusionError, match="holds a sweep .read its table, .*/sweep.csv, with pandas.read_csv"):
        fedfusion.Results.load(str(tmp_path))


def test_a_run_is_not_continued_for_fewer_rounds_than_are_done(tmp_path):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(resolve(["rounds=3"])))
    (tmp_path / "overrides.yaml").write_text("- rounds=3\n")
    for done in (1, 2):
        Checkpoints(tmp_path).save(done, {}, {})
    with pytest.raises(ConfigErrors) as caught:
        fedfusion.run(["rounds=1"], resume=tmp_path)
    assert caught.value.errors == [f"--resume {tmp_path}: rounds=1, but 2 are done (give rounds=2 or more)"]
    for rounds in (2, 3):
        cfg, combined, folder = prepare([f"rounds={rounds}"], tmp_path)
        assert (cfg.rounds, combined, folder) == (rounds, [f"rounds={rounds}"], tmp_path)


@pytest.mark.parametrize("wrong", ["rounds=1", [1], ["rounds=1", None], {"rounds": 1, 2: 3}])
def test_overrides_are_a_list_of_texts(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ({}, {"resume": tmp_path}):
        with pytest.raises(TypeError, match=r'overrides must be a list of texts, as \["rounds=1", "seed=2"\], got '):
            fedfusion.run(wrong, **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "misspelt", ["defence=taskaware", "method=miar", "experiment=quickstrat", "sweep=attack_bugdet", "sweep=3"]
)
def test_a_preset_that_there_is_not_is_raised(misspelt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigErrors, match=f"^{misspelt}: no '{misspelt.partition('=')[2]}' in "):
        fedfusion.run([misspelt])
    assert not list(tmp_path.iterdir())


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
