import json
import subprocess
import sys
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from safetensors.torch import load_file, save_file
from tiny import vit

from fedfusion.apps import client_app
from fedfusion.client.device import Device, OwnRows, compare, facts
from fedfusion.config import build, resolve, to_json
from fedfusion.federation.inline import InlineGrid
from fedfusion.lora.model import LoraModel, _base, _fingerprint
from fedfusion.server import meeting
from fedfusion.server.nodes import arrays
from fedfusion.types import FedfusionError

SMALL = ["suite.tasks=[upright-digit,flipped-size]", "suite.clients_per_task=2"]


@pytest.fixture(scope="module")
def text():
    return to_json(resolve(SMALL))


def with_(text, **changes):
    cfg = json.loads(text)
    for key, value in changes.items():
        node = cfg
        *parents, last = key.split("__")
        for name in parents:
            node = node[name]
        node[last] = value
    return json.dumps(cfg)


def test_rules_are_read_from_the_configuration_of_the_node(tmp_path):
    node = {"data-path": str(tmp_path), "tasks": "a, b", "max-steps": 5, "max-memory-mb": 900}
    device = Device.of(node | {"allowed-targets": "shipped,mine.*", "partition-id": 1, "num-partitions": 3})
    assert device == Device(str(tmp_path), ("a", "b"), 5, 900, ("shipped", "mine.*"), 1, 3)
    assert Device.of({"partition-id": 0, "num-partitions": 2}) is None
    named = {"data-path": str(tmp_path), "partition-id": 0, "num-partitions": 1}
    assert Device.of(named).allowed_targets == ("shipped",)


@pytest.mark.parametrize(
    "node, said",
    [
        ({"data-path": "/no/such/place"}, "there is no such folder"),
        ({"partition-id": 0}, "a data-path but no num-partitions"),
        ({"partition-id": 0, "num-partitions": 2, "max-steps": 0}, "max-steps=0 .* at least 1"),
    ],
)
def test_rules_that_make_no_sense_are_refused(node, said, tmp_path):
    with pytest.raises(FedfusionError, match=said):
        Device.of({"data-path": str(tmp_path)} | node)


def test_what_ships_is_admitted_and_run_as_it_is(text, tmp_path):
    admitted = json.loads(Device(str(tmp_path), max_steps=25).admit(text))
    assert admitted["run_dir"] is None and not build(json.dumps(admitted)).federation.simulated
    assert build(json.dumps(admitted)).client == build(text).client


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"client___target_": "os.system"}, r"client\._target_=os\.system: not on the list"),
        ({"client___target_": "fedfusion.server.run.serve"}, "not on the list"),
        ({"suite__extra": [{"_target_": "subprocess.run"}]}, r"suite\.extra\.0\._target_=subprocess\.run"),
        ({"model__load": {"trust_remote_code": True}}, "runs no code from elsewhere"),
        ({"coupling__path": "/etc/passwd"}, r"coupling\.path=/etc/passwd: outside this device's data folder"),
        ({"model__path": "/srv/models/base"}, "outside this device's data folder"),
        ({"model__path": "../secrets"}, "outside this device's data folder"),
        ({"model__path": "~/secrets"}, "outside this device's data folder"),
        ({"model__path": "file://host/secrets"}, "outside this device's data folder"),
        ({"seed": "${oc.env:HOME}"}, "resolves nothing"),
    ],
)
def test_what_the_device_does_not_allow_is_refused_before_anything_is_built(changes, said, text, tmp_path):
    with pytest.raises(FedfusionError, match=said):
        Device(str(tmp_path), max_steps=25).admit(with_(text, **changes))


@pytest.mark.parametrize(
    "changes, said", [({"client__steps": 26}, "client.steps=26"), ({"client__epochs": 1.0}, "client.epochs=1.0")]
)
def test_more_steps_than_the_device_agrees_to_are_refused(changes, said, text, tmp_path):
    device = Device(str(tmp_path), max_steps=25)
    asked = json.loads(with_(text, **changes))
    with pytest.raises(FedfusionError, match=f"{said}: this device does at most max-steps=25 a round"):
        device.place(build(device.admit(json.dumps(asked))), ())
    del asked["client"]["steps"], asked["client"]["epochs"]
    with pytest.raises(FedfusionError, match="client.steps=25: this device does at most max-steps=24"):
        Device(str(tmp_path), max_steps=24).place(build(device.admit(json.dumps(asked))), ())


