import hashlib
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft_folders import TARGETS, base, change, edit, load_base, products, save, three
from safetensors.torch import load_file

from fedfusion.lora.product import factors
from fedfusion.lora.spec import base_name
from fedfusion.offline.adapters import called, common, fit, of_rank, read, read_all, same_base, unite, write
from fedfusion.types import FedfusionError

Q = "base_model.model.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base"), "bert")


def by_module(layout, vector):
    return {pair.module: b @ a for pair in layout.pairs for b, a in [factors(layout, pair, vector)]}


def refusal(call, *arguments):
    with pytest.raises(FedfusionError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2"])
def test_products_are_those_of_peft_whatever_ranks_and_scales(kind, tmp_path):
    location = base(tmp_path, kind)
    sources = three(tmp_path, location)
    adapters = read_all(sources)
    layout = common(adapters)
    assert {pair.scale for pair in layout.pairs} == {1.0}
    for source, adapter in zip(sources, adapters, strict=True):
        expected = products(source, location)
        for found in (by_module(adapter.layout, adapter.vector), by_module(layout, fit(adapter, layout))):
            assert found.keys() == expected.keys()
            for module in expected:
                torch.testing.assert_close(found[module], expected[module], rtol=1e-5, atol=1e-7)


def test_the_common_layout_has_the_largest_rank_of_each_module(bert, tmp_path):
    layout = common(read_all(three(tmp_path, bert)))
    assert {pair.module.rpartition(".")[2]: layout.shapes[pair.a][0] for pair in layout.pairs} == {
        "query": 3,
        "value": 4,
    }


def test_scales_of_the_target_are_divided_out(bert, tmp_path):
    adapter = read(str(save(tmp_path / "a", bert, 0)))
    target = of_rank(adapter.layout, 9)
    target = replace(target, pairs=tuple(replace(pair, scale=4.0) for pair in target.pairs))
    expected = by_module(adapter.layout, adapter.vector)
    for module, product in by_module(target, fit(adapter, target)).items():
        torch.testing.assert_close(product, expected[module])


def test_the_weights_on_disk_are_named_by_their_hash(bert, tmp_path):
    folder = save(tmp_path / "a", bert, 0)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert read(str(folder)).sha256 == hashlib.sha256(weights).hexdigest()


def test_half_precision_is_read_as_it_is(bert, tmp_path):
    folder = save(tmp_path / "a", bert, 0)
    entry = f"{Q}.lora_A.weight"
    change(folder, **{entry: load_file(folder / "adapter_model.safetensors")[entry].bfloat16()})
    adapter = read(str(folder))
    assert adapter.vector.dtype == torch.float32
    torch.testing.assert_close(
        adapter.layout.unflatten(adapter.vector)[entry],
        load_file(folder / "adapter_model.safetensors")[entry].float(),
    )


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_what_is_written_peft_reads_back(kind, tmp_path):
    location = base(tmp_path, kind)
    adapters = read_all(three(tmp_path, location))
    layout = of_rank(adapters[0].layout, 2)
    write(tmp_path / "out", adapters[0].vector, layout, adapters, {"digit": torch.ones(3, 2)})
    expected = by_module(layout, adapters[0].vector)
    found = products(tmp_path / "out", location)
    assert found.keys() == expected.keys()
    for module in expected:
        torch.testing.assert_close(found[module], expected[module])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(location) and config["lora_alpha"] == config["r"] == 2
    assert config["target_modules"] == sorted(TARGETS[kind]) and config["fan_in_fan_out"] == (kind == "gpt2")
    torch.testing.assert_close(load_file(tmp_path / "out" / "heads.safetensors")["digit"], torch.ones(3, 2))


def test_modules_named_in_different_ways_are_named_one_by_one(bert, tmp_path):
    sources = [
        str(save(tmp_path / "list", bert, 0, target_modules=["value", "query"], layers_to_transform=[1])),
        str(save(tmp_path / "regex", bert, 1, target_modules=r".*layer\.1\..*(query|value)")),
    ]
    adapters = read_all(sources)
    write(tmp_path / "out", adapters[1].vector, common(adapters[1:]), adapters, {})
    found = products(tmp_path / "out", bert)
    assert len(found) == 2 and found.keys() == products(sources[1], bert).keys()


def test_embeddings_that_peft_saved_beside_their_factors_are_kept(tmp_path):
    location = base(tmp_path, "gpt2")
    sources = three(tmp_path, location)
    wte = "base_model.model.transformer.wte.base_layer.weight"
    weight = load_base(location).transformer.wte.weight.detach() + 1
    for source in sources:
        change(source, **{wte: weight})
    adapters = read_all(sources)
    write(tmp_path / "out", adapters[0].vector, adapters[0].layout, adapters, {})
    torch.testing.assert_close(load_file(tmp_path / "out" / "adapter_model.safetensors")[wte], weight)
    change(sources[1], **{wte: weight + 1})
    assert f"'{wte}', which is no LoRA factor, differs between {sources[0]} and {sources[1]}" in refusal(
        read_all, sources
    )


@pytest.mark.parametrize(
    "config, said",
    [
        ({"use_dora": True}, "use_dora=True: how far its magnitudes moved is not known without the base model"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save=['classifier']: how far these modules moved"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices=[1]"),
        ({"bias": "all"}, "bias=all: how far its biases moved"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens=[7]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]]"),
        ({"invented_by_a_later_peft": True}, "invented_by_a_later_peft=True: fedfusion does not know what it changes"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4, which changes the base"),
        ({"peft_type": "LOHA"}, "peft_type=LOHA, but only LORA"),
        ({"r": None}, "r=None, lora_alpha=8, which are no numbers"),
        ({"rank_pattern": {"query": 3}}, f"'{Q}' has rank 8, but adapter_config.json says 3"),
    ],
)
def test_what_is_more_than_a_product_is_refused_by_name(bert, tmp_path, config, said):
    folder = save(tmp_path / "a", bert, 0)
    edit(folder, **config)
    message = refusal(read, str(folder))
    assert message.startswith(f"{folder}: ") and said in message


def test_broken_files_are_named(bert, tmp_path):
    folder = save(tmp_path / "a", bert, 0)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert f"{folder}: adapter_model.safetensors cannot be read" in refusal(read, str(folder))
    weights.write_bytes(b"")
    assert f"{folder}: adapter_model.safetensors cannot be read" in refusal(read, str(folder))
    weights.unlink()
    assert f"{folder}: there is no adapter_model.safetensors in it (save_pretrained" in refusal(read, str(folder))
    (folder / "adapter_model.bin").write_bytes(whole)
    assert "adapter_model.bin may run code when it is read" in refusal(read, str(folder))
    (folder / "adapter_config.json").write_text("{")
    assert f"{folder}: adapter_config.json is not the configuration of an adapter" in refusal(read, str(folder))
    (folder / "adapter_config.json").write_text("[]")
    assert "is not the configuration of an adapter" in refusal(read, str(folder))


def test_entries_that_cannot_be_fused_are_named(bert, tmp_path):
    a, b = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
    for value in (math.nan, math.inf):
        folder = save(tmp_path / str(value), bert, 0)
        change(folder, **{b: torch.full((16, 8), value)})
        assert refusal(read, str(folder)) == (
            f"{folder}: '{b}' in adapter_model.safetensors has entries that are NaN or infinite"
        )
    for name, changes, said in (
        ("convolution", {a: torch.ones(8, 3, 4, 4), b: torch.ones(16, 8, 1, 1)}, "are no pair of matrices"),
        ("half a pair", {b: None}, f"'{Q}' have shapes (8, 16) and ()"),
        ("other half", {a: None}, f"'{b}' in adapter_model.safetensors is no factor"),
        ("ranks", {b: torch.ones(16, 7)}, f"'{Q}' have shapes (8, 16) and (16, 7)"),
        ("magnitudes", {f"{Q}.lora_magnitude_vector": torch.ones(16)}, "is no factor of a linear layer"),
    ):
        folder = save(tmp_path / name, bert, 0)
        change(folder, **changes)
        message = refusal(read, str(folder))
        assert message.startswith(f"{folder}: ") and said in message, name


def test_an_adapter_without_factors_is_refused(bert, tmp_path):
    folder = save(tmp_path / "a", bert, 0)
    change(folder, **dict.fromkeys(load_file(folder / "adapter_model.safetensors")), other=torch.ones(1))
    assert "has no LoRA factors" in refusal(read, str(folder))


def test_all_that_is_wrong_with_single_adapters_is_said_at_once(bert, tmp_path):
    good, bad = save(tmp_path / "good", bert, 0), save(tmp_path / "bad", bert, 1)
    edit(bad, use_dora=True)
    lines = refusal(read_all, [str(good), str(bad), str(tmp_path / "absent")]).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(bad), str(tmp_path / "absent")]


