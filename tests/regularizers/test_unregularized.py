import torch

from fedfusion.regularizers import Unregularized


def test_it_is_nothing(layout, rng):
    params = torch.randn(3, layout.dim, generator=rng)
    penalty = Unregularized()(params, params, params[:0], torch.zeros(3, dtype=torch.long), layout)
    assert torch.equal(penalty, torch.zeros(3)) and not Unregularized.needs_tasks
