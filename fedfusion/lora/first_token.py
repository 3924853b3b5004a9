"""The last layer of an encoder whose feature is its first token: keys and values of all tokens, the rest of one.

Exact, because nothing after the last layer reads the other tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, heads: int, scaling: float) -> Tensor:
    """Attention of one query per row: `query [n, 1, h]`, `key`, `value [n, T, h]`, result `[n, 1, h]`."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = (q @ k.mT) * scaling
    if mask is not None:
        mask = mask[:, :, :1]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class BertFirstToken(nn.Module):
    """A `BertLayer` that returns its first token `[n, 1, h]`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """As the layer's own forward."""
        attention, first = self.layer.attention.self, hidden_states[:, :1]
        attended = _attend(
            attention.query(first),
            attention.key(hidden_states),
            attention.value(hidden_states),
            attention_mask,
            attention.num_attention_heads,
            attention.scaling,
        )
        return self.layer.feed_forward_chunk(self.layer.attention.output(attended, first))


class ViTFirstToken(nn.Module):
    """A `ViTLayer` that returns its first token `[n, 1, h]`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """As the layer's own forward."""
        layer, attention = self.layer, self.layer.attention
        normed = layer.layernorm_before(hidden_states)
        attended = _attend(
            attention.q_proj(normed[:, :1]),
            attention.k_proj(normed),
            attention.v_proj(normed),
            attention_mask,
            attention.num_attention_heads,
            attention.scaling,
        )
        hidden = attention.o_proj(attended) + hidden_states[:, :1]
        return layer.mlp(layer.layernorm_after(hidden)) + hidden


FIRST_TOKEN = {"BertLayer": BertFirstToken, "ViTLayer": ViTFirstToken}
