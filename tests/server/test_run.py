import fcntl
import json

import pytest
import torch
from flwr.app import Context, RecordDict
from inline import run
from safetensors.torch import load_file
from tiny import clip

from fedfusion.apps import client_app, server_app
from fedfusion.config import build, resolve, to_json
from fedfusion.federation.inline import InlineGrid
from fedfusion.lora.model import LoraModel
from fedfusion.reporting.report import notes
from fedfusion.tasks.digits import NAMES
from fedfusion.types import FedfusionError


def test_over_an_ideal_uplink_what_is_received_is_what_was_sent(tmp_path):
    metrics = run(tmp_path, "channel=ideal", "guard.clip=inf", "guard.refuse=inf", "fraction=0.5", "rounds=2")
    for record in metrics["rounds"]:
        assert len(record["clients"]) == record["believed"] == 2 and record["nmse_db"] is None
        assert record["mean"]["fused_clean"] == record["mean"]["fused_received"] == record["mean"]["realigned"]
    heard = {client for record in metrics["rounds"] for client in record["clients"]}
    assert len(list((tmp_path / "personal").iterdir())) == len(heard)
    text = (tmp_path / "results.json").read_text()  # as JSON knows no infinity
    assert "Infinity" not in text and json.loads(text)["config"]["guard"]["clip"] == "inf"


def test_byzantine_clients_are_drawn_by_the_seed_and_kept_out_of_clean(tmp_path):
    arguments = ["channel=ideal", "guard=norm_clip", "guard.clip=inf", "guard.refuse=inf", "rounds=1"]
    honest = run(tmp_path / "honest", *arguments)
    attacked = run(tmp_path / "attacked", *arguments, "attack=sign_flipping", "attack.f=2", "attack.upload.scale=30")
    assert len(attacked["rounds"][0]["byzantine"]) == 2
    assert attacked["mean"]["fused_clean"] == honest["mean"]["fused_clean"]
    assert attacked["mean"]["fused_received"] != honest["mean"]["fused_received"]


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FedfusionError, match="another process is still writing to"):
            run(tmp_path)


def test_responses_are_generated_and_scored_after_the_last_round(tmp_path):
    tasks = ["reverse-digits", "reverse-letters"]
    overrides = [f"suite.tasks=[{','.join(tasks)}]", "suite=lists", "model=gpt2_lists", "suite.shots=2", "rounds=1"]
    small = ["client.steps=2", "realign.steps=2", "+suite.max_train=32", "+suite.max_test=8", "fraction=0.5"]
    cfg = resolve([*overrides, *small, "rouge_rows=4", f"run_dir='{tmp_path}'"])
    server_app(InlineGrid(client_app, 4, 60.0), Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))
    results = json.loads((tmp_path / "results.json").read_text())
    scores = results["metrics"]["rouge_l"]
    assert list(scores) == tasks and {len(score) for score in scores.values()} == {2, 3}  # one client was heard
    assert all(0 <= value <= 1 for score in scores.values() for value in score.values())
    (note,) = [line for line in notes(results) if line.startswith("ROUGE-L of generated responses: base 0.")]
    assert ", realigned 0." in note and ", personal 0." in note


def test_the_text_head_of_clip_travels_to_the_clients_and_into_the_run_folder(tmp_path):
    words = sorted({word for names in NAMES.values() for name in names for word in name.split()})
    spec = clip(tmp_path / "clip", words)
    metrics = run(tmp_path / "run", "model=clip_vit_b32", f"model.path={spec.path}", "head=class_names", "rounds=1")
    assert metrics["rounds"][0]["believed"] == 4
    saved = load_file(tmp_path / "run" / "adapter" / "heads.safetensors")["flipped-size"]
    assert saved.shape == (3, 12) and not saved[-1].any()


def test_a_missing_rouge_score_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FedfusionError, match=r"rouge-score, .*: pip install 'fedfusion\[instruct\]'"):
        resolve(["suite=lists", "model=gpt2_lists", "rouge_rows=1"])