def test_a_folder_that_holds_the_adapter_one_level_down_is_pointed_to(bert, tmp_path):
    save(tmp_path / "run" / "adapter", bert, 0)
    assert f"did you mean {tmp_path / 'run' / 'adapter'}?" in refusal(read, str(tmp_path / "run"))
    (tmp_path / "empty").mkdir()
    assert "there is no adapter_config.json in it (give a folder" in refusal(read, str(tmp_path / "empty"))


def test_a_hub_id_that_cannot_be_fetched_is_a_plain_sentence():
    message = refusal(read, "owner/no-such-adapter")
    assert message.startswith("owner/no-such-adapter: there is no such folder, and the hub does not give it")
    assert len(message.splitlines()) == 1


def test_a_hub_id_is_fetched(bert, tmp_path, monkeypatch):
    folder = save(tmp_path / "a", bert, 0)
    asked = []

    def download(name, allow_patterns):
        asked.append((name, "adapter_config.json" in str(allow_patterns) or "adapter_*" in allow_patterns))
        return str(folder)

    monkeypatch.setattr("fedfusion.offline.adapters.snapshot_download", download)
    adapter = read("owner/name")
    assert asked == [("owner/name", True)] and (adapter.name, adapter.source) == ("name", "owner/name")


def test_adapters_of_different_modules_or_bases_are_refused(bert, tmp_path):
    one = save(tmp_path / "one", bert, 0)
    fewer = save(tmp_path / "fewer", bert, 1, target_modules=["query"])
    assert (
        f"the layouts of {one} and {fewer} differ: 'encoder.layer.0.attention.self.value' is 16 x 16 in the first and "
        "not adapted in the other"
    ) in refusal(read_all, [str(one), str(fewer)])
    wide = save(tmp_path / "wide", bert, 1)
    change(wide, **{f"{Q}.lora_B.weight": torch.ones(20, 8)})
    assert "query' is 16 x 16 in the first and 20 x 16 in the other" in refusal(read_all, [str(one), str(wide)])
    other = save(tmp_path / "other", bert, 1)
    edit(other, base_model_name_or_path="owner/large")
    assert f"{one} adapts '{bert}', but {other} adapts 'owner/large'" in refusal(read_all, [str(one), str(other)])
    edit(one, revision="v1")
    edit(other, base_model_name_or_path=str(bert), revision="v2")
    assert f"adapts '{bert}@v1', but {other} adapts '{bert}@v2'" in refusal(read_all, [str(one), str(other)])
    edit(other, revision=None)
    assert len(read_all([str(one), str(other)])) == 2


