import pytest
from datasets import ClassLabel, Dataset, Features, Value
from files import write
from PIL import Image

from fedfusion.tasks.source import Folder, Hub
from fedfusion.types import FedfusionError

ROWS = [{"text": f"word {i}", "label": i % 2} for i in range(6)]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".json"])
def test_a_folder_per_task_is_read_in_every_format(tmp_path, suffix):
    for task in ("b", "a"):
        write(tmp_path / task / f"train{suffix}", ROWS)
        write(tmp_path / task / f"test{suffix}", ROWS[:2])
    write(tmp_path / "a" / f"root{suffix}", ROWS[:3])
    (tmp_path / "index.json").write_text("{}")
    source = Folder(str(tmp_path))
    assert source.tasks == ("a", "b") and source.kind == "text"
    assert source.rows("a", "train").to_list() == ROWS and len(source.rows("a", "root")) == 3
    assert source.rows("b", "root") is None and source.rows("a", "validation") is None
    assert source.relation("a", "a") == 1 and source.relation("a", "b") == 0
    assert Folder(str(tmp_path), ["b"]).tasks == ("b",)


def test_one_file_holds_several_tasks_by_its_column_task(tmp_path):
    rows = [{"instruction": "add", "input": str(i), "output": str(i + 1), "task": "xy"[i % 2]} for i in range(6)]
    write(tmp_path / "train.parquet", rows)
    write(tmp_path / "test.jsonl", rows[:2])
    write(tmp_path / "root.csv", rows[:1])
    source = Folder(str(tmp_path))
    assert source.tasks == ("x", "y") and source.kind == "instruct"
    assert source.rows("y", "train")["input"][:] == ["1", "3", "5"] and len(source.rows("x", "test")) == 1
    assert len(source.rows("x", "root")) == 1 and source.rows("y", "root") is None
    assert source.where("y", "test") == f"{tmp_path / 'test.jsonl'} (task 'y')"


def test_files_without_a_column_task_are_one_task(tmp_path):
    write(tmp_path / "mine" / "train.csv", ROWS)
    write(tmp_path / "mine" / "test.csv", ROWS)
    assert Folder(str(tmp_path / "mine")).tasks == ("mine",)


def test_a_folder_of_images_names_its_classes(tmp_path):
    for split in ("train", "test"):
        for name in ("dog", "cat"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / "pets" / split / name / "1.png")
    source = Folder(str(tmp_path))
    assert source.kind == "image" and source.rows("pets", "train")["label"][:] == ["cat", "dog"]


def no_train(root):
    (root / "a" / "train.csv").unlink()


def no_test(root):
    (root / "a" / "test.csv").unlink()


def twice(root):
    write(root / "a" / "train.json", ROWS)


def other_columns(root):
    write(root / "a" / "test.csv", [{"sentence": "x", "label": 0}])


def other_kind(root):
    write(root / "b" / "train.csv", [{"instruction": "x", "input": "", "output": "y"}])
    write(root / "b" / "test.csv", [{"instruction": "x", "input": "", "output": "y"}])


def not_parquet(root):
    (root / "a" / "train.csv").rename(root / "a" / "train.parquet")


def half_tasks(root):
    write(root / "train.csv", [row | {"task": "a"} for row in ROWS])
    write(root / "test.csv", ROWS)


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (no_train, r"a: no train in it \(add train.parquet or .csv"),
        (no_test, r"a: no test in it \(add test.parquet or .csv"),
        (twice, "a: train.csv and train.json are both there"),
        (other_columns, r"a/test.csv: its columns are sentence, label \(needed are text, label"),
        (other_kind, "a/train.csv holds text data, .*b/train.csv holds instruct data"),
        (not_parquet, "a/train.parquet: cannot be read as parquet"),
        (half_tasks, "test.csv: there is no column task in it, but the train file has one"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_with_the_file(tmp_path, spoil, sentence):
    for split in ("train", "test"):
        write(tmp_path / "a" / f"{split}.csv", ROWS)
    spoil(tmp_path)
    with pytest.raises(FedfusionError, match=sentence):
        Folder(str(tmp_path)).rows("a", "test")


def test_a_folder_or_task_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FedfusionError, match="suite.root=/no/such: there is no such folder"):
        Folder("/no/such")
    with pytest.raises(FedfusionError, match=f"suite.root={tmp_path}: no task in it"):
        Folder(str(tmp_path))
    write(tmp_path / "trec" / "train.csv", ROWS)
    write(tmp_path / "trec" / "test.csv", ROWS)
    with pytest.raises(FedfusionError, match=r"suite.tasks: there is no task 'trek' in .* \(nearest are trec"):
        Folder(str(tmp_path), ["trek"])


def test_a_data_set_of_the_hub_is_read_under_our_names(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features(
        {"sentence": Value("string"), "text": Value("string"), "label": ClassLabel(names=["no", "yes"])}
    )
    rows = [{"sentence": f"s{i}" if i else " ", "text": "other", "label": i % 2} for i in range(10)]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    entry = {
        "path": str(tmp_path / "data"),
        "splits": {"train": "train[:80%]", "test": "train[80%:]"},
        "columns": {"text": "sentence"},
    }
    source = Hub({"mine": entry})
    train, test = source.rows("mine", "train"), source.rows("mine", "test")
    assert train["text"][:] == [f"s{i}" for i in range(1, 8)] and len(test) == 2
    assert train.features["label"].names == ["no", "yes"] and source.rows("mine", "root") is None
    assert source.tasks == ("mine",) and "1 empty rows left out" in caplog.text
    with pytest.raises(FedfusionError, match="no column 'phrase' for 'text'"):
        Hub({"mine": entry | {"columns": {"text": "phrase"}}}).rows("mine", "train")
    with pytest.raises(FedfusionError, match="suite.source.datasets.mine: cannot load"):
        Hub({"mine": entry | {"splits": {"train": "training"}}}).rows("mine", "train")


def test_a_data_set_that_is_not_in_the_cache_is_named_offline():
    with pytest.raises(FedfusionError, match="datasets.x: cannot load 'owner/none' .*HF_HUB_OFFLINE is set"):
        Hub({"x": {"path": "owner/none", "revision": "main"}}).rows("x", "train")


@pytest.mark.parametrize(
    "entry, sentence",
    [
        ({"name": "x"}, "suite.source.datasets.x.path is missing"),
        ({"path": "o/n", "colums": {}}, "suite.source.datasets.x has no key 'colums'"),
        ({"path": "o/n", "splits": {"dev": "train"}}, "suite.source.datasets.x.splits has no key 'dev'"),
    ],
)
def test_an_entry_with_unknown_or_missing_keys_is_refused(entry, sentence):
    with pytest.raises(FedfusionError, match=sentence):
        Hub({"x": entry})