METHODS = ["local", "fedit", "ffa_lora", "fedprox", "flexlora", "flora", "fedavgm", "fedadam", "mira"]
ALIKE = {"fedit", "ffa_lora", "fedprox", "flexlora", "fedavgm", "fedadam"}  # one model for everyone


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_does_what_its_name_says(method, tmp_path):
    metrics = run(tmp_path, f"method={method}", "channel=ideal", "fraction=0.5", "rounds=2", "suite.shots=1")
    stored = load_file(max((tmp_path / "checkpoints").iterdir()) / "state.safetensors")
    rows = stored["adapters"]
    assert (rows == rows[0]).all() == (method in ALIKE or method == "flora")
    assert len(stored["merged"]) == (len(stored["fused"]) if method == "flora" else 0)
    assert len(stored["moments"]) == {"fedavgm": 1, "fedadam": 2}.get(method, 0)
    report = metrics["rounds"][-1]["coupling"]
    assert set(report) == {
        "mira": {"step", "bound", "convex_bound"}, "flexlora": {"discarded"}, "flora": {"discarded"}
    }.get(method, set())  # fmt: skip


@pytest.mark.slow
def test_clients_measure_what_the_server_would_have(tmp_path):
    """Federated evaluation of personal and shared adapters gives the figures of the server, client by client."""
    arguments = ["channel=ideal", "fraction=0.5", "rounds=2", "method=flora"]
    server = run(tmp_path / "server", *arguments)
    clients = run(tmp_path / "clients", *arguments, "evaluation=clients")
    assert set(clients["clients"]) == set(server["clients"])
    for client, score in clients["clients"].items():
        expected = server["clients"][client]
        assert {name: score[name] for name in expected} == expected
        if int(client) in clients["rounds"][-1]["clients"]:
            assert score["shared_accuracy"] == server["tasks"][score["task"]]["realigned"]["accuracy"]
    assert clients["rounds"][-1]["mean"] == server["rounds"][-1]["mean"]


def test_trained_heads_stay_with_their_task(tmp_path):
    run(tmp_path, "channel=ideal", "client.train_head=true", "rounds=1")
    stored = load_file(max((tmp_path / "checkpoints").iterdir()) / "state.safetensors")
    heads = load_file(tmp_path / "adapter" / "heads.safetensors")
    assert set(heads) == {"upright-digit", "flipped-size"}
    for task, head in heads.items():
        assert (head == stored[f"heads.{task}"]).all()


def test_clients_of_lower_rank_are_sent_what_they_can_hold(tmp_path):
    run(tmp_path, "channel=ideal", "method=flexlora", "client.ranks=[8,2]", "rounds=2")
    personal = load_file(tmp_path / "personal" / "client-01" / "adapter_model.safetensors")
    for name, factor in personal.items():
        beyond = factor[2:] if "lora_A" in name else factor[:, 2:]
        assert not beyond.any()


def test_personal_is_what_every_client_continues_with_drawn_or_not(tmp_path):
    metrics = run(tmp_path, "method=fedit", "channel=ideal", "fraction=0.5", "rounds=2")
    assert len(metrics["clients"]) == 4
    for scores in metrics["tasks"].values():  # everyone has the one model
        assert scores["personal"]["accuracy"] == pytest.approx(scores["fused_received"]["accuracy"], abs=0.003)


def test_what_is_never_sent_is_never_jammed(tmp_path):
    run(tmp_path, "method=ffa_lora", "channel.jsr_db=20", "rounds=1")
    stored = load_file(max((tmp_path / "checkpoints").iterdir()) / "state.safetensors")
    personal = load_file(tmp_path / "personal" / "client-00" / "adapter_model.safetensors")
    model = LoraModel(build(resolve([])).model, seed=0)
    initial = model.layout.unflatten(model.initial)
    assert stored["adapters"].isfinite().all()
    for name, factor in personal.items():
        assert torch.equal(factor, initial[name]) == ("lora_A" in name)


def test_ranks_that_nobody_heard_of_late_could_hold_stay_alive(tmp_path):
    run(tmp_path, "method=fedit", "channel=ideal", "client.ranks=[1]", "rounds=1")
    stored = load_file(max((tmp_path / "checkpoints").iterdir()) / "state.safetensors")
    model = LoraModel(build(resolve([])).model, seed=0)
    for pair in model.layout.pairs:
        assert model.layout.entry(stored["adapters"][0], pair.a).any(1).all()
