import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ARCHITECTURES, bert, samples

from fedfusion.lora.cohort import PASS, buckets
from fedfusion.lora.model import LoraModel
from fedfusion.types import FedfusionError, Samples


def text(lengths):
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return Samples({"input_ids": mask, "attention_mask": mask}, torch.zeros(len(lengths), dtype=torch.long))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 6), st.integers(1, 600), st.booleans())
def test_buckets_hold_every_row_once_within_the_budget(lengths, clients, max_tokens, whole):
    data = text(lengths)
    owner = torch.arange(len(lengths)) * clients // len(lengths)
    cuts = buckets(data, owner, max_tokens, 1, whole)
    assert sorted(torch.cat(cuts).tolist()) == list(range(len(lengths)))
    for rows in cuts:
        own, longest = data.lengths[rows], int(data.lengths[rows].max())
        assert (owner[rows].diff() >= 0).all()
        if not whole:
            assert len(rows) == 1 or len(rows) * longest <= max_tokens
            assert bool((data.lengths == data.lengths[0]).all()) or int((longest - own).sum()) <= PASS


def test_samples_of_one_length_are_cut_between_clients():
    owner = torch.arange(4).repeat_interleave(5)
    assert [len(rows) for rows in buckets(text([10] * 20), owner, 120, 1)] == [10, 10]
    images = Samples({"pixel_values": torch.zeros(20, 1, 8, 8)}, torch.zeros(20, dtype=torch.long))
    assert [len(rows) for rows in buckets(images, owner, 16 * 17, 17)] == [15, 5]


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_an_adapter_baked_into_the_base_is_that_adapter(kind, tmp_path, rng):
    spec = ARCHITECTURES[kind](tmp_path)
    model, untouched = LoraModel(spec, seed=0), LoraModel(spec, seed=0)
    data, owner = samples(kind, 6, rng), torch.zeros(6, dtype=torch.long)
    adapter = model.initial + 0.1 * torch.randn(model.layout.dim, generator=rng)
    with torch.no_grad():
        expected, _, _ = model.features(adapter[None], data, owner)
        for _ in range(2):  # in place of what was baked before, not on top of it
            model.bake(adapter, model.layout)
        baked, _, _ = model.features(model.initial[None], data, owner)
        base, _, _ = untouched.features(model.initial[None], data, owner)
    torch.testing.assert_close(baked, expected, rtol=1e-4, atol=1e-5)
    assert (base - expected).abs().max() > 1e-3


def test_only_the_cohort_engine_bakes(tmp_path):
    model = LoraModel(bert(tmp_path), seed=0, engine="peft")
    with pytest.raises(FedfusionError, match="client.engine=cohort"):
        model.bake(model.initial, model.layout)
