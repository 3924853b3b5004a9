import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedfusion.lora.frozen import Frozen, freeze


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("layer", [nn.Linear(12, 20), nn.Linear(12, 20, bias=False), Conv1D(20, 12)])
def test_a_frozen_layer_is_the_layer_forward_and_backward(layer, dtype, error, rng):
    x = torch.randn(3, 7, 12, generator=rng).to(dtype).requires_grad_()
    cotangent = torch.randn(3, 7, 20, generator=rng).to(dtype)
    layer = layer.to(dtype)
    frozen = Frozen(layer)
    (expected,) = torch.autograd.grad(layer(x), x, cotangent)
    (found,) = torch.autograd.grad(frozen(x), x, cotangent)
    torch.testing.assert_close(frozen(x), layer(x), rtol=error, atol=error)
    torch.testing.assert_close(found, expected, rtol=error, atol=error)
    assert not list(frozen.parameters()) or frozen.weight.data_ptr() == layer.weight.data_ptr()


def test_what_is_added_leaves_the_shared_weight_alone(rng):
    layer = Conv1D(5, 4)
    before = layer.weight.detach().clone()
    frozen, change = Frozen(layer), torch.randn(5, 4, generator=rng)
    frozen.add(change)
    frozen.add(change)
    x = torch.randn(2, 4, generator=rng)
    torch.testing.assert_close(frozen(x), layer(x) + x @ change.T)
    assert torch.equal(layer.weight, before)


def test_every_linear_layer_of_a_model_is_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), Conv1D(2, 4)), nn.LayerNorm(2))
    freeze(model)
    assert [type(m).__name__ for m in model.modules() if not isinstance(m, nn.Sequential)] == [
        "Frozen", "ReLU", "Frozen", "LayerNorm"
    ]  # fmt: skip
