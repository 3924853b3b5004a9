import json
import multiprocessing
import shutil

import pytest
import torch

from fedfusion.config import build, resolve, to_json
from fedfusion.server.store import AT_THE_SERVER, Store, trained_by
from fedfusion.types import FedfusionError


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", "a configuration")


def test_what_is_put_is_got(store):
    key = store.key("training", "a", b"b")
    assert store.get(key) is None
    store.put(key, b"content")
    assert store.get(key) == b"content" and key.startswith("training-")
    assert [path.name for path in store.folder.iterdir()] == [key]


def test_keys_differ_with_kind_parts_their_borders_and_what_all_have_in_common(store, tmp_path):
    vector = torch.arange(3.0)
    keys = {
        store.key("a", "bc"), store.key("a", "b", "c"), store.key("a", "cb"), store.key("d", "bc"),
        store.key("a", vector), store.key("a", vector + 1), Store(tmp_path / "store", "another").key("a", "bc"),
    }  # fmt: skip
    assert len(keys) == 7 and store.key("a", vector) == store.key("a", vector.clone())


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"x"])
def test_what_is_damaged_is_made_again(store, damage):
    key, made = store.key("scores"), []

    def measure():
        made.append(1)
        return {"accuracy": 1 / 3, "loss": float("inf")}

    first = store.scores(key, measure)
    assert store.scores(key, measure) == first and len(made) == 1
    path = store.folder / key
    path.write_bytes(damage(path.read_bytes()))
    assert store.scores(key, measure) == first and len(made) == 2 and store.get(key)


def test_vectors_come_back_bit_by_bit(store):
    made = torch.randn(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(store.vector("control-1", lambda: made), made)
    again = store.vector("control-1", lambda: torch.zeros(7))
    assert torch.equal(again, made) and again.dtype == made.dtype
    again += 1  # whoever gets it may change it
    assert torch.equal(store.vector("control-1", lambda: torch.zeros(7)), made)


def hold(folder, held, free):
    with Store(folder, "x").alone("key") as mine:
        held.put(mine)
        free.wait(60)


def test_only_one_process_makes_something(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held, free = spawn.Queue(), spawn.Event()
    other = spawn.Process(target=hold, args=(tmp_path / "store", held, free))
    other.start()
    assert held.get(timeout=60)
    store = Store(tmp_path / "store", "x")
    with store.alone("key") as mine, store.alone("other") as another:
        assert not mine and another
    free.set()
    other.join()
    with store.alone("key") as mine:
        assert mine


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FedfusionError, match="trainings=.*file/store: cannot be made"):
        Store(tmp_path / "file" / "store", "")


@pytest.fixture(scope="module")
def config():
    return json.loads(to_json(resolve([])))


def of(config):
    return Store.of(config, build(json.dumps(config)))


def test_every_key_at_the_server_is_one_of_the_experiment(config):
    read = trained_by(config, build(json.dumps(config)))
    assert set(AT_THE_SERVER) < set(config) and read.keys() == config.keys() - {*AT_THE_SERVER, "attack"}


def test_what_is_computed_from_files_is_known_by_them(config, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("a")
    named = {**config, "trainings": str(tmp_path / "t"), "suite": {**config["suite"], "root": str(tmp_path / "data")}}
    experiment = build(json.dumps(config))
    before = Store.of(named, experiment).key("a")
    assert Store.of(named, experiment).key("a") == before
    (tmp_path / "data" / "train.csv").write_text("ab")
    assert Store.of(named, experiment).key("a") != before


def test_a_full_disk_costs_no_result(store):
    store.folder.chmod(0o500)
    shutil.rmtree(store.folder)  # root may write anywhere; nobody can into what is not there
    assert store.scores("scores-1", lambda: {"loss": 1.0}) == {"loss": 1.0}


def test_no_store_unless_one_is_named_nor_for_strategies_of_flower(config, tmp_path):
    named = {**config, "trainings": str(tmp_path / "t")}
    assert of(config) is None and of(named).folder == tmp_path / "t" and of({**named, "round_deadline_s": 9.0}) is None
    stock = {**config["server"], "strategy": {"_target_": "flwr.serverapp.strategy.FedAvg"}}
    assert of({**named, "server": stock}) is None
    keys = {of({**named, key: value}).key("a") for key, value in (("rounds", 9), ("run_dir", "x"), ("seed", 0))}
    assert keys == {of(named).key("a")} and of({**named, "seed": 1}).key("a") not in keys
