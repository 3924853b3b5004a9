import torch

from fedfusion.optimizers import Plain


def test_the_step_is_the_change(rng):
    change = torch.randn(3, 4, generator=rng)
    step, moments = Plain()(change, torch.zeros(Plain.num_moments, 3, 4))
    assert torch.equal(step, change) and moments.shape == (0, 3, 4)
