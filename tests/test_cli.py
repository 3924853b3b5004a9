import json
import re
import subprocess
import sys

import pytest
import torch
from command import SMALL, fedfusion, results
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedfusion import __version__
from fedfusion.cli import app


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run through the command line: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = fedfusion("run", *SMALL, "attack=sign_flipping", "attack.f=1", f"run_dir={folder}", check=True)
    return folder, done.stdout


def test_a_person_sees_rounds_and_a_table_that_fits_80_columns_without_colours(finished):
    _, printed = finished
    assert "round 1/2: 4 clients train" in printed and re.search(
        r"round 2/2  loss \d\.\d\d  single \.\d+  personal \.\d+  fused \.\d+", printed
    )
    assert (
        "upright-digit" in printed
        and "control" in printed
        and max(map(len, printed.splitlines()[:-1])) <= 80
        and "\x1b" not in printed
    )
    assert "1 Byzantine client (SignFlipping): " in printed and "% of the honest uploads believed" in printed


def test_everything_promised_is_in_the_run_folder(finished):
    folder, _ = finished
    for name in ("config.yaml", "results.json", "report.html", "run.log", "adapter/README.md"):
        assert (folder / name).stat().st_size > 0, name
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert {f"{name}.{kind}" for name in ("by_task", "by_round") for kind in ("png", "pdf")} <= plots
    heard = {client for record in results(folder)["metrics"]["rounds"] for client in record["heard"]}
    assert {path.name for path in (folder / "personal").iterdir()} == {f"client-{client:02d}" for client in heard}
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["round-0001", "round-0002"]


def test_results_say_how_they_were_made(finished):
    folder, _ = finished
    found = results(folder)
    assert found["schema_version"] == 1 and found["versions"]["fedfusion"] == __version__
    assert found["command"].startswith("fedfusion run") and found["wall_time_s"] > 0 and found["peak_memory_mb"] > 100
    for scores in found["metrics"]["tasks"].values():
        assert set(scores) == {
            "base",
            "control",
            "single_task",
            "personal",
            "fused_clean",
            "fused_received",
            "realigned",
        }


def test_the_report_stands_alone(finished):
    page = (finished[0] / "report.html").read_text()
    assert len(page) < 2e6 and not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("<svg") == page.count('role="img"') >= 3


def test_peft_loads_the_adapter_and_gives_the_reported_accuracy(finished):
    from peft import PeftConfig, PeftModel
    from transformers import AutoModel

    from fedfusion.config import build, resolve
    from fedfusion.tasks.heads import PrototypeHead

    folder, _ = finished
    location = PeftConfig.from_pretrained(folder / "adapter").base_model_name_or_path
    base = AutoModel.from_pretrained(location, add_pooling_layer=False)
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    heads = load_file(folder / "adapter" / "heads.safetensors")
    data = build(resolve(SMALL)).suite.test("flipped-size")
    with torch.no_grad():
        features = model(**data.inputs).last_hidden_state[:, 0]
    predicted = PrototypeHead.from_tensor(heads["flipped-size"])(features).argmax(-1)
    accuracy = float((predicted == data.labels).float().mean())
    assert accuracy == pytest.approx(
        results(folder)["metrics"]["tasks"]["flipped-size"]["realigned"]["accuracy"], abs=0.003
    )


def test_a_run_folder_is_never_overwritten(finished):
    folder, _ = finished
    before = results(folder)
    done = fedfusion("run", f"run_dir={folder}")
    assert done.returncode == 2 and "exists already and is never overwritten" in done.stderr
    assert results(folder) == before


