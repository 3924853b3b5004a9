import pytest
from huggingface_hub import ModelCard

from fedfusion.reporting import card

HUB = {"a": {"path": "owner/set", "name": "one"}, "b": {"path": "owner/other"}, "c": {"path": "owner/unused"}}
TEXT = {
    "source": {"_target_": "fedfusion.tasks.source.Hub", "datasets": HUB},
    "encoder": {"_target_": "fedfusion.tasks.encode.Text"},
    "tasks": ["a", "b"],
}
DIGITS = {"_target_": "fedfusion.tasks.digits.Digits8", "tasks": ["a", "b"]}
HEADER = ["base", "fused received", "realigned"]


def results(suite=DIGITS, measure="accuracy", model=None, **config):
    tasks = {"a": {"base": {"accuracy": 0.1}, "realigned": {"accuracy": 0.9}}, "b": {"realigned": {"accuracy": 0.4}}}
    stages = {stage: {"_target_": f"x.{name}"} for stage, name in STAGES.items()}
    model = {"path": "owner/base", "auto": "AutoModel", "load": {}, "pooling": "mean", "num_virtual_tokens": 0} | (
        model or {}
    )
    plain = {"suite": suite, "model": model, "aggregate_within": "task", "server": {"strategy": {"_target_": None}}}
    return {
        "seed": 3,
        "command": "fedfusion run some=thing",
        "versions": {"fedfusion": "1.2.3"},
        "metrics": {"measure": measure, "num_clients": 4, "tasks": tasks},
        "config": plain | stages | config,
    }


STAGES = {
    "channel": "Awgn",
    "coupling": "Isolated",
    "aggregator": "Median",
    "fusion": "Ties",
    "realign": "FewShot",
}


def loaded(tmp_path, found, header=HEADER):
    """The card as the hub's own library reads it from the disk."""
    folder = tmp_path / "run-7"
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    page = card.text(found, folder, header, [("a", ["0.100", "0.500", "0.900"])], ["a note"])
    (folder / "adapter" / "README.md").write_text(page)
    return ModelCard.load(folder / "adapter" / "README.md")


def test_the_hub_finds_the_score_of_each_task_and_their_mean(tmp_path):
    page = loaded(tmp_path, results())
    found = {score.dataset_name: score for score in page.data.eval_results}
    assert {name: score.metric_value for name, score in found.items()} == {"a": 0.9, "b": 0.4, "mean of 2 tasks": 0.65}
    assert {(s.task_type, s.metric_type, s.dataset_split) for s in found.values()} == {
        ("image-classification", "accuracy", "test")
    }
    assert page.data.base_model == "owner/base" and page.data.library_name == "peft"
    assert page.data.model_name == "run-7" and "lora" in page.data.tags and "license" not in page.data.to_dict()
    assert "fedfusion run some=thing" in page.text and "| a | 0.100 | 0.500 | 0.900 |" in page.text
    assert "- a note\n" in page.text and "from 4 devices" in page.text


def test_data_sets_of_the_hub_are_named_and_none_else(tmp_path):
    page = loaded(tmp_path, results(TEXT))
    assert page.data.datasets == ["owner/set", "owner/other"]
    first, second, mean = page.data.eval_results
    assert (first.dataset_type, first.dataset_config) == ("owner/set", "one")
    assert (second.dataset_type, second.dataset_config) == ("owner/other", None)
    assert mean.dataset_type == "mean of 2 tasks" and first.task_type == "text-classification"
    assert loaded(tmp_path, results(TEXT | {"tasks": []})).data.datasets == ["owner/set", "owner/other", "owner/unused"]
    assert "datasets" not in loaded(tmp_path, results()).data.to_dict()
    local = TEXT | {"source": {"datasets": {"a": {"path": "/my/data"}, "b": {"path": "owner/b"}}}}
    assert loaded(tmp_path, results(local)).data.datasets == ["owner/b"]


def test_tasks_of_one_data_set_keep_their_names_and_scores(tmp_path):
    suite = TEXT | {"source": {"datasets": {"a": {"path": "owner/set"}, "b": {"path": "owner/set"}}}}
    found = loaded(tmp_path, results(suite)).data.eval_results
    assert [(score.dataset_name, score.metric_value) for score in found[:2]] == [("a", 0.9), ("b", 0.4)]


