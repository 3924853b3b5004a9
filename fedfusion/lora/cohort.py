"""The cohort engine: K adapters stacked over one frozen base, run forward and backward together.

A frozen linear layer is applied to all rows at once; only the two thin LoRA products are batched per client. The
loss of a cohort is the sum of its clients' mean losses, so every client's gradient is the one it would have alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfusion.lora.first_token import FIRST_TOKEN
from fedfusion.lora.frozen import LINEAR, freeze
from fedfusion.types import Layout, Samples

PROMPT = "prompt_embeddings"  # peft's name of the virtual tokens


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
    masks
        Draws a dropout mask for an input `[n, T, in]`, or None.
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

    def __init__(self, base: nn.Module, module: str, stack: Stack) -> None:
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

    def __init__(self, base: nn.Module, layout: Layout, pooling: str, dropout: float) -> None:
        self.layout = layout
        self.pooling = pooling
        self.dropout = dropout
        self.stack = Stack({}, torch.zeros(0, dtype=torch.long), None, None)
        self.backbone = base.base_model if base.get_output_embeddings() is not None else base
        freeze(self.backbone)
        for pair in layout.pairs:
            name = pair.module.removeprefix("base_model.model.")
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, CohortLinear(base.get_submodule(name), pair.module, self.stack))
        if pooling == "first" and not dropout:  # a pruned layer would draw other masks than a whole one
            _prune_last_layer(self.backbone)

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
        inputs = samples.inputs
        try:
            if PROMPT in self.layout.names:
                inputs = self._prompted(entries[self.layout.names.index(PROMPT)], inputs, owner)
            output = self.backbone(**inputs)
        finally:
            self.stack.factors = {}
        if samples.labels.dim() == 2:
            return output.last_hidden_state[:, -samples.labels.shape[1] :]
        return pool(output, samples, self.pooling)

    def _prompted(self, prompts: Tensor, inputs: Mapping[str, Tensor], owner: Tensor) -> dict[str, Tensor]:
        """Inputs with each owner's virtual tokens `[K, v, h]` before the first."""
        tokens = self.backbone.get_input_embeddings()(inputs["input_ids"])
        mine = prompts[owner].to(tokens.dtype)
        mask = torch.cat([torch.ones(mine.shape[:2], dtype=torch.long), inputs["attention_mask"]], dim=1)
        return {"inputs_embeds": torch.cat([mine, tokens], dim=1), "attention_mask": mask}


def pool(output: object, samples: Samples, pooling: str) -> Tensor:
    """One feature `[n, h]` per sample from the output of a Hugging Face model."""
    if pooling == "pooler":
        pooled = getattr(output, "image_embeds", None)
        return pooled if pooled is not None else output.pooler_output  # type: ignore[attr-defined]
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


def buckets(
    samples: Samples, owner: Tensor, max_tokens: int, image_tokens: int, whole: bool = False
) -> list[Tensor]:
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
        stop = min(n, start + max(1, max_tokens // descending[start]))
        short = next((i for i in range(start, stop) if 4 * descending[i] < 3 * descending[start]), stop)
        if 16 * min(short - start, stop - short) >= stop - start:  # else not worth a pass of its own
            stop = short
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
        if type(layer.base_layer) not in LINEAR:
            return f"'{pair.module}' is a {type(layer.base_layer).__name__}"
        if getattr(layer, "lora_bias", {}).get("default") or getattr(layer, "lora_variant", {}):
            return f"'{pair.module}' has a bias or a variant of LoRA"
    return None


def _prune_last_layer(backbone: nn.Module) -> None:
    """Let the last layer compute what the first token needs, where its architecture is known."""
    layers = getattr(getattr(backbone, "encoder", backbone), "layer", getattr(backbone, "layers", None))
    if layers is not None and type(layers[-1]).__name__ in FIRST_TOKEN:
        layers[-1] = FIRST_TOKEN[type(layers[-1]).__name__](layers[-1])
