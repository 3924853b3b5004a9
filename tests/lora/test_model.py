import pytest
import torch
from peft import PeftModel
from tiny import clip, gpt2, samples
from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from fedfusion.lora import product
from fedfusion.lora.model import LoraModel, Model, locate
from fedfusion.types import FedfusionError, Samples

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
    return Samples({"pixel_values": torch.randn(5, 1, 8, 8, generator=rng)}, torch.zeros(5, dtype=torch.long))


def features(model, images, adapter):
    with torch.no_grad():
        return model.features(adapter[None], images, torch.zeros(len(images), dtype=torch.long))[0]


def adapter_of(model, rng):
    return model.initial + 0.1 * torch.randn(model.layout.dim, generator=rng)


def test_the_layout_knows_every_pair(folder):
    layout = LoraModel(Model(str(folder), LORA, LOAD), seed=0).layout
    assert len(layout.pairs) == 4 and all(pair.scale == 2.0 for pair in layout.pairs)
    for pair in layout.pairs:
        assert layout.names[pair.a].endswith("lora_A.weight") and layout.names[pair.b].endswith("lora_B.weight")
        assert layout.shapes[pair.a][0] == layout.shapes[pair.b][1] == 3


@pytest.mark.parametrize("engine", ["cohort", "peft"])
def test_a_fresh_adapter_changes_nothing_and_is_named_by_its_seed(folder, images, engine):
    spec = Model(str(folder), LORA, LOAD)
    model = LoraModel(spec, seed=0, engine=engine)
    base = AutoModel.from_pretrained(folder, **LOAD)
    with torch.no_grad():
        expected = base(**images.inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(features(model, images, model.initial), expected)
    assert torch.equal(model.initial, LoraModel(spec, seed=0).initial)
    assert not torch.equal(model.initial, LoraModel(spec, seed=1).initial)


def test_peft_loads_what_is_saved_and_it_can_be_read_back(folder, images, rng, tmp_path):
    model = LoraModel(Model(str(folder), LORA, LOAD), seed=0)
    adapter = adapter_of(model, rng)
    model.save(tmp_path, adapter)
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(folder, **LOAD), tmp_path)
    with torch.no_grad():
        expected = loaded(**images.inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(features(model, images, adapter), expected)
    assert torch.equal(model.load(tmp_path), adapter)


def test_an_adapter_of_another_rank_is_refused(folder, tmp_path):
    model = LoraModel(Model(str(folder), LORA, LOAD), seed=0)
    model.save(tmp_path, model.initial)
    other = LoraModel(Model(str(folder), LORA, LOAD), seed=0, rank=5)
    with pytest.raises(FedfusionError, match=r"has shape \(3, 8\), the layout expects \(5, 8\)"):
        other.load(tmp_path)


def test_the_sum_of_products_is_the_sum_of_merged_weights(folder, images, rng):
    """Oracle: peft's own merged weights, added up by hand, against stacking in core space."""
    spec = Model(str(folder), LORA, LOAD)
    model = LoraModel(spec, seed=0)
    adapters = torch.stack([adapter_of(model, rng) for _ in range(2)])
    wide = LoraModel(spec, seed=0, rank=6)
    core = product.CoreSpace.of(model.layout, adapters, model.initial)
    fused, _ = core.to_adapter(core.project(model.layout, adapters).sum(0), wide.layout)
    base = AutoModel.from_pretrained(folder, **LOAD)
    total = {name: weight.clone() for name, weight in base.state_dict().items()}
    for adapter in adapters:
        for pair in model.layout.pairs:
            layer, state = model.module.get_submodule(pair.module), model.layout.unflatten(adapter)
            layer.lora_A["default"].weight.data = state[model.layout.names[pair.a]]
            layer.lora_B["default"].weight.data = state[model.layout.names[pair.b]]
            total[pair.module.removeprefix("base_model.model.") + ".weight"] += layer.get_delta_weight("default")
    base.load_state_dict(total)
    with torch.no_grad():
        expected = base(**images.inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(features(wide, images, fused), expected, rtol=1e-4, atol=1e-4)


def test_models_share_one_frozen_base(folder):
    first, second = (LoraModel(Model(str(folder), LORA, LOAD), seed=s) for s in (0, 1))
    weights = [m.module.base_model.model.layers[0].attention.k_proj.weight for m in (first, second)]
    assert weights[0] is weights[1] and not weights[0].requires_grad


@pytest.mark.parametrize("path", ["/no/such/folder", "no-such-model", "owner/never-downloaded"])
def test_a_model_that_is_nowhere_is_refused(path):
    with pytest.raises(FedfusionError, match="model.path: no model at"):
        locate(path)


@pytest.mark.parametrize("more, why", [({"use_dora": True}, "lora_magnitude"), ({"bias": "all"}, "bias")])
def test_what_the_cohort_engine_cannot_do_runs_on_peft(folder, images, more, why, rng, tmp_path):
    """With an adapter that has parameters outside every pair, read back and loaded by peft."""
    model = LoraModel(Model(str(folder), {**LORA, **more}, LOAD), seed=0)
    assert model.cohort is None and why in model.fallback
    adapter = adapter_of(model, rng)
    expected = features(model, images, adapter)
    model.save(tmp_path, adapter)
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(folder, **LOAD), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**images.inputs).last_hidden_state[:, 0], expected)
    core = product.CoreSpace.of(model.layout, adapter[None], model.initial)
    again, _ = core.to_adapter(core.project(model.layout, adapter[None])[0], model.layout)
    torch.testing.assert_close(features(model, images, again), expected, rtol=1e-4, atol=1e-4)


