import logging
import re
import time
from collections import deque

import numpy as np
import pytest
import ray
from command import SMALL, fedfusion, results
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from raycluster import two_nodes

from fedfusion.federation import Ray, actors
from fedfusion.federation.actors import Actors
from fedfusion.federation.inline import InlineGrid
from fedfusion.federation.raygrid import RayGrid
from fedfusion.types import FedfusionError, RunFailed

# what Ray leaves open is Ray's
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::FutureWarning"
)
SMALL = [*SMALL, "fraction=0.75", "client.cohort_size=2"]  # groups that no division of the clients would give
APP = "rayapp:client_app"


def test_ray_gives_the_same_bits_as_inline(tmp_path):
    found = {}
    for grid in ("inline", "ray"):
        fedfusion("run", *SMALL, f"federation={grid}", f"run_dir={tmp_path / grid}", check=True)
        found[grid] = results(tmp_path / grid)["metrics"]
    assert found["ray"] == found["inline"]


@pytest.mark.slow
def test_a_cluster_of_two_nodes_gives_the_same_bits_as_inline(tmp_path):
    with two_nodes() as (address, _):
        chosen = ["federation=ray", f"federation.address={address}", f"run_dir={tmp_path / 'ray'}"]
        fedfusion("run", *SMALL, *chosen, cwd=tmp_path, check=True)
        log = (tmp_path / "ray" / "run.log").read_text()
        assert len(set(re.findall(r"Ray actor \d of 2: process \d+ on node (\w+)", log))) == 2
        three = fedfusion("run", *SMALL, *chosen[:2], "federation.actors=3", f"run_dir={tmp_path / 'three'}")
        assert three.returncode == 2 and "room for 2, its nodes have 1, 1 CPU" in three.stderr
    fedfusion("run", *SMALL, f"run_dir={tmp_path / 'inline'}", check=True)
    assert results(tmp_path / "ray")["metrics"] == results(tmp_path / "inline")["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["label_flip", "backdoor"])
def test_what_byzantine_clients_learn_from_is_the_same_on_every_grid(attack, tmp_path):
    """They poison it where they are; the server tells them nothing of it."""
    found = {}
    for grid in ("inline", "ray"):
        arguments = [f"attack={attack}", "attack.f=2", f"federation={grid}", f"run_dir={tmp_path / grid}"]
        fedfusion("run", *SMALL, *arguments, check=True)
        found[grid] = results(tmp_path / grid)["metrics"]
    assert found["ray"] == found["inline"] and len(found["inline"]["attack"]["byzantine"]) == 2


@pytest.mark.parametrize(
    "pool, nodes, sentence",
    [
        (
            Ray(actors=3),
            [{"CPU": 2.0}],
            "federation.actors=3 x federation.cpus=1 do not fit: the Ray cluster has room for 2, its nodes have 2 CPU",
        ),
        (
            Ray(actors=2, cpus=3),
            [{"CPU": 2.0}, {"CPU": 4.0}],
            "federation.cpus=3 do not fit: the Ray cluster has room for 1, its nodes have 2, 4 CPU",
        ),
        (
            Ray(actors=3, gpus=0.6),
            [{"CPU": 8.0, "GPU": 2.0}],
            "federation.actors=3 x federation.gpus=0.6 do not fit: the Ray cluster has room for 2",
        ),
        (
            Ray(actors=1, resources={"edge": 2}),
            [{"CPU": 8.0, "edge": 1.0}, {"CPU": 8.0}],
            "federation.resources.edge=2 do not fit: the Ray cluster has room for 0, its nodes have 1, 0 edge",
        ),
        (
            Ray(actors=2, gpus=1),
            [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 2.0}, {"GPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}],
            None,
        ),
        (Ray(actors=4, gpus=1), [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 4.0}], "each needs 1 CPU, 1 GPU on one node"),
        (Ray(actors=10, gpus=0.1, cpus=0.1), [{"CPU": 1.0, "GPU": 1.0}], None),
        (Ray(actors=3, gpus=0.3), [{"CPU": 4.0, "GPU": 1.0}], None),
        (Ray(actors=2, gpus=2), [{"CPU": 4.0, "GPU": 3.0}], "room for 1, its nodes have 3 GPU"),
    ],
)
def test_actors_that_find_no_place_are_refused_before_they_start(pool, nodes, sentence):
    if sentence is None:
        pool.fits(nodes)
    else:
        with pytest.raises(FedfusionError, match=re.escape(sentence)):
            pool.fits(nodes)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"actors": 0}, "federation.actors must be at least 1"),
        ({"gpus": 1.5}, "federation.gpus=1.5 must be at most 1 or whole.*(set it to 1 or 2)"),
        ({"resources": {"GPU": 1}}, "federation.resources.GPU=1.*use federation.cpus and federation.gpus"),
        ({"resources": {"edge": 0}}, "federation.resources.edge=0"),
        ({"speculate": 1.5}, "federation.speculate must be between 0 and 1 or null, got 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(FedfusionError, match=sentence):
        Ray(**options)


def test_more_threads_than_an_actor_has_cpus_are_refused(tmp_path):
    done = fedfusion("run", *SMALL, "federation=ray", "client.threads=2", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "client.threads=2 exceeds federation.cpus=1" in done.stderr


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    done = fedfusion("run", *SMALL, "federation=ray", "federation.address=127.0.0.1:41999", f"run_dir={tmp_path / 'r'}")
    assert done.returncode == 2 and "federation.address=127.0.0.1:41999: Ray cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=2, resources={"edge": 1}, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def usual(cluster):
    """Two actors, which take long to start."""
    grid = RayGrid(APP, 3, 60.0, Ray(), threads=3)
    yield grid
    end(grid)


@pytest.fixture
def grid(usual):
    for seat in usual.actors.seats:
        seat.since = 0.0  # no pause is left over
    while not all(seat.up for seat in usual.actors.seats):
        usual.pull_messages([])
    usual.deadline_s, usual.speculate = 60.0, None
    usual.durations.clear()
    return usual


def end(grid):
    for seat in grid.actors.seats:
        if seat.actor is not None:
            ray.kill(seat.actor)


def message(node=1, ttl=None, shared=None, **facts):
    content = RecordDict({"config": ConfigRecord(facts)})
    if shared is not None:
        content["shared"] = shared
    return Message(content, node, "train", ttl=ttl)


def done(replies):
    return [reply.content.config_records["done"] for reply in replies]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_messages_are_spread_over_the_actors_and_answered_like_inline(grid):
    sent = [message(node, **({"raise": True} if node == 2 else {"sleep": 0.2})) for node in (1, 2, 3)]
    replies = sorted(grid.send_and_receive(sent), key=lambda reply: reply.metadata.src_node_id)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason.strip().endswith("ValueError: no") and replies[1].error.code == 2
    first, last = done([replies[0], replies[2]])
    assert first["pid"] != last["pid"] and (first["partition"], last["partition"]) == (0, 2)
    assert first["threads"] == last["threads"] == "3"
    inline = list(InlineGrid(client_app(), 3, 60.0).send_and_receive([message(2, **{"raise": True})]))[0]
    assert inline.error.code == 2 and inline.error.reason.strip().splitlines()[-1] == "ValueError: no"


def client_app():
    from rayapp import client_app

    return client_app


def test_what_all_share_goes_to_each_actor_once_a_round(grid, monkeypatch):
    puts, put = [], ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    objects, rounds = set(), set()
    for value in (1.0, 2.0):
        shared = ArrayRecord({"x": Array(np.full(50_000, value, np.float32))})
        sent = [message(shared=shared, sleep=0.1) for _ in range(8)]
        answers = done(grid.send_and_receive(sent))
        assert all(answer["shared"] == 50_000 * value for answer in answers)
        assert all(one.content["shared"] is shared for one in sent)  # they can be sent again
        objects |= {(answer["pid"], answer["object"]) for answer in answers}
        rounds |= {(answer["pid"], value) for answer in answers}
        assert puts[-1] is shared
    assert len(puts) == 2 and len(objects) == len(rounds) == 4  # two rounds, two actors
    assert not any("shared" in answer for answer in done(grid.send_and_receive([message()])))


def test_a_deadline_counts_from_when_the_actor_gets_to_the_message(grid):
    grid.deadline_s = 2.0
    grid.durations["train"] = deque([0.1])  # so that each actor is given two
    assert len(done(grid.send_and_receive([message(sleep=1.2) for _ in range(6)]))) == 6


@pytest.mark.slow
def test_what_waits_behind_a_client_that_hangs_is_taken_over(grid):
    grid.deadline_s = 6.0
    grid.durations["train"] = deque([0.1])
    sent = [message(sleep=100), *(message(sleep=0.5) for _ in range(3))]
    ids = list(grid.push_messages(sent))
    got = []
    while len(got) < 4:
        got += grid.pull_messages(ids)
    assert [reply.has_error() for reply in got] == [False, False, False, True]
    assert got[3].metadata.reply_to_message_id == ids[0] and got[3].error.reason == "did not answer within 6 s"
    assert len({one["pid"] for one in done(got[:3])}) == 1
    assert len(done(grid.send_and_receive([message(sleep=1) for _ in range(4)]))) == 4


@pytest.mark.slow
def test_an_actor_that_dies_costs_only_the_message_it_died_of(grid, caplog, tmp_path):
    revived = message(once=str(tmp_path / "died"), die=True)
    sent = [message(2, die=True), revived, *(message() for _ in range(6))]
    replies = {reply.metadata.reply_to_message_id: reply for reply in grid.send_and_receive(sent)}
    reasons = {key: reply.error.reason for key, reply in replies.items() if reply.has_error()}
    assert len(replies) == 8 and reasons == {sent[0].metadata.message_id: "its process died 2 times"}
    assert len([line for line in warnings(caplog) if "another starts in" in line]) == 3


def test_what_waited_behind_a_message_that_killed_its_actor_is_not_to_blame(grid, monkeypatch, tmp_path):
    grid.durations["train"] = deque([0.1])  # so that each actor is given two
    blamed, lost = [], grid._lost
    monkeypatch.setattr(grid, "_lost", lambda call: blamed.append(set(grid.deaths)) or lost(call))
    deadly = message(once=str(tmp_path / "died"), die=True, sleep=1)
    assert len(done(grid.send_and_receive([deadly, *(message(sleep=1.5) for _ in range(3))]))) == 4
    assert blamed == [{deadly.metadata.message_id}] * 2


def test_an_actor_killed_from_outside_is_replaced(grid, tmp_path):
    import os
    import signal

    marker = tmp_path / "pid"
    ids = list(grid.push_messages([message(once=str(marker), sleep=100), message()]))
    got = []
    while not (marker.exists() and marker.read_text()):
        got += grid.pull_messages(ids)
    os.kill(int(marker.read_text()), signal.SIGKILL)
    while len(got) < 2:
        got += grid.pull_messages(ids)
    assert marker.read_text() not in {str(answer["pid"]) for answer in done(got)}


def test_pauses_before_an_actor_starts_again_grow_and_are_bounded(grid, caplog):
    seat = grid.actors.seats[0]
    seat.failures = 0
    for _ in range(8):
        if seat.actor is None:
            seat.since = 0.0
            grid.actors.tend()
        grid.actors.replace(seat, "died")
    pauses = [float(line.split(" in ")[1].split()[0]) for line in warnings(caplog)]
    assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]
    started = time.monotonic()
    grid.actors.tend()
    assert seat.actor is None and seat.since > started  # not before its time, and nobody waits for it
    seat.since = 0.0
    assert len(done(grid.send_and_receive([message(sleep=0.1) for _ in range(4)]))) == 4


def test_after_an_answer_the_next_pause_is_short_again(grid, tmp_path):
    seat = grid.actors.seats[0]
    seat.failures = 5
    grid.send_and_receive([message(sleep=0.1) for _ in range(6)])
    assert seat.failures == 0


def test_messages_that_expire_are_neither_handled_nor_answered(grid, tmp_path):
    grid.durations["train"] = deque([0.1])  # so that each actor is given two
    busy = [message(sleep=2, ttl=1.0), message(sleep=2, ttl=1.0)]
    late = [message(once=str(tmp_path / f"late{i}"), ttl=0.5) for i in range(3)]
    assert grid.send_and_receive([*busy, *late]) == []
    assert len(done(grid.send_and_receive([message(sleep=0.1) for _ in range(4)]))) == 4
    assert not list(tmp_path.iterdir())
    seats = grid.actors.seats
    assert not any(seat.failures for seat in seats) and not grid.waiting and not grid.copies and not grid.answers


def test_pulling_ends_when_a_message_expires(grid):
    ids = list(grid.push_messages([message(sleep=4), message(sleep=4), message(ttl=0.5)]))
    assert grid.pull_messages(ids) == []
    got = [*grid.pull_messages(ids[:2])]
    assert len(done(got)) >= 1


@pytest.mark.slow
def test_an_actor_past_the_deadline_is_replaced_though_its_message_has_expired(grid):
    grid.deadline_s = 2.0
    pids = {answer["pid"] for answer in done(grid.send_and_receive([message(sleep=0.2), message(sleep=0.2)]))}
    assert grid.send_and_receive([message(sleep=100, ttl=1.0)]) == []
    seen = set()
    while len(seen) < 2:
        seen |= {one["pid"] for one in done(grid.send_and_receive([message(sleep=0.2), message(sleep=0.2)]))}
    assert len(pids) == 2 and len(seen & pids) == 1


def test_inline_honours_the_time_to_live(tmp_path):
    grid = InlineGrid(client_app(), 1, 60.0)
    late = message(once=str(tmp_path / "late"), ttl=0.3)
    assert grid.send_and_receive([message(sleep=5, ttl=0.5), late]) == []
    assert not (tmp_path / "late").exists() and not grid.waiting


@pytest.mark.slow
@pytest.mark.parametrize("speculate", [0.9, None])
def test_a_straggler_runs_a_second_time_where_that_is_wanted(grid, speculate, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    grid.speculate, grid.speculated = speculate, 0
    grid.send_and_receive([message(sleep=0.1) for _ in range(6)])
    straggler = message(once=str(tmp_path / "slow"), sleep=6)
    replies = grid.send_and_receive([straggler, *(message() for _ in range(3))])
    slow = next(r for r in replies if r.metadata.reply_to_message_id == straggler.metadata.message_id)
    said = [record.getMessage() for record in caplog.records if "a second time" in record.getMessage()]
    first = (tmp_path / "slow").read_text()
    if speculate:
        assert str(done([slow])[0]["pid"]) != first and len(said) == 1 and "(1 such messages so far)" in said[0]
        again = done(grid.send_and_receive([message(sleep=1) for _ in range(8)]))  # the loser is heard no more
        assert len(again) == 8 and not grid.answers and not grid.copies
    else:
        assert str(done([slow])[0]["pid"]) == first and not said


@pytest.fixture
def free(usual):
    """The CPUs to oneself."""
    end(usual)


@pytest.mark.slow
def test_the_run_goes_on_with_the_actors_that_find_a_place(free, monkeypatch, caplog):
    monkeypatch.setattr(actors, "PATIENCE_S", 1.0)
    grid = RayGrid(APP, 1, 60.0, Ray(resources={"edge": 1}))
    assert sorted(seat.up for seat in grid.actors.seats) == [False, True]
    assert len(done(grid.send_and_receive([message(sleep=0.5) for _ in range(4)]))) == 4
    said = [line for line in warnings(caplog) if "has not started" in line]
    assert len(said) == 1 and "The run goes on with 1." in said[0]
    ray.kill(next(seat.actor for seat in grid.actors.seats if seat.up))  # its place is free for the other
    assert len(done(grid.send_and_receive([message() for _ in range(2)]))) == 2
    end(grid)


def test_without_any_actor_the_run_ends(free, monkeypatch):
    monkeypatch.setattr(actors, "STARTUP_S", 2.0)
    with pytest.raises(RunFailed, match="no Ray actor could be started for 2 s.*lower federation.actors.*--resume"):
        Actors(APP, 1, {"CPU": 1.0, "edge": 2.0}, 1)


def test_clients_that_cannot_be_loaded_end_the_run_at_once(free):
    with pytest.raises(RunFailed, match="no Ray actor can load the clients: .*nowhere.*on all nodes"):
        Actors("nowhere:client_app", 2, {"CPU": 1.0}, 1)