def test_a_base_is_the_same_wherever_its_folder_is():
    hub = "/cache/hub/models--owner--name/snapshots/0123"
    assert base_name(hub) == "owner/name" and base_name("/models/name/") == "name" and base_name("") == ""
    assert same_base("/here/name", "/there/name") and same_base("owner/name", hub) and same_base("/x/name", hub)
    assert same_base("", "anything") and same_base("owner/name", "owner/name")
    assert not same_base("owner/name", "other/name") and not same_base("/x/name", "/x/other")


def test_names_are_as_short_as_they_can_be_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("x/adapter", "y/adapter", "z"):
        (tmp_path / folder).mkdir(parents=True)
    assert called(["x/adapter", "z", "owner/name"]) == ["adapter", "z", "name"]
    assert called(["x/adapter", "y/adapter"]) == ["x-adapter", "y-adapter"]
    assert "z is given twice" in refusal(called, ["z", "x/adapter", "z"])
    assert "is given twice" in refusal(called, ["z", "./z/"])


@given(st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_heads_unite_unless_they_contradict(first, second, alike):
    class Held:
        def __init__(self, heads):
            self.heads = heads

    ours = {f"task-{i}": torch.full((2,), float(i)) for i in range(first)}
    theirs = {f"task-{i}": torch.full((2,), i + (0.0 if alike else 0.5)) for i in range(second)}
    heads, contradicted = unite([Held(ours), Held(theirs)])
    both = sorted(ours.keys() & theirs.keys())
    assert contradicted == ([] if alike else both)
    assert heads.keys() == (ours.keys() | theirs.keys()) - set(contradicted)
    for task, head in heads.items():
        assert torch.equal(head, ours.get(task, theirs.get(task)))
