"""Frozen linear layers on a CPU: oneDNN's matrix product, and no gradient of the weight.

In float32 torch calls MKL, which uses half of the vector width of processors that are not Intel's; oneDNN uses all
of it anywhere. Both round differently in the last bits.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Product(torch.autograd.Function):
    """`x W^T + b` for constant `W [out, in]` and `b`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return torch.ops.mkldnn._linear_pointwise(gradients[0], weight.t(), None, "none", [], ""), None, None


class Frozen(nn.Module):
    """A linear layer (or a `Conv1D` of transformers) that is never trained; shares the layer's weights."""

    original: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.transposed = not isinstance(layer, nn.Linear)
        self.original = layer.weight.detach()
        self.weight = self.original
        self.bias = layer.bias

    def add(self, change: Tensor) -> None:
        """Use the shared weight plus `change [out, in]`; the shared weight stays as it is."""
        self.weight = self.original + (change.t() if self.transposed else change).to(self.original.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output of `x [..., in]`."""
        weight = self.weight.t() if self.transposed else self.weight
        if _ONEDNN and x.device.type == "cpu":
            return _Product.apply(x.contiguous(), weight, self.bias)
        return F.linear(x, weight, self.bias)


def freeze(module: nn.Module) -> None:
    """Replace the linear layers of `module` by frozen ones."""
    for child in list(module.named_children()):
        name, layer = child
        if is_linear(layer):
            setattr(module, name, Frozen(layer))
        else:
            freeze(layer)


def is_linear(layer: object) -> bool:
    """Whether it is a linear layer, or a `Conv1D` of transformers, and not a subclass of either."""
    from transformers.pytorch_utils import Conv1D

    return type(layer) in (nn.Linear, Conv1D)
