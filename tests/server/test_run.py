import fcntl
import json

import pytest
from command import SMALL
from flwr.app import Context, RecordDict

from fedfusion.apps import client_app, server_app
from fedfusion.config import resolve, to_json
from fedfusion.federation.inline import InlineGrid
from fedfusion.types import FedfusionError


def run(folder, *overrides):
    cfg = resolve([*SMALL, "client.steps=1", "realign.steps=0", f"run_dir='{folder}'", *overrides])
    server_app(InlineGrid(client_app, 4, 60.0), Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))
    return json.loads((folder / "results.json").read_text())["metrics"]


def test_over_an_ideal_uplink_what_is_received_is_what_was_sent(tmp_path):
    metrics = run(tmp_path, "channel=ideal", "guard.clip=inf", "guard.refuse=inf", "fraction=0.5", "rounds=2")
    for record in metrics["rounds"]:
        assert len(record["clients"]) == record["believed"] == 2 and record["nmse_db"] is None
        assert record["mean"]["fused_clean"] == record["mean"]["fused_received"] == record["mean"]["realigned"]
    heard = {client for record in metrics["rounds"] for client in record["clients"]}
    assert len(list((tmp_path / "personal").iterdir())) == len(heard)


def test_byzantine_clients_are_drawn_by_the_seed_and_kept_out_of_clean(tmp_path):
    arguments = ["channel=ideal", "guard.clip=inf", "guard.refuse=inf", "rounds=1"]
    honest = run(tmp_path / "honest", *arguments)
    attacked = run(tmp_path / "attacked", *arguments, "attack=sign_flipping", "attack.f=2", "attack.scale=30")
    assert len(attacked["rounds"][0]["byzantine"]) == 2
    assert attacked["mean"]["fused_clean"] == honest["mean"]["fused_clean"]
    assert attacked["mean"]["fused_received"] != honest["mean"]["fused_received"]


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FedfusionError, match="another process is still writing to"):
            run(tmp_path)
