from dataclasses import dataclass

import pytest
import torch

from fedfusion.realign import FewShot, Unaligned
from fedfusion.types import FedfusionError


@dataclass
class Parabola:
    """A root set whose loss is the squared distance to a known adapter."""

    target: torch.Tensor

    def __len__(self):
        return 10

    def loss(self, adapter, rows):
        assert len(rows) == 4
        return (adapter - self.target).square().mean()


def test_it_walks_towards_the_optimum_and_leaves_its_input_alone(rng):
    probe, fused = Parabola(torch.ones(3)), torch.zeros(3)
    tuned = FewShot(steps=200, lr=0.05, batch_size=4)(fused, torch.zeros(0, 0), probe, rng)
    assert (tuned - probe.target).abs().max() < 0.05 and not fused.any() and not tuned.requires_grad


def test_no_steps_is_no_realignment(rng):
    fused = torch.randn(3, generator=rng)
    for realign in (FewShot(steps=0), Unaligned()):
        assert torch.equal(realign(fused, torch.zeros(0, 0), Parabola(torch.ones(3)), rng), fused)


def test_meaningless_settings_are_refused():
    with pytest.raises(FedfusionError, match="realign.steps"):
        FewShot(steps=-1)