def test_a_folder_that_is_no_models_name_is_not_read_from_where_the_node_runs(text, tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedfusionError, match="model.path=elsewhere/model: outside this device's data folder"):
        Device(str(tmp_path / "data")).admit(with_(text, model__path="elsewhere/model"))


def test_a_device_with_rows_of_its_own_joins_a_run_whose_classes_it_knows(tmp_path):
    server, own = rows(tmp_path / "server", "one", "two"), rows(tmp_path / "own", "two")
    overrides = ["model=gpt2_lists", "suite=files", f"suite.root={server}", "suite.max_length=32"]
    text = to_json(resolve([*overrides, "suite.clients_per_task=1", "suite.shots=1", "suite.trusted=2"]))
    cfg = json.loads(text)
    cfg["suite"]["tasks"] = ["one", "two"]
    nodes = [{"data-path": str(path), "partition-id": i, "num-partitions": 2} for i, path in enumerate((server, own))]
    assert meet([nodes[0] | {"tasks": "one"}, nodes[1]], ["one", "two"], json.dumps(cfg)).hosted == {1: [0], 2: [1]}
    other = rows(tmp_path / "other", "two", labels="xy")
    with pytest.raises(FedfusionError, match=r"of task 'two' are \['a', 'b'\] at the server and \['x', 'y'\] on this"):
        meet([nodes[0], nodes[1] | {"data-path": str(other)}], ["one", "two"], json.dumps(cfg))


def test_an_owner_may_allow_more_or_less(text, tmp_path):
    own = with_(text, client___target_="mine.Training")
    assert Device(str(tmp_path), allowed_targets=("shipped", "mine.*")).admit(own)
    with pytest.raises(FedfusionError, match="fedfusion.config.Experiment: not on the list"):
        Device(str(tmp_path), allowed_targets=("mine.*",)).admit(own)


def test_a_link_does_not_lead_out_of_the_data_folder(text, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "out").symlink_to("/etc")
    inside = with_(text, coupling__path=str(tmp_path / "data" / "table.csv"))
    device = Device(str(tmp_path / "data"))
    assert device.admit(inside)
    with pytest.raises(FedfusionError, match="outside"):
        device.admit(with_(text, coupling__path=str(tmp_path / "data" / "out" / "passwd")))


def test_a_model_of_the_servers_is_looked_for_in_the_data_folder(text, tmp_path):
    (tmp_path / "base").mkdir()
    assert json.loads(Device(str(tmp_path)).admit(with_(text, model__path="/srv/base")))["model"]["path"] == str(
        tmp_path / "base"
    )


