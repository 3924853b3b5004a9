"""The programs on lists, and the small language model that was made for them."""

from itertools import islice, product

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedfusion import assets
from fedfusion.rng import generator
from fedfusion.tasks.lists import DIGITS, LETTERS, PRETRAINING, PROGRAMS, SUITE, TREE, Lists, examples
from fedfusion.types import FedfusionError

BY_HAND = {
    "reverse-digits": ("3 1 4 1 5", "5 1 4 1 3"),
    "reverse-letters": ("c a f e", "e f a c"),
    "sort-down-digits": ("3 1 4 1 5", "5 4 3 1 1"),
    "sort-down-letters": ("c a f e", "f e c a"),
    "keep-even-digits": ("3 1 4 0 5", "4 0"),
    "keep-vowel-letters": ("c a f e i", "a e i"),
    "drop-end-digits": ("3 1 4 1 5", "1 4 1"),
    "drop-end-letters": ("c a f e", "a f"),
    "add-1-digits": ("3 1 4 9 0", "4 2 5 0 1"),
    "add-1-letters": ("c a f j", "d b g a"),
    "double-digits": ("3 1 4 1", "3 3 1 1 4 4 1 1"),
    "double-letters": ("c a f e", "c c a a f f e e"),
    "count-even-digits": ("3 1 4 0 5", "2"),
    "count-vowel-letters": ("c a f e i", "3"),
    "pick-largest-digits": ("3 1 4 1 5 0", "5"),
    "pick-largest-letters": ("c a f e", "f"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(assets.find("gpt2-lists"))


def test_every_program_does_what_its_name_says():
    assert set(BY_HAND) == set(PROGRAMS) == set(SUITE) == set(Lists().tasks)
    for task, (given, expected) in BY_HAND.items():
        assert " ".join(PROGRAMS[task](given.split())) == expected, task
    assert (
        next(r for r in examples("keep-even-digits", generator(0)) if not set(r["input"]) & set("02468"))["output"]
        == "none"
    )


@pytest.mark.parametrize("task", ["keep-even-digits", "pick-largest-letters"])
def test_no_input_is_in_two_splits_nor_twice(task):
    suite = Lists(num_train=50, num_root=5, num_test=20)
    splits = {split: suite.rows(task, split) for split in ("train", "root", "validation", "test")}
    assert [len(rows) for rows in splits.values()] == [50, 5, 20, 20]
    inputs = [given for rows in splits.values() for given in rows["input"]]
    assert len(set(inputs)) == 95
    assert suite.rows(task, "test").to_list() == splits["test"].to_list()
    assert Lists(num_train=99, num_root=5, num_test=20).rows(task, "test").to_list() == splits["test"].to_list()
    assert splits["test"].column_names == ["instruction", "input", "output"]
    assert all(rows["output"] for rows in splits.values())


def test_the_relation_is_that_of_the_tree():
    suite = Lists()
    relation = torch.tensor([[suite.relation(a, b) for b in suite.tasks] for a in suite.tasks])
    assert torch.equal(relation, relation.T) and torch.equal(relation.diag(), torch.ones(16))
    assert torch.linalg.eigvalsh(relation).min() > 0  # a similarity: also positive definite
    assert suite.relation("reverse-digits", "reverse-letters") == 0.75
    assert suite.relation("reverse-digits", "sort-down-letters") == 0.5
    assert suite.relation("reverse-digits", "add-1-digits") == 0
    assert sorted(task for branches in TREE.values() for pair in branches.values() for task in pair) == sorted(PROGRAMS)


def test_the_base_was_taught_other_programs_in_the_same_words():
    assert not set(PRETRAINING) & set(PROGRAMS)
    for alphabet, kind in ((DIGITS, "digits"), (LETTERS, "letters")):
        draws = torch.randint(10, (200, 6), generator=generator(0, "test", kind)).tolist()
        lists = [[alphabet[i] for i in draw] for draw in draws]
        taught, asked = (
            {name: [run(x) for x in lists] for name, run in programs.items() if name.endswith(kind)}
            for programs in (PRETRAINING, PROGRAMS)
        )
        same = [(a, b) for a, b in product(asked, taught) if asked[a] == taught[b]]
        assert not same
    words = [{word for name in programs for word in name.split("-")} for programs in (PROGRAMS, PRETRAINING)]
    assert words[0] - words[1] <= {"1"}, "a word of the suite that the base has never seen"


def test_the_tokenizer_gives_every_row_back(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for task in (*PROGRAMS, *PRETRAINING):
        for row in islice(examples(task, generator(0, "test", task)), 20):
            prompt, response = f"{row['instruction']}: {row['input']} =", f" {row['output']}"
            ids = tokenizer(prompt + response)["input_ids"]
            assert ids == tokenizer(prompt)["input_ids"] + tokenizer(response)["input_ids"]
            assert tokenizer.unk_token_id not in ids and len(ids) < 32
            assert tokenizer.decode(ids) == prompt + response


def test_the_shipped_model_loads_and_runs_what_it_was_taught(tokenizer):
    folder = assets.find("gpt2-lists")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4e6
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.vocab_size == len(tokenizer) and model.config.eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer("swap first digits: 3 1 4 1 5 =", return_tensors="pt")
    reply = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply, skip_special_tokens=True) == " 1 3 4 1 5"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["revers-digits"]}, "suite.source.tasks: .*reverse-digits"),
        ({"tasks": []}, "suite.source.tasks"),
        ({"tasks": ["add-1-digits"] * 2}, "suite.source.tasks"),
        ({"num_train": 0}, "suite.source.num_train"),
    ],
)
def test_meaningless_settings_are_refused(settings, message):
    with pytest.raises(FedfusionError, match=message):
        Lists(**settings)


def test_an_unknown_split_is_refused():
    with pytest.raises(FedfusionError, match="train"):
        Lists().rows("reverse-digits", "dev")
