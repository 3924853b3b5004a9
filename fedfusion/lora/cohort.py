"""The cohort engine: K adapters stacked over one frozen base, run forward and backward together.

A frozen linear layer is applied to all rows at once; only the two thin LoRA products are batched per client. The
loss of a cohort is the sum of its clients' mean losses, so every client's gradient is the one it would have alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedfusion.lora.first_token import FIRST_TOKEN
from fedfusion.lora.frozen import Frozen, freeze, is_linear
from fedfusion.types import FedfusionError, Layout, Samples

PROMPT = "prompt_embeddings"  # peft's name of the virtual tokens
PASS = 256  # tokens of padding that cost about as much as one more pass through the model
PREFIX = "prefix"  # the hidden states below the first adapted layer, as an input
ENTRIES = {"BertModel": "embeddings", "ViTModel": "embeddings", "GPT2Model": "drop"}  # what makes the first of them


@dataclass
class Stack:
    """What the adapted layers of a cohort share during one forward pass.

    Attributes
    ----------
    factors
        `A [K, r, in]` and `B [K, out, r]` (scale inside) by module; empty while only the base runs.
    owner : [n]
        The adapter of each row of the batch.
    blocks
        The adapters that occur, when each has equally many consecutive rows; None otherwise.
    dropout
        LoRA dropout for inputs `[n, T, in]`, or None.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    owner: Tensor
    blocks: Tensor | None
    dropout: "Dropout | None"


class Dropout:
    """LoRA dropout whose masks depend on the client alone: its generator, its rows, its own longest sample.

    Parameters
    ----------
    p
        Probability of a zero.
    generators
        One per adapter.
    """

    def __init__(self, p: float, generators: Sequence[torch.Generator], owner: Tensor, lengths: Tensor | None) -> None:
        self.p = p
        present = owner.unique().tolist()
        self.parts = [(generators[k], torch.nonzero(owner == k)[:, 0]) for k in present]
        self.lengths = [int(lengths[rows].max()) if lengths is not None else None for _, rows in self.parts]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to `x [n, T, in]`."""
        mask = torch.zeros_like(x)
        for (generator, rows), length in zip(self.parts, self.lengths, strict=True):
            width = x.shape[1] if length is None else min(length, x.shape[1])
            drawn = torch.rand(len(rows), width, x.shape[2], generator=generator)
            mask[rows, :width] = (drawn >= self.p).to(x.dtype) / (1 - self.p)
        return x * mask


class CohortLinear(nn.Module):
    """A frozen linear layer with the adapters of a cohort on it."""

    def __init__(self, base: Frozen, module: str, stack: Stack) -> None:
        super().__init__()
        self.base = base
        self.module = module
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        """Frozen product of all rows, plus each row's own `s B A x` (`x: [n, T, in]` or `[n, in]`)."""
        y = self.base(x)
        if not self.stack.factors:
            return y
        a, b = (factor.to(x.dtype) for factor in self.stack.factors[self.module])
        rows = x if x.dim() == 3 else x[:, None]
        if self.stack.dropout is not None:
            rows = self.stack.dropout(rows)
        chosen = self.stack.owner if self.stack.blocks is None else self.stack.blocks
        if len(chosen) != len(a) or self.stack.blocks is None:
            a, b = a.index_select(0, chosen), b.index_select(0, chosen)
        batched = rows.reshape(len(chosen), -1, rows.shape[-1])
        update = torch.baddbmm(y.reshape(len(chosen), -1, y.shape[-1]), batched @ a.mT, b.mT)
        return update.reshape(y.shape)


