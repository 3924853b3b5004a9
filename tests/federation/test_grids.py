import socket

import pytest
from command import SMALL, fedfusion, results
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedfusion.federation import Flower, Ray
from fedfusion.federation.inline import InlineGrid
from fedfusion.types import FedfusionError

SMALL = [*SMALL, "fraction=0.75", "client.cohort_size=2"]  # groups that no division of the clients would give
echo = ClientApp()


@echo.query()
def answer(message, context):
    if context.node_config["partition-id"] == 1:
        raise ValueError("no")
    return Message(RecordDict({"node": ConfigRecord(context.node_config)}), reply_to=message)


def test_the_inline_grid_answers_every_message_and_turns_exceptions_into_errors():
    grid = InlineGrid(echo, num_nodes=3, deadline_s=10)
    questions = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(questions))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "ValueError: no" in replies[1].error.reason
    assert [r.metadata.src_node_id for r in replies] == [1, 2, 3]
    assert dict(replies[2].content.config_records["node"]) == {"partition-id": 2, "num-partitions": 3}


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids") / "inline"
    fedfusion("run", *SMALL, f"run_dir={folder}", check=True)
    return results(folder)["metrics"]


@pytest.mark.slow
def test_flower_gives_the_same_bits_as_inline(inline, tmp_path):
    fedfusion("run", *SMALL, "federation=flower", f"run_dir={tmp_path / 'flower'}", check=True)
    assert results(tmp_path / "flower")["metrics"] == inline
    assert not (tmp_path / "flower" / ".flower").exists()


def test_a_taken_port_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FedfusionError, match=f"port {port} is taken"):
            Flower(port=port).check()


@pytest.mark.parametrize("federation", [Ray(), Flower()])
def test_without_ray_the_extra_is_named(federation, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FedfusionError, match="fedfusion\\[simulation\\]"):
        federation.check()