def rows(folder, *tasks, labels="ab"):
    for task in tasks:
        (folder / task).mkdir(parents=True)
        for split, count in (("train", 12), ("test", 4)):
            lines = [json.dumps({"text": f"{task} {i}", "label": labels[i % len(labels)]}) for i in range(count)]
            (folder / task / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def test_a_suite_of_files_is_read_from_the_devices_own_folder_and_counted_as_the_server_does(tmp_path):
    server, own = rows(tmp_path / "server", "one", "three", "two"), rows(tmp_path / "own", "two")
    overrides = [
        "model=gpt2_lists",
        "suite=files",
        f"suite.root={server}",
        "suite.tasks=[one,two,three]",
        "suite.max_length=32",
    ]
    text = to_json(resolve([*overrides, "suite.clients_per_task=1", "suite.shots=1", "suite.trusted=2"]))
    device = Device(str(own))
    admitted = json.loads(device.admit(text))["suite"]
    assert admitted["root"] == str(own) and admitted["tasks"] == ["two"]
    suite = device.place(build(device.admit(text)), ["one", "two", "three"]).suite
    assert isinstance(suite, OwnRows) and suite.num_clients == 3 and suite.task_of(1) == "two"
    assert len(suite.train(1, 0)) == 12 and len(suite.test("two")) == 4 and suite.num_classes("two") == 2
    with pytest.raises(FedfusionError, match="this device holds rows of two, not of one"):
        suite.train(0, 0)
    with pytest.raises(FedfusionError, match="this device holds rows of two, not of three"):
        suite.test("three")
    with pytest.raises(FedfusionError, match="holds elsewhere, and none of the tasks of the run: one, two, three"):
        Device(str(rows(tmp_path / "third", "elsewhere"))).admit(text)


def test_versions_base_models_and_classes_are_compared(text):
    experiment = build(text)
    model = LoraModel(experiment.model, 0)
    server = facts(experiment.suite, model)
    compare(server, experiment.suite, model)
    with pytest.raises(FedfusionError, match=r"the server has fedfusion 9.9, this device \d"):
        compare(server | {"version": "9.9"}, experiment.suite, model)
    with pytest.raises(FedfusionError, match=r"has the hash 123456789abc, that of this device [0-9a-f]{12} "):
        compare(server | {"base": "123456789abcdef"}, experiment.suite, model)
    with pytest.raises(FedfusionError, match="the classes of task 'upright-digit' are None at the server"):
        compare(server | {"classes": "{}"}, experiment.suite, model)


def test_the_fingerprint_is_that_of_the_weights(tmp_path):
    model = vit(tmp_path / "a")
    same, rank = LoraModel(model, 0), LoraModel(replace(model, lora={**model.lora, "r": 2}), 5)
    assert same.fingerprint == rank.fingerprint and len(same.fingerprint) == 64
    assert LoraModel(vit(tmp_path / "b"), 0).fingerprint == same.fingerprint  # the same weights elsewhere
    weights = load_file(tmp_path / "a" / "model.safetensors")
    weights[sorted(weights)[0]].view(-1)[0] += 1
    save_file(weights, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    _base.cache_clear()
    _fingerprint.cache_clear()
    assert LoraModel(replace(model, path=str(tmp_path / "b")), 0).fingerprint != same.fingerprint


def meet(nodes, tasks, text="{}"):
    """Meet devices with these node configurations."""
    grid = InlineGrid(client_app, len(nodes), 60.0)
    for context, node in zip(grid.contexts.values(), nodes, strict=True):
        context.node_config.clear()
        context.node_config.update(node)
    experiment = build(text)
    own = facts(experiment.suite, LoraModel(experiment.model, 0))
    return meeting.meet(grid, text, tasks, 5.0, facts=own, simulated=False)


def test_clients_are_dealt_to_the_devices_that_hold_their_task(text, tmp_path):
    tasks = ["upright-digit"] * 2 + ["flipped-size"] * 2
    folder = {"data-path": str(tmp_path), "num-partitions": 3}
    nodes = [
        folder | {"partition-id": 2, "tasks": "flipped-size"},
        folder | {"partition-id": 0},
        folder | {"partition-id": 1, "tasks": "upright-digit"},
    ]
    assert meet(nodes, tasks, text).hosted == {1: [3], 2: [0, 2], 3: [1]}


def test_a_device_with_another_version_is_refused_before_training(text, tmp_path):
    grid = InlineGrid(client_app, 1, 60.0)
    grid.contexts[1].node_config["data-path"] = str(tmp_path)
    with pytest.raises(FedfusionError, match="node 1 cannot start: .*the server has fedfusion 9.9, this device"):
        told = {"version": "9.9", "base": "", "classes": "{}"}
        meeting.meet(grid, text, ["upright-digit"] * 4, 5.0, facts=told, simulated=False)


def test_a_node_without_a_data_folder_takes_no_part_in_a_deployment(text, tmp_path):
    devices = with_(text, federation={"_target_": "fedfusion.federation.Devices"})
    with pytest.raises(FedfusionError, match="names no data folder"):
        meet([{"partition-id": 0}], ["upright-digit"] * 4, devices)


def test_a_device_trains_only_for_the_tasks_it_takes_part_in(text, tmp_path):
    InlineGrid(client_app, 1, 60.0)
    content = {"config": ConfigRecord({"experiment": text, "round": 1, "clients": [0], "rank": 1})}
    node = {"data-path": str(tmp_path), "tasks": "flipped-size", "partition-id": 0, "num-partitions": 1}
    context = Context(1, 1, node, RecordDict(), {})
    model = LoraModel(build(text).model, 0)
    content["arrays"] = arrays(start=model.initial[None])
    message = Message(RecordDict(content), 1, "train")
    message.metadata.__dict__["_message_id"] = "m"
    reply = client_app(message, context)
    reasons = list(reply.content.config_records["config"]["reasons"])
    assert reasons == ["FedfusionError: this device takes part in flipped-size, not in upright-digit"]
    message.metadata.__dict__["_message_type"] = "evaluate"
    with pytest.raises(FedfusionError, match="takes part in flipped-size, not in upright-digit"):
        client_app(message, context)


@pytest.mark.slow
def test_a_client_that_wants_more_memory_than_allowed_fails_by_itself(tmp_path):
    code = (
        "import torch; from fedfusion.client.device import Device; "
        f"Device({str(tmp_path)!r}, max_memory_mb=2000).limit_memory(); torch.zeros(2000, 2000); "
        "torch.zeros(30000, 30000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "can't allocate memory" in done.stderr
