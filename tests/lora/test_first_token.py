import pytest
import torch
from tiny import ARCHITECTURES, samples
from transformers import AutoModel

from fedfusion.lora.first_token import FIRST_TOKEN


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_pruned_layer_gives_the_first_token_of_the_whole_one(kind, attention, tmp_path, rng):
    spec = ARCHITECTURES[kind](tmp_path)
    data = samples(kind, 5, rng)
    model = AutoModel.from_pretrained(spec.path, attn_implementation=attention, **spec.load)
    layers = model.encoder.layer if kind == "bert" else model.layers
    with torch.no_grad():
        whole = model(**data.inputs).last_hidden_state
        layers[-1] = FIRST_TOKEN[type(layers[-1]).__name__](layers[-1])
        pruned = model(**data.inputs).last_hidden_state
    assert pruned.shape[1] == 1
    torch.testing.assert_close(pruned[:, 0], whole[:, 0])