def test_bad_input_is_one_sentence_each_and_exit_code_2(tmp_path):
    done = fedfusion("validate", "agregator=krum", "channel.jsr=3", "client._target_=nowhere.Client", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert [line.split(": ", 2)[:2] for line in done.stderr.splitlines()] == [
        ["error", "agregator=krum"],
        ["error", "channel.jsr=3"],
        ["error", "client._target_"],
    ]


def test_run_refuses_what_validate_refuses_and_leaves_nothing_behind(tmp_path):
    done = fedfusion("run", "rounds=0", cwd=tmp_path)
    assert done.returncode == 2 and "rounds must be at least 1" in done.stderr and not list(tmp_path.iterdir())


def test_everything_wrong_with_a_folder_of_data_is_said_before_a_model_is_loaded(tmp_path):
    for task in ("fruit", "trees"):
        (tmp_path / "data" / task).mkdir(parents=True)
        rows = "".join(f"{task} {i},{i % 2}\n" for i in range(40))
        (tmp_path / "data" / task / "train.csv").write_text(f"text,label\n{rows}")
        (tmp_path / "data" / task / "test.csv").write_text(
            f"text,label\n{task},7\n" if task == "fruit" else "text,label\n,1\n"
        )
    done = fedfusion("run", "suite=files", "suite.root=data", "model=minilm", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "runs").exists()
    assert [re.sub(".*/data/", "", line) for line in done.stderr.splitlines() if "row 1" in line] == [
        "fruit/test.csv, row 1: label 7 is none of the 2 classes of the training rows, 0, 1 (count labels from 0 "
        "without gaps, or give all of them names)",
        "trees/test.csv, row 1: text is empty",
    ]


def test_json_output_parses():
    assert json.loads(fedfusion("validate", "--json").stdout) == {"valid": True, "errors": []}
    refused = json.loads(fedfusion("validate", "--json", "rounds=0").stdout)
    assert refused == {"valid": False, "errors": ["rounds must be at least 1, got 0"]}
    options = json.loads(fedfusion("ls", "--json", "channel").stdout)
    assert ("channel", "awgn") in [(option["group"], option["name"]) for option in options]
    assert json.loads(fedfusion("doctor", "--json").stdout)[0]["value"] == __version__


@pytest.mark.slow
def test_results_are_one_json_document_while_progress_is_seen_on_stderr(tmp_path):
    done = fedfusion("run", *SMALL, "rounds=1", f"run_dir={tmp_path / 'run'}", "--json", check=True)
    assert json.loads(done.stdout) == results(tmp_path / "run") and "round 1/1" in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["run_dir=file/x/y"], "run_dir=file/x/y: {here}/file cannot be written: Not a directory (choose a folder of"),
        (["run_dir=/proc/x"], "run_dir=/proc/x: /proc cannot be written: "),
        (
            ["sweep=attack_budget"],
            "sweep=attack_budget: that is many runs (use fedfusion sweep sweep=attack_budget, or",
        ),
        (["sweep=attack_budget", "seed=0", "defence=mean"], "or say which: attack=, attack.fraction=)"),
        (["channel._target_=fedfusion.channels.Awgnn"], "(did you mean 'fedfusion.channels.Awgn'?)"),
        (["server.strategy._target_=flwr.serverapp.strategy.FedMedain"], "mean 'flwr.serverapp.strategy.FedMedian'?)"),
        (["server.strategy._target_=FedMedian"], "(give the whole path, as flwr.serverapp.strategy.FedMedian)"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_loaded(arguments, said, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", *arguments])
    assert done.exit_code == 2 and done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert said.format(here=tmp_path) in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "misspelt, said",
    [
        ("defence=taskaware", "no 'taskaware' in defence/ (did you mean 'task_aware'?)"),
        ("method=miar", "no 'miar' in method/ (did you mean 'mira'?)"),
        ("experiment=quickstrat", "no 'quickstrat' in experiment/ (did you mean 'quickstart'?)"),
        ("sweep=attack_bugdet", "no 'attack_bugdet' in sweep/ (did you mean 'attack_budget'?)"),
    ],
)
@pytest.mark.parametrize(
    "verb", [["run"], ["run", "--cfg", "job"], ["validate"], ["sweep", "seed=0,1"], ["sweep", "sweep.dry_run=true"]]
)
def test_every_verb_refuses_a_preset_that_there_is_not(verb, misspelt, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*verb, misspelt])
    assert (done.exit_code, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert done.stderr.splitlines()[-1] == f"error: {misspelt}: {said}"


@pytest.mark.parametrize(
    "verb, given, said",
    [
        ("validate", "=3", "=3: cannot be read as key=value (the key is missing)"),
        ("validate", "", "'': cannot be read as key=value"),
        ("validate", "rounds", "rounds: cannot be read as key=value"),
        ("validate", "seed=1 2=", "seed=1 2=: cannot be read as key=value (extraneous input '=')"),
        ("validate", "channel=5", "channel=5: no '5' in channel/ (choose among: aircomp, awgn"),
        ("validate", "attack=true", "attack=true: no 'true' in attack/"),
        ("validate", "channel=null", "channel=null: no 'null' in channel/"),
        ("run", "sweep=3", "sweep=3: no '3' in sweep/"),
        ("run", "seed=1,2", "seed=1,2: several values make several runs (use fedfusion sweep)"),
        ("run", "defence=mean,median", "defence=mean,median: several values make several runs (use fedfusion sweep)"),
        ("sweep", "defence=mean,task_awrae", "did you mean 'task_aware'?) [as in defence=task_awrae]"),
        ("sweep", "hydra/launcher=3", "Config group override must be a string or a list"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence_to_people_and_programs(verb, given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [verb, given, "--json"])
    told = json.loads(done.stdout)
    (sentence,) = told["errors" if verb == "validate" else "error"]
    assert done.exit_code == 2 and said in sentence and "expecting" not in sentence
    assert done.stderr.splitlines()[-1] == f"error: {sentence}" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "folder, why",
    [
        ("file", "run_dir=file: {here}/file cannot be written: Not a directory"),
        ("file/x", "run_dir=file/x: {here}/file cannot be written: Not a directory"),
        ("/proc/nope", "run_dir=/proc/nope: /proc cannot be written: "),
        ("there", "run_dir=there exists already and is never overwritten"),
    ],
)
def test_a_folder_that_no_run_could_have_is_not_valid_and_nothing_is_made(folder, why, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["validate", f"run_dir={folder}"])
    assert done.exit_code == 2 and why.format(here=tmp_path) in done.stderr
    assert CliRunner().invoke(app, ["validate", "run_dir=not/yet"]).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_a_wrong_folder_is_said_beside_the_rest(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["validate", f"run_dir={tmp_path}/file", "fraction=2", "suite=lists"])
    assert done.exit_code == 2 and "fraction must be in" in done.stderr
    done = CliRunner().invoke(app, ["validate", f"run_dir={tmp_path}/file", "suite=lists"])
    assert ["suite: ", "run_dir"] == [line[len("error: ") :][:7] for line in done.stderr.splitlines()]


def test_the_version_is_printed():
    assert fedfusion("--version").stdout == f"fedfusion {__version__}\n"


def test_ls_names_the_references():
    assert "arxiv.org/abs/2212.04089" in fedfusion("ls", "fusion").stdout
    assert "coefficient: 0.7" in fedfusion("ls", "fusion/task_arithmetic").stdout
    wrong = fedfusion("ls", "fusion/tiles")
    assert wrong.returncode == 2 and "no 'tiles' in fusion/" in wrong.stderr


def test_the_command_line_imports_nothing_heavy():
    code = "import fedfusion.cli, sys; print({'torch', 'flwr', 'hydra', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    assert "validate" in fedfusion("--help").stdout


def test_the_configuration_is_strict_json_with_words_for_what_is_not_finite():
    arguments = ["run", "--cfg", "job", "--json", "guard.refuse=inf", "attack=garbage", "attack.f=1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "Infinity" not in done.stdout
    found = json.loads(done.stdout)
    assert found["guard"]["refuse"] == found["attack"]["upload"]["value"] == "inf" and found["attack"]["f"] == 1
