import io
import re
from dataclasses import dataclass

import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from rich.console import Console

from fedfusion.fusion import TaskArithmetic
from fedfusion.offline import card

PREFIX = "base_model.model."
PER_TASK = "per_task/ holds what the rule has for each task alone"


def facts(**changes):
    shares = {f"{PREFIX}layer.{i}": 0.01 * i for i in range(12)}
    merged = {"rank": 4, "norm": 1.25, "discarded": 0.11, "discarded_most_in": f"{PREFIX}layer.11"}
    rows = [
        {"name": name, "source": f"runs/{name}", "sha256": 64 * name, "rank": 2, "norm": 0.5, "cosine": 0.25}
        for name in "ab"
    ]
    return {
        "fedfusion": "1.2.3",
        "command": "fedfusion merge runs/a runs/b --out o",
        "out": "o",
        "base": "/models/base: 'one'",
        "adapters": rows,
        "merged": merged | {"discarded_by_module": shares},
        "per_task": {},
        "heads": [],
        "contradicted_heads": [],
        "config": {"fusion": {"_target_": "fedfusion.fusion.TaskArithmetic", "coefficient": 0.7}, "rank": 4, "seed": 0},
    } | changes


def test_the_hub_reads_the_metadata_whatever_the_base_is_called():
    data = ModelCard(card.text(facts(base="owner/base-1"), TaskArithmetic())).data.to_dict()
    assert (
        data["library_name"] == "peft" and data["base_model"] == "owner/base-1" and {"lora", "merge"} < {*data["tags"]}
    )
    for no_name in (
        "/models/base: 'one'",
        "",
        "/models/gpt2",
        "vit-glyphs",
    ):  # the hub refuses a card that names what cannot be there
        page = card.text(facts(base=no_name), TaskArithmetic())
        assert "base_model" not in ModelCard(page).data.to_dict() and ("base: 'one'" in page) == ("one" in no_name)


def test_the_card_says_what_was_done_to_what():
    page = card.text(facts(), TaskArithmetic())
    assert "    fedfusion merge runs/a runs/b --out o\n" in page and "made by fedfusion 1.2.3" in page
    for name in "ab":
        assert f"| {name} (`runs/{name}`) | 2 | 0.5 | 0.250 | `{64 * name}` |" in page
    assert OmegaConf.create(re.search(r"```yaml\n(.*?)```", page, re.S)[1]) == facts()["config"]
    assert "arxiv.org/abs/2212.04089" in page and "/models" not in page


def test_the_modules_that_lose_most_come_first_and_not_all_of_them():
    listed = re.findall(r"^\| (layer\.\d+) \| ([\d.]+) % \|$", card.text(facts(), TaskArithmetic()), re.M)
    assert listed == [(f"layer.{i}", f"{i}.00") for i in range(11, 3, -1)]
    nothing = facts()["merged"] | {"discarded": 1e-9, "discarded_by_module": {f"{PREFIX}layer.0": 1e-9}}
    page = card.text(facts(merged=nothing), TaskArithmetic())
    assert "lose most" not in page and "rank 4 loses nothing of the fused products" in page


def test_the_documentation_of_a_rule_becomes_markdown():
    @dataclass(frozen=True)
    class Rule:
        r"""One line with :math:`\lambda` and :class:`fedfusion.types.Layout`.

        .. math:: \tau = x \\
                  + y

        More.

        Parameters
        ----------
        coefficient
            Not shown.

        References
        ----------
        Somebody, "Something", 2024,
        https://arxiv.org/abs/0000.00000
        """

    description, reference = card.documented(Rule())
    assert description == (
        "One line with `\\lambda` and `fedfusion.types.Layout`.\n\n    \\tau = x \\\\\n          + y"
    )
    assert reference == 'Somebody, "Something", 2024, https://arxiv.org/abs/0000.00000'


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, ["rank 4 discards up to 11.0% of a module's energy, most in layer.11 (rank=null loses nothing)"]),
        ({"heads": ["x", "y"]}, ["heads.safetensors holds the heads of x, y"]),
        ({"contradicted_heads": ["z"]}, ["the adapters have different heads for z: it has none here"]),
        ({"per_task": {"a": {"discarded": 0.0}}}, [PER_TASK]),
        (
            {"per_task": {"a": {"discarded": 0.0}, "b": {"discarded": 0.2}}},
            [f"{PER_TASK}, whose ranks discard up to 20.0% of a module's energy"],
        ),
    ],
)
def test_notes_say_what_the_table_does_not(changes, said):
    assert card.notes(facts(**changes))[-1:] == said


