import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.rng import generator, seed_of

labels = st.lists(st.one_of(st.integers(0, 10**6), st.text(max_size=8)), max_size=4)


@given(st.integers(0, 2**31), labels)
def test_the_same_name_gives_the_same_bits(seed, name):
    first, second = (torch.randn(4, generator=generator(seed, *name)) for _ in range(2))
    assert torch.equal(first, second)


@given(st.integers(0, 1000), labels, labels)
def test_different_names_give_different_seeds(seed, name, other):
    assert (seed_of(seed, *name) == seed_of(seed, *other)) == (name == other)


def test_labels_do_not_run_together():
    assert seed_of(0, "train", 1, 12) != seed_of(0, "train", 11, 2)