def test_targets_that_match_nothing_and_ranks_above_the_width_are_refused(folder):
    with pytest.raises(FedfusionError, match="model.lora: peft refuses it .*no_such_layer"):
        LoraModel(Model(str(folder), {**LORA, "target_modules": ["no_such_layer"]}, LOAD), seed=0)
    with pytest.raises(FedfusionError, match=r"model.lora.r=9 exceeds the width 8 of '.*q_proj'"):
        LoraModel(Model(str(folder), {**LORA, "r": 9}, LOAD), seed=0)


def test_the_base_in_bfloat16_gives_nearly_the_same_features(folder, images, rng):
    exact, coarse = (LoraModel(Model(str(folder), LORA, LOAD, precision=p), seed=0) for p in ("fp32", "bf16"))
    adapter = adapter_of(exact, rng)
    ours, theirs = features(coarse, images, adapter), features(exact, images, adapter)
    assert ours.dtype == torch.float32 and 0 < (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_prompt_tuning_is_that_of_peft(tmp_path, rng):
    spec = gpt2(tmp_path / "base", num_virtual_tokens=3)
    model, data = LoraModel(spec, seed=0), samples("gpt2", 4, rng)
    assert model.layout.pairs == () and model.layout.shapes == ((3, 16),)
    adapter = model.initial + torch.randn(model.layout.dim, generator=rng)
    model.save(tmp_path / "adapter", adapter)
    base = AutoModelForCausalLM.from_pretrained(spec.path)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = loaded(**data.inputs).logits[:, 3:]
    found, labels, rows = model.features(adapter[None], data, torch.zeros(4, dtype=torch.long))
    where = torch.nonzero(data.labels[:, 1:] != -100)
    torch.testing.assert_close(found @ model.output.T, logits[where[:, 0], where[:, 1]], rtol=1e-4, atol=1e-4)
    assert torch.equal(rows, where[:, 0]) and torch.equal(labels, data.labels[where[:, 0], where[:, 1] + 1])
    assert torch.equal(model.load(tmp_path / "adapter"), adapter)


@pytest.mark.parametrize("engine", ["cohort", "peft"])
def test_the_projected_features_of_clip_are_those_of_peft(tmp_path, rng, engine):
    model = LoraModel(clip(tmp_path / "base"), seed=0, engine=engine)
    assert model.fallback is None and len(model.layout.pairs) == 4 and model.image_tokens == 5
    adapters = torch.stack([adapter_of(model, rng) for _ in range(2)])
    data = Samples({"pixel_values": torch.randn(6, 1, 32, 32, generator=rng)}, torch.zeros(6, dtype=torch.long))
    owner = torch.tensor([0, 0, 0, 0, 1, 1])
    with torch.no_grad():
        found = model.features(adapters, data, owner)[0]
    for k, adapter in enumerate(adapters):
        model.save(tmp_path / f"{k}", adapter)
        base = CLIPVisionModelWithProjection.from_pretrained(model.model.path)
        with torch.no_grad():
            expected = PeftModel.from_pretrained(base, tmp_path / f"{k}").eval()(**data.take(owner == k).inputs)
        torch.testing.assert_close(found[owner == k], expected.image_embeds, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [{}, {"num_virtual_tokens": 3}], ids=["lora", "prompt"])
@pytest.mark.parametrize("engine", ["cohort", "peft"])
def test_responses_are_those_of_greedy_decoding_row_by_row(tmp_path, rng, kind, engine):
    """Prompts of different lengths; a model that likes to end."""
    spec = gpt2(tmp_path / "base", **kind)
    model, data = LoraModel(spec, seed=0, engine=engine), samples("gpt2", 40, rng)
    adapter = model.initial + torch.randn(model.layout.dim, generator=rng)
    with torch.no_grad():
        model.output[0] *= 3.0  # the end of the sequence
    made = model.generate(adapter, data, 6)
    model.save(tmp_path / "adapter", adapter)
    base = AutoModelForCausalLM.from_pretrained(spec.path)
    with torch.no_grad():
        base.lm_head.weight[0] *= 3.0
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    for row, response in enumerate(made):
        prompt = data.inputs["input_ids"][row, : int((data.labels[row] != -100).int().argmax())][None]
        expected = []
        while len(expected) < 6 and 0 not in expected:
            with torch.no_grad():
                logits = loaded(input_ids=torch.cat([prompt, torch.tensor([expected], dtype=torch.long)], dim=1)).logits
            expected.append(int(logits[0, -1].argmax()))
        assert response == expected
    assert {len(response) for response in made} > {6}


def test_responses_stop_where_the_model_has_no_more_positions(tmp_path, rng):
    model, data = LoraModel(gpt2(tmp_path), seed=0), samples("gpt2", 3, rng, longest=9)
    made = model.generate(model.initial, data, 1000)
    longest = max(int((row != -100).int().argmax()) for row in data.labels)
    assert max(map(len, made)) <= 32 - longest


def test_a_folder_without_all_the_weights_is_refused(folder, tmp_path):
    state = ViTModel.from_pretrained(folder, **LOAD).state_dict()
    del state["layers.1.mlp.fc1.weight"]
    ViTModel.from_pretrained(folder, **LOAD).save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(FedfusionError, match="has no weights for 'layers.1.mlp.fc1.weight'"):
        LoraModel(Model(str(tmp_path), LORA, LOAD), seed=0)
