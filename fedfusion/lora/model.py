"""The base model with a LoRA adapter on it, read and written as one flat vector.

`peft.LoraConfig` arguments are taken verbatim; nothing outside this package imports peft.
"""

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from fedfusion import assets
from fedfusion.rng import seed_of
from fedfusion.types import FedfusionError, Layout, Pair


@dataclass(frozen=True)
class Model:
    """Which base model, and which LoRA adapter on it.

    Parameters
    ----------
    path
        A folder in Hugging Face format, the name of a model that ships with fedfusion (`vit-glyphs`), or a
        hub id (`owner/name`).
    lora
        Arguments of `peft.LoraConfig`, verbatim.
    load
        Further arguments of `AutoModel.from_pretrained`.
    """

    path: str
    lora: Mapping[str, Any]
    load: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            rank = LoraConfig(**dict(self.lora)).r
        except (TypeError, ValueError) as error:
            raise FedfusionError(f"model.lora: peft refuses it ({str(error).splitlines()[0]})") from error
        if rank < 1:
            raise FedfusionError(f"model.lora.r must be at least 1, got {rank}")

    def locate(self) -> str:
        """The folder or hub id to load from.

        Raises
        ------
        FedfusionError
            If it is neither a folder, nor shipped, nor a hub id that could be fetched or is in the cache.
        """
        for folder in (Path(self.path).expanduser(), assets.find(self.path)):
            if folder is not None and (folder / "config.json").is_file():
                return str(folder)
        if self.path.count("/") == 1 and not self.path.startswith((".", "/", "~")):
            import huggingface_hub.constants as hub

            if not hub.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(self.path, "config.json"), str):
                return self.path
        raise FedfusionError(
            f"model.path: no model at '{self.path}' (give a folder with a config.json, a hub id 'owner/name', "
            f"or 'vit-glyphs', which ships with fedfusion)"
        )


@lru_cache(maxsize=1)
def _base(location: str, load: str) -> nn.Module:
    try:
        base = AutoModel.from_pretrained(location, dtype=torch.float32, **json.loads(load))
    except (OSError, ValueError, TypeError) as error:
        raise FedfusionError(f"model.path: cannot load '{location}' ({str(error).splitlines()[0]})") from error
    return base.requires_grad_(False)


class LoraModel:
    """One base model with one LoRA adapter whose parameters are views of a flat vector `[d]`.

    The frozen base is loaded once per process and shared by every `LoraModel` on it.

    Parameters
    ----------
    model
        Base and adapter.
    seed
        Names the initial adapter: `A` is drawn as peft draws it, `B` is zero.
    rank
        Overrides the rank of `model.lora` with a plain adapter of that rank and scale one, as fusion needs it.
    """

    def __init__(self, model: Model, seed: int, rank: int | None = None) -> None:
        base = _base(model.locate(), json.dumps(dict(model.load), sort_keys=True))
        shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        config = LoraConfig(**dict(model.lora))
        if rank is not None:
            config = replace(
                config, r=rank, lora_alpha=rank, use_rslora=False, lora_dropout=0.0, rank_pattern={}, alpha_pattern={}
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "lora"))
            try:
                self.module: PeftModel = get_peft_model(copy.deepcopy(base, shared), config)
            except ValueError as error:
                raise FedfusionError(f"model.lora: peft refuses it ({str(error).splitlines()[0]})") from error
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.entries = {
            name: name.replace(".default", "") for name in trained
        }  # peft's name in the module, and on disk
        parameters = {self.entries[name]: parameter for name, parameter in trained.items()}
        self.layout = _layout(self.module, parameters)
        self.flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters.values()]))
        self.flat.grad = self.gradient = torch.zeros_like(self.flat)
        weights, gradients = self.layout.unflatten(self.flat.data), self.layout.unflatten(self.gradient)
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = weights[name], gradients[name]

    def read(self) -> Tensor:
        """A copy of the adapter, `[d]`."""
        return self.flat.detach().clone()

    def write(self, vector: Tensor) -> None:
        """Replace the adapter, in place."""
        self.flat.data.copy_(vector)

    def features(self, inputs: Mapping[str, Tensor], adapter: Tensor | None = None) -> Tensor:
        """First-token features `[n, h]`, under the model's own adapter or as a function of `adapter [d]`."""
        if adapter is None:
            return self.module(**inputs).last_hidden_state[:, 0]
        state = self.layout.unflatten(adapter)
        output = torch.func.functional_call(
            self.module, {n: state[key] for n, key in self.entries.items()}, kwargs=dict(inputs)
        )
        return output.last_hidden_state[:, 0]

    def save(self, folder: Path, adapter: Tensor) -> None:
        """Write `adapter [d]` as a PEFT folder that `PeftModel.from_pretrained` loads."""
        self.write(adapter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft looks for the base's vocabulary on the hub
            self.module.save_pretrained(folder)

    def load(self, folder: Path) -> Tensor:
        """The adapter `[d]` in a PEFT folder.

        Raises
        ------
        FedfusionError
            If its entries or shapes are not those of this model's layout.
        """
        return self.layout.flatten(load_file(folder / "adapter_model.safetensors"))


def _layout(module: PeftModel, parameters: Mapping[str, Tensor]) -> Layout:
    names = tuple(parameters)
    index = {name: i for i, name in enumerate(names)}
    scales = {n: m.scaling["default"] for n, m in module.named_modules() if hasattr(m, "lora_A") and len(m.scaling)}
    pairs = tuple(
        Pair(name, index[f"{name}.lora_A.weight"], index[f"{name}.lora_B.weight"], scale)
        for name, scale in scales.items()
    )
    paired = {i for pair in pairs for i in (pair.a, pair.b)}
    if plain := [name for i, name in enumerate(names) if i not in paired]:
        raise FedfusionError(
            f"model.lora trains '{plain[0]}', which is not a LoRA factor of a linear layer "
            "(drop modules_to_save, bias, use_dora and the like from model.lora)"
        )
    return Layout(names, tuple(tuple(p.shape) for p in parameters.values()), pairs)
