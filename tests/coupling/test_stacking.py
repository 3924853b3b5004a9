import torch

from fedfusion.coupling import Stacking
from fedfusion.types import Clients


def test_everyone_begins_a_fresh_adapter(layout, rng):
    initial, adapters = torch.randn(layout.dim, generator=rng), torch.randn(4, layout.dim, generator=rng)
    clients = Clients(layout, ("a",) * 4, initial, torch.ones(4, 4))
    fresh, report = Stacking()(adapters, torch.tensor([1, 2]), torch.tensor([0.5, 0.5]), clients, rng)
    assert Stacking().into_base and torch.equal(fresh, initial.repeat(4, 1)) and not report
