import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, ViTConfig, ViTModel

from fedfusion.lora import product
from fedfusion.lora.model import LoraModel, Model
from fedfusion.types import FedfusionError

LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "fc1"]}
LOAD = {"add_pooling_layer": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picoscopic vision transformer with random weights."""
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    tiny = ViTConfig(**sizes, num_channels=1, num_attention_heads=2)
    path = tmp_path_factory.mktemp("tiny")
    ViTModel(tiny, add_pooling_layer=False).save_pretrained(path)
    return path


@pytest.fixture
def images(rng):
    return {"pixel_values": torch.randn(5, 1, 8, 8, generator=rng)}


def adapter_of(model, rng):
    return model.read() + 0.1 * torch.randn(model.layout.dim, generator=rng)


def test_the_layout_knows_every_pair(folder):
    layout = LoraModel(Model(str(folder), LORA, LOAD), seed=0).layout
    assert len(layout.pairs) == 4 and all(pair.scale == 2.0 for pair in layout.pairs)
    for pair in layout.pairs:
        assert layout.names[pair.a].endswith("lora_A.weight") and layout.names[pair.b].endswith("lora_B.weight")
        assert layout.shapes[pair.a][0] == layout.shapes[pair.b][1] == 3


def test_a_fresh_adapter_changes_nothing_and_is_named_by_its_seed(folder, images):
    spec = Model(str(folder), LORA, LOAD)
    model = LoraModel(spec, seed=0)
    base = AutoModel.from_pretrained(folder, **LOAD)
    with torch.no_grad():
        torch.testing.assert_close(model.features(images), base(**images).last_hidden_state[:, 0])
    assert torch.equal(model.read(), LoraModel(spec, seed=0).read())
    assert not torch.equal(model.read(), LoraModel(spec, seed=1).read())


def test_reading_writing_and_calling_as_a_function_agree(folder, images, rng):
    model = LoraModel(Model(str(folder), LORA, LOAD), seed=0)
    adapter = adapter_of(model, rng)
    with torch.no_grad():
        functional = model.features(images, adapter)
        assert not torch.equal(model.read(), adapter)
        model.write(adapter)
        torch.testing.assert_close(model.features(images), functional)
    assert torch.equal(model.read(), adapter)


def test_gradients_of_the_parameters_land_in_the_flat_vector(folder, images, rng):
    model = LoraModel(Model(str(folder), LORA, LOAD), seed=0)
    model.write(adapter_of(model, rng))
    model.features(images).square().sum().backward()
    leaf = model.read().requires_grad_()
    model.features(images, leaf).square().sum().backward()
    torch.testing.assert_close(model.flat.grad, leaf.grad, rtol=1e-4, atol=1e-5)
    assert leaf.grad.abs().max() > 0


def test_peft_loads_what_is_saved_and_it_can_be_read_back(folder, images, rng, tmp_path):
    model = LoraModel(Model(str(folder), LORA, LOAD), seed=0)
    adapter = adapter_of(model, rng)
    model.save(tmp_path, adapter)
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(folder, **LOAD), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**images).last_hidden_state[:, 0], model.features(images, adapter))
    assert torch.equal(model.load(tmp_path), adapter)


def test_an_adapter_of_another_rank_is_refused(folder, tmp_path):
    model = LoraModel(Model(str(folder), LORA, LOAD), seed=0)
    model.save(tmp_path, model.read())
    other = LoraModel(Model(str(folder), LORA, LOAD), seed=0, rank=5)
    with pytest.raises(FedfusionError, match=r"has shape \(3, 8\), the layout expects \(5, 8\)"):
        other.load(tmp_path)


def test_the_sum_of_products_is_the_sum_of_merged_weights(folder, images, rng):
    """Oracle: peft's own merged weights, added up by hand, against stacking in core space."""
    spec = Model(str(folder), LORA, LOAD)
    model = LoraModel(spec, seed=0)
    adapters = torch.stack([adapter_of(model, rng) for _ in range(2)])
    wide = LoraModel(spec, seed=0, rank=6)
    core = product.CoreSpace.of(model.layout, adapters)
    fused, _ = core.to_adapter(core.project(model.layout, adapters).sum(0), wide.layout)
    base = AutoModel.from_pretrained(folder, **LOAD)
    total = {name: weight.clone() for name, weight in base.state_dict().items()}
    for adapter in adapters:
        model.write(adapter)
        for pair in model.layout.pairs:
            layer = model.module.get_submodule(pair.module)
            total[pair.module.removeprefix("base_model.model.") + ".weight"] += layer.get_delta_weight("default")
    base.load_state_dict(total)
    with torch.no_grad():
        expected = base(**images).last_hidden_state[:, 0]
        torch.testing.assert_close(wide.features(images, fused), expected, rtol=1e-4, atol=1e-4)


def test_models_share_one_frozen_base(folder):
    first, second = (LoraModel(Model(str(folder), LORA, LOAD), seed=s) for s in (0, 1))
    weights = [m.module.base_model.model.layers[0].attention.k_proj.weight for m in (first, second)]
    assert weights[0] is weights[1] and not weights[0].requires_grad


@pytest.mark.parametrize("path", ["/no/such/folder", "no-such-model", "owner/never-downloaded"])
def test_a_model_that_is_nowhere_is_refused(path):
    with pytest.raises(FedfusionError, match="model.path: no model at"):
        Model(path, LORA).locate()


def test_parameters_outside_lora_are_refused_by_name(folder):
    with pytest.raises(FedfusionError, match="model.lora trains '.*bias', which is not a LoRA factor"):
        LoraModel(Model(str(folder), {**LORA, "bias": "all"}, LOAD), seed=0)