class Cohort:
    """Features of samples under many adapters at once.

    Parameters
    ----------
    base
        A frozen Hugging Face model; its adapted layers are replaced, its weights are shared.
    layout
        Of an adapter, with peft's names.
    pooling
        See :class:`fedfusion.lora.model.Model`.
    dropout
        Of LoRA, while training.
    """

    def __init__(self, base: Any, layout: Layout, pooling: str, dropout: float) -> None:
        self.layout = layout
        self.pooling = pooling
        self.dropout = dropout
        self.stack = Stack({}, torch.zeros(0, dtype=torch.long), None, None)
        self.backbone: Any = base.base_model if base.get_output_embeddings() is not None else base
        freeze(self.backbone)
        self.adapted: list[CohortLinear] = []
        for pair in layout.pairs:
            name = pair.module.removeprefix("base_model.model.")
            parent, _, child = name.rpartition(".")
            self.adapted.append(CohortLinear(base.get_submodule(name), pair.module, self.stack))
            setattr(base.get_submodule(parent), child, self.adapted[-1])
        self.prefix: Tensor | None = None
        self.layers = _layers(self.backbone)
        self.depth = self._skippable()
        if pooling == "first" and not dropout:  # a pruned layer would draw other masks than a whole one
            _prune_last(self.layers)

    def __call__(
        self, adapters: Tensor, samples: Samples, owner: Tensor, dropout: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Pooled features `[n, h]`, or the hidden states `[n, T, h]` where labels are tokens."""
        parts = adapters.split([self.layout.offsets[i + 1] - o for i, o in enumerate(self.layout.offsets[:-1])], dim=1)
        entries = [p.unflatten(1, shape) for p, shape in zip(parts, self.layout.shapes, strict=True)]
        present, counts = owner.unique_consecutive(return_counts=True)
        even = len(present.unique()) == len(present) and bool((counts == counts[0]).all())
        self.stack.factors = {p.module: (entries[p.a], entries[p.b] * p.scale) for p in self.layout.pairs}
        self.stack.owner, self.stack.blocks = owner, present if even else None
        self.stack.dropout = None
        if dropout is not None and self.dropout:
            self.stack.dropout = Dropout(self.dropout, dropout, owner, samples.lengths)
        inputs = {name: tensor for name, tensor in samples.inputs.items() if name != PREFIX}
        self.prefix = samples.inputs.get(PREFIX)
        try:
            if PROMPT in self.layout.names:
                inputs = self._prompted(entries[self.layout.names.index(PROMPT)], inputs, owner)
            output = self.backbone(**inputs)
        finally:
            self.stack.factors, self.prefix = {}, None
        if samples.labels.dim() == 2:
            return output.last_hidden_state[:, -samples.labels.shape[1] :]
        return pool(output, samples, self.pooling)

    @torch.no_grad()
    def below(self, samples: Samples) -> Tensor:
        """Hidden states `[n, T, h]` that enter the first adapted layer: the same under every adapter."""
        seen: list[Tensor] = []
        hook = self.layers[self.depth].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self.backbone(**samples.inputs)
        finally:
            hook.remove()
        return seen[0]

    def bake(self, adapter: Tensor, layout: Layout) -> None:
        """Add the product of `adapter [d']` to the frozen weights, in place of what was baked before."""
        for layer, pair in zip(self.adapted, layout.pairs, strict=True):
            b, a = layout.entry(adapter, pair.b), layout.entry(adapter, pair.a)
            change = pair.scale * b @ a
            layer.base.add(change)

    def _skippable(self) -> int:
        """Let what is below the first adapted layer be skipped where its output is given; how many layers that is."""
        entry = ENTRIES.get(type(self.backbone).__name__)
        adapted = [any(isinstance(m, CohortLinear) for m in layer.modules()) for layer in self.layers]
        if entry is None or not any(adapted) or not adapted.index(True):
            return 0
        first = getattr(self.backbone, entry)
        _bypass(first, lambda *_, **__: self.prefix)
        for layer in self.layers[: adapted.index(True)]:
            _bypass(layer, lambda hidden, *_, **__: hidden if self.prefix is not None else None)
        return adapted.index(True)

    def _prompted(self, prompts: Tensor, inputs: Mapping[str, Tensor], owner: Tensor) -> dict[str, Tensor]:
        """Inputs with each owner's virtual tokens `[K, v, h]` before the first."""
        tokens = self.backbone.get_input_embeddings()(inputs["input_ids"])
        mine = prompts[owner].to(tokens.dtype)
        mask = torch.cat([torch.ones(mine.shape[:2], dtype=torch.long), inputs["attention_mask"]], dim=1)
        return {"inputs_embeds": torch.cat([mine, tokens], dim=1), "attention_mask": mask}


def pool(output: object, samples: Samples, pooling: str) -> Tensor:
    """One feature `[n, h]` per sample from the output of a Hugging Face model."""
    if pooling == "pooler":
        for name in ("image_embeds", "pooler_output"):
            if getattr(output, name, None) is not None:
                return getattr(output, name)
        raise FedfusionError(
            "model.pooling=pooler: the model has no pooler (drop add_pooling_layer: false from model.load, or choose "
            "another pooling)"
        )
    hidden: Tensor = output.last_hidden_state  # type: ignore[attr-defined]
    if pooling == "first":
        return hidden[:, 0]
    lengths = samples.lengths
    if pooling == "last":
        last = torch.full((len(hidden),), hidden.shape[1]) if lengths is None else lengths
        return hidden[torch.arange(len(hidden)), last - 1]
    if lengths is None:
        return hidden.mean(1)
    mask = samples.inputs["attention_mask"][:, :, None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def buckets(samples: Samples, owner: Tensor, max_tokens: int, image_tokens: int, whole: bool = False) -> list[Tensor]:
    """Rows that go through the model together: of like length, at most `max_tokens` tokens with their padding.

    Sequences of all clients are sorted by length and cut, so that little is spent on padding; within a bucket rows
    are in the order of their owners. Samples of one length are cut between clients where that is possible.

    Parameters
    ----------
    owner : [n]
        Client of each row, ascending.
    image_tokens
        Tokens of a sample that is not text.
    whole
        Keep the rows of a client together, as dropout needs it, whatever their number.
    """
    n, lengths = len(samples), samples.lengths
    ends = [*(torch.nonzero(owner.diff())[:, 0] + 1).tolist(), n]  # a client's rows end there
    if whole:
        return list(torch.arange(n).tensor_split(ends[:-1]))
    if lengths is None or bool((lengths == lengths[0]).all()):
        rows = max(1, max_tokens // (image_tokens if lengths is None else int(lengths[0])))
        cuts, start = [], 0
        while start < n:
            stop = max((end for end in ends if start < end <= start + rows), default=min(start + rows, n))
            cuts.append(torch.arange(start, stop))
            start = stop
        return cuts
    order = torch.argsort(lengths, descending=True, stable=True)
    descending = lengths[order].tolist()
    cuts, start = [], 0
    while start < n:
        longest, padding, stop = descending[start], 0, start + 1
        while stop < n and (stop + 1 - start) * longest <= max_tokens:
            padding += longest - descending[stop]
            if padding > PASS:
                break
            stop += 1
        cuts.append(order[start:stop].sort().values)
        start = stop
    return cuts


def unsupported(module: nn.Module, layout: Layout) -> str | None:
    """Why the cohort engine cannot run the adapter of a peft model, or None."""
    paired = {i for pair in layout.pairs for i in (pair.a, pair.b)}
    for i, name in enumerate(layout.names):
        if i not in paired and name != PROMPT:
            return f"it trains '{name}', which is not a LoRA factor"
    for pair in layout.pairs:
        layer = module.get_submodule(pair.module)
        if not is_linear(layer.base_layer):
            return f"'{pair.module}' is a {type(layer.base_layer).__name__}"
        if getattr(layer, "lora_bias", {}).get("default") or getattr(layer, "lora_variant", {}):
            return f"'{pair.module}' has a bias or a variant of LoRA"
    return None


def _layers(backbone: nn.Module) -> nn.ModuleList:
    """The layers of an encoder or decoder, where its architecture is known; else none."""
    inner = getattr(backbone, "encoder", backbone)
    layers = getattr(inner, "layer", getattr(inner, "layers", getattr(inner, "h", None)))
    return layers if isinstance(layers, nn.ModuleList) else nn.ModuleList()


def _bypass(module: nn.Module, shortcut: Callable[..., Tensor | None]) -> None:
    """Let `shortcut` answer for the module unless it returns None."""
    whole = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        short = shortcut(*args, **kwargs)
        return whole(*args, **kwargs) if short is None else short

    module.forward = forward


def _prune_last(layers: nn.ModuleList) -> None:
    """Let the last layer compute what the first token needs, where its architecture is known."""
    if len(layers) and type(layers[-1]).__name__ in FIRST_TOKEN:
        layers[-1] = FIRST_TOKEN[type(layers[-1]).__name__](layers[-1])
