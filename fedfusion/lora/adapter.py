"""The adapter as peft puts it on a base: its configuration, its layout, and its dropout by named streams."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedfusion.lora.cohort import Dropout
from fedfusion.lora.spec import Model
from fedfusion.types import FedfusionError, Layout, Pair, Samples

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel, PromptTuningConfig


def own(module: nn.Module, shared: Mapping[int, Tensor]) -> None:
    """Give the adapter copies of those weights of the shared base that it trains itself, as biases."""
    for name, parameter in list(module.named_parameters()):
        if parameter.requires_grad and id(parameter) in shared:
            parameter.requires_grad_(False)
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, nn.Parameter(parameter.detach().clone()))


def config_of(model: Model, base: nn.Module, rank: int | None) -> "LoraConfig | PromptTuningConfig":
    """What peft is told: `model.lora`, a plain adapter of another rank, or prompt tuning."""
    from peft import LoraConfig, PromptTuningConfig, TaskType

    if model.num_virtual_tokens:
        return PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=model.num_virtual_tokens)
    config = LoraConfig(**dict(model.lora))
    if rank is None:
        return config
    return replace(
        config, r=rank, lora_alpha=rank, use_rslora=False, lora_dropout=0.0, rank_pattern={}, alpha_pattern={}
    )


def layout_of(module: "PeftModel", parameters: Mapping[str, Tensor]) -> Layout:
    """The layout of `parameters` by peft's names; only linear layers can be fused."""
    names = tuple(parameters)
    index = {name: i for i, name in enumerate(names)}
    scales = {n: m.scaling["default"] for n, m in module.named_modules() if hasattr(m, "lora_A") and len(m.scaling)}
    pairs = tuple(
        Pair(name, index[f"{name}.lora_A.weight"], index[f"{name}.lora_B.weight"], scale)
        for name, scale in scales.items()
        if f"{name}.lora_A.weight" in index
    )
    for name, parameter in parameters.items():
        if "lora_embedding" in name or ("lora_" in name and "magnitude" not in name and parameter.dim() != 2):
            raise FedfusionError(
                f"model.lora adapts '{name.split('.lora_')[0]}', which is not a linear layer: products of others "
                "cannot be fused (choose other target_modules)"
            )
    for pair in pairs:
        if parameters[names[pair.b]].any():
            raise FedfusionError(
                f"model.lora.init_lora_weights: '{pair.module}' starts from a product that is not zero, but task "
                "vectors are counted from the base (drop init_lora_weights)"
            )
    return Layout(names, tuple(tuple(p.shape) for p in parameters.values()), pairs)


def check_ranks(layout: Layout) -> None:
    """A rank above a layer's width trains parameters that change nothing."""
    for pair in layout.pairs:
        rank, width = layout.shapes[pair.a]
        width = min(width, layout.shapes[pair.b][0])
        if rank > width:
            raise FedfusionError(
                f"model.lora.r={rank} exceeds the width {width} of '{pair.module}' (lower model.lora.r, or adapt "
                "other modules)"
            )


class Stream(nn.Module):
    """Dropout in a peft layer that draws from the client's generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.dropout: Dropout | None = None

    def draw(self, generator: torch.Generator | None, samples: Samples) -> None:
        """Draw from `generator` while `samples` pass, or nothing."""
        owner = torch.zeros(len(samples), dtype=torch.long)
        self.dropout = Dropout(self.p, [generator], owner, samples.lengths) if generator is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x [n, T, in]`."""
        return x if self.dropout is None else self.dropout(x)


def streams(module: "PeftModel") -> list[Stream]:
    """Replace the dropout layers of peft, which draw from the global generator."""
    streams = []
    for layer in module.modules():
        for name, dropout in list(getattr(layer, "lora_dropout", {}).items()):
            if isinstance(dropout, nn.Dropout):
                streams.append(Stream(dropout.p))
                layer.lora_dropout[name] = streams[-1]
    return streams
