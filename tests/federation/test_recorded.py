import json

import pytest
from cells import TINY
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from inline import run

from fedfusion import apps
from fedfusion.federation.inline import InlineGrid
from fedfusion.federation.recorded import Recorded
from fedfusion.server.nodes import arrays
from fedfusion.server.store import Store

SMALL = [text for text in TINY if not text.startswith("rounds")]


class App:
    """Answers with how often it was asked, or as `faults` say."""

    def __init__(self):
        self.asked, self.faults = [], {}

    def __call__(self, message, context):
        clients = list(message.content.config_records["config"]["clients"])
        self.asked.append(clients)
        if (fault := self.faults.pop(clients[0], None)) == "raise":
            raise ValueError("too hot")
        facts = {"clients": clients, "failed": clients if fault else [], "reasons": ["too hot"] * bool(fault)}
        content = RecordDict({"config": ConfigRecord(facts), "metrics": MetricRecord({"count": len(self.asked)})})
        return Message(content, reply_to=message)


def message(client=0, start=0.0, kind=MessageType.TRAIN, rank=4, experiment="{}", server_round=1, ttl=100.0):
    import torch

    facts = {"experiment": experiment, "round": server_round, "clients": [client], "rank": rank}
    content = RecordDict({"arrays": arrays(start=torch.full((1, 3), start)), "config": ConfigRecord(facts)})
    return Message(content, 1, kind, ttl=ttl)


@pytest.fixture
def app():
    return App()


@pytest.fixture
def grid(app, tmp_path):
    return Recorded(InlineGrid(app, 1, 60.0), Store(tmp_path / "store", "one"))


def count(reply):
    return reply.content.metric_records["metrics"]["count"]


def test_what_was_trained_is_not_trained_again(grid, app):
    (first,) = grid.send_and_receive([message()])
    (second,) = grid.send_and_receive([asked := message()])
    assert len(app.asked) == 1 and count(first) == count(second) == 1
    assert second.metadata.reply_to_message_id == asked.metadata.message_id


MEASURE = {"kind": MessageType.EVALUATE}


@pytest.mark.parametrize("other", [{"client": 1}, {"start": 1e-30}, {"server_round": 2}, MEASURE])
def test_anything_else_is(grid, app, other):
    grid.send_and_receive([message()])
    grid.send_and_receive([message(**other)])
    assert len(app.asked) == 2


def test_the_rank_of_the_server_and_what_only_it_reads_change_nothing(grid, app):
    grid.send_and_receive([message()])
    grid.send_and_receive([message(rank=8, experiment='{"fusion": 1}')])
    assert len(app.asked) == 1


def test_measuring_is_never_taken_from_the_store(grid, app):
    for _ in range(2):
        grid.send_and_receive([message(**MEASURE)])
    assert len(app.asked) == 2


@pytest.mark.parametrize("fault", ["raise", "failed"])
def test_a_failure_is_tried_again(grid, app, fault):
    app.faults[0] = fault
    grid.send_and_receive([message()])
    (reply,) = grid.send_and_receive([message()])
    assert len(app.asked) == 2 and not reply.has_error() and not reply.content.config_records["config"]["failed"]


def test_what_another_process_is_training_is_waited_for(grid, app, tmp_path):
    asked = message()
    key = grid._key(asked)
    (message_id,) = grid.push_messages([asked])
    other = Store(tmp_path / "store", "one")
    with other.alone(key) as mine:
        assert mine and grid.pull_messages([message_id]) == [] and not app.asked
        other.put(key, grid.store.get(key) or _content())
    (reply,) = grid.pull_messages([message_id])
    assert not app.asked and count(reply) == 7


def test_when_that_one_dies_it_is_trained_here(grid, app, tmp_path):
    (message_id,) = grid.push_messages([asked := message()])
    with Store(tmp_path / "store", "one").alone(grid._key(asked)):
        assert grid.pull_messages([message_id]) == []
    assert len(grid.pull_messages([message_id])) == 1 and len(app.asked) == 1


def test_no_more_is_held_than_the_grid_works_on(grid, app, tmp_path):
    asked = [message(client=i) for i in range(3)]
    ids = grid.push_messages(asked)
    grid.pull_messages(ids)
    with Store(tmp_path / "store", "one").alone(grid._key(asked[2])) as free:
        assert free and len(app.asked) == 1


def test_nothing_is_held_that_nobody_waits_for(grid, app, tmp_path):
    """A message that expired is not asked about any more; its lock must not keep others waiting."""
    grid.grid.at_once = 2
    ids = grid.push_messages([late := message(client=1), message()])
    (reply,) = grid.pull_messages(ids[::-1])  # both are locked, one is answered
    left = [key for key in ids if key != reply.metadata.reply_to_message_id]
    assert left and grid.making.keys() == set(left)
    grid.pull_messages([])
    with Store(tmp_path / "store", "one").alone(grid._key(late)) as free:
        assert free and not grid.making


def _content():
    from flwr.common.serde import recorddict_to_proto

    content = RecordDict({"config": ConfigRecord({"failed": []}), "metrics": MetricRecord({"count": 7})})
    return recorddict_to_proto(content).SerializeToString()


BEHIND = {
    "channel": ["channel=mimo", "channel.jammer.jsr_db=10"],
    "attack": ["attack=alie", "attack.f=1"],
    "guard": ["guard=norm_clip"],
    "fusion": ["fusion=ties"],
    "fused_rank": ["fused_rank=3"],
    "realign": ["realign=few_shot", "realign.steps=2"],
    "aggregator": ["aggregator=median"],
    "preaggregator": ["preaggregator=nnm", "aggregate_within=federation"],
    "coupling": ["coupling=laplacian"],
    "evaluation": ["evaluation=clients"],
    "min_clients": ["min_clients=2", "deadline_s=100"],
    "server_optimizer": ["server_optimizer=fedadam"],
}


@pytest.mark.parametrize("stage", [pytest.param(s, marks=[pytest.mark.slow] * (s != "guard")) for s in BEHIND])
def test_what_is_behind_the_upload_shares_the_training_and_changes_no_bit(stage, tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", *SMALL, "rounds=1", *BEHIND[stage])
    store = f"trainings='{tmp_path / 'store'}'"
    shared(tmp_path / "first", *SMALL, "rounds=1", store)

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(apps, "_data", never)  # what a client learns from
    found = shared(tmp_path / "second", *SMALL, "rounds=1", *BEHIND[stage], store)
    assert found == plain


def shared(folder, *overrides):
    from command import SMALL as CELLS

    from fedfusion.config import build, resolve, to_json
    from fedfusion.federation.recorded import remembering

    small = [override for override in CELLS if not override.startswith("realign")]
    cfg = resolve([*small, "client.steps=1", "realign=none", f"run_dir='{folder}'", *overrides])
    grid = remembering(InlineGrid(apps.client_app, 4, 60.0), cfg, build(cfg))
    assert isinstance(grid, Recorded)
    apps.server_app(grid, Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))
    return json.loads((folder / "results.json").read_text())["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [["client.lr=0.01"], ["attack=label_flip", "attack.f=1"], ["wire=float16"]])
def test_what_clients_read_trains_anew(changed, tmp_path):
    store = f"trainings='{tmp_path / 'store'}'"
    shared(tmp_path / "first", *SMALL, "rounds=1", store)
    before = len(list((tmp_path / "store").glob("training-*")))
    shared(tmp_path / "second", *SMALL, "rounds=1", *changed, store)
    assert len(list((tmp_path / "store").glob("training-*"))) == 2 * before