@pytest.mark.parametrize(
    "suite, measure, expected",
    [
        ({"_target_": "fedfusion.tasks.suite.Files", "tasks": []}, "exact match", ("text-generation", "exact_match")),
        ({"_target_": "fedfusion.tasks.suite.Files", "tasks": []}, "accuracy", ("other", "accuracy")),
        (TEXT | {"encoder": {"_target_": "fedfusion.tasks.encode.Image"}}, "accuracy", ("image-classification",) * 2),
    ],
)
def test_the_kind_of_task_is_what_is_known_of_it(tmp_path, suite, measure, expected):
    found = loaded(tmp_path, results(suite, measure)).data.eval_results[0]
    assert found.task_type == expected[0] and (found.metric_type == expected[1] or measure == "accuracy")


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {},
            "uploaded them over a simulated uplink (`Awgn`). The server aggregated them within each task (`Median`) "
            "and fused the results across the tasks (`Ties`), and then realigned it on a few labelled samples "
            "(`FewShot`).",
        ),
        (
            {"channel": {"_target_": "x.Ideal"}, "realign": {"_target_": "x.Unaligned"}},
            "uploaded them. The server aggregated them within each task (`Median`) and fused the results across the "
            "tasks (`Ties`). It was not realigned.",
        ),
        (
            {"aggregate_within": "federation", "realign": {"_target_": "x.FewShot", "loss": "entropy"}},
            "aggregated them all together (`Median`) and fused the results across the tasks (`Ties`), and then "
            "realigned it on a few unlabelled samples (`FewShot`).",
        ),
        (
            {"coupling": {"_target_": "x.Stacking"}, "realign": {"_target_": "x.Unaligned"}},
            "The server added the mean of their products to every device's base in each round; this adapter is the "
            "sum. It was not realigned.",
        ),
        (
            {"server": {"strategy": {"_target_": "flwr.serverapp.strategy.FedMedian"}}},
            "uploaded them over a simulated uplink (`Awgn`). `FedMedian`, a strategy of Flower's, made one adapter of "
            "all of them, whatever their task; nothing was fused task by task, and nothing realigned.",
        ),
    ],
)
def test_the_card_says_what_became_of_the_uploads(changes, said):
    assert card.made(results(**changes)).endswith(said)


def test_a_server_that_does_nothing_claims_nothing(tmp_path):
    stock = results(server={"strategy": {"_target_": "flwr.serverapp.strategy.FedAvg"}})
    page = loaded(tmp_path, stock, header=HEADER[:-1]).text
    assert "*fused received* is this adapter" in page and "Ties" not in page and "FewShot" not in page
    assert "*realigned* is this adapter" in loaded(tmp_path, results()).text


def test_heads_are_explained_where_there_are_any(tmp_path):
    assert "heads.safetensors" not in loaded(tmp_path, results()).text
    (tmp_path / "run-7" / "adapter" / "heads.safetensors").touch()
    assert "(the mean over the tokens of the last hidden state)" in loaded(tmp_path, results()).text


def test_a_prompt_is_not_called_a_lora(tmp_path):
    page = loaded(tmp_path, results(model={"num_virtual_tokens": 8}))
    assert "A prompt of 8 virtual tokens for `owner/base`" in page.text and "lora" not in page.data.tags


@pytest.mark.parametrize(
    "path, named, line",
    [
        ("owner/base", "owner/base", "location = PeftConfig.from_pretrained(adapter).base_model_name_or_path"),
        ("/home/me/models/gpt2", None, "location = PeftConfig.from_pretrained(adapter).base_model_name_or_path"),
        ("vit-glyphs", None, 'location = locate("vit-glyphs")'),
    ],
)
def test_the_base_is_found_by_whoever_has_the_card(tmp_path, path, named, line):
    page = loaded(tmp_path, results(model={"path": path, "load": {"add_pooling_layer": False}}))
    assert page.data.to_dict().get("base_model") == named and line in page.text and "/models" not in page.text
    assert "AutoModel.from_pretrained(location, add_pooling_layer=False)" in page.text
