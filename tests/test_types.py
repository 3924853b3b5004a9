import pytest
import torch

from fedfusion.types import FedfusionError, Layout


def test_unflatten_inverts_flatten(layout, rng):
    vector = torch.randn(layout.dim, generator=rng)
    assert torch.equal(layout.flatten(layout.unflatten(vector)), vector)


def test_unflatten_gives_views(layout):
    vector = torch.zeros(layout.dim)
    layout.unflatten(vector)["y.B"].fill_(1.0)
    assert vector.sum() == 12


def test_entries_of_a_matrix_keep_its_rows(layout, rng):
    vectors = torch.randn(3, layout.dim, generator=rng)
    assert torch.equal(layout.entry(vectors, 2)[1], layout.unflatten(vectors[1])["y.A"])


def test_flatten_names_the_entry_that_differs(layout):
    state = layout.unflatten(torch.zeros(layout.dim)) | {"x.B": torch.zeros(7, 3)}
    with pytest.raises(FedfusionError, match=r"'x.B' has shape \(7, 3\), the layout expects \(7, 2\)"):
        layout.flatten(state)


def test_difference_names_the_first_entry(layout):
    other = Layout(("x.A",), ((2, 5),))
    assert layout.difference(layout) is None
    assert layout.difference(other) == "'x.B' is (7, 2) here and absent there"


def test_keep_takes_every_column(updates):
    kept = updates.keep([4, 1])
    assert kept.clients == (4, 1) and kept.tasks == ("c", "a") and len(kept) == 2
    assert torch.equal(kept.vectors, updates.vectors[[4, 1]])
