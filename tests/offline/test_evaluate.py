import contextlib
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from peft_folders import base, change, edit, load_base, save, shipped
from safetensors.torch import save_file
from typer.testing import CliRunner

from fedfusion.cli import app
from fedfusion.config import build, resolve
from fedfusion.lora.model import _base
from fedfusion.offline.adapters import read_all
from fedfusion.offline.evaluate import evaluate, evaluator_of
from fedfusion.offline.merge import merge
from fedfusion.tasks.heads import PrototypeHead
from fedfusion.types import FedfusionError

GLYPHS = shipped("vit-glyphs")
TASKS = ["flipped-size", "upright-digit"]
SUITE = [f"suite.tasks=[{','.join(TASKS)}]"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """An adapter on the shipped base whose ranks and scales differ between modules."""
    folder = tmp_path_factory.mktemp("adapters") / "mixed"
    options = {"r": 3, "lora_alpha": 2, "use_rslora": True, "rank_pattern": {"fc1": 5}, "alpha_pattern": {"fc1": 1}}
    return save(folder, GLYPHS, 0, **options)


@pytest.fixture(scope="module")
def measured(mixed):
    return evaluate(str(mixed), SUITE)


def scores_by_peft(folder, heads):
    """Accuracy and loss by task, by peft, transformers and the formula of the head."""
    model = load_base(GLYPHS) if folder is None else PeftModel.from_pretrained(load_base(GLYPHS), folder)
    suite, scores = build(resolve(SUITE)).suite, {}
    for task in heads:
        data = suite.test(task)
        with torch.no_grad():
            logits = heads[task](model.eval()(**data.inputs).last_hidden_state[:, 0])
        accuracy = float((logits.argmax(-1) == data.labels).float().mean())
        scores[task] = {"accuracy": accuracy, "loss": float(F.cross_entropy(logits, data.labels))}
    return scores


def refusal(*arguments):
    with pytest.raises(FedfusionError) as caught:
        evaluate(*arguments)
    return str(caught.value)


def test_scores_are_those_of_the_adapter_as_peft_runs_it(mixed, measured):
    experiment = build(resolve(SUITE))
    heads = evaluator_of(experiment, read_all([str(mixed)])).heads
    for name, folder in (("base", None), ("adapter", mixed)):
        for task, score in scores_by_peft(folder, heads).items():
            assert measured["tasks"][task][name]["accuracy"] == pytest.approx(score["accuracy"], abs=0.003)
            assert measured["tasks"][task][name]["loss"] == pytest.approx(score["loss"], rel=1e-3)
    assert any(scores["base"] != scores["adapter"] for scores in measured["tasks"].values())


def test_means_are_those_of_the_tasks(measured):
    for name in ("base", "adapter"):
        accuracies = [measured["tasks"][task][name]["accuracy"] for task in TASKS]
        assert measured["mean"][name] == pytest.approx(sum(accuracies) / 2)
        assert measured["worst"][name] == min(accuracies)
    assert measured["measure"] == "accuracy" and measured["own_heads"] == []


def test_heads_of_the_folder_win_over_those_of_the_configuration(mixed, measured, tmp_path):
    folder = tmp_path / "with-heads"
    folder.mkdir()
    for file in mixed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    wrong = PrototypeHead(torch.randn(2, 128, generator=torch.Generator().manual_seed(0)), torch.zeros(128))
    save_file({"flipped-size": wrong.to_tensor(), "elsewhere": torch.zeros(3, 4)}, folder / "heads.safetensors")
    found = evaluate(str(folder), SUITE)
    assert found["own_heads"] == ["flipped-size"]
    assert found["tasks"]["upright-digit"] == measured["tasks"]["upright-digit"]
    expected = scores_by_peft(folder, {"flipped-size": wrong})["flipped-size"]
    assert found["tasks"]["flipped-size"]["adapter"]["accuracy"] == pytest.approx(expected["accuracy"], abs=0.003)
    assert found["tasks"]["flipped-size"]["base"] != measured["tasks"]["flipped-size"]["base"]
    save_file({"flipped-size": torch.zeros(5, 128)}, folder / "heads.safetensors")
    assert "the head of 'flipped-size' is (5, 128), but this suite and model need (3, 128)" in refusal(
        str(folder), SUITE
    )


def test_a_merge_of_an_adapter_and_nothing_is_that_adapter(mixed, measured, tmp_path):
    zero = save(tmp_path / "zero", GLYPHS, 1, r=2, lora_alpha=0)
    merge([str(mixed), str(zero)], ["fusion.coefficient=1.0"], tmp_path / "out")
    found = evaluate(str(tmp_path / "out"), SUITE)
    for task in TASKS:
        for name in ("base", "adapter"):
            assert found["tasks"][task][name]["loss"] == pytest.approx(measured["tasks"][task][name]["loss"], rel=1e-4)


def test_responses_of_text_are_scored_by_exact_match(tmp_path):
    folder = save(tmp_path / "a", shipped("gpt2-lists"), 0, r=2)
    small = ["model=gpt2_lists", "suite=lists", "suite.tasks=[double-digits]", "suite.max_test=8"]
    found = evaluate(str(folder), small)
    assert found["measure"] == "exact match" and found["own_heads"] == []
    data = build(resolve(small)).suite.test("double-digits")
    model = PeftModel.from_pretrained(load_base(shipped("gpt2-lists")), folder).eval()
    for name, adapter in (("adapter", contextlib.nullcontext()), ("base", model.disable_adapter())):
        with adapter, torch.no_grad():
            output = model(**data.inputs, labels=data.labels)
        right = (output.logits[:, :-1].argmax(-1) == data.labels[:, 1:]) | (data.labels[:, 1:] == -100)
        scores = found["tasks"]["double-digits"][name]
        assert scores["loss"] == pytest.approx(float(output.loss), rel=1e-3)
        assert scores["accuracy"] == float(right.all(1).float().mean())


def test_another_base_is_refused_by_both_names(tmp_path):
    location = base(tmp_path, "vit")
    folder = save(tmp_path / "a", location, 0)
    assert f"{folder} adapts '{location}', but model.path is 'vit-glyphs'" in refusal(str(folder), SUITE)


def test_a_base_in_another_folder_is_the_same(mixed, measured, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for file in mixed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit(folder, base_model_name_or_path="/another/machine/vit-glyphs")
    assert evaluate(str(folder), SUITE)["tasks"] == measured["tasks"]


def test_modules_that_the_base_has_not_are_refused(mixed, tmp_path):
    folder = save(tmp_path / "bert", base(tmp_path, "bert"), 0)
    edit(folder, base_model_name_or_path="vit-glyphs")
    assert "peft refuses it" in refusal(str(folder), SUITE)
    edit(folder, target_modules=["fc1"])
    message = refusal(str(folder), SUITE)
    assert message.startswith(f"{folder}: '") and "not adapted" in message


def test_weights_that_are_no_factors_are_refused(tmp_path):
    folder = save(tmp_path / "a", GLYPHS, 0)
    change(folder, **{"base_model.model.embeddings.cls_token": torch.zeros(1)})
    assert "'base_model.model.embeddings.cls_token' is no LoRA factor" in refusal(str(folder), SUITE)


def test_a_preset_of_a_run_gives_its_suite_and_model(mixed, measured):
    assert evaluate(str(mixed), ["experiment=quickstart", *SUITE])["tasks"] == measured["tasks"]


def test_overrides_are_those_of_a_run_that_matter_here(mixed):
    assert "channel=awgn: evaluate takes no 'channel'" in refusal(str(mixed), ["channel=awgn"])
    assert "no 'digits9' in suite/ (did you mean 'digits8'?)" in refusal(str(mixed), ["suite=digits9"])


@pytest.fixture
def cli(monkeypatch):
    """The command line in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_person_sees_a_table_and_a_program_json(cli, mixed, measured, tmp_path):
    _base.cache_clear()  # loading shows no progress bar
    done = cli("evaluate", mixed, *SUITE, "--out", tmp_path / "scores.json")
    assert done.exit_code == 0 and done.stderr == "", done.output
    row = next(line for line in done.stdout.splitlines() if "upright-digit" in line).split()
    scores = measured["tasks"]["upright-digit"]
    assert row[1:3] == [f"{scores[name]['accuracy']:.3f}" for name in ("base", "adapter")]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(measured))
    assert json.loads(cli("evaluate", mixed, *SUITE, "--json").stdout) == json.loads(json.dumps(measured))


def test_what_is_wrong_is_one_sentence_and_exit_code_2(cli, mixed, tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    for out, why in (("scores.json", "exists already"), ("no/scores.json", "is in a folder that does not exist")):
        done = cli("evaluate", mixed, *SUITE, "--out", tmp_path / out)
        assert (
            done.exit_code == 2 and done.stdout == "" and done.stderr.startswith(f"error: --out {tmp_path / out} {why}")
        )
    assert (tmp_path / "scores.json").read_text() == "{}"
    done = cli("evaluate", tmp_path / "absent")
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1 and "there is no such folder" in done.stderr
