import pytest
import torch
from tiny import gpt2, samples

from fedfusion.client.train import evaluate
from fedfusion.lora.model import LoraModel
from fedfusion.server.evaluation import Evaluator


class Words:
    """One task whose responses are words, one per token."""

    tasks = ("t",)

    def __init__(self, data):
        self.data = data

    def root(self, task, seed):
        return self.data

    def test(self, task):
        return self.data

    def decode(self, ids):
        return " ".join(f"W{token}!" for token in ids)


@pytest.fixture
def model(tmp_path):
    return LoraModel(gpt2(tmp_path), seed=0)


def half_right(model, adapter, rng):
    """Rows of which every other has the response that the model generates."""
    data = samples("gpt2", 12, rng)
    for row, made in enumerate(model.generate(adapter, data, 2)):
        if row % 2 == 0 and len(made) == 2:
            data.inputs["input_ids"][row, data.labels[row] != -100] = torch.tensor(made)
            data.labels[row, data.labels[row] != -100] = torch.tensor(made)
    return data


def common(a, b):
    """Length of the longest common subsequence."""
    if not a or not b:
        return 0
    same = a[-1] == b[-1]
    return max(common(a[:-1], b[:-1]) + same, common(a[:-1], b), common(a, b[:-1]))


def test_an_exact_match_of_what_is_generated_is_an_accuracy(model, rng):
    adapter = model.initial + torch.randn(model.layout.dim, generator=rng)
    data = half_right(model, adapter, rng)
    evaluator = Evaluator(Words(data), model, 0)
    for rows in (5, 12, 99):
        part = data.take(torch.arange(min(rows, 12)))
        found = evaluator.exact_match(model, adapter, "t", rows)
        assert 0.2 < found < 1 and found == evaluate(model, adapter, part, evaluator.heads["t"])["accuracy"]


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(model, rng):
    adapter = model.initial + torch.randn(model.layout.dim, generator=rng)
    data = half_right(model, adapter, rng)
    expected = []
    for row, made in enumerate(model.generate(adapter, data, 2)):
        given = data.labels[row][data.labels[row] != -100].tolist()
        expected.append(2 * common(made, given) / (len(made) + len(given)))
    found = Evaluator(Words(data), model, 0).rouge_l(model, adapter, "t", 12)
    assert found == pytest.approx(sum(expected) / 12) and 0.2 < found < 1
