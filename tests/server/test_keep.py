import pytest
import torch
from inline import run
from safetensors.torch import load_file

from fedfusion.config import resolve
from fedfusion.validation import ConfigErrors

NOISY = ["channel=awgn", "channel.jsr_db=34", "guard=finite", "suite.trusted=16"]  # some rounds are worse than others


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keep") / "best"
    return folder, run(folder, *NOISY, "keep=best", "rounds=3")


def test_the_best_round_is_that_of_the_least_loss_on_the_servers_samples(best):
    folder, metrics = best
    losses = [record["held_out_loss"] for record in metrics["rounds"]]
    assert metrics["kept_round"] == losses.index(min(losses)) + 1 < 3
    kept, last = adapter(folder / "adapter"), adapter(folder / "last")
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    assert metrics["mean"]["realigned"] == metrics["rounds"][metrics["kept_round"] - 1]["mean"]["realigned"]


@pytest.mark.slow
def test_it_is_the_model_of_a_run_that_ended_there(best, tmp_path):
    folder, metrics = best
    shorter = run(tmp_path / "shorter", *NOISY, f"rounds={metrics['kept_round']}")
    assert shorter["kept_round"] == metrics["kept_round"]
    assert {task: scores["realigned"] for task, scores in shorter["tasks"].items()} == {
        task: scores["realigned"] for task, scores in metrics["tasks"].items()
    }
    kept, same = adapter(folder / "adapter"), adapter(tmp_path / "shorter" / "adapter")
    assert all(torch.equal(kept[name], same[name]) for name in kept) and not (tmp_path / "shorter" / "last").exists()


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["suite.trusted=0", "guard=finite"], "keep=best compares rounds on labelled samples"),
        (["client.train_head=true"], "keep=best: heads that clients train are of the last round"),
        (["method=flora"], "keep=best: with coupling=stacking"),
        (["server.strategy._target_=flwr.serverapp.strategy.FedAvg"], "keep=best: it keeps the last model"),
    ],
)
def test_where_there_is_no_best_it_is_refused(overrides, sentence):
    with pytest.raises(ConfigErrors) as caught:
        resolve(["keep=best", *overrides])
    assert sentence in str(caught.value)
