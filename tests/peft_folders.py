"""Random LoRA adapters on the models of `tiny`, saved by peft, and their products as peft computes them."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES
from transformers import AutoModel, AutoModelForCausalLM

from fedfusion import assets

TARGETS = {
    "vit": ["q_proj", "v_proj", "fc1", "fc2"],
    "vit-glyphs": ["fc1", "fc2"],
    "gpt2-lists": ["c_attn"],
    "bert": ["query", "value"],
    "gpt2": ["c_attn", "wte"],
}


def base(folder: Path, kind: str) -> Path:
    """A tiny base model."""
    ARCHITECTURES[kind](folder / kind)
    return folder / kind


def shipped(name: str) -> Path:
    """A base model that ships with the package."""
    found = assets.find(name)
    assert found is not None
    return found


def load_base(location: Path):
    """The base model as transformers loads it."""
    if location.name.startswith("gpt2"):
        return AutoModelForCausalLM.from_pretrained(location)
    return AutoModel.from_pretrained(location, add_pooling_layer=False)


def save(folder: Path, location: Path, seed: int, **lora) -> Path:
    """An adapter whose product is not zero."""
    options = {"target_modules": TARGETS[location.name], "fan_in_fan_out": location.name.startswith("gpt2")} | lora
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = get_peft_model(load_base(location), LoraConfig(init_lora_weights=False, **options))
        module.save_pretrained(folder)
    return folder


def three(folder: Path, location: Path, **lora) -> list[str]:
    """Adapters of different ranks and scales, which also differ between modules in the last."""
    last = TARGETS[location.name][1]
    mixed = (
        {"r": 2, "lora_alpha": 4},
        {"r": 3, "lora_alpha": 5, "use_rslora": True},
        {"r": 1, "lora_alpha": 2, "rank_pattern": {last: 4}, "alpha_pattern": {last: 3}},
    )
    return [str(save(folder / f"task-{i}", location, i, **options, **lora)) for i, options in enumerate(mixed)]


def products(folder: Path | str, location: Path) -> dict[str, torch.Tensor]:
    """What peft adds to each weight of the base, as `B A`."""
    module = PeftModel.from_pretrained(load_base(location), folder)
    deltas = {name: layer for name, layer in module.named_modules() if hasattr(layer, "get_delta_weight")}
    return {
        name: (delta.T if layer.fan_in_fan_out or "wte" in name else delta).detach()
        for name, layer in deltas.items()
        for delta in [layer.get_delta_weight("default")]
    }


def edit(folder: Path | str, **config) -> None:
    """Change the adapter's configuration on disk."""
    path = Path(folder, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def change(folder: Path | str, **tensors) -> None:
    """Replace entries of the adapter's weights on disk, or take them out."""
    path = Path(folder, "adapter_model.safetensors")
    state = load_file(path) | {name.replace("/", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)
