import pytest
import torch

from fedfusion.attacks import Honest, SignFlipping
from fedfusion.types import FedfusionError


def test_only_byzantine_rows_are_flipped(updates, rng):
    before = updates.vectors.clone()
    sent = SignFlipping(f=2, scale=3.0)(updates, (1, 4), rng)
    assert torch.equal(sent.vectors[[1, 4]], -3.0 * before[[1, 4]])
    assert torch.equal(sent.vectors[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert torch.equal(updates.vectors, before)


def test_without_byzantine_clients_it_is_no_attack(updates, rng):
    assert torch.equal(SignFlipping(f=0)(updates, (), rng).vectors, Honest()(updates, (), rng).vectors)


def test_a_round_without_uploads_is_no_error(updates, rng):
    assert len(SignFlipping(f=1)(updates.keep([]), (1,), rng)) == 0


@pytest.mark.parametrize("settings", [{"f": -1}, {"f": 1, "scale": 0.0}])
def test_meaningless_settings_are_refused(settings):
    with pytest.raises(FedfusionError, match="attack"):
        SignFlipping(**settings)