def evaluation(**scores):
    return {
        "measure": "accuracy",
        "config": {"suite": {"_target_": "fedfusion.tasks.suite.Files"}, "model": {"path": "owner/base"}},
        "tasks": {task: {"base": {"accuracy": 0.1}, "adapter": {"accuracy": score}} for task, score in scores.items()},
    }


def listed(folder):
    found = ModelCard.load(folder / "README.md").data.eval_results
    return {(score.dataset_name, score.metric_value) for score in found}


def test_scores_enter_a_card_that_is_there_and_replace_their_own_kind(tmp_path):
    page = card.text(facts(), TaskArithmetic())
    (tmp_path / "README.md").write_text(page)
    card.add_scores(tmp_path, evaluation(one=0.5, two=0.75))
    assert listed(tmp_path) == {("one", 0.5), ("two", 0.75), ("mean of 2 tasks", 0.625)}
    card.add_scores(tmp_path, evaluation(two=1.0, three=0.5))
    assert listed(tmp_path) == {("one", 0.5), ("two", 1.0), ("three", 0.5), ("mean of 2 tasks", 0.75)}
    text = (tmp_path / "README.md").read_text()
    assert text.endswith(page.partition("\n---\n")[2]) and "merge" in ModelCard(text).data.tags


def test_scores_make_a_card_where_there_is_none(tmp_path):
    card.add_scores(tmp_path, evaluation(one=0.5))
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "owner/base" and data.model_name == tmp_path.name and data.library_name == "peft"
    assert listed(tmp_path) == {("one", 0.5), ("mean of 1 task", 0.5)}


def test_names_in_square_brackets_are_printed_as_they_are():
    console = Console(record=True, width=80, file=io.StringIO())
    rows = [row | {"name": f"[{row['name']}]"} for row in facts()["adapters"]]
    card.show_merge(facts(adapters=rows), console)
    assert "[a]" in console.export_text()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_number_of_an_evaluation_is_cut_on_a_narrow_terminal(width):
    tasks = {f"flipped-digit-{i}": {"base": i / 10, "adapter": 0.5 + i / 10} for i in range(3)}
    results = {
        "measure": "exact match",
        "tasks": {t: {n: {"accuracy": s, "loss": 12 + s} for n, s in own.items()} for t, own in tasks.items()},
        "mean": {"base": 0.111, "adapter": 0.222},
        "worst": {"base": 0.333, "adapter": 0.444},
    }
    console = Console(record=True, width=width, file=io.StringIO())
    card.show_evaluation(results, console)
    lines = console.export_text().splitlines()
    words = " ".join(lines).split()
    assert lines[0] == "test exact match" and max(map(len, lines)) <= width
    numbers = [f"{12 * loss + s:.3f}" for own in tasks.values() for s in own.values() for loss in (0, 1)]
    assert {*numbers, *tasks, "0.111", "0.222", "0.333", "0.444"} < {*words}
    assert words.count("flipped-digit-0") == (2 if width == 40 else 1)


@pytest.mark.parametrize("width", [40, 80])
def test_no_number_of_a_merge_is_cut_on_a_narrow_terminal(width):
    console = Console(record=True, width=width, file=io.StringIO())
    rows = [row | {"name": f"client-{row['name']}/adapter", "norm": 0.1234} for row in facts()["adapters"]]
    card.show_merge(facts(adapters=rows), console)
    words = console.export_text().split()
    assert {"client-a/adapter", "client-b/adapter", "0.1234", "0.250", "merged", "1.25", "norm", "cosine"} < {*words}
